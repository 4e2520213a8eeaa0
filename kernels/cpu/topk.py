"""`catalogue_topk` on a CPU: what `topk_body` takes, and how threads share the rows.

PyTorch writes every score and reads them again to find the best: 256 rows x 1,682 items take it 1.9 ms.
"""

import functools
import threading
from typing import Any

import torch

from longrec.kernels.cpu.attention import jitted, pack

__all__ = ["catalogue_topk_cpu", "prepare_topk"]

LANES = 16
MIN_SHARED_SCORES = 1 << 18  # of a thread: starting one takes 60 us


def prepare_topk(dtype: torch.dtype) -> None:
    """Compile the body for one dtype of the item table, or load it from numba's cache on disk."""
    _body(dtype)


def catalogue_topk_cpu(
    hidden: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    seen_indptr: torch.Tensor | None = None,
    seen_indices: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    categories: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row. `longrec.kernels.catalogue_topk` says what is what, and checks it.

    For float32, bfloat16 and float16; sums are float32. Uses up to `torch.get_num_threads()` threads, which share the
    rows by sixteens; the answer doesn't depend on how many.

    Raises:
        MachineError: numba is missing.
    """
    num_rows, dim = hidden.shape
    if not num_rows:
        return hidden.new_empty(0, k, dtype=torch.float32), torch.empty(0, k, dtype=torch.int64)
    body, module = _body(items.dtype), jitted("topk_body")
    tiles = -(-num_rows // LANES)
    rows = hidden.detach().float()
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    scores = torch.empty(num_rows, k)
    indices, heaps = (torch.empty(num_rows, k, dtype=torch.int64) for _ in range(2))
    whole = [None if mask is None else mask.long().contiguous() for mask in (seen_indices, categories)]
    by_row = [None if mask is None else mask.long().contiguous() for mask in (seen_indptr, allowed)]
    words = None if blocked is None else blocked.contiguous()
    shares = max(1, min(torch.get_num_threads(), tiles, num_rows * len(items) // MIN_SHARED_SCORES))
    calls = []
    for share in range(shares):
        first = share * tiles // shares * LANES
        last = min(num_rows, (share + 1) * tiles // shares * LANES)
        address = functools.partial(_address, first)
        calls.append(
            pack(
                module.TOPK_CALL,
                *(address(rows), rows.stride(0), items.data_ptr(), items.stride(0)),
                *(last - first, len(items), dim, k, address(heaps), address(scores), address(indices)),
                *(address(by_row[0]), _address(0, whole[0])),
                *(_address(0, words), _address(0, whole[1]), address(by_row[1])),
                0.0,
            )
        )
    scratch = torch.empty(shares, module.topk_floats(num_rows, dim) + LANES)
    helpers = [
        threading.Thread(target=body, args=(calls[share], scratch[share].data_ptr())) for share in range(1, shares)
    ]
    for helper in helpers:
        helper.start()
    body(calls[0], scratch[0].data_ptr())
    for helper in helpers:
        helper.join()
    return scores, indices


def _address(row: int, x: torch.Tensor | None) -> int:
    """Of row `row`; 0 for nothing."""
    return 0 if x is None else x.data_ptr() + row * x.stride(0) * x.itemsize


@functools.cache
def _body(dtype: torch.dtype) -> Any:
    return jitted("topk_body").topk_body(str(dtype).removeprefix("torch."))
