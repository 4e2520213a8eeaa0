"""Attention over paged memory on a CPU, against the speed at which the machine reads memory in the same run.

Bandwidth is that of torch's sum over 256 MB, in turn with the calls that are compared with it, so that other work on
the machine slows all of them; every figure is the best of its repeats. Each problem is checked first.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from longrec.kernels import reference, segment_attention
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase

__all__ = ["AttentionTime", "measure_attention"]

READ_BYTES = 256 << 20
TOLERANCE = 1e-4  # float32, and the reference itself is off by 1e-6; a wrong page or window is off by 1e-1


class AttentionTime(NamedTuple):
    """A problem on some threads; the share is of the bandwidth measured in turn with it."""

    threads: int
    milliseconds: float
    reference_milliseconds: float
    gigabytes_per_second: float
    read_gigabytes_per_second: float
    gigaflops: float

    @property
    def share(self) -> float:
        """Of the speed at which the machine reads."""
        return self.gigabytes_per_second / self.read_gigabytes_per_second


def measure_attention(
    case: AttentionCase, arguments: AttentionArguments, *, repeats: int = 15, reference_repeats: int = 3
) -> AttentionTime:
    """Time `segment_attention` on PyTorch's threads as they are set.

    Args:
        case: what to count bytes and FLOPs of.
        arguments: made of it.
        repeats, reference_repeats: the best counts.

    Raises:
        ArithmeticError: the answer is not the reference's; no time is reported for a wrong answer.
    """
    fast = lambda: segment_attention(*arguments.tensors, **arguments.keywords, validate=False)  # noqa: E731
    slow = lambda: reference.segment_attention(*arguments.tensors, **arguments.keywords)  # noqa: E731
    error = float((fast()[0] - slow()[0]).abs().max())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"{case}: off by {error:.1e} from the reference: no time is reported for a wrong answer")
    source = torch.ones(READ_BYTES // 4)
    rounds = [(_seconds(source.sum), _seconds(fast)) for _ in range(repeats)]
    read, best = (min(times) for times in zip(*rounds, strict=True))
    num_bytes, flops = _work(case, arguments)
    return AttentionTime(
        threads=torch.get_num_threads(),
        milliseconds=best * 1e3,
        reference_milliseconds=min(_seconds(slow) for _ in range(reference_repeats)) * 1e3,
        gigabytes_per_second=num_bytes / best / 1e9,
        read_gigabytes_per_second=source.nbytes / read / 1e9,
        gigaflops=flops / best / 1e9,
    )


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _work(case: AttentionCase, arguments: AttentionArguments) -> tuple[int, int]:
    """Bytes of keys and values that some query sees, each once, and FLOPs of the pairs that are visible."""
    memory = arguments.keywords["memory"]
    entry = case.heads[1] * (case.head_dim * memory.k_pages.itemsize + 4 * (memory.k_scale is not None))
    seen = pairs = 0
    for new, past in zip(case.new, case.past or (), strict=True):
        seen += min(past, case.window - 1)
        pairs += sum(min(past + row + 1, case.window) for row in range(new))
    return 2 * seen * entry, 4 * pairs * case.heads[0] * case.head_dim
