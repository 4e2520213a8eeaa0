"""Networks as `nn.Module`s over the operators of `longrec.kernels`, their input features and their checkpoints."""

from longrec.modeling.checkpoint_io import load_network, load_run, network_of, save_run
from longrec.modeling.events import Events
from longrec.modeling.families import FAMILIES, build_network
from longrec.modeling.features import gap_buckets
from longrec.modeling.memory_layout import MemoryLayout, memory_layout
from longrec.modeling.network import Network
from longrec.modeling.recompute import recompute_scores
from longrec.modeling.serving_memory import ServingMemory
from longrec.modeling.transformer import Transformer

__all__ = [
    "FAMILIES",
    "Events",
    "MemoryLayout",
    "Network",
    "ServingMemory",
    "Transformer",
    "build_network",
    "gap_buckets",
    "load_network",
    "load_run",
    "memory_layout",
    "network_of",
    "recompute_scores",
    "save_run",
]
