"""What each family is trained for, by `Network.objective`: from examples to sums of losses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.modeling import Network
from longrec.modeling.bert4rec import BERT4Rec
from longrec.modeling.network import Objective as Name
from longrec.modeling.seq2seq import Seq2Seq
from longrec.training.examples import Examples
from longrec.training.losses import item_loss
from longrec.training.repeats import repeat_loss

__all__ = ["Objective", "Term"]

CUTS = 4  # places at which seq2seq's encoder stops, in each piece of a history: a piece gives few targets otherwise


class Term(NamedTuple):
    """A part of the loss: the sum over so many predictions, which the ranks of a distributed run add up apart."""

    total: Tensor
    predictions: int


Terms = dict[str, Term]


class Objective(nn.Module):
    """A network and what it is trained for, as one module: what is sharded has one way in.

    With `steps_ahead` K above 1 a state h also predicts the items of steps s = 2..K after its event, from h + A_s h (as
    heads for several tokens do: Gloeckle et al., 2024). Each A_s begins as zero, to which weight decay draws it. The
    term of repeats is of the next item alone.

    Args:
        network: trained.
        config: its loss.

    Attributes:
        ahead: [K - 1, dim, dim], the A_s, which only training needs; None with K = 1.
    """

    def __init__(self, network: Network, config: TrainConfig) -> None:
        super().__init__()
        self.network, self.config = network, config
        maps = network.start.new_zeros(config.steps_ahead - 1, *2 * network.start.shape)
        self.ahead = nn.Parameter(maps) if len(maps) else None

    def forward(self, examples: Examples, memory: Any = None) -> tuple[Terms, Any]:
        """The terms of the loss, and the memory after the events.

        Args:
            examples: of a batch.
            memory: of the pieces before, of a recurrent network; None for others.
        """
        network = self.network
        if network.objective != "next_item":
            return _TERMS[network.objective](network, examples, self.config), None
        if network.recurrent:
            hidden, memory = network.step(examples.events, memory)
        else:
            hidden = network.states(examples.events)
        return _next_item(network, hidden, examples, self.config) | self._later_items(hidden, examples), memory

    def _later_items(self, hidden: Tensor, examples: Examples) -> Terms:
        """The items of the steps after the next."""
        terms: Terms = {}
        for step, (places, items) in enumerate(examples.later, start=2):
            assert self.ahead is not None
            states = hidden[places]
            states = states + states @ self.ahead[step - 2].T
            loss = item_loss(states, self.network.item_table, items, examples.negatives, self.config)
            terms[f"item_{step}"] = Term(self.config.ahead_decay ** (step - 1) * loss, len(items))
        return terms


def _items(network: Network, hidden: Tensor, targets: Tensor, examples: Examples, config: TrainConfig) -> Terms:
    """The items that `hidden` predicts, and the first items, which the start state does."""
    first = examples.first
    states = torch.cat((hidden, network.start.expand(len(first), -1)))
    wanted = torch.cat((targets, first))
    return {"item": Term(item_loss(states, network.item_table, wanted, examples.negatives, config), len(wanted))}


def _next_item(network: Network, hidden: Tensor, examples: Examples, config: TrainConfig) -> Terms:
    """The item after each event, whose states are `hidden`, and the first items."""
    if network.repeats is None:
        return _items(network, hidden, examples.targets, examples, config)
    first = examples.first
    states, targets = torch.cat((hidden, network.start.expand(len(first), -1))), torch.cat((examples.targets, first))
    loss = repeat_loss(network.repeats, states, network.item_table, examples.events, targets, config.label_smoothing)
    return {"item": Term(loss, len(targets))}


def _masked_item(network: Network, examples: Examples, config: TrainConfig) -> Terms:
    """Masked items, the first of a piece aside, and the item after each piece."""
    assert isinstance(network, BERT4Rec)
    events, targets = examples.events, examples.targets
    some = events.counts > 0
    last = events.cu_seqlens[1:].long()[some] - 1
    masked = torch.rand(len(targets), device=targets.device) < config.mask_share
    masked[events.cu_seqlens[:-1].long()[some]] = False  # its item is no target here: that of the row before is
    states, following = network.encode(events, masked)
    wanted = masked.nonzero().flatten()
    hidden = torch.cat((states[wanted], following[some]))
    return _items(network, hidden, torch.cat((targets[wanted - 1], targets[last])), examples, config)


def _next_items(network: Network, examples: Examples, config: TrainConfig) -> Terms:
    """The next `horizon` items after events of each piece, chosen at random."""
    assert isinstance(network, Seq2Seq)
    events, targets = examples.events, examples.targets
    device = targets.device
    counts, begins = events.counts, events.cu_seqlens[:-1].long()
    pieces = (counts > 0).nonzero().flatten().repeat(CUTS)
    kept = 1 + (torch.rand(len(pieces), device=device) * counts[pieces]).long()
    order = kept.argsort(descending=True, stable=True)  # equal lengths side by side
    pieces, kept = pieces[order], kept[order]
    before = kept.cumsum(0) - kept
    rows = torch.repeat_interleave(begins[pieces] - before, kept) + torch.arange(int(kept.sum()), device=device)
    ahead = torch.arange(network.config.horizon, device=device)
    known = ahead < (counts[pieces] - kept + 1)[:, None]  # [B, horizon]
    steps = targets[((begins[pieces] + kept - 1)[:, None] + ahead).clamp(max=len(targets) - 1)]
    encoded = network.encode(events.take(rows, kept))
    hidden = network.decode(encoded, kept, torch.where(known, steps, network.config.num_items)[:, :-1])
    return _items(network, hidden[known], steps[known], examples, config)


_TERMS: Mapping[Name, Callable[[Network, Examples, TrainConfig], Terms]] = {
    "masked_item": _masked_item,
    "next_items": _next_items,
}
