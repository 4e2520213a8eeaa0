"""The operators in PyTorch, one file each: the oracle that every kernel is held against, and the body that runs where
no kernel does. Never casts: float64 in, float64 out."""

from longrec.kernels.reference.append import append_memory
from longrec.kernels.reference.attention import segment_attention
from longrec.kernels.reference.rotary import rotate
from longrec.kernels.reference.topk import catalogue_topk

__all__ = ["append_memory", "catalogue_topk", "rotate", "segment_attention"]
