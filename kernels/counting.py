"""Counts what kernels do to memory and matrix units, in triton's interpreter.

Counted: each distinct address that a `tl.load`, `tl.store` or descriptor access touches with an unmasked lane, times
the element's bytes, once for every execution of the statement; an atomic counts as a read and a write. So bytes that
several programs load (a tile of queries, a table of pages) count once for each: caches are set aside. Lanes of one
access that name the same address count once, since the hardware makes them one transaction; what lies beside an
address in its 32-byte sector does not count. FLOPs are 2 M N K for each `tl.dot` as issued, masked rows included, and
M, N, K raised to the smallest matrix instruction's 16, 8, 16; arithmetic outside of `tl.dot` does not count.

The interpreter must be on (`TRITON_INTERPRET=1` before triton is imported).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton
from triton.runtime import interpreter

from longrec.errors import MachineError
from longrec.kernels.interpreter import correct_interpreter

__all__ = ["Count", "count_work"]

Array = np.ndarray[Any, Any]


class Count:
    """What the kernels of one `count_work` block did.

    Attributes:
        bytes_loaded, bytes_stored: see this file's head.
        flops: of `tl.dot`.
        grids: [launches], the grid of each launch, in order.
    """

    def __init__(self) -> None:
        self.bytes_loaded = 0
        self.bytes_stored = 0
        self.flops = 0
        self.grids: list[tuple[int, int, int]] = []

    @property
    def bytes_moved(self) -> int:
        """Loaded and stored."""
        return self.bytes_loaded + self.bytes_stored

    @property
    def programs(self) -> int:
        """Of the launch with most of them."""
        return max((x * y * z for x, y, z in self.grids), default=0)


@contextmanager
def count_work(*, values: bool = True) -> Iterator[Count]:
    """Count the kernels launched inside the block.

    Args:
        values: False skips the values that counting doesn't need, which is several times faster: loads of
            floating-point tensors give zeros (masked lanes keep their `other`) and `tl.dot` gives its accumulator.
            Right for kernels whose control flow hangs on integers alone (lengths, page tables); what such a kernel
            stores is then meaningless.

    Raises:
        MachineError: the interpreter is off.
    """
    if not triton.knobs.runtime.interpret:
        raise MachineError("counting needs triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    correct_interpreter()
    builder = interpreter.interpreter_builder
    count = Count()
    for name, wrapped in _wrappers(builder, count, values).items():
        setattr(builder, name, wrapped)  # on the instance: its class stays as it is
    try:
        yield count
    finally:
        for name in _wrappers(builder, count, values):
            delattr(builder, name)


def _wrappers(builder: Any, count: Count, values: bool) -> dict[str, Callable[..., Any]]:
    kind = type(builder)

    def load(pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        count.bytes_loaded += _touched(pointers.data, mask.data) * _item_bytes(pointers)
        element = pointers.get_element_ty()
        if not values and element.is_floating():
            zeros = np.zeros(np.shape(pointers.data), dtype=interpreter._get_np_dtype(element))
            if other is not None:  # a masked lane's -inf may hide a later load
                zeros = np.where(mask.data, zeros, other.data)
            return interpreter.TensorHandle(zeros, element)
        return kind.create_masked_load(builder, pointers, mask, other, *rest, **named)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count.bytes_stored += _touched(pointers.data, mask.data) * _item_bytes(pointers)
        return kind.create_masked_store(builder, pointers, value, mask, *rest)

    def rmw(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        touched = _touched(pointers.data, mask.data) * _item_bytes(pointers)
        count.bytes_loaded += touched
        count.bytes_stored += touched
        return kind.create_atomic_rmw(builder, operation, pointers, value, mask, *rest)

    def cas(pointers: Any, *rest: Any) -> Any:
        touched = _touched(pointers.data, np.ones(np.shape(pointers.data), bool)) * _item_bytes(pointers)
        count.bytes_loaded += touched
        count.bytes_stored += touched
        return kind.create_atomic_cas(builder, pointers, *rest)

    def dot(a: Any, b: Any, d: Any, *rest: Any) -> Any:
        *batch, m, k = a.data.shape
        count.flops += 2 * math.prod(batch) * max(m, 16) * max(k, 16) * max(b.data.shape[-1], 8)
        return d if not values else kind.create_dot(builder, a, b, d, *rest)

    def grid(x: int, y: int, z: int) -> None:
        count.grids.append((x, y, z))
        kind.set_grid_dim(builder, x, y, z)

    return {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": rmw,
        "create_atomic_cas": cas,
        "create_dot": dot,
        "set_grid_dim": grid,
    }


def _item_bytes(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _touched(pointers: Array, mask: Array) -> int:
    """Distinct addresses among the unmasked lanes."""
    live = pointers[np.broadcast_to(np.asarray(mask), pointers.shape)]
    # rising addresses, as in nearly every tile, are distinct without a sort
    if live.size < 2 or (live[1:] > live[:-1]).all():
        return int(live.size)
    return len(np.unique(live))
