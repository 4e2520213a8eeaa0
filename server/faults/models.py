"""What memory and model go through: too many users, new weights under load, very many requests."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from longrec.protocol import MODEL, UNCHECKED_POSITION
from longrec.server.bench.running import write_requests
from longrec.server.faults.load import Load, write_all
from longrec.server.faults.report import FaultResult
from longrec.server.faults.rig import Rig, make_rig, processes
from longrec.server.faults.subject import Subject
from longrec.server.loading import switch_version
from longrec.server.perf_analyzer import run_perf_analyzer
from longrec.server.repository import write_repository

__all__ = ["leak", "new_version", "small_pool"]

LEAK_REQUESTS = 200_000
WARM_REQUESTS = 15_000
WARM_IN_FLIGHT, IN_FLIGHT = 2000, 200
GROWTH = 1.05


def small_pool(subject: Subject, runs: int) -> FaultResult:
    """400 users take turns in memory for 4: they are evicted and rebuilt all the time."""
    model, page_size, most_events = subject.config, 16, 16
    page_bytes = 2 * model.num_layers * page_size * model.num_kv_heads * model.head_dim * 4
    pages = (
        -(-(model.window - 1 + most_events) // page_size) + 1
    )  # of a user, wherever the first event lies in its page
    problems: list[str] = []
    with (
        make_rig(
            subject,
            durability="interval",
            memory_bytes=4 * pages * page_bytes,
            page_size=page_size,
            inline_events=most_events,
            chunk_events=most_events,
        ) as rig,
        rig.wire(60.0) as wire,
    ):
        books = rig.ledger.open(f"one of many {n}" for n in range(400))
        for _ in range(3 * runs):
            problems += write_all(wire, books, 2, k=5)
        return rig.result("pool of 4 users for 400", runs, *problems[:3])


def new_version(subject: Subject, runs: int) -> FaultResult:
    """Other weights are loaded under load, and the old ones again: no request fails, and each version's answers are its
    own."""
    problems: list[str] = []
    lost, duplicated, difference = 0, 0, 0.0
    versions = {1: subject, 2: Subject(seed=1)}
    with make_rig(subject, durability="interval") as rig:
        write_repository(
            versions[2].save(rig.folder / "other run"), rig.repository, engine=rig.config, version=2, select=False
        )
        books = rig.ledger.open(f"through {n}" for n in range(12))
        for _ in range(runs):
            for version in (2, 1):
                with Load(rig.url, books, seconds=30.0) as load:
                    load.wait_for(50)
                    switch_version(rig.repository, version, rig.url)
                    load.wait_for(50)
                problems += load.failures
                rig.subject = versions[version]
                found = rig.check(books)
                lost, duplicated = lost + found.lost, duplicated + found.duplicated
                difference = max(difference, found.difference)
                problems += found.problems
        return FaultResult(
            "new version under load", runs, rig.ledger.acknowledged, lost, duplicated, difference, tuple(problems[:3])
        )


def leak(subject: Subject, runs: int) -> FaultResult:
    """200,000 requests a run, 200 in flight: resident memory of server and stub within 5%, /dev/shm as before.

    tritonserver keeps what a request in flight took for the next one (up to `GRPC_POOL_SIZE` of them, 50 KB each), and
    an allocator keeps the most that was ever in use. Both creep up over hundreds of thousands of requests to a
    high-water mark, as a stall on a busy machine lets more of them pile up than before. So 2,000 at once come before
    the measurement, ten times as many as in it: what still grows is a leak.
    """
    keep = subject.config.receptive_field + 64
    with make_rig(subject, durability="interval", max_user_events=keep) as rig, rig.wire(60.0) as wire:
        books = rig.ledger.open(f"steady {n}" for n in range(200))
        problems = write_all(wire, books, 3, k=5)
        requests = rig.folder / "requests.json"
        busy = [f"busy {n}" for n in range(200)]
        write_requests(requests, [(user, np.array([[UNCHECKED_POSITION, 3, 1_700_000_000_000]])) for user in busy])

        def send(count: int, in_flight: int) -> None:
            run_perf_analyzer(
                rig.url, MODEL, requests, [in_flight], requests=count, parameters={"k": 5}, timeout_seconds=1800.0
            )

        send(WARM_REQUESTS, WARM_IN_FLIGHT)
        send(WARM_REQUESTS, IN_FLIGHT)
        before = _resident(rig)
        send(LEAK_REQUESTS * runs, IN_FLIGHT)
        after = _resident(rig)
        for name, size in before.items():
            allowed = size if name == "/dev/shm" else size * GROWTH
            if after[name] > allowed:
                problems.append(f"{name}: expected at most {allowed / 1e6:.1f} MB, got {after[name] / 1e6:.1f}")
        log = rig.open_log()
        answered = sum(log.length(user.encode()) for user in busy)
        log.close()
        if answered < 2 * WARM_REQUESTS + LEAK_REQUESTS * runs:
            problems.append(f"expected {LEAK_REQUESTS * runs} requests to be measured, got {answered} in all")
        problems += write_all(wire, books, 1, k=5)
        result = rig.result("200,000 requests", runs, *problems[:3])
    return replace(
        result, note=", ".join(f"{name} {before[name] / 1e6:.1f} -> {after[name] / 1e6:.1f} MB" for name in before)
    )


def _resident(rig: Rig) -> dict[str, float]:
    """Bytes of the processes' resident memory and of what lies in /dev/shm for them."""
    sizes: dict[str, float] = {}
    for name, pids in processes(rig.repository).items():
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        sizes[name] = pages * 4096.0
    sizes["/dev/shm"] = float(sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(f"{rig.shm_prefix}*")))
    return sizes
