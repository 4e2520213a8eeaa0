"""The operators of longrec, one signature each; which body runs is decided by the tensors' device and by nothing else.

Today every device runs the PyTorch body of `longrec.kernels.reference`.
"""

from longrec.kernels.reference import append_memory, catalogue_topk, rotate, segment_attention
from longrec.kernels.types import PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = [
    "PagedMemory",
    "PositionBias",
    "RelativeTerms",
    "TimeBias",
    "append_memory",
    "catalogue_topk",
    "rotate",
    "segment_attention",
]
