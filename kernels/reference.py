"""The operators in PyTorch: the oracle that every kernel is held against, and the body that runs where no kernel does.

Never casts: float64 in, float64 out. Shapes: T new events of the batch, B users, Hq query and Hkv key/value heads, D
head_dim, P pages of S events. Logarithms of sums are base 2, as in the kernels; an empty row has lse2 = -inf and out = 0.
"""

import math

import torch

from longrec.kernels.memory import PagedMemory

__all__ = ["append_memory", "catalogue_topk", "rotate", "segment_attention"]

LOG2_E = 1.0 / math.log(2.0)


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary position embedding, halves paired (Su et al., RoFormer, 2021).

    Args:
        x: [T, H, D], D even.
        positions: [T] int64, absolute. Angles are taken in float64: at position 1e6 a float32 angle is off by 0.06 rad.
        base: of the frequencies base^(-2 i / D).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)  # [D / 2]
    angle = positions.double()[:, None, None] * frequency  # [T, 1, D / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float | None = None,
    memory: PagedMemory | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of ragged new events over their users' memory and themselves.

    With i, j positions in memory + new events of one user: query i sees keys i - window < j <= i.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D], Hq a multiple of Hkv.
        cu_seqlens: [B + 1] int32; user b's new events are rows cu_seqlens[b] to cu_seqlens[b + 1].
        window: events that a query sees, itself included.
        scale: of the scores; 1 / sqrt(D) by default.
        memory: the users' past; None: no past.

    Returns:
        out [T, Hq, D] in q's dtype, lse2 [T, Hq].
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    counts = cu_seqlens.diff().long()  # [B]
    past = memory.lengths.long() if memory is not None else torch.zeros_like(counts)
    longest, longest_past = _max(counts), _max(past)

    user = torch.repeat_interleave(torch.arange(len(counts), device=q.device), counts)  # [T]
    row = torch.arange(num_tokens, device=q.device) - cu_seqlens.long()[user]  # [T] place among the user's new events
    keys, values = q.new_zeros(2, len(counts), longest_past + longest, num_kv_heads, head_dim).unbind()
    if memory is not None and longest_past:
        _gather_pages(memory, past, keys, values)
    keys = keys.index_put((user, longest_past + row), k)  # [B, M, Hkv, D]: past right-aligned, then the new events
    values = values.index_put((user, longest_past + row), v)
    queries = q.new_zeros(len(counts), longest, num_heads, head_dim).index_put((user, row), q)

    i = torch.arange(longest, device=q.device)[:, None] + longest_past  # [T', 1]
    j = torch.arange(longest_past + longest, device=q.device)  # [M]
    visible = (j <= i) & (j > i - window)  # [T', M]
    visible = visible & (j >= (longest_past - past)[:, None, None])  # [B, T', M]

    group = num_heads // num_kv_heads
    queries = queries.unflatten(2, (num_kv_heads, group)).permute(0, 2, 3, 1, 4)  # [B, Hkv, G, T', D]
    keys, values = (
        keys.permute(0, 2, 3, 1)[:, :, None],
        values.transpose(1, 2)[:, :, None],
    )  # [B, Hkv, 1, D, M], [.., M, D]
    scores = (queries @ keys * scale).masked_fill(~visible[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1)  # [B, Hkv, G, T']
    out = torch.exp(scores - lse[..., None].clamp(min=torch.finfo(q.dtype).min)) @ values  # [B, Hkv, G, T', D]
    out = out.permute(0, 3, 1, 2, 4).flatten(2, 3)[user, row]
    return out, (lse * LOG2_E).permute(0, 3, 1, 2).flatten(2, 3)[user, row]


def _max(counts: torch.Tensor) -> int:
    return int(counts.max()) if len(counts) else 0


def _gather_pages(memory: PagedMemory, past: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Copy each user's memory, right-aligned, into keys and values [B, longest past + ..., Hkv, D]."""
    page_size, longest = memory.k_pages.shape[1], _max(past)
    user = torch.repeat_interleave(torch.arange(len(past), device=past.device), past)  # [sum of past]
    start = torch.repeat_interleave(past.cumsum(0) - past, past)
    event = torch.arange(len(user), device=past.device) - start
    page = memory.page_indices.long()[memory.page_indptr.long()[user] + event // page_size]
    place = longest - past[user] + event
    keys[user, place] = memory.k_pages[page, event % page_size].to(keys.dtype)
    values[user, place] = memory.v_pages[page, event % page_size].to(values.dtype)


def append_memory(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    *,
    rotary_base: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k, and write the rotated k and v into pages.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        positions: [T] int64, absolute places of the events in their users' logs.
        slots: [T] int64, page * S + place within the page; -1: not written.
        k_pages, v_pages: [P, S, Hkv, D], written in place.
        rotary_base: base of the rotary frequencies.

    Returns:
        The rotated q [T, Hq, D] and k [T, Hkv, D].
    """
    q, k = rotate(q, positions, rotary_base), rotate(k, positions, rotary_base)
    kept = slots >= 0
    page, place = slots[kept] // k_pages.shape[1], slots[kept] % k_pages.shape[1]
    k_pages[page, place] = k[kept].to(k_pages.dtype)
    v_pages[page, place] = v[kept].to(v_pages.dtype)
    return q, k


def catalogue_topk(hidden: torch.Tensor, items: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row by inner product; equal scores go to the lower index.

    Args:
        hidden: [B, d]. items: [N, d].
        k: 1..N.

    Returns:
        scores [B, k], falling, and indices [B, k] int64.
    """
    scores = hidden @ items.T  # [B, N]
    best, index = scores.sort(dim=-1, descending=True, stable=True)
    return best[:, :k], index[:, :k]
