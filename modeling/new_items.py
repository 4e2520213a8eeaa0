"""New items for a trained network: their vectors out of what they are, and their place behind the catalogue."""

from pathlib import Path

import polars as pl
import torch

from longrec.added_items import AddedItems
from longrec.attributes import encode_attributes
from longrec.catalogue import Catalogue
from longrec.checkpoint import CATALOGUE
from longrec.errors import ArgumentError, DataError
from longrec.modeling.checkpoint_io import load_run

__all__ = ["add_items"]


@torch.no_grad()
def add_items(folder: Path, new: Catalogue, attributes: pl.DataFrame) -> AddedItems:
    """Put items behind those of a checkpoint's catalogue; its weights stay as they are.

    Args:
        folder: a run, or a version in a model repository.
        new: the items.
        attributes: a row an item of `new`, as `encode_attributes` takes them; by the checkpoint's schema.

    Returns:
        All that were added so far.

    Raises:
        ArgumentError: the checkpoint's schema has no features of items.
        DataError: the catalogue has an item already, or nothing is known of one.
        CheckpointError: as `load_run`.
    """
    network, checkpoint = load_run(folder)
    if network.attributes is None:
        raise ArgumentError(
            str(folder),
            "a run whose schema has features of items",
            got="one without",
            remedy="import the data with --schema, and train",
        )
    known = [item for item in new.ids if item in checkpoint.catalogue.index]
    if known:
        raise DataError(f"item {known[0]!r}: expected new items, got {len(known)} that the catalogue has already")
    encoded = encode_attributes(network.config.features, attributes)
    has_any = torch.from_numpy(encoded.indptr).diff() > 0
    for rows in encoded.vectors.values():
        has_any |= torch.from_numpy(rows).any(1)
    if not has_any.all():
        first = new.ids[int(has_any.int().argmin())]
        raise DataError(
            f"item {first!r}: expected a value that the run was trained with, got none, as of "
            f"{int((~has_any).sum())} items; nothing was added"
        )
    vectors = network.attributes.of(encoded).numpy()
    old, count = checkpoint.added, len(new)
    categories = new.categories or [()] * count
    whole = AddedItems(
        [*old.ids, *new.ids],
        [*old.titles, *new.titles],
        [*old.categories, *categories],
        torch.cat((torch.from_numpy(old.vectors), torch.from_numpy(vectors))).numpy(),
    )
    whole.save((folder / CATALOGUE).resolve().parent)
    return whole
