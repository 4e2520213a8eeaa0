"""How fast the event log takes events: batches of users, each store and durability, beside the disk's own sync rate.

    python benchmarks/event_log.py --out runs/event_log

Every figure is of a log that was read back and found whole. Redis runs on the same machine, from the wheel of the extra
`dev`. Writes event_log.json and event_log.png.
"""

import argparse
import json
import os
import platform
import resource
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from longrec.python_backend.event_log import Append, EventLog
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.redis_log import RedisLog

BATCHES = (1, 32, 256)
DURABILITIES = ("commit", "interval", "none")
APPENDFSYNC = {"commit": "always", "interval": "everysec", "none": "no"}
USERS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/event_log"))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    parser.add_argument("--events", type=int, default=4, help="of one append")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out) as scratch:
        syncs = sync_rate(Path(scratch), arguments.seconds)
        rows = [
            {"store": store, "durability": durability, "users": users}
            | measure(log, users, arguments.events, arguments.seconds)
            for store, opened in (("lmdb", lmdb_log), ("redis", redis_log))
            for durability in DURABILITIES
            for users in BATCHES
            for log in opened(Path(scratch), durability)
        ]
        large = opening(Path(scratch))
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "disk_syncs_per_second": syncs,
        "events_per_append": arguments.events,
        "opening": large,
        "rows": rows,
    }
    (arguments.out / "event_log.json").write_text(json.dumps(report, indent=2))
    show(report)
    draw(report, arguments.out / "event_log.png")


def measure(log: EventLog, users: int, count: int, seconds: float) -> dict[str, float]:
    """Appends of `count` events to `users` users a batch, round and round among USERS users, checked afterwards."""
    generator, lengths, batches = np.random.default_rng(7), np.zeros(USERS, np.int64), 0
    events, took = generator.integers(0, 1 << 40, (count, 2)), []
    names = [b"user %d" % n for n in range(USERS)]
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        chosen = (batches * users + np.arange(users)) % USERS
        log.append([Append(names[n], int(lengths[n]), events) for n in chosen])
        took.append(time.perf_counter() - begin)
        lengths[chosen] += count
        batches += 1
    for n in generator.choice(USERS, 200, replace=False):
        length = int(lengths[n])
        if log.length(names[n]) != length or not (log.read(names[n], 0, length).reshape(-1, count, 2) == events).all():
            raise SystemExit(f"user {n}: the log isn't what was appended; no figures")
    total = sum(took)
    return {
        "batches_per_second": batches / total,
        "appends_per_second": batches * users / total,
        "events_per_second": batches * users * count / total,
        "p50_milliseconds": 1e3 * float(np.percentile(took, 50)),
        "p99_milliseconds": 1e3 * float(np.percentile(took, 99)),
    }


def lmdb_log(scratch: Path, durability: str) -> Iterator[LmdbLog]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        log = LmdbLog(Path(folder), durability=durability, max_bytes=4 << 30)
        yield log
        log.close()


def redis_log(scratch: Path, durability: str) -> Iterator[RedisLog]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder, redis_server(Path(folder), durability) as url:
        log = RedisLog(url, durability=durability)
        yield log
        log.close()


@contextmanager
def redis_server(folder: Path, durability: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    binary = Path(sysconfig.get_path("scripts"), "redis-server")
    settings = ["--appendonly", "yes", "--appendfsync", APPENDFSYNC[durability], "--logfile", "log"]
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", *settings], cwd=folder
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def sync_rate(folder: Path, seconds: float) -> float:
    """4 KiB writes, each synced, a second."""
    with open(folder / "sync", "wb", buffering=0) as file:
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - begin)


def opening(folder: Path) -> dict[str, float]:
    """Opening a log of 10,000 users with 100 events each, and the first read of one of them."""
    path, events = folder / "large", np.arange(200).reshape(100, 2)
    log = LmdbLog(path, durability="none", max_bytes=1 << 30)
    for start in range(0, USERS, 500):
        log.append([Append(b"user %d" % n, 0, events) for n in range(start, start + 500)])
    log.close()
    begin = time.perf_counter()
    log = LmdbLog(path, durability="none", max_bytes=1 << 30)
    opened = time.perf_counter()
    log.read(b"user 77", 0, 100)
    first_read = time.perf_counter()
    log.recent_users(USERS)
    listed = time.perf_counter()
    log.close()
    return {
        "events": 100 * USERS,
        "megabytes": (path / "data.mdb").stat().st_size / 1e6,
        "open_milliseconds": 1e3 * (opened - begin),
        "first_read_milliseconds": 1e3 * (first_read - opened),
        "recent_users_milliseconds": 1e3 * (listed - first_read),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def show(report: dict) -> None:
    console, large = Console(width=100), report["opening"]
    table = Table(*("store", "durability", "users a batch", "batches/s", "appends/s", "events/s", "p50 ms", "p99 ms"))
    for row in report["rows"]:
        figures = (row[name] for name in ("batches_per_second", "appends_per_second", "events_per_second"))
        times = (f"{row[name]:.2f}" for name in ("p50_milliseconds", "p99_milliseconds"))
        table.add_row(row["store"], row["durability"], str(row["users"]), *(f"{x:,.0f}" for x in figures), *times)
    console.print(table)
    console.print(f"{report['machine']}; the disk syncs {report['disk_syncs_per_second']:,.0f} times a second")
    console.print(
        f"LMDB with {large['events']:,} events of {USERS:,} users ({large['megabytes']:.0f} MB): opened in "
        f"{large['open_milliseconds']:.1f} ms, first read {large['first_read_milliseconds']:.2f} ms, "
        f"the last {USERS:,} users listed in {large['recent_users_milliseconds']:.1f} ms"
    )


def draw(report: dict, path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for store, line in (("lmdb", "-"), ("redis", "--")):
        for durability, color in zip(DURABILITIES, ("C0", "C1", "C2"), strict=True):
            rows = [row for row in report["rows"] if (row["store"], row["durability"]) == (store, durability)]
            values = [row["events_per_second"] for row in rows]
            axes.plot(
                [row["users"] for row in rows], values, line, color=color, marker="o", label=f"{store}, {durability}"
            )
    axes.set(xscale="log", yscale="log", xlabel="users a batch", ylabel="events/s")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
