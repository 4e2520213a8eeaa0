"""BERT4Rec: masked items are guessed from both sides, and the next item as a mask behind the last event (Sun et al.,
2019)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS
from longrec.modeling.network import Objective
from longrec.modeling.windowed import EncoderBlock, WindowNetwork, from_end

__all__ = ["BERT4Rec"]


class BERT4Rec(WindowNetwork):
    """Encoder of the newest `window` events and a mask behind them, with learned places counted from that mask."""

    objective: ClassVar[Objective] = "masked_item"

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.mask = nn.Embedding(1, config.dim)
        self.places = nn.Embedding(config.window + 1, config.dim)
        self.blocks = nn.ModuleList(EncoderBlock(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def encode(self, events: Events, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States of events, and of the mask behind each user's last one.

        Args:
            events: at most `window` of each user.
            masked: [T] bool, the events that the mask stands for; None: none.

        Returns:
            [T, dim] and [B, dim].
        """
        rows = torch.arange(len(events.items), device=self.start.device) + events.users  # a mask behind each user's
        x = self.mask.weight.expand(len(rows) + events.num_users, -1)
        shown = self.items(events.items) + self.gaps(events.gaps)
        if masked is not None:
            shown = torch.where(masked[:, None], self.mask.weight, shown)
        lengths = events.counts + 1
        x = self.dropout(x.index_copy(0, rows, shown) + self.places(from_end(lengths)))  # [T + B, dim]
        segments = lengths.tolist()
        for block in self.blocks:
            x = block(x, segments)
        x = self.norm(x)
        return x[rows], x[lengths.cumsum(0) - 1]

    def summarise(self, events: Events) -> Tensor:
        """As `WindowNetwork.summarise`."""
        return self.encode(events)[1]
