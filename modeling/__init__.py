"""Networks as `nn.Module`s over the operators of `longrec.kernels`, their input features and their checkpoints."""

from longrec.modeling.checkpoint_io import load_network, save_run
from longrec.modeling.features import gap_buckets
from longrec.modeling.memory_layout import MemoryLayout, memory_layout
from longrec.modeling.recompute import recompute_scores
from longrec.modeling.transformer import ServingMemory, Transformer

__all__ = [
    "MemoryLayout",
    "ServingMemory",
    "Transformer",
    "gap_buckets",
    "load_network",
    "memory_layout",
    "recompute_scores",
    "save_run",
]
