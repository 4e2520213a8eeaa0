"""The event log in Redis, for several servers. The only file that knows Redis.

    longrec:format         ASCII decimal of `records.FORMAT`; `+n` behind it in a store of rows with n features
    longrec:bytes          sum of the bytes of all sealed rows
    longrec:recent         sorted set: user's key -> unix milliseconds of the last append, by the server's clock
    longrec:states         hash: user's key -> what `write_states` kept
    longrec:user:<key>     hash: "first", "length" -> positions; chunk's first position -> sealed rows

A batch is one script, so one round trip, and atomic in the store. A single server (with replicas, if wanted) is meant:
a cluster spreads keys, which one script can't reach.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from longrec.errors import ArgumentError, DataError, LongrecError, MachineError
from longrec.protocol import Status
from longrec.python_backend.event_log.log import Append, Appended, EventLog, Extent, Span, missing
from longrec.python_backend.event_log.records import (
    CHUNK_EVENTS,
    COLUMNS,
    FORMAT,
    Rows,
    chunk_of,
    fit_columns,
    seal_rows,
    sealed_row_bytes,
    unseal_rows,
)

__all__ = ["RedisLog"]

SYNC_SECONDS: Final = 1.0  # from one sync to the next with `appendfsync everysec`
TIMEOUT_SECONDS: Final = 2.0  # of connecting, and of each answer
FORMAT_KEY: Final = b"longrec:format"
BYTES_KEY: Final = b"longrec:bytes"
RECENT_KEY: Final = b"longrec:recent"
STATES_KEY: Final = b"longrec:states"
USER_KEY: Final = b"longrec:user:"
DAMAGED: Final = -1

# First looks, then writes: when it returns an error, or Redis refuses its first write for want of memory, nothing has
# changed. A chunk of another size than `length` says is damage: the user's appends are refused, the others go on.
# Outcomes are {status, skipped, length}. Those of conflicts go on with a position and the rows that the log holds from
# there on, as the script can't tell damaged rows from other ones. {-1, first, events}: the chunk at `first` should have
# so many events.
_SCRIPT: Final = """
local format, size, row = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local keep, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local found = redis.call('GET', KEYS[1])
if found and found ~= format then return {'format', found} end

-- sealed rows at positions from..to-1; or nil, and what is said of the chunk that isn't whole
local function held(name, user, from, to)
    local first = from - from % size
    local base, parts = math.min(first, user.old), {}
    while first < math.min(to, user.old) do
        local chunk, events = user.tail, math.min(user.old - first, size)
        if events == size then chunk = redis.call('HGET', name, string.format('%d', first)) or '' end
        if #chunk ~= events * row then return nil, {-1, first, events} end
        parts[#parts + 1] = chunk
        first = first + size
    end
    if to > user.old then parts[#parts + 1] = table.concat(user.new) end
    return string.sub(table.concat(parts), (from - base) * row + 1, (to - base) * row)
end

local users, outcomes, grown = {}, {}, 0
for n = 1, #KEYS - 3 do
    local name, position, rows = KEYS[n + 3], tonumber(ARGV[5 + 2 * n]), ARGV[6 + 2 * n]
    local user = users[name]
    if not user then
        local state = redis.call('HMGET', name, 'first', 'length')
        user = {first = tonumber(state[1] or 0), length = tonumber(state[2] or 0), new = {}}
        user.old, user.tail = user.length, ''
        local used = user.length % size
        if used > 0 then
            user.tail = redis.call('HGET', name, string.format('%d', user.length - used)) or ''
            if #user.tail ~= used * row then user.damaged = {-1, user.length - used, used} end
        end
        users[name] = user
    end
    local count, skipped, refused = #rows / row, 0, user.damaged
    if position > user.length then
        refused = refused or {1, count, user.length}
    elseif position >= 0 then
        skipped = math.min(user.length - position, count)
        local from, to = math.max(position, user.first), position + skipped
        if from < to and not refused then
            local found, damage = held(name, user, from, to)
            if damage then
                refused = damage
            else
                for at = 0, to - from - 1 do  -- item and time say which event it is
                    local sent = (from - position + at) * row
                    if string.sub(found, at * row + 1, at * row + 16) ~= string.sub(rows, sent + 1, sent + 16) then
                        refused = {2, count, user.length, from, found}
                        break
                    end
                end
            end
        end
    end
    if refused then
        outcomes[n] = refused
    else
        if skipped < count then
            user.new[#user.new + 1] = string.sub(rows, skipped * row + 1)
            user.length = user.length + count - skipped
            grown = grown + (count - skipped) * row
        end
        outcomes[n] = {0, skipped, user.length}
    end
end
if grown == 0 then return {'ok', outcomes, false} end

local total = tonumber(redis.call('GET', KEYS[2]) or 0) + grown
for _, user in pairs(users) do
    user.stays = user.first
    while keep > 0 and user.length > user.old and user.stays + size <= user.old - keep do
        user.stays, total = user.stays + size, total - size * row
    end
end
if total > limit then return {'full', total} end
local now, recent = redis.call('TIME'), {}
now = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local function put(command, key, list)
    if #list > 0 then redis.call(command, key, unpack(list)) end
    return {}
end
for name, user in pairs(users) do
    if user.length > user.old then
        local first, rows = user.old - user.old % size, user.tail .. table.concat(user.new)
        local fields = {'first', string.format('%d', user.stays), 'length', string.format('%d', user.length)}
        for at = 1, #rows, size * row do
            fields[#fields + 1] = string.format('%d', first)
            fields[#fields + 1] = string.sub(rows, at, at + size * row - 1)
            first = first + size
            if #fields > 1000 then fields = put('HSET', name, fields) end
        end
        put('HSET', name, fields)
        for dropped = user.first, user.stays - 1, size do redis.call('HDEL', name, string.format('%d', dropped)) end
        recent[#recent + 1] = now
        recent[#recent + 1] = string.sub(name, #ARGV[6] + 1)
        if #recent > 1000 then recent = put('ZADD', KEYS[3], recent) end
    end
end
put('ZADD', KEYS[3], recent)
redis.call('SET', KEYS[2], string.format('%d', total))
if not found then redis.call('SET', KEYS[1], format) end
return {'ok', outcomes, total}
"""


class RedisLog(EventLog):
    """Logs in a Redis server, which several servers may share.

    Args:
        url: `redis://[user:password@]host[:port][/db]`; `rediss://` for TLS.
        durability: what the server must do, and is asked for when the log is opened. `commit`: `appendfsync always`.
            `interval`: `everysec`. `none`: anything.
        num_features: columns of a row behind item and time; fixed when the store is first written.
        max_bytes: of all users' events; the server needs about as much memory again for its own tables.
        max_user_events: as `LmdbLog`'s.

    Raises:
        ArgumentError: the URL isn't one.
        MachineError: the server can't be reached, may evict keys, is a cluster, or doesn't keep the durability.
        DataError: it holds a log of another format.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Literal["commit", "interval", "none"] = "interval",
        max_bytes: int = 16 << 30,
        max_user_events: int = 0,
        num_features: int = 0,
    ) -> None:
        self._store = _name_of(url)
        self._columns = COLUMNS + num_features
        self._format = f"{FORMAT}+{num_features}" if num_features else str(FORMAT)
        self._durability, self._max_bytes = durability, max_bytes
        self._held_bytes: int | None = None  # as the server said last
        # monotonic seconds of the last second's first append, and of the last append
        self._window_at = self._appended_at = -math.inf
        row = sealed_row_bytes(self._columns)
        self._arguments = (self._format, CHUNK_EVENTS, row, max_user_events, max_bytes, USER_KEY)
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # a script that was sent may have run: its unchecked appends must not be sent again
            retry=Retry(NoBackoff(), 0),
        )
        # a text, and so a hash, of this object's own: another object's can't stand in for it after a restart
        self._script = f"{_SCRIPT}-- {uuid4()}"
        self._script_hash = ""
        try:
            self._check_server(durability)
        except LongrecError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections; what is durable is the server's concern."""
        self._redis.close()

    def append(self, appends: Sequence[Append]) -> list[Appended | LongrecError]:
        """As `EventLog.append`."""
        if not appends:
            return []
        arguments: list[Any] = [*self._arguments]
        for append in appends:
            arguments += (append.position, seal_rows(append.user, fit_columns(append.events, self._columns)))
        keys = [FORMAT_KEY, BYTES_KEY, RECENT_KEY, *(USER_KEY + append.user for append in appends)]
        reply = self._ask(lambda: self._run_script(keys, arguments), "whether the events were appended is unknown")
        if reply[0] == b"format":
            raise self._other_format(reply[1])
        if reply[0] == b"full":
            raise MachineError(
                f"event_log={self._store}: nothing was appended: expected at most log_bytes={self._max_bytes}, got "
                f"{reply[1]}; raise log_bytes, or set max_user_events"
            )
        _, outcomes, held = reply
        if held is not None:
            self._held_bytes, self._appended_at = held, time.monotonic()
            if self._appended_at - self._window_at > SYNC_SECONDS:
                self._window_at = self._appended_at
        return [self._outcome(append, *outcome) for append, outcome in zip(appends, outcomes, strict=True)]

    def extent(self, user: bytes) -> Extent:
        """As `EventLog.extent`."""
        return _extent(self._ask(lambda: self._redis.hmget(USER_KEY + user, ["first", "length"])))

    def read_many(self, spans: Sequence[Span]) -> list[Rows | DataError]:
        """As `EventLog.read_many`; one round trip."""
        chunks = [range(chunk_of(start), stop, CHUNK_EVENTS) for _, start, stop in spans]

        def ask() -> list[list[bytes | None]]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for span, firsts in zip(spans, chunks, strict=True):
                    pipeline.hmget(USER_KEY + span.user, ["first", "length", *map(str, firsts)])
                return pipeline.execute()

        return [self._rows(*found) for found in zip(spans, chunks, self._ask(ask), strict=True)]

    def write_states(self, states: Mapping[bytes, bytes]) -> None:
        """As `EventLog.write_states`."""
        fields = [part for state in states.items() for part in state]
        self._ask(lambda: self._redis.hset(STATES_KEY, items=fields))

    def read_states(self, users: Sequence[bytes]) -> list[bytes | None]:
        """As `EventLog.read_states`."""
        found: list[bytes | None] = self._ask(lambda: self._redis.hmget(STATES_KEY, list(users)))
        return found

    def recent_users(self, limit: int) -> list[bytes]:
        """As `EventLog.recent_users`."""
        if limit < 1:
            return []
        users: list[bytes] = self._ask(lambda: self._redis.zrange(RECENT_KEY, 0, limit - 1, desc=True))
        return users

    def lag_seconds(self) -> float:
        """As `EventLog.lag_seconds`: the most that `everysec` allows, as the server doesn't say when it synced."""
        if self._durability == "none":
            return math.nan
        now = time.monotonic()
        if self._durability == "commit" or now - self._appended_at > SYNC_SECONDS:
            return 0.0
        return min(SYNC_SECONDS, now - self._window_at)

    def size(self) -> tuple[int, int]:
        """As `EventLog.size`: the bytes of all users' events, as this object's last append or question found them."""
        if self._held_bytes is None:
            self._held_bytes = int(self._ask(lambda: self._redis.get(BYTES_KEY)) or 0)
        return self._held_bytes, self._max_bytes

    def _outcome(self, append: Append, status: int, skipped: int, length: int, *held: Any) -> Appended | DataError:
        """What became of an append, from the script's outcome."""
        if status == DAMAGED:
            return self._damaged(f"chunk at {skipped}: expected {length} events, got another number")
        if held:  # other rows than the append's, or damaged ones
            first, found = held
            try:
                unseal_rows(append.user, first, found, self._columns)
            except DataError as error:
                return self._damaged(str(error))
        return Appended(Status(status), skipped, length)

    def _rows(self, span: Span, firsts: range, values: list[bytes | None]) -> Rows | DataError:
        """The events of a span from the fields `first` and `length` and the values of its chunks."""
        user, start, stop = span
        if start >= stop:
            return np.empty((0, self._columns), np.int64)
        extent = _extent(values[:2])
        if start < extent.first or stop > extent.length:
            return missing(self._store, start, stop, extent)
        parts = []
        for first, value in zip(firsts, values[2:], strict=True):
            expected = min(extent.length - first, CHUNK_EVENTS)
            try:
                rows = unseal_rows(user, first, value or b"", self._columns)
            except DataError as error:
                return self._damaged(str(error))
            if len(rows) != expected:
                return self._damaged(f"chunk at {first}: expected {expected} events, got {len(rows)}")
            parts.append(rows)
        begin = start - chunk_of(start)
        return np.concatenate(parts)[begin : begin + stop - start]

    def _ask(self, call: Any, doubt: str = "") -> Any:
        """`call()`, with Redis's errors as ours.

        Args:
            doubt: what isn't known if the server takes the request and doesn't answer.
        """
        sorry = f"; {doubt}, a retry with positions is harmless" if doubt else ""
        try:
            return call()
        except redis.exceptions.TimeoutError:
            raise MachineError(f"event_log={self._store}: no answer within {TIMEOUT_SECONDS:g} s{sorry}") from None
        except redis.exceptions.ConnectionError as error:
            raise MachineError(f"event_log={self._store}: expected a Redis server, got {error}{sorry}") from None
        except redis.exceptions.RedisError as error:
            if "used memory > 'maxmemory'" in str(error):  # asked at a script's start: it is refused as a whole
                raise MachineError(
                    f"event_log={self._store}: nothing was appended: the server's maxmemory is reached; raise it, or "
                    "set max_user_events"
                ) from None
            raise MachineError(f"event_log={self._store}: the server refused: {error}") from None

    def _run_script(self, keys: list[bytes], arguments: list[Any]) -> Any:
        if self._script_hash:
            try:
                return self._redis.evalsha(self._script_hash, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                # the server has restarted, or a replica has taken its place: it may lack the last second's events
                self.generation += 1
        self._script_hash = str(self._ask(lambda: self._redis.script_load(self._script)))
        return self._redis.evalsha(self._script_hash, len(keys), *keys, *arguments)

    def _check_server(self, durability: str) -> None:
        info = self._ask(lambda: self._redis.info())
        if info.get("cluster_enabled"):
            raise MachineError(f"event_log={self._store}: expected a single Redis server, got a cluster")
        policy = info["maxmemory_policy"]
        if info["maxmemory"] and policy.startswith("allkeys"):
            raise MachineError(
                f"event_log={self._store}: expected maxmemory-policy noeviction, got {policy}, which drops "
                "acknowledged events; CONFIG SET maxmemory-policy noeviction"
            )
        found = self._ask(lambda: self._redis.get(FORMAT_KEY))
        if found not in (None, self._format.encode()):
            raise self._other_format(found)
        if durability == "none":
            return
        expected = ("always",) if durability == "commit" else ("always", "everysec")
        aof = self._ask(lambda: self._redis.config_get("append*"))
        got = aof.get("appendfsync", "unknown") if aof.get("appendonly") == "yes" else "no append-only file"
        if got not in expected:
            raise MachineError(
                f"event_log={self._store}: durability={durability}: expected a server with appendonly yes and "
                f"appendfsync {' or '.join(expected)}, got {got}; set it there, or durability=none"
            )

    def _other_format(self, found: bytes) -> DataError:
        return DataError(
            f"event_log={self._store}: expected a log of format {self._format}, got "
            f"{found.decode(errors='replace')} (+n: with n features); serve it with the release and the features that "
            "wrote it, or set event_log to another database"
        )

    def _damaged(self, message: str) -> DataError:
        return DataError(f"event_log={self._store}: {message}")


def _extent(found: list[bytes | None]) -> Extent:
    return Extent(*(int(value or 0) for value in found))


def _name_of(url: str) -> str:
    """The URL without the password."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query:
            raise ValueError
        database = int(parts.path.strip("/") or 0)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{database}"
    except ValueError:
        raise ArgumentError("event_log", "redis://[user:password@]host[:port][/db]", "another URL") from None
