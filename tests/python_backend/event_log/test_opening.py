"""The configured store is the one that is opened, with its settings."""

import pytest

from longrec.config import EngineConfig, parse_config
from longrec.errors import ArgumentError
from longrec.python_backend.event_log import Append, open_event_log
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.redis_log import RedisLog


def test_a_relative_folder_is_the_repositorys(tmp_path, rows):
    log = open_event_log(EngineConfig(event_log="../log", log_bytes=1 << 20), tmp_path / "repository", 10)
    assert isinstance(log, LmdbLog)
    log.append([Append(b"u", 0, rows(1))])
    log.close()
    assert (tmp_path / "log" / "data.mdb").is_file()


def test_redis(redis_server, rows):
    config = EngineConfig(event_log=redis_server.url, flush_milliseconds=1000, max_user_events=70)
    log = open_event_log(config, redis_server.folder, 10)
    assert isinstance(log, RedisLog)
    for position in (0, 200):
        log.append([Append(b"retained", position, rows(*range(200)))])
    assert log.extent(b"retained") == (128, 400)
    log.close()


def test_retention_below_the_receptive_field_is_refused(tmp_path):
    config = EngineConfig(max_user_events=23)
    with pytest.raises(ArgumentError, match="max_user_events=23: expected at least 24, the network's receptive field"):
        open_event_log(config, tmp_path, 23)
    assert not list(tmp_path.iterdir())
    open_event_log(EngineConfig(max_user_events=24, event_log="log", log_bytes=1 << 20), tmp_path, 23).close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"event_log": "http://host/log"}, r"event_log: expected a folder, redis://… or rediss://…, got http://…"),
        ({"event_log": "redis://host"}, r"flush_milliseconds: expected at least 1000 with Redis, .* got 100"),
        ({"log_bytes": 9}, r"log_bytes: expected greater than or equal to 65536, got 9"),
        ({"max_user_events": -1}, r"max_user_events: expected greater than or equal to 0, got -1"),
    ],
)
def test_settings_that_dont_fit_are_named(values, message):
    with pytest.raises(ArgumentError, match=message):
        parse_config(EngineConfig, values, "config.pbtxt")
