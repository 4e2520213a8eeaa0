"""Servers that share one event log, and what the log holds in the end."""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from longrec.client import Event
from longrec.config import EngineConfig
from longrec.python_backend.event_log import open_event_log
from longrec.server.faults.subject import Subject
from longrec.server.process import Server
from longrec.server.repository import write_repository

__all__ = ["LogCheck", "Rig", "make_event", "make_rig"]

CATALOGUE = 97  # items of the subject
START_MS = 1_700_000_000_000


class LogCheck(NamedTuple):
    """Events that the log lacks, and those that it has more than once or out of order."""

    lost: int
    duplicated: int


class Rig(NamedTuple):
    """Servers of one small network on one log.

    Args:
        servers: started; `stop(at_once=True)` and `start()` kill one and bring it back on the same ports.
        config: of their engines.
        repository: theirs.
    """

    servers: tuple[Server, ...]
    config: EngineConfig
    repository: Path

    @property
    def urls(self) -> list[str]:
        """Of the servers."""
        return [server.grpc_url for server in self.servers]

    def check(self, sent: Mapping[str, int]) -> LogCheck:
        """Hold the log against how many of `make_event`'s events each user sent."""
        log = open_event_log(self.config, self.repository, Subject().config.receptive_field)
        lost = duplicated = 0
        try:
            for user, count in sent.items():
                first, length = log.extent(user.encode())
                steps = [int(time) - START_MS for time in log.read(user.encode(), first, length)[:, 1]]
                found = Counter(steps)
                lost += count - len(found.keys() & set(range(count)))
                duplicated += len(steps) - len(found) if steps == sorted(steps) else len(steps)
        finally:
            log.close()
        return LogCheck(lost, duplicated)


def make_event(user: int, step: int) -> Event:
    """The user's event number `step`, told by its time."""
    return Event(item=(7 * user + step) % CATALOGUE, time_ms=START_MS + step)


@contextlib.contextmanager
def make_rig(count: int = 1, engine: EngineConfig | None = None, models: Sequence[str] = ()) -> Iterator[Rig]:
    """So many servers in a temporary folder; nothing is left of them afterwards.

    Raises:
        MachineError, ServerError: as `Server.start`.
    """
    config = engine or EngineConfig(memory_bytes=32 << 20, log_bytes=1 << 30)
    folder = Path(tempfile.mkdtemp(prefix="longrec-client-"))
    try:
        with contextlib.ExitStack() as running:
            repository = folder / "repository"
            write_repository(Subject().save(folder / "run"), repository, engine=config, extras=models)
            servers = []
            for number in range(count):
                log = folder / f"tritonserver-{number}.log"
                server = Server(repository, grpc_port=0, http_port=0, metrics_port=0, log=log, stop_seconds=5.0)
                servers.append(running.enter_context(server))
            yield Rig(tuple(servers), config, repository)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
