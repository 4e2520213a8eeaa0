"""The hidden state after each history's last event, without any memory.

What serving without a memory costs; the answers of the memory engine are compared with it, in speed and in value.
`recompute.py` beside this is the plain form that both are tested against. There are two such costs:

- whole: the network's forward pass, every layer over every event, as whoever serves a network as it is pays it.
- pruned: only what reaches the last event's state is computed. With L layers and window W, the last layer needs one
  output, from the keys of W events; the layer before W outputs, from the keys of 2 W - 1 events; and so on.

Histories are packed, not padded, for everything that is done by event. Attention goes through PyTorch's fused kernel,
histories of equal length together; measured on one thread, 16 histories of 512, pruned: 16.4 ms so, 16.7 ms one by one,
119 ms through the packed body of `segment_attention`.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.modeling.transformer import Block, Transformer

__all__ = ["LastStates"]

QUERY_TILE = 64  # queries that share a slice of keys, where the window cuts: fewer waste less, and cost more calls
FEED_FORWARD_ROWS = 1024  # the wide activations of more leave a core's cache: 6.9 ms for 2,048 events, 7.8 with 4,096


class LastStates:
    """Recomputes states of one network.

    Args:
        network: in evaluation mode.
        pruned: compute what reaches the last events' states alone, not every event in every layer.
    """

    def __init__(self, network: Transformer, *, pruned: bool) -> None:
        self._network, self._pruned = network, pruned
        config, device, dtype = network.config, network.start.device, network.start.dtype
        # rotary scores depend on distance alone: a receptive field counts from its own first event, so that one table
        # of its length serves every history
        half = config.head_dim // 2
        frequency = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)  # [D / 2]
        angle = torch.arange(config.receptive_field, dtype=torch.float64)[:, None, None] * frequency
        self._cos, self._sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)  # [R, 1, D / 2]
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    @torch.inference_mode()
    def __call__(self, items: Tensor, gaps: Tensor, lengths: list[int]) -> Tensor:
        """States after the last events.

        Args:
            items, gaps: [T] int64, as `Transformer.forward`; the histories one after the other.
            lengths: of each history, rising, each in 1..receptive field; T in all.

        Returns:
            [B, dim], after the final norm.
        """
        network, window = self._network, self._network.config.window
        x = network.items(items) + network.gaps(gaps)  # [T, dim]
        place = torch.cat([torch.arange(length) for length in lengths]).to(x.device)
        cos, sin = self._cos[place], self._sin[place]  # [T, 1, D / 2]
        for index, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            kept = lengths
            if self._pruned:
                reach = (len(network.blocks) - 1 - index) * (window - 1) + 1
                kept = [min(length, reach) for length in lengths]
            rows = None if kept == lengths else _last_rows(lengths, kept).to(x.device)
            x = self._block(block, x, cos, sin, lengths, kept, rows)
            if rows is not None:
                cos, sin = cos[rows], sin[rows]
            lengths = kept
        if not self._pruned:
            x = x[_last_rows(lengths, [1] * len(lengths)).to(x.device)]
        result: torch.Tensor = network.norm(x)
        return result

    def _block(
        self,
        block: Block,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: Sequence[int],
        kept: Sequence[int],
        rows: Tensor | None,
    ) -> Tensor:
        """[T, dim] of `lengths` events -> [sum of kept, dim]: the last `kept` events of each history, at `rows`."""
        config = block.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        normed = block.attention_norm(x)
        if rows is None:
            q, k, v = block.qkv(normed).unflatten(-1, (-1, head_dim)).split((heads, kv_heads, kv_heads), dim=1)
            q = _rotate(q, cos, sin)
        else:
            to_q, to_kv = block.qkv.weight[: heads * head_dim], block.qkv.weight[heads * head_dim :]
            k, v = F.linear(normed, to_kv).view(len(x), -1, head_dim).chunk(2, dim=1)
            x = x[rows]
            q = F.linear(normed[rows], to_q).view(len(x), -1, head_dim)
            q = _rotate(q, cos[rows], sin[rows])
        x = x + block.out(self._attend(q, _rotate(k, cos, sin), v, lengths, kept))
        return torch.cat([rest + _feed_forward(block, rest) for rest in torch.split(x, FEED_FORWARD_ROWS)])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], kept: Sequence[int]) -> Tensor:
        """q [sum of kept, Hq, D], k and v [sum of lengths, Hkv, D] -> [sum of kept, Hq * D]."""
        out = torch.empty_like(q)
        group = q.shape[1] // k.shape[1]
        q_row = k_row = 0
        for (length, count), same in groupby(zip(lengths, kept, strict=True)):
            users = sum(1 for _ in same)
            q_rows, k_rows = slice(q_row, q_row + users * count), slice(k_row, k_row + users * length)
            queries, keys, values, result = (
                part.view(users, -1, *part.shape[1:]).transpose(1, 2)  # [users, heads, rows, D]
                for part in (q[q_rows], k[k_rows], v[k_rows], out[q_rows])
            )
            if group > 1:
                keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            self._attend_equal(queries, keys, values, result)
            q_row, k_row = q_rows.stop, k_rows.stop
        return out.flatten(1)

    def _attend_equal(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Histories of equal length: q, out [B, H, m, D], the last m of n events; k, v [B, H, n, D]."""
        window, m, n = self._network.config.window, q.shape[2], k.shape[2]
        if n <= window and m in (1, n):  # a single query sees all of it
            out.copy_(F.scaled_dot_product_attention(q, k, v, is_causal=m > 1))
            return
        for first in range(0, m, QUERY_TILE):
            last = min(first + QUERY_TILE, m)  # queries n - m + first to n - m + last
            begin, end = max(0, n - m + first - window + 1), n - m + last
            mask = self._mask(last - first, end - begin, q.device)
            tile = F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, begin:end], v[:, :, begin:end], mask)
            out[:, :, first:last] = tile

    def _mask(self, m: int, n: int, device: torch.device) -> Tensor:
        """[m, n] bool: what the last m of n events see."""
        window = self._network.config.window
        key = (m, n, window)
        if key not in self._masks:
            i, j = torch.arange(n - m, n)[:, None], torch.arange(n)
            self._masks[key] = ((j <= i) & (j > i - window)).to(device)
        return self._masks[key]


def _feed_forward(block: Block, x: Tensor) -> Tensor:
    gate, up = block.gate_up(block.feed_forward_norm(x)).chunk(2, dim=-1)  # [T, hidden_dim] each
    result: torch.Tensor = block.down(F.silu(gate) * up)
    return result


def _last_rows(lengths: Sequence[int], kept: Sequence[int]) -> Tensor:
    """Rows of the last `kept` events of packed histories."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return torch.cat([torch.arange(end - count, end) for end, count in zip(ends, kept, strict=True)])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [T, H, D], as `kernels.rotate`, from tables [T, 1, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
