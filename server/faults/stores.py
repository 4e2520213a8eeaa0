"""What becomes of the event log's store: full, read-only, damaged, gone."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longrec.server.faults.load import Load, write_all
from longrec.server.faults.redis_server import running_redis
from longrec.server.faults.report import FaultResult
from longrec.server.faults.rig import Rig, make_rig, processes
from longrec.server.faults.subject import Subject
from longrec.server.faults.wire import Fate

__all__ = ["damaged_page", "full_disk", "full_log", "read_only", "redis_gone"]

USERS = 8
DISK_BYTES = 8 << 20


def full_log(subject: Subject, runs: int) -> FaultResult:
    """The log reaches `log_bytes`: nothing of a refused request is kept, and who only asks is answered."""
    problems = []
    with make_rig(subject, log_bytes=1 << 18) as rig, rig.wire() as wire:
        books = rig.ledger.open(f"full {n}" for n in range(64))
        said: list[str] = []
        while not said:
            said = write_all(wire, books, 40)
        if not all("size limit is reached" in line for line in said):
            problems.append(f"expected the size limit to be named, got {said[0]}")
        return rig.result("log full", runs, *problems)


def full_disk(subject: Subject, runs: int) -> FaultResult:
    """The disk is full, and later it isn't: writes fail whole, who only asks is answered, and the same server
    goes on."""
    problems: list[str] = []
    with make_rig(subject, started=False) as rig, _small_disk(rig) as disk:
        if disk.is_real:
            with disk.full():
                said = rig.failure()  # a log can't even be begun
            if "event_log=" not in said or "No space left" not in said:
                problems.append(f"expected the full disk to be named, got {said or 'a server that started'}")
        rig.restart()
        books = rig.ledger.open(f"disk {n}" for n in range(USERS))
        kept = rig.ledger.open(f"disk, reads only {n}" for n in range(USERS))
        with rig.wire() as wire:
            problems += write_all(wire, kept, 20)
        before = processes(rig.repository)
        for _ in range(runs):
            with Load(rig.url, books) as load:
                load.wait_for(30)
                with disk.full():
                    said = load.wait_for_failure()
                    problems += rig.result("", runs, books=kept).problems
                if "nothing was appended" not in said:
                    problems.append(f"expected that nothing was appended, got {said}")
                load.wait_for(30)
        if processes(rig.repository) != before:
            problems.append("the server was restarted")
        result = rig.result("disk full", runs, *problems[:3])
    return replace(result, note=disk.how)


def read_only(subject: Subject, runs: int) -> FaultResult:
    """The log's folder can't be written: the server says so and doesn't start; when it can be, everything is there."""
    problems: list[str] = []
    with make_rig(subject) as rig, rig.wire() as wire:
        books = rig.ledger.open(f"kept {n}" for n in range(USERS))
        problems += write_all(wire, books, 20)
        for _ in range(runs):
            rig.stop()
            with _unwritable(rig.data_file.parent) as how:
                said = rig.failure() if how else ""
            if not how:
                problems.append("not tried: root writes everywhere here, and may neither mount nor change attributes")
            elif "event_log=" not in said or "can be written" not in said:
                problems.append(f"{how}: expected the folder to be named, got {said or 'a server that started'}")
            rig.restart()
        return rig.result("log folder read-only", runs, *problems)


def damaged_page(subject: Subject, runs: int) -> FaultResult:
    """Bytes of one user's newest chunk flip on the disk: that user gets an error, the others are served and nothing is
    written behind the damage."""
    problems: list[str] = []
    with make_rig(subject) as rig:
        books = rig.ledger.open(f"whole {n}" for n in range(USERS))
        hurt = rig.ledger.open(f"hurt {n}" for n in range(runs))
        with rig.wire() as wire:
            problems += write_all(wire, [*books, *hurt], 40)
        rig.stop()
        data = rig.data_file.read_bytes()
        for book in hurt:
            rows = book.events(30, 40)[:, 1:].astype("<i8").tobytes()
            data = data.replace(rows, rows[:5] + bytes([rows[5] ^ 1]) + rows[6:])
        rig.data_file.write_bytes(data)
        rig.restart()
        with rig.wire() as wire:
            for book in hurt:
                for events in (book.events(40, 40), np.array([[40, 1, 1]])):
                    answer = wire.send(book.user, events, k=5).outcome()
                    if answer.fate is not Fate.UNKNOWN or "its checksum doesn't fit" not in answer.message:
                        problems.append(f"{book.user}: expected an error that names the checksum, got {answer}")
            problems += write_all(wire, books, 3, k=5)
        return rig.result("log page damaged", runs, *problems, books=books)


def redis_gone(subject: Subject, runs: int) -> FaultResult:
    """The Redis server is killed, and comes back: requests fail meanwhile, and the same server goes on after."""
    problems: list[str] = []
    with running_redis() as redis, make_rig(subject, event_log=redis.url) as rig:
        books = rig.ledger.open(f"redis {n}" for n in range(USERS))
        books += rig.ledger.open((f"redis unchecked {n}" for n in range(2)), checked=False)
        before = processes(rig.repository)
        for _ in range(runs):
            with Load(rig.url, books, seconds=10.0) as load:
                load.wait_for(30)
                redis.kill()
                said = load.wait_for_failure()
                if "event_log=redis://" not in said:
                    problems.append(f"expected the log to be named, got {said}")
                redis.start()
                load.wait_for(30)
        if processes(rig.repository) != before:
            problems.append("the server was restarted")
        return rig.result("redis gone and back", runs, *problems)


class _Disk:
    """Where a rig's log lies, and how that fills up.

    Attributes:
        is_real: a file system of its own; else the kernel refuses to let the stub's files grow, as on a full one.
    """

    def __init__(self, rig: Rig, *, is_real: bool) -> None:
        self._rig, self.is_real = rig, is_real

    @property
    def how(self) -> str:
        """For the report."""
        return f"tmpfs of {DISK_BYTES >> 20} MB" if self.is_real else "may not mount: by RLIMIT_FSIZE, no full disk"

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written."""
        if not self.is_real:
            with _no_growth(self._rig):
                yield
            return
        filler = self._rig.data_file.with_name("filler")
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            filler.unlink()


@contextlib.contextmanager
def _small_disk(rig: Rig) -> Iterator[_Disk]:
    """A small file system for a rig's log, where this machine may mount one. Stops the rig, which isn't started yet."""
    folder = rig.data_file.parent
    folder.mkdir(parents=True)
    mounted = _done(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder])
    try:
        yield _Disk(rig, is_real=mounted)
    finally:
        rig.stop()
        if mounted:
            _done(["umount", folder])


@contextlib.contextmanager
def _no_growth(rig: Rig) -> Iterator[None]:
    """The stub can't let a file grow past the size that the log has."""
    (stub,) = processes(rig.repository)["stub"]
    soft, hard = resource.prlimit(stub, resource.RLIMIT_FSIZE)
    resource.prlimit(stub, resource.RLIMIT_FSIZE, (rig.data_file.stat().st_size, hard))
    try:
        yield
    finally:
        resource.prlimit(stub, resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _unwritable(folder: Path) -> Iterator[str]:
    """Nobody can write to the folder; how that was done, or "" if it can't be."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in (*folder.iterdir(), folder)}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        try:
            yield "by mode"
        finally:
            for path, mode in reversed(modes.items()):
                path.chmod(mode)
        return
    # root writes whatever the mode says
    for how, on, off in (
        ("by a read-only mount", ["mount", "--bind", "-o", "ro", folder, folder], ["umount", folder]),
        ("by attribute", ["chattr", "-R", "+i", folder], ["chattr", "-R", "-i", folder]),
    ):
        if _done(on):
            try:
                yield how
            finally:
                _done(off)
            return
    yield ""


def _done(command: Sequence[object]) -> bool:
    try:
        return subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
