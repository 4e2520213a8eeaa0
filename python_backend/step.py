"""One pass of the network over a batch: host arrays in, hidden states on the device out.

On a GPU a step in which every user has one new event is replayed from a CUDA graph, one graph for each padded batch
size: its launches cost the host one call, and nothing in it allocates, synchronises or reads the device. Other steps,
and every step on a CPU, run as they come.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.modeling.events import Events
from longrec.modeling.paged import PagedNetwork
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.pages import KeyValueStore

__all__ = ["DecodeStep", "StepInputs", "StepRunner", "Steps"]

DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # users of the graphs that a GPU gets
ALIGNMENT = 4  # int32 numbers: kernels load 16 bytes at once from pointers that allow it


class StepInputs(NamedTuple):
    """What a pass needs, as host arrays: T new events of B users.

    Args:
        items, positions, slots: [T] int64. gaps: [T] or [T, 1 + F]. cu_seqlens: [B + 1] int32. All as in `Events` and
            `ServingMemory`.
        page_indptr: [B + 1] int32; page_indices: [N] int32; lengths: [B] int32, as in `kernels.PagedMemory`.
        seconds: [T] int32, as in `Events`.
    """

    items: NDArray[np.int64]
    gaps: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    page_indptr: NDArray[np.int32]
    page_indices: NDArray[np.int32]
    lengths: NDArray[np.int32]
    seconds: NDArray[np.int32]


class Steps(Protocol):
    """Runs steps of one network over one pool."""

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """Hidden states [T, dim] of the new events, whose memories in the pool then hold them.

        They stay on the device, and are good until the next call.
        """


class StepRunner:
    """Runs steps of one network over one pool.

    Args:
        network: in evaluation mode.
        pool: whose pages the network reads and writes.
        decode_batches: padded batch sizes of the one-event steps with fixed buffers, rising; by default
            `DECODE_BATCHES` on a GPU, none on a CPU, where padding costs and launches don't.
    """

    def __init__(self, network: PagedNetwork, pool: MemoryPool, decode_batches: Sequence[int] | None = None) -> None:
        self._network, self._store = network, _store_of(pool)
        self._device = network.start.device
        if decode_batches is None:
            decode_batches = DECODE_BATCHES if self._device.type == "cuda" else ()
        # the largest first: the graphs share one pool of memory, which it sizes
        self._decodes = [DecodeStep(network, pool, batch) for batch in sorted(decode_batches, reverse=True)][::-1]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run an event of nobody's, written nowhere: what is compiled is compiled now, not during a request."""
        one, none = np.zeros(1, np.int64), np.zeros(2, np.int32)
        self.run(StepInputs(one, one, one, one - 1, np.array([0, 1], np.int32), none, none[:0], none[:1], none[:1]))

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """As `Steps.run`: keys and values are then in the pool's pages."""
        num_users = len(inputs.lengths)
        if len(inputs.items) == num_users:  # each has one: the engine takes no user without an event into a step
            decode = next((decode for decode in self._decodes if decode.batch >= num_users), None)
            if decode is not None:
                return decode.run(inputs)
        items, gaps, positions, slots, cu_seqlens, page_indptr, page_indices, lengths, seconds = (
            torch.from_numpy(array).to(self._device) for array in inputs
        )
        memory = self._store.memory(
            page_indptr,
            page_indices,
            lengths,
            slots,
            max_new=int(np.diff(inputs.cu_seqlens).max()),
            max_memory=int(inputs.lengths.max()),
        )
        self._store.write_seconds(slots, seconds)
        return self._network.run(Events(items, gaps, seconds, positions, cu_seqlens), memory)


class DecodeStep:
    """A step of up to `batch` users with one new event each, over buffers that stay where they are.

    Rows that no user needs are empty: no memory, nothing written, their states dropped. On a GPU the pass is captured
    as a CUDA graph when this is made; on a CPU it runs eagerly over the same buffers.

    Attributes:
        batch: users that fit.
    """

    def __init__(self, network: PagedNetwork, pool: MemoryPool, batch: int) -> None:
        self.batch = batch
        self._network, self._store, self._num_items = network, _store_of(pool), network.config.num_items
        device = network.start.device
        pages_per_user = (pool.window - 2) // pool.page_size + 2  # of window - 1 events that begin anywhere in a page
        sizes = [-(-size // ALIGNMENT) * ALIGNMENT for size in (batch + 1, batch, batch, batch * pages_per_user)]
        pinned = device.type == "cuda"
        num_gaps = 1 + len(network.config.features.event)
        self._host64 = torch.zeros(3 + num_gaps, batch, dtype=torch.int64, pin_memory=pinned)
        self._host32 = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=pinned)
        self._device64 = self._host64.to(device, copy=True)
        self._device32 = self._host32.to(device, copy=True)
        self._rows = self._host64.numpy()  # items, positions, slots, and gaps with what stands beside them
        self._page_indptr, self._lengths, self._seconds, self._page_indices = (
            part.numpy() for part in torch.split(self._host32, sizes)
        )
        page_indptr, lengths, seconds, page_indices = torch.split(self._device32, sizes)
        items, positions, slots, *gaps = self._device64
        self._memory = self._store.memory(
            page_indptr[: batch + 1],
            page_indices,
            lengths[:batch],
            slots,
            max_new=1,
            max_memory=pages_per_user * pool.page_size,
        )
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=device)
        # the columns are views of one buffer, so that no step has to stack them
        columns = gaps[0] if len(gaps) == 1 else self._device64[3:].T
        self._events = Events(items, columns, seconds[:batch], positions, cu_seqlens)
        self._clear(0, 0)
        self._copy_in()
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.inference_mode():
            if device.type == "cuda":
                self._capture(device)
            else:
                self._hidden = self._forward()

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """As `StepRunner.run`, of at most `batch` users with one new event each."""
        num_users, num_pages = len(inputs.items), len(inputs.page_indices)
        self._rows[:3, :num_users] = inputs.items, inputs.positions, inputs.slots
        self._rows[3:, :num_users] = inputs.gaps.T
        self._page_indptr[: num_users + 1] = inputs.page_indptr
        self._lengths[:num_users] = inputs.lengths
        self._seconds[:num_users] = inputs.seconds
        self._page_indices[:num_pages] = inputs.page_indices
        self._clear(num_users, num_pages)
        self._copy_in()
        if self._graph is None:
            self._hidden.copy_(self._forward())
        else:
            self._graph.replay()
        return self._hidden[:num_users]

    def _clear(self, num_users: int, num_pages: int) -> None:
        """Make the rows from `num_users` on empty."""
        self._rows[:, num_users:] = 0
        self._rows[0, num_users:] = self._num_items
        self._rows[2, num_users:] = -1  # written nowhere
        self._page_indptr[num_users + 1 :] = num_pages
        self._lengths[num_users:] = 0

    def _copy_in(self) -> None:
        # the next step writes to the host buffers only after this one's states have been read: it can't overtake
        self._device64.copy_(self._host64, non_blocking=True)
        self._device32.copy_(self._host32, non_blocking=True)

    def _forward(self) -> torch.Tensor:
        self._store.write_seconds(self._memory.slots, self._events.seconds)
        return self._network.run(self._events, self._memory)

    def _capture(self, device: torch.device) -> None:
        """Capture the pass; it is run before on a side stream, which compiles kernels and fills constant tables."""
        torch.cuda.synchronize(device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
        with torch.cuda.stream(stream):
            self._forward()
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._hidden = self._forward()


def _store_of(pool: MemoryPool) -> KeyValueStore:
    assert isinstance(pool.store, KeyValueStore)  # the family's layout says so
    return pool.store
