"""The supervisor: whatever ends first, nothing of the server is left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longrec.server import supervisor

Supervised = Callable[..., "subprocess.Popen[bytes]"]

# A server with a child of its own, both deaf to SIGTERM if told so; writes their process ids once both are up.
SERVER = """
import os, signal, sys, time
deaf, path = sys.argv[1] == "deaf", sys.argv[2]
read, write = os.pipe()
child = os.fork()
if deaf or not child:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not child:
    os.write(write, b"!")
    time.sleep(60)
os.read(read, 1)
open(path + ".new", "w").write(f"{os.getpid()} {child}")
os.rename(path + ".new", path)
time.sleep(60)
"""


@pytest.fixture
def prefix() -> str:
    return f"longrec_test_{uuid.uuid4().hex[:8]}_"


@pytest.fixture
def supervised(prefix: str) -> Iterator[Supervised]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, grace: float = 0.5) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, supervisor.__file__, prefix, str(grace), *command], stdin=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.stdin:
            process.stdin.close()
        process.wait(30)


def server_and_child(path: Path) -> list[int]:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(pid) for pid in path.read_text().split()]


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether `pid` ended, or is only waiting to be reaped by an init that doesn't."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("ending", "hearing"), [("input-closed", "deaf"), ("SIGTERM", "hears"), ("SIGINT", "hears")])
def test_server_and_child_end(
    supervised: Supervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hearing: str, ending: str
) -> None:
    process = supervised(sys.executable, "-c", SERVER, hearing, str(tmp_path / "pids"))
    pids = server_and_child(tmp_path / "pids")
    if ending == "input-closed":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(signal.Signals[ending])
    assert process.wait(30) == 128 + (signal.SIGKILL if hearing == "deaf" else signal.SIGTERM)
    assert all(gone(pid, seconds=0.1) for pid in pids)


@pytest.mark.parametrize("victim", ["asked", "server"])
def test_a_failed_server_takes_its_child_along_at_once(supervised: Supervised, tmp_path: Path, victim: str) -> None:
    process = supervised(sys.executable, "-c", SERVER, "deaf", str(tmp_path / "pids"), grace=60.0)
    server, child = server_and_child(tmp_path / "pids")
    if victim == "asked":
        os.kill(server, signal.SIGSTOP)  # it hangs, and doesn't hear SIGTERM either
        assert process.stdin is not None
        process.stdin.write(supervisor.KILL)
        process.stdin.flush()
    else:
        os.kill(server, signal.SIGKILL)
    assert process.wait(supervisor.STUB_EXIT_SECONDS) == 128 + signal.SIGKILL
    assert gone(server, seconds=0.1)
    assert gone(child, seconds=0.1)


def test_server_ends_with_a_killed_supervisor(supervised: Supervised, tmp_path: Path) -> None:
    process = supervised(sys.executable, "-c", SERVER, "deaf", str(tmp_path / "pids"))
    server, child = server_and_child(tmp_path / "pids")
    process.kill()
    process.wait(30)
    assert gone(server)
    os.kill(child, signal.SIGKILL)  # a Triton stub sees its parent's end by itself; this child doesn't


def test_exit_code_and_regions(supervised: Supervised, prefix: str) -> None:
    region, other = Path("/dev/shm", f"{prefix}region"), Path("/dev/shm", f"other_{prefix}")
    for path in (region, other):
        path.touch()
    try:
        assert supervised(sys.executable, "-c", "raise SystemExit(3)").wait(30) == 3
        assert not region.exists()
        assert other.exists()
    finally:
        other.unlink()
