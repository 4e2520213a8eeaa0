"""Which past events weighed most for an item: what each adds to the item's score through the last layer's attention.

With a_hj the weight that head h of the last layer gives to event j, v_hj that event's value, W_h the head's part of the
output projection and e the item's vector times the final norm's gain:

    contribution of event j = sum over heads h of  a_hj (W_h v_hj) . e

The state's scale, by which the final norm divides, is the same for all events and left out, and so is what the
feed-forward makes of the attention's output: the numbers order the events of one item, and are no shares of its score.
Forward only; nothing is written to memory.
"""

import torch
from torch import Tensor

from longrec import kernels
from longrec.modeling.transformer import Block, ServingMemory, Transformer

__all__ = ["attention_contributions"]


def attention_contributions(
    network: Transformer, items: Tensor, gaps: Tensor, positions: Tensor, memory: ServingMemory, vectors: Tensor
) -> Tensor:
    """What each visible event adds to items' scores after B users' newest events.

    Args:
        items, gaps, positions: [B] int64, the newest event of each user, as in `Transformer.forward`.
        memory: the events before it, whose pages hold the whole window; `slots` must be -1.
        vectors: [B, k, dim], of the items that are explained.

    Returns:
        [B, k, M + 1], M the longest memory: column j is event j of the user's memory, column M the newest event itself;
        -inf where there is no event, or it lies outside the window. Float32, or float64 for a network of float64.
    """
    config = network.config
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    device, num_users = positions.device, len(positions)
    cu_seqlens = torch.arange(num_users + 1, dtype=torch.int32, device=device)
    x = network.items(items) + network.gaps(gaps)  # [B, dim]
    for index, block in enumerate(network.blocks[:-1]):
        x = block(x, positions, cu_seqlens, memory, index)
    last = network.blocks[-1]
    assert isinstance(last, Block)
    qkv = last.qkv(last.attention_norm(x)).unflatten(-1, (heads + 2 * kv_heads, head_dim))  # [B, Hq + 2 Hkv, D]
    rotated = kernels.rotate(qkv[:, : heads + kv_heads], positions, config.rotary_base)
    q, own_k, own_v = rotated[:, :heads], rotated[:, heads:], qkv[:, heads + kv_heads :]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    past_k, past_v, visible = _past(memory.layer(len(network.blocks) - 1), config.window, exact)
    k = torch.cat((past_k, own_k[:, None].to(exact)), dim=1)  # [B, M + 1, Hkv, D]
    v = torch.cat((past_v, own_v[:, None].to(exact)), dim=1)
    visible = torch.cat((visible, visible.new_ones(num_users, 1)), dim=1)  # [B, M + 1]

    group = heads // kv_heads
    q = q.to(exact).reshape(num_users, kv_heads, group, head_dim)
    scores = torch.einsum("bhgd,bmhd->bhgm", q, k) * head_dim**-0.5
    weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(dim=-1)  # [B, Hkv, G, M + 1]
    wanted = (vectors.to(exact) * network.norm.weight.to(exact)) @ last.out.weight.to(exact)  # [B, k, Hq * D]
    wanted = wanted.reshape(num_users, -1, kv_heads, group, head_dim)
    values = torch.einsum("bmhd,bkhgd->bkhgm", v, wanted)
    contributions = torch.einsum("bhgm,bkhgm->bkm", weights, values)
    return contributions.masked_fill(~visible[:, None], -torch.inf)


def _past(layer: kernels.PagedMemory, window: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, M, Hkv, D] of the users' memories, and which of them [B, M] a newest event sees.

    Zeros stand where there is no event: pages may hold anything there.
    """
    lengths, indptr = layer.lengths.long(), layer.page_indptr.long()
    page_size, most = layer.k_pages.shape[1], int(lengths.max())
    column = torch.arange(most, device=lengths.device)  # [M]
    exists = column < lengths[:, None]  # [B, M]
    visible = exists & (column > lengths[:, None] - window)
    page = (indptr[:-1, None] + column // page_size).clamp(max=max(0, len(layer.page_indices) - 1))
    pages = layer.page_indices.long()[page] if len(layer.page_indices) else torch.zeros_like(page)  # [B, M]
    place = (column % page_size).expand_as(pages)

    def rows(stored: Tensor, scale: Tensor | None) -> Tensor:
        found = stored[pages, place].to(dtype)
        if scale is not None:
            found = found * scale[pages, place][..., None].to(dtype)
        return torch.where(exists[..., None, None], found, 0.0)

    return rows(layer.k_pages, layer.k_scale), rows(layer.v_pages, layer.v_scale), visible
