"""Which past events weighed most for an item: what each adds to the item's score through the last layer's attention.

With a_hj the weight that head h of the last layer gives to event j, v_hj that event's value, W_h the head's part of the
output projection (in hstu with the norm's gain and the gate before it) and e the item's vector times the final norm's
gain:

    contribution of event j = sum over heads h of  a_hj (W_h v_hj) . e

What scales all events alike (the final norm's divisor, hstu's other) is left out, and so is what a feed-forward makes
of the attention's output: the numbers order the events of one item, and are no shares of its score. Forward only;
nothing is written to memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from longrec import kernels
from longrec.kernels.types import bucket_of
from longrec.modeling.events import Events
from longrec.modeling.paged import LastAttention, PagedNetwork
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["attention_contributions"]


def attention_contributions(network: PagedNetwork, events: Events, memory: ServingMemory, vectors: Tensor) -> Tensor:
    """What each visible event adds to items' scores after B users' newest events.

    Args:
        network: in evaluation mode.
        events: the newest one of each user.
        memory: the events before it, whose pages hold the whole window; `slots` must be -1.
        vectors: [B, k, dim], of the items that are explained.

    Returns:
        [B, k, M + 1], M the longest memory: column j is event j of the user's memory, column M the newest event itself;
        -inf where there is no event, or it lies outside the window. Float32, or float64 for a network of float64.
    """
    config, num_users = network.config, events.num_users
    last = network.last_attention(events, memory)
    exact = torch.float64 if last.q.dtype == torch.float64 else torch.float32
    layer = memory.layer(config.num_layers - 1)
    past = _Past(layer, config.window)
    k = torch.cat((past.rows(layer.k_pages, layer.k_scale, exact), last.k[:, None].to(exact)), dim=1)
    v = torch.cat((past.rows(layer.v_pages, layer.v_scale, exact), last.v[:, None].to(exact)), dim=1)
    visible = F.pad(past.visible, (0, 1), value=True)  # [B, M + 1]

    group = config.num_heads // config.num_kv_heads
    scores = torch.unflatten(_scores(last, k, past, memory, events, exact), 1, (-1, group))
    if last.kind == "silu":
        weights = F.silu(scores).masked_fill(~visible[:, None, None], 0.0)
    else:
        weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(dim=-1)
    wanted = (vectors.to(exact) * network.norm.weight.to(exact)) @ last.out.to(exact)  # [B, k, Hq * D]
    if last.gate is not None:
        wanted = wanted * last.gate[:, None].to(exact)
    wanted = wanted.reshape(num_users, -1, config.num_kv_heads, group, config.head_dim)
    values = torch.einsum("bmhd,bkhgd->bkhgm", v, wanted)
    contributions = torch.einsum("bhgm,bkhgm->bkm", weights, values)
    return contributions.masked_fill(~visible[:, None], -torch.inf)


def _scores(
    last: LastAttention, k: Tensor, past: "_Past", memory: ServingMemory, events: Events, exact: torch.dtype
) -> Tensor:
    """[B, Hq, M + 1] of keys [B, M + 1, Hkv, D], the newest event's own last; the formula is `segment_attention`'s."""
    q, relative = last.q.to(exact), last.relative
    distance = F.pad(past.distance, (0, 1))  # [B, M + 1]
    content = q if relative is None else q + relative.u.to(exact)
    grouped = torch.unflatten(content, 1, (k.shape[2], -1))  # [B, Hkv, G, D]
    scores: Tensor = torch.einsum("bhgd,bmhd->bhgm", grouped, k).flatten(1, 2)  # [B, Hq, M + 1]
    if relative is not None:
        by_distance = torch.einsum("bhd,rhd->bhr", q + relative.v.to(exact), relative.r.to(exact))
        places = distance.clamp(max=len(relative.r) - 1)[:, None].expand(-1, q.shape[1], -1)
        scores = scores + by_distance.gather(2, places)
    scores = scores * q.shape[-1] ** -0.5
    if last.position_bias is not None:
        scores = scores + _bias(last.position_bias, distance).to(exact)
    if last.time_bias is not None:
        assert memory.seconds is not None, "the family says that its memory has them"
        elapsed = events.seconds[:, None] - past.of_events(memory.seconds)
        scores = scores + _bias(last.time_bias, F.pad(elapsed.clamp(min=0), (0, 1))).to(exact)
    return scores


def _bias(bias: kernels.PositionBias | kernels.TimeBias, distance: Tensor) -> Tensor:
    """[B, Hq, M + 1] of distances [B, M + 1]."""
    table = bias.table
    added: Tensor = table[:, bucket_of(distance, bias.fraction_bits, table.shape[1])].transpose(0, 1)
    return added


class _Past:
    """The users' memories as rows, in one layer as in another.

    Attributes:
        distance: [B, M] from the newest event back; 0 where there is no event.
        visible: [B, M], whether the newest event sees it.
    """

    def __init__(self, layer: kernels.PagedMemory, window: int) -> None:
        lengths, indptr = layer.lengths.long(), layer.page_indptr.long()
        page_size, most = layer.k_pages.shape[1], int(lengths.max())
        column = torch.arange(most, device=lengths.device)  # [M]
        self._exists = column < lengths[:, None]  # [B, M]
        self.distance = (lengths[:, None] - column).clamp(min=0)
        self.visible = self._exists & (self.distance < window)
        page = (indptr[:-1, None] + column // page_size).clamp(max=max(0, len(layer.page_indices) - 1))
        self._pages = layer.page_indices.long()[page] if len(layer.page_indices) else torch.zeros_like(page)  # [B, M]
        self._place = (column % page_size).expand_as(self._pages)

    def of_events(self, stored: Tensor) -> Tensor:
        """[B, M, ...] of pages [P, S, ...]; there may be anything where there is no event."""
        found: Tensor = stored[self._pages, self._place]
        return found

    def rows(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Keys or values [B, M, Hkv, D]; zeros where there is no event: pages may hold anything there."""
        found = self.of_events(stored).to(dtype)
        if scale is not None:
            found = found * self.of_events(scale)[..., None].to(dtype)
        return torch.where(self._exists[..., None, None], found, 0.0)
