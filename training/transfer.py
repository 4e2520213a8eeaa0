"""Weights of one run as the beginning of another, on another catalogue: items are the same where their external ids
are."""

from pathlib import Path

import torch
from torch import Tensor

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig
from longrec.errors import ArgumentError
from longrec.modeling import build_network, load_run

__all__ = ["carry_over"]

ITEMS = "items.weight"


def carry_over(run: Path, model: ModelConfig, catalogue: Catalogue, seed: int) -> dict[str, Tensor]:
    """The weights of `run` for a network of shape `model` over `catalogue`.

    Rows of items that the run doesn't know are drawn, those of items that are gone are left out.

    Raises:
        ArgumentError: the network has another shape, the catalogue's length aside.
        CheckpointError: as `load_run`.
    """
    trained, checkpoint = load_run(run)
    expected = checkpoint.config.model_copy(update={"num_items": len(catalogue)})
    if model != expected:
        differing = [name for name, value in expected if getattr(model, name) != value]
        raise ArgumentError(
            ", ".join(f"{name}={getattr(model, name)}" for name in differing),
            ", ".join(f"{name}={getattr(expected, name)}" for name in differing),
            remedy=f"{run} has that shape",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build_network(model).state_dict()
    known = [(place, checkpoint.catalogue.index.get(item)) for place, item in enumerate(catalogue.ids)]
    pairs = [(place, source) for place, source in known if source is not None]
    pairs.append((len(catalogue), len(checkpoint.catalogue)))  # the unknown item's row is the last
    for name, weight in trained.state_dict().items():
        if name == ITEMS:
            to, source = torch.tensor(pairs).T
            weights[name][to] = weight[source]
        else:
            weights[name] = weight
    return weights
