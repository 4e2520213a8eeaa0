"""Host memory that an idle user costs beside their pages: `python -m longrec.server.bench.resident`, sizes as JSON on
standard input, bytes on standard output.

A process of its own, for what earlier work left in the allocator would hide what is new. What counts is the growth of
anonymous resident memory (RssAnon) from before the engine's pool is made until all users are in it, less the pages,
which are written over whole first, so that all of them are resident. The event log's file is mapped, not anonymous.
"""

import ctypes
import gc
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from longrec.config import EngineConfig, ModelConfig, parse_config
from longrec.errors import ServerError
from longrec.modeling import Transformer
from longrec.protocol import UNCHECKED_POSITION
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Query

__all__ = ["bytes_per_idle_user"]

BATCH_EVENTS = 2000  # of a call: everyone in it is answered at once


def bytes_per_idle_user(model: ModelConfig, users: int, events: int, folder: Path) -> float:
    """Make so many users resident, with so many events each, and see what that took.

    Args:
        model: of the network, whose weights don't matter.
        users, events: at most `EngineConfig.inline_events` events.
        folder: for the log.

    Raises:
        ServerError: fewer users are in memory afterwards.
    """
    torch.set_num_threads(1)
    network = Transformer(model).eval()
    page_bytes = 8 * model.num_layers * EngineConfig().page_size * model.num_kv_heads * model.head_dim
    pages = users * -(-events // EngineConfig().page_size)
    log = LmdbLog(folder / "log", durability="none", max_bytes=4 << 30)
    try:
        small = Engine(network, log, EngineConfig())
        _make_resident(small, [f"before-{number}" for number in range(2 * BATCH_EVENTS // events)], events)
        del small
        before = _anonymous_bytes()
        engine = Engine(network, log, EngineConfig(memory_bytes=page_bytes * pages))
        for tensor in engine.pool.store.tensors:
            tensor.fill_(0)
        _make_resident(engine, [f"user-{number}" for number in range(users)], events)
        if len(engine.pool) != users:
            raise ServerError(f"residency: expected {users} users in memory, got {len(engine.pool)}")
        return (_anonymous_bytes() - before - page_bytes * pages) / users
    finally:
        log.close()


def _make_resident(engine: Engine, users: Sequence[str], events: int) -> None:
    rows = np.column_stack((np.arange(events) % engine.network.config.num_items, 60_000 * np.arange(events)))
    batch = max(1, BATCH_EVENTS // events)
    for begin in range(0, len(users), batch):
        queries = [Query(user.encode(), rows, UNCHECKED_POSITION, None, 1) for user in users[begin : begin + batch]]
        engine.answer_all(queries)


def _anonymous_bytes() -> int:
    """RssAnon, once free memory has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"^RssAnon:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "Linux says so since 4.5"
    return 1024 * int(found[1])


def main() -> None:
    """Read {"model", "users", "events"}, print the bytes."""
    sizes = json.load(sys.stdin)
    model = parse_config(ModelConfig, sizes["model"], "standard input")
    with TemporaryDirectory() as folder:
        print(bytes_per_idle_user(model, sizes["users"], sizes["events"], Path(folder)))


if __name__ == "__main__":
    main()
