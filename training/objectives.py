"""What each family is trained for: from a batch to its loss, by `Network.objective`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from longrec.config import TrainConfig
from longrec.modeling import Events, Network
from longrec.modeling.bert4rec import BERT4Rec
from longrec.modeling.network import Objective
from longrec.modeling.seq2seq import Seq2Seq
from longrec.training.losses import next_item_loss

__all__ = ["OBJECTIVES", "recurrent_loss"]

# network, a batch's events, the item after each, first items of histories, config -> a scalar
Loss = Callable[[Network, Events, Tensor, Tensor, TrainConfig], Tensor]

CUTS = 4  # places at which seq2seq's encoder stops, in each piece of a history: a piece gives few targets otherwise


def _next_item(network: Network, events: Events, targets: Tensor, first: Tensor, config: TrainConfig) -> Tensor:
    """The item after each event."""
    return _loss(network, network.states(events), targets, first, config)


def _masked_item(network: Network, events: Events, targets: Tensor, first: Tensor, config: TrainConfig) -> Tensor:
    """Masked items, the first of a piece aside, and the item after each piece."""
    assert isinstance(network, BERT4Rec)
    some = events.counts > 0
    last = events.cu_seqlens[1:].long()[some] - 1
    masked = torch.rand(len(targets)) < config.mask_share
    masked[events.cu_seqlens[:-1].long()[some]] = False  # its item is no target here: that of the row before is
    states, following = network.encode(events, masked)
    wanted = masked.nonzero().flatten()
    hidden = torch.cat((states[wanted], following[some]))
    return _loss(network, hidden, torch.cat((targets[wanted - 1], targets[last])), first, config)


def _next_items(network: Network, events: Events, targets: Tensor, first: Tensor, config: TrainConfig) -> Tensor:
    """The next `horizon` items after events of each piece, chosen at random."""
    assert isinstance(network, Seq2Seq)
    counts, begins = events.counts, events.cu_seqlens[:-1].long()
    pieces = (counts > 0).nonzero().flatten().repeat(CUTS)
    kept = 1 + (torch.rand(len(pieces)) * counts[pieces]).long()
    order = kept.argsort(descending=True, stable=True)  # equal lengths side by side
    pieces, kept = pieces[order], kept[order]
    before = kept.cumsum(0) - kept
    rows = torch.repeat_interleave(begins[pieces] - before, kept) + torch.arange(int(kept.sum()))
    ahead = torch.arange(network.config.horizon)
    known = ahead < (counts[pieces] - kept + 1)[:, None]  # [B, horizon]
    steps = targets[((begins[pieces] + kept - 1)[:, None] + ahead).clamp(max=len(targets) - 1)]
    encoded = network.encode(events.take(rows, kept))
    hidden = network.decode(encoded, kept, torch.where(known, steps, network.config.num_items)[:, :-1])
    return _loss(network, hidden[known], steps[known], first, config)


def _loss(network: Network, hidden: Tensor, targets: Tensor, first: Tensor, config: TrainConfig) -> Tensor:
    return next_item_loss(network, hidden, targets, first, label_smoothing=config.label_smoothing)


def recurrent_loss(
    network: Network, events: Events, targets: Tensor, first: Tensor, config: TrainConfig, memory: Any
) -> tuple[Tensor, Any]:
    """The item after each event, over the memory of earlier segments; and the memory after them."""
    hidden, memory = network.step(events, memory)
    return _loss(network, hidden, targets, first, config), memory


OBJECTIVES: Mapping[Objective, Loss] = {
    "next_item": _next_item,
    "masked_item": _masked_item,
    "next_items": _next_items,
}
