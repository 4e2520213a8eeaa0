"""The operators in PyTorch: the oracle that every kernel is held against, and the body that runs where no kernel does.

Never casts: float64 in, float64 out. Shapes: T new events of the batch, B users, Hq query and Hkv key/value heads, D
head_dim, P pages of S events. Logarithms of sums are base 2, as in the kernels.
"""

import itertools
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
        out [T, Hq, D] in q's dtype; lse2 [T, Hq], without a gradient.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    counts = cu_seqlens.diff().long()  # [B]
    if memory is None or not _max(memory.lengths):
        return _without_memory(q, k, v, counts.tolist(), window, scale)
    return _with_memory(q, k, v, counts, window, scale, memory)


def _without_memory(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: list[int], window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of users of equal length are views [users, length, ...], so nothing is padded: a trainer that orders the
    users of a batch by length gets few runs. split and cat, not slices: their backward is one copy for all runs."""
    runs = [(length, len(list(users))) for length, users in itertools.groupby(counts) if length]
    if not runs:
        return torch.zeros_like(q), q.new_zeros(q.shape[:2])
    sizes = [length * users for length, users in runs]
    outs, lses = [], []
    for (length, users), *rows in zip(runs, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        q_run, k_run, v_run = (torch.unflatten(x, 0, (users, length)) for x in rows)
        out, lse2 = _equal_lengths(q_run, k_run, v_run, window, scale)
        outs.append(out.flatten(0, 1))
        lses.append(lse2.flatten(0, 1))
    return torch.cat(outs), torch.cat(lses)


def _equal_lengths(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, L, H, D] of N users, L events each. Tiles of `window` queries see 2 window - 1 keys: O(L window) memory."""
    length = q.shape[1]
    tiles = []
    for start in range(0, length, window):
        stop, first = min(start + window, length), max(start - window + 1, 0)
        i = torch.arange(start, stop, device=q.device)[:, None]
        j = torch.arange(first, stop, device=q.device)
        hidden = (j > i) | (j <= i - window)  # [T', M]
        tiles.append(_attend(q[:, start:stop], k[:, first:stop], v[:, first:stop], hidden, scale))
    if len(tiles) == 1:
        return tiles[0]
    outs, lses = zip(*tiles, strict=True)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=1)


def _with_memory(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    counts: torch.Tensor,
    window: int,
    scale: float,
    memory: PagedMemory,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads to [B, longest past + longest new]: the past right-aligned, then the new events."""
    num_users, longest = len(counts), _max(counts)
    past = memory.lengths.long().clamp(max=window - 1)  # [B] what lies further back is seen by no query
    longest_past = _max(past)
    user = torch.repeat_interleave(torch.arange(num_users, device=q.device), counts)  # [T]
    row = torch.arange(len(q), device=q.device) - (counts.cumsum(0) - counts)[user]  # [T] place among the new events
    shape = (num_users, longest_past + longest, *k.shape[1:])
    place, k_past, v_past = _gather_pages(memory, past, longest_past)
    keys = k.new_zeros(shape).index_put(place, k_past.to(k.dtype)).index_put((user, longest_past + row), k)
    values = v.new_zeros(shape).index_put(place, v_past.to(v.dtype)).index_put((user, longest_past + row), v)
    queries = q.new_zeros(num_users, longest, *q.shape[1:]).index_put((user, row), q)

    i = torch.arange(longest, device=q.device)[:, None] + longest_past  # [T', 1]
    j = torch.arange(longest_past + longest, device=q.device)  # [M]
    hidden = (j > i) | (j <= i - window) | (j < (longest_past - past)[:, None, None])  # [B, T', M]
    out, lse2 = _attend(queries, keys, values, hidden[:, None, None], scale)
    return out[user, row], lse2[user, row]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [N, T', Hq, D], k and v [N, M, Hkv, D], hidden: what is not seen, [T', M] or [N, 1, 1, T', M]; every query
    sees at least itself. Returns out as q and lse2 [N, T', Hq], which carries no gradient."""
    num_kv_heads = k.shape[2]
    queries = torch.unflatten(q, 2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [N, Hkv, G, T', D]
    keys, values = k.permute(0, 2, 3, 1)[:, :, None], v.transpose(1, 2)[:, :, None]  # [N, Hkv, 1, D, M], [.., M, D]
    scores = (queries * scale @ keys).masked_fill_(hidden, -torch.inf)  # [N, Hkv, G, T', M]
    with torch.no_grad():
        lse2 = scores.logsumexp(-1) * LOG2_E
    out = scores.softmax(-1) @ values  # [N, Hkv, G, T', D]
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3), lse2.permute(0, 3, 1, 2).flatten(2, 3)


def _max(counts: torch.Tensor) -> int:
    return int(counts.max()) if len(counts) else 0


def _gather_pages(
    memory: PagedMemory, past: torch.Tensor, longest: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The newest `past[b]` events of each user, M in all: (user, right-aligned place), keys and values [M, Hkv, D]."""
    page_size = memory.k_pages.shape[1]
    user = torch.repeat_interleave(torch.arange(len(past), device=past.device), past)  # [M]
    back = past.cumsum(0)[user] - torch.arange(len(user), device=past.device)  # [M] 1: the newest
    event = memory.lengths.long()[user] - back
    page = memory.page_indices.long()[memory.page_indptr.long()[user] + event // page_size]
    place = event % page_size
    return (user, longest - back), memory.k_pages[page, place], memory.v_pages[page, place]


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
