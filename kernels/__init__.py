"""The operators of longrec, one signature each; which body runs is decided by the tensors' device and by nothing else.

Today every device runs the PyTorch body of `longrec.kernels.reference`.
"""

from longrec.kernels.memory import PagedMemory
from longrec.kernels.reference import append_memory, catalogue_topk, rotate, segment_attention

__all__ = ["PagedMemory", "append_memory", "catalogue_topk", "rotate", "segment_attention"]
