"""Items by what they are: the vector of an item is its own, which training moves from where its features put it.

    vector of item i = own_i + sum over its n values v of  value_v / sqrt(n)  + sum over vector features f of  W_f x_if

While training, the table of items is computed so from its parts, and a share of the items has no own vector in a step:
their features alone must carry them, as those of an item that nobody has met yet must. Afterwards the sum is written
into the table: serving knows nothing of features, and pays nothing. The features' own weights stay beside it, so that
new items get vectors (`AttributeTables.of`).
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from longrec.attributes import Attributes
from longrec.schema import ItemVector, Schema

__all__ = ["AttributeTables", "attach", "merged"]


class AttributeTables(nn.Module):
    """Weights of the items' features.

    Args:
        schema: closed.
        dim: of an item's vector.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.values = nn.Embedding(schema.num_item_values, dim)
        widths = {name: one.width for name, one in schema.item.items() if isinstance(one, ItemVector)}
        self.vectors = nn.ModuleDict({name: nn.Linear(width, dim, bias=False) for name, width in widths.items()})

    def forward(self, values: Tensor, indptr: Tensor, scale: Tensor, vectors: dict[str, Tensor]) -> Tensor:
        """[N, dim], what the features make of N items.

        Args:
            values, indptr, vectors: as in `Attributes`. scale: [n] float, 1 / sqrt of how many values the item has.
        """
        total = F.embedding_bag(
            values, self.values.weight, indptr, mode="sum", per_sample_weights=scale, include_last_offset=True
        )
        for name, linear in self.vectors.items():
            total = total + linear(vectors[name])
        return total

    def of(self, attributes: Attributes) -> Tensor:
        """[N, dim], the vectors of N items that have no own."""
        return _Composed(self, attributes, 0.0).features()


class _Composed(nn.Module):
    """Own vectors [N + 1, dim] to the table of items, whose last row, the unknown item, has no features."""

    def __init__(self, tables: AttributeTables, attributes: Attributes, hide_share: float) -> None:
        super().__init__()
        self._tables = (tables,)  # in a tuple: its parameters are the network's, not this module's too
        self._hide_share = hide_share
        counts = torch.from_numpy(attributes.indptr).diff()
        self._values, self._indptr = torch.from_numpy(attributes.values), torch.from_numpy(attributes.indptr)
        self._scale = torch.repeat_interleave(counts.clamp(min=1).float().rsqrt(), counts)
        self._vectors = {name: torch.from_numpy(rows) for name, rows in attributes.vectors.items()}

    def features(self, tables: AttributeTables | None = None) -> Tensor:
        """[N, dim], by the tables of the network, or others."""
        tables = tables or self._tables[0]
        weight = tables.values.weight
        vectors = {name: rows.to(weight) for name, rows in self._vectors.items()}
        result: Tensor = tables(
            self._values.to(weight.device), self._indptr.to(weight.device), self._scale.to(weight), vectors
        )
        return result

    def forward(self, own: Tensor) -> Tensor:
        """[N + 1, dim] -> [N + 1, dim]."""
        if self.training and self._hide_share:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self._hide_share)
        return own + F.pad(self.features(), (0, 0, 0, 1))


OWN = "items.parametrizations.weight.original"  # what torch calls it in a network's state


@torch.no_grad()
def attach(network: Any, attributes: Attributes, hide_share: float, *, merged: bool = False) -> None:
    """Let the network's table of items be computed from its parts, for training.

    Args:
        network: a `Network` whose schema has features of items; its table becomes the items' own vectors.
        attributes: of its items.
        hide_share: of the items that have no own vector in a step, those of a training network.
        merged: whether the table is the sum, as a trained network has it, and its own part is what it has beside the
            features'.
    """
    part, items = _Composed(network.attributes, attributes, hide_share), network.items
    if merged:
        items.weight[:-1] -= part.features()
    parametrize.register_parametrization(items, "weight", part, unsafe=True)


@torch.no_grad()
def merged(network: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of the network (its own, or a mean of several) with the computed table of items in place of its parts."""
    if OWN not in state:
        return state
    part, tables = network.items.parametrizations["weight"][0], copy.deepcopy(network.attributes)
    prefix = "attributes."
    tables.load_state_dict({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    state = dict(state)
    own = state.pop(OWN)
    state["items.weight"] = own + F.pad(part.features(tables), (0, 0, 0, 1))
    return state
