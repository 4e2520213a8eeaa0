"""Opens either store anew: `open_log(...)` of the same test is the same store again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.python_backend.event_log import EventLog
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.redis_log import RedisLog

OpenLog = Callable[..., EventLog]


@pytest.fixture
def rows() -> Callable[..., np.ndarray]:
    """Events [n, 2] of the given items, at times that differ from them."""

    def make(*items: int) -> np.ndarray:
        return np.array([(item, 1_000 * item + 7) for item in items], np.int64).reshape(-1, 2)

    return make


@pytest.fixture(params=["lmdb", "redis"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path, redis_server: Any) -> Iterator[OpenLog]:
    opened: list[EventLog] = []

    def open_anew(**settings: Any) -> EventLog:
        for log in opened:  # LMDB: a process opens a folder once
            log.close()
        if request.param == "redis":
            log: EventLog = RedisLog(redis_server.url, **settings)
        else:
            log = LmdbLog(tmp_path / "log", **{"durability": "none", "max_bytes": 64 << 20, **settings})
        opened.append(log)
        return log

    yield open_anew
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: OpenLog) -> EventLog:
    return open_log()
