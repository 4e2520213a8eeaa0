"""Snapshots of recurrent states, kept by the event log: a rebuild goes on from there, not from the first event.

A snapshot is a cache, as a memory is: it stands for a prefix of its user's log under certain weights, and is ignored
under others, when it is damaged, or when it stands beyond the log. A store that loses its newest writes loses a
snapshot before the events that it stands for, which came first. A user's is written when they have sent `EVERY_EVENTS`
since, and when they lose their memory.

    uint8 format | network's hash [16] | uint64 events | int64 unix ms of the last | uint32 crc32 | hidden, state

The checksum covers the user's key and all else.
"""

import contextlib
import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import MachineError
from longrec.modeling.network import Network
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.memory_pool import NO_ROW, MemoryPool

__all__ = ["LEAST_EVENTS", "Snapshot", "Snapshots"]

Ints = NDArray[np.int64]
EVERY_EVENTS: Final = 256
LEAST_EVENTS: Final = 64  # that are worth a snapshot when a memory goes: fewer are run as quickly as it is read
FORMAT: Final = 1
_HEADER: Final = struct.Struct("<B16sQq")
_CHECKSUM: Final = struct.Struct("<I")


class Snapshot(NamedTuple):
    """A state after `length` events, the last at `time` unix ms, and the bytes of it."""

    length: int
    time: int
    numbers: bytes


class Snapshots:
    """Writes and reads the snapshots of one network's states.

    Args:
        network: in evaluation mode.
        log: keeps them.
        pool: the states. Tells who is evicted.
    """

    def __init__(self, network: Network, log: EventLog, pool: MemoryPool) -> None:
        self._log, self._pool = log, pool
        self._network_hash = _hash_of(network)
        self._states = pool.store.blocks[0][0]  # [P, num_layers, C]
        self._saved: dict[bytes, int] = {}  # of users in the pool: events of their newest snapshot
        pool.on_evict = self._evicted

    def read(self, users: Sequence[bytes]) -> dict[bytes, Snapshot]:
        """The users' snapshots that are whole and of this network.

        Raises:
            MachineError: the log can't be read.
        """
        values = self._log.read_states(users) if users else []
        found = ((user, self._parse(user, value)) for user, value in zip(users, values, strict=True) if value)
        return {user: snapshot for user, snapshot in found if snapshot is not None}

    def restore(self, user: bytes, snapshot: Snapshot) -> int:
        """Give a user without memory the one of their snapshot.

        Returns:
            Their row of the pool, which belongs to the step; NO_ROW if there is no room.
        """
        pool = self._pool
        row = pool.adopt(user, (0, snapshot.length, snapshot.time), 1)
        if row == NO_ROW:
            return NO_ROW
        page = int(pool.pages(np.array([row]), np.zeros(1, np.int64)).indices[0])
        kind = pool.hidden.dtype
        numbers = torch.frombuffer(bytearray(snapshot.numbers), dtype=kind).to(pool.hidden.device)
        hidden, state = torch.split(numbers, [pool.hidden.shape[1], self._states[0].numel()])
        pool.hidden[row] = hidden
        self._states[page] = state.view(self._states.shape[1:])
        self._saved[user] = snapshot.length
        return row

    def advanced(self, users: Sequence[bytes], rows: Ints) -> None:
        """These users' states have seen more events."""
        due = [
            (user, row)
            for user, row, length in zip(users, rows.tolist(), self._pool.length[rows].tolist(), strict=True)
            if length - self._saved.get(user, 0) >= EVERY_EVENTS
        ]
        if due:
            self._write(due)

    def _evicted(self, user: bytes, row: int) -> None:
        if self._pool.length[row] - self._saved.get(user, 0) >= LEAST_EVENTS:
            self._write([(user, row)])
        self._saved.pop(user, None)

    def _write(self, due: Sequence[tuple[bytes, int]]) -> None:
        pool = self._pool
        rows = np.array([row for _, row in due])
        pages = pool.pages(rows, np.zeros(len(rows), np.int64)).indices
        states = self._states[torch.from_numpy(pages).long().to(self._states.device)].flatten(1)
        numbers = torch.cat((pool.hidden[rows.tolist()], states), dim=1).cpu().view(torch.uint8).numpy()
        values = {}
        for (user, row), own in zip(due, numbers, strict=True):
            length = int(pool.length[row])
            head = _HEADER.pack(FORMAT, self._network_hash, length, int(pool.time[row]))
            payload = own.tobytes()
            values[user] = head + _CHECKSUM.pack(zlib.crc32(user + head + payload)) + payload
            self._saved[user] = length
        with contextlib.suppress(MachineError):  # a cache: appends, which tell of a full store, count
            self._log.write_states(values)

    def _parse(self, user: bytes, value: bytes) -> Snapshot | None:
        begin = _HEADER.size + _CHECKSUM.size
        width = self._pool.hidden.shape[1] + self._states[0].numel()
        if len(value) != begin + width * self._states.itemsize:
            return None
        head, payload = value[: _HEADER.size], value[begin:]
        (checksum,) = _CHECKSUM.unpack_from(value, _HEADER.size)
        version, network_hash, length, time = _HEADER.unpack(head)
        if version != FORMAT or network_hash != self._network_hash or checksum != zlib.crc32(user + head + payload):
            return None
        return Snapshot(length, time, payload)


def _hash_of(network: Network) -> bytes:
    """Of all weights, their dtype too."""
    found = hashlib.sha256()
    for name, weight in network.state_dict().items():
        found.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.digest()[:16]
