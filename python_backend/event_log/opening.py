"""Opens the event log that a configuration names. Knows which store has which settings, and no store itself."""

from pathlib import Path

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.python_backend.event_log.log import EventLog

__all__ = ["open_event_log", "open_written_log"]


def open_event_log(config: EngineConfig, root: Path, reach: int | None, num_features: int = 0) -> EventLog:
    """The log that `config.event_log` names.

    Args:
        config: its log settings.
        root: what a relative folder is relative to.
        reach: newest events that can reach an answer of the network; None: all of them.
        num_features: columns of an event behind item and time.

    Raises:
        ArgumentError: `config.max_user_events` would drop events that a rebuild needs.
        MachineError: the store can't be opened, or can't keep the durability.
        DataError: the store holds a log of another format, or a damaged one.
    """
    least = (reach or 0) + 1  # a rebuild's first event needs the time of the one before it
    if 0 < config.max_user_events < least:
        raise ArgumentError(
            f"max_user_events={config.max_user_events}",
            f"at least {least}, the network's receptive field and one more",
            remedy="raise it, or set 0 to keep every event",
        )
    # each store's library is imported where it is used alone
    if config.is_redis_log:
        from longrec.python_backend.event_log.redis_log import RedisLog

        return RedisLog(
            config.event_log,
            durability=config.durability,
            max_bytes=config.log_bytes,
            max_user_events=config.max_user_events,
            num_features=num_features,
        )
    from longrec.python_backend.event_log.lmdb_log import LmdbLog

    return LmdbLog(
        (root / config.event_log).resolve(),
        durability=config.durability,
        flush_milliseconds=config.flush_milliseconds,
        max_bytes=config.log_bytes,
        max_user_events=config.max_user_events,
        num_features=num_features,
    )


def open_written_log(config: EngineConfig, root: Path, num_features: int = 0) -> EventLog:
    """The log that `config.event_log` names, to be read while servers write it.

    Args:
        config, root, num_features: as `open_event_log`.

    Raises:
        ArgumentError: there is no such folder.
        MachineError, DataError: as `open_event_log`.
    """
    if not config.is_redis_log and not (root / config.event_log / "data.mdb").is_file():
        raise ArgumentError(
            f"event_log={config.event_log}", "the folder of an event log", remedy="it is beside the served repository"
        )
    # nothing is written, so nothing has to be durable or dropped
    return open_event_log(config.model_copy(update={"durability": "none", "max_user_events": 0}), root, 0, num_features)
