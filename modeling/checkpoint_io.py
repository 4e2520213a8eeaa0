"""A network to and from a checkpoint folder: the one place that knows how modules and their named arrays correspond."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from longrec.catalogue import Catalogue
from longrec.checkpoint import WEIGHTS, Checkpoint, load_checkpoint, save_checkpoint
from longrec.config import ModelConfig
from longrec.errors import CheckpointError
from longrec.modeling.compression import unpack
from longrec.modeling.families import build_network
from longrec.modeling.network import Network
from longrec.modeling.transformer import Transformer

__all__ = ["load_network", "load_run", "network_of", "save_run"]


def save_run(
    folder: Path, network: Network, config: ModelConfig, catalogue: Catalogue, training: Mapping[str, Any]
) -> None:
    """Write `network` as a checkpoint.

    Args:
        folder: made if need be; its checkpoint files are replaced.
        network: on any device, in float32.
        config: shape of `network`.
        catalogue: the items, in index order.
        training: JSON-able record of how the weights came about.
    """
    weights = {name: weight.detach().cpu().numpy() for name, weight in network.state_dict().items()}
    save_checkpoint(folder, config, weights, catalogue, training)


def load_network(folder: Path) -> tuple[Transformer, Checkpoint]:
    """`load_run`, of a transformer.

    Raises:
        CheckpointError: as `load_run`, and for another family.
    """
    network, checkpoint = load_run(folder)
    if not isinstance(network, Transformer):
        raise CheckpointError(
            f"{folder}: family: expected transformer, the one that is measured here, got {checkpoint.config.family}; "
            "train with --family transformer"
        )
    return network, checkpoint


def load_run(folder: Path) -> tuple[Network, Checkpoint]:
    """Read a checkpoint and build its network, in evaluation mode on the CPU, with the items that were added since.

    Raises:
        CheckpointError: as `longrec.checkpoint.load_checkpoint`, and where weights are missing, unexpected, of another
            shape or type, or not finite.
    """
    checkpoint = load_checkpoint(folder)
    network = _undrawn(checkpoint.config)
    expected, weights = network.state_dict(), unpack(checkpoint.weights)
    for kind, names in (
        ("missing", expected.keys() - weights.keys()),
        ("unexpected", weights.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{folder / WEIGHTS}: {kind} {', '.join(sorted(names))}; export the run again")
    state = {name: torch.tensor(array) for name, array in weights.items()}
    for name, weight in state.items():
        wanted = expected[name]
        if weight.shape != wanted.shape or weight.dtype != wanted.dtype:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name}: expected {wanted.dtype} {list(wanted.shape)} (from config.json), "
                f"got {weight.dtype} {list(weight.shape)}"
            )
        if not weight.isfinite().all():
            raise CheckpointError(f"{folder / WEIGHTS}: {name}: expected finite numbers; the training diverged")
    network.load_state_dict(state, assign=True)
    if len(checkpoint.added):
        network.add_items(torch.from_numpy(checkpoint.added.vectors))
        checkpoint = replace(checkpoint, config=network.config)
    return network.eval(), checkpoint


def network_of(config: ModelConfig, weights: Mapping[str, Tensor]) -> Network:
    """A network in evaluation mode that has these weights, which are not copied."""
    network = _undrawn(config)
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _undrawn(config: ModelConfig) -> Network:
    """Without weights: neither stored nor drawn, since they are replaced at once."""
    with torch.device("meta"), _Undrawn():
        return build_network(config)


class _Undrawn(TorchFunctionMode):
    """Leaves out `torch.nn.init`. On the meta device, too, drawing imports torch's compiler: a second of a server's
    start."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))
