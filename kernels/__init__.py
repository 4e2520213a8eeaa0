"""The operators of longrec, one signature each; which body runs is decided by the tensors' device and by nothing else:
Triton kernels on a GPU, PyTorch or numba on the CPU."""

from longrec.kernels.append import append_memory
from longrec.kernels.attention import prepare_attention, segment_attention
from longrec.kernels.block_decode import BlockWeights, block_decode, block_decode_fits
from longrec.kernels.cpu.blocks import BlockStep, fits_blocks
from longrec.kernels.cross_entropy import catalogue_cross_entropy
from longrec.kernels.reference import rotate
from longrec.kernels.reference.append import as_stored
from longrec.kernels.topk import catalogue_topk
from longrec.kernels.types import PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = [
    "BlockStep",
    "BlockWeights",
    "PagedMemory",
    "PositionBias",
    "RelativeTerms",
    "TimeBias",
    "append_memory",
    "as_stored",
    "block_decode",
    "block_decode_fits",
    "catalogue_cross_entropy",
    "catalogue_topk",
    "fits_blocks",
    "prepare_attention",
    "rotate",
    "segment_attention",
]
