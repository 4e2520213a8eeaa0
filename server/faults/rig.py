"""A server with a folder of its own, on which something is done: started, killed, asked, and compared with the book."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.python_backend.event_log import EventLog, open_event_log
from longrec.server.faults.ledger import Book, Ledger
from longrec.server.faults.report import FaultResult
from longrec.server.faults.subject import Subject
from longrec.server.faults.wire import Fate, Wire
from longrec.server.process import Server
from longrec.server.repository import write_repository

__all__ = ["Rig", "make_rig", "processes"]

DEFAULTS = {"max_k": 97, "memory_bytes": 8 << 20, "page_size": 16, "log_bytes": 64 << 20, "durability": "commit"}
STOP_SECONDS = 5.0


class _Checked(NamedTuple):
    lost: int
    duplicated: int
    difference: float
    problems: tuple[str, ...]


class Rig:
    """One server and what is known about it.

    Args:
        subject: the network to serve.
        folder: for repository, log and output; of this rig alone.
        settings: `EngineConfig` fields beside `DEFAULTS`.
    """

    def __init__(self, subject: Subject, folder: Path, **settings: Any) -> None:
        self.subject, self.folder = subject, folder
        self.config = EngineConfig(**{**DEFAULTS, **settings})
        self.repository = folder / "repository"
        self.ledger = Ledger(subject.num_items)
        write_repository(subject.save(folder / "run"), self.repository, engine=self.config)
        self._server = self._make_server()

    @property
    def url(self) -> str:
        """Of the server's gRPC endpoint."""
        return self._server.grpc_url

    @property
    def shm_prefix(self) -> str:
        """What the names of the server's regions in /dev/shm begin with."""
        return self._server.shm_prefix

    @property
    def data_file(self) -> Path:
        """The LMDB log's file."""
        return (self.repository / self.config.event_log).resolve() / "data.mdb"

    def start(self) -> "Rig":
        """Start the server, and wait for its first answer."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop it; does nothing if it doesn't run."""
        self._server.stop()

    def restart(self) -> None:
        """Stop what is left of it, and start it anew."""
        self._server.stop()
        self._server = self._make_server().start()

    def kill(self, what: str) -> None:
        """Kill -9 `server` or `stub`."""
        for pid in processes(self.repository)[what]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wire(self, seconds: float = 20.0) -> Wire:
        """A new channel to the server."""
        return Wire(self.url, seconds)

    def open_log(self) -> EventLog:
        """The log, beside the server."""
        return open_event_log(self.config, self.repository, self.subject.config.receptive_field)

    def result(self, fault: str, runs: int, *problems: str, books: list[Book] | None = None) -> FaultResult:
        """What the log holds, and what the running server answers, against the books (all of them, or these)."""
        books = self.ledger.books if books is None else books
        found = self.check(books)
        return FaultResult(
            fault,
            runs,
            sum(book.acknowledged for book in books),
            found.lost,
            found.duplicated,
            found.difference,
            (*problems, *found.problems),
        )

    def check(self, books: list[Book]) -> _Checked:
        """Compare each user's log with the book, and the server's answer with a recompute of the log."""
        lost, duplicated, difference = 0, 0, 0.0
        problems: list[str] = []
        log = self.open_log()
        try:
            logs = []
            for book in books:
                first, length = log.extent(book.user.encode())
                rows = log.read(book.user.encode(), first, length)
                finding = book.compare(rows, first)
                lost, duplicated = lost + finding.lost, duplicated + finding.duplicated
                problems += finding.problems
                logs.append(np.concatenate((book.events(0, first)[:, 1:], rows)))
        finally:
            log.close()
        with self.wire() as wire:
            pending = [wire.send(book.user, k=self.subject.num_items) for book in books]
            for book, rows, answer in zip(books, logs, (one.outcome() for one in pending), strict=True):
                if answer.fate is not Fate.OK or answer.items is None or answer.scores is None:
                    problems.append(f"{book.user}: expected an answer, got {answer.message or answer.fate.value}")
                elif answer.length != len(rows) or len(set(answer.items.tolist())) != self.subject.num_items:
                    problems.append(f"{book.user}: expected all items after {len(rows)} events, got {answer.length}")
                else:
                    expected = self.subject.scores(rows)
                    difference = max(difference, float(np.abs(answer.scores - expected[answer.items]).max()))
        return _Checked(lost, duplicated, difference, tuple(problems))

    def failure(self) -> str:
        """Why the server doesn't start; empty if it does."""
        try:
            self.restart()
        except ServerError as error:
            return str(error)
        return ""

    def _make_server(self) -> Server:
        return Server(
            self.repository,
            grpc_port=0,
            http_port=0,
            metrics_port=0,
            log=self.folder / "tritonserver.log",
            stop_seconds=STOP_SECONDS,
        )


@contextlib.contextmanager
def make_rig(subject: Subject, *, started: bool = True, **settings: Any) -> Iterator[Rig]:
    """A rig in a temporary folder, its server running; nothing is left of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="longrec-fault-"))
    try:
        rig = Rig(subject, folder, **settings)
        try:
            if started:
                rig.start()
            yield rig
        finally:
            rig.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes(repository: Path) -> dict[str, list[int]]:
    """Process ids of the `server` and `stub`s that serve a repository."""
    found: dict[str, list[int]] = {"server": [], "stub": []}
    path = str(repository.resolve()).encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile
        if any(path in word for word in words):
            name = os.path.basename(words[0])
            if name == b"tritonserver":
                found["server"].append(int(entry.parent.name))
            elif name == b"triton_python_backend_stub":
                found["stub"].append(int(entry.parent.name))
    return found
