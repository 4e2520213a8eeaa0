"""`segment_attention` in PyTorch: the oracle of its kernels, and the body that runs where no kernel does.

Never casts: float64 in, float64 out. Shapes: T new events of the batch, B users, Hq query and Hkv key/value heads (G =
Hq / Hkv to a group), D head_dim, P pages of S events; N the most new events of a user, M the most memory + new events.
"""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import silu

from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias, bucket_of

__all__ = ["segment_attention"]

LOG2_E = 1.0 / math.log(2.0)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float | None = None,
    memory: PagedMemory | None = None,
    kind: AttentionKind = "softmax",
    relative: RelativeTerms | None = None,
    position_bias: PositionBias | None = None,
    time_bias: TimeBias | None = None,
    num_targets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of ragged new events over their users' memory and themselves.

    With i, j positions in memory + new events of one user: query i sees keys i - window < j <= i. A key's weight is
    softmax(score), or silu(score) / window for the pointwise attention of HSTU (Zhai et al., Actions Speak Louder than
    Words, 2024, section 3.2, where the divisor is the longest sequence: here that is what a query can see).

    A user's last `num_targets` rows are targets: candidates for the event that follows its other new events. All of
    them stand at that event's position; each sees what that event would see and itself, and no row sees a target but
    its own.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D], Hq a multiple of Hkv.
        cu_seqlens: [B + 1] int32; user b's new events are rows cu_seqlens[b] to cu_seqlens[b + 1].
        window: events that a query sees, itself included.
        scale: of the scores; 1 / sqrt(D) by default.
        memory: the users' past; None: no past.
        kind: "softmax" or "silu".
        relative: Transformer-XL's terms. position_bias, time_bias: added to the scaled score.
        num_targets: [B] int32, each at most its user's new events; None: no targets.

    Returns:
        out [T, Hq, D] in q's dtype, and lse2 [T, Hq], the base-2 log-sum-exp of the scores: -inf (and out 0) for a row
        that sees nothing; zeros for "silu", which has none.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    layout = _lay_out(cu_seqlens, memory, num_targets, window)

    def by_user(rows: torch.Tensor) -> torch.Tensor:  # [T, ...] -> [B, N, ...]
        padded = rows.new_zeros(*layout.distance.shape[:2], *rows.shape[1:])
        return padded.index_put((layout.user, layout.row), rows)

    def keys_by_user(pages: torch.Tensor | None, scales: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        padded = rows.new_zeros(len(layout.distance), layout.distance.shape[2], *rows.shape[1:])  # [B, M, ...]
        if memory is not None and pages is not None and layout.longest_past:
            padded = padded.index_put(*_gather_pages(memory, pages, scales, layout.longest_past, rows.dtype))
        return padded.index_put((layout.user, layout.longest_past + layout.row), rows)

    queries = by_user(q).transpose(1, 2)  # [B, Hq, N, D]
    keys = keys_by_user(memory and memory.k_pages, memory and memory.k_scale, k).permute(0, 2, 3, 1)  # [B, Hkv, D, M]
    values = keys_by_user(memory and memory.v_pages, memory and memory.v_scale, v).transpose(1, 2)  # [B, Hkv, M, D]

    content = queries if relative is None else queries + relative.u[:, None]
    scores = (content.unflatten(1, (num_kv_heads, group)) @ keys[:, :, None] * scale).flatten(1, 2)  # [B, Hq, N, M]
    if relative is not None:
        by_distance = (queries + relative.v[:, None]) @ relative.r.permute(1, 2, 0)  # [B, Hq, N, R]
        distance = layout.distance.clamp(max=len(relative.r) - 1)[:, None].expand(-1, num_heads, -1, -1)
        scores = scores + by_distance.gather(3, distance) * scale
    if position_bias is not None:
        scores = scores + _bias(position_bias.table, layout.distance, position_bias.fraction_bits).to(scores.dtype)
    if time_bias is not None:
        key_time = keys_by_user(time_bias.memory_seconds, None, time_bias.key_seconds)
        elapsed = (by_user(time_bias.query_seconds)[:, :, None] - key_time[:, None]).clamp(min=0)  # [B, N, M]
        scores = scores + _bias(time_bias.table, elapsed, time_bias.fraction_bits).to(scores.dtype)

    hidden = ~layout.visible[:, None]  # [B, 1, N, M]
    if kind == "silu":
        lse = scores.new_zeros(scores.shape[:3])
        weights = silu(scores).masked_fill(hidden, 0.0) / window
    else:
        scores = scores.masked_fill(hidden, -torch.inf)
        lse = scores.logsumexp(-1)  # [B, Hq, N]
        weights = torch.exp(scores - lse[..., None].clamp(min=torch.finfo(q.dtype).min))
    out = (weights.unflatten(1, (num_kv_heads, group)) @ values[:, :, None]).flatten(1, 2)  # [B, Hq, N, D]
    return out.transpose(1, 2)[layout.user, layout.row], (lse * LOG2_E).transpose(1, 2)[layout.user, layout.row]


class _Layout(NamedTuple):
    """Where rows and keys stand: keys are a user's memory, right-aligned, then its new events."""

    user: torch.Tensor  # [T]
    row: torch.Tensor  # [T] place among the user's new events
    longest_past: int
    distance: torch.Tensor  # [B, N, M] from query back to key, 0 where it would be negative
    visible: torch.Tensor  # [B, N, M]


def _lay_out(
    cu_seqlens: torch.Tensor, memory: PagedMemory | None, num_targets: torch.Tensor | None, window: int
) -> _Layout:
    device = cu_seqlens.device
    counts = cu_seqlens.diff().long()  # [B]
    past = memory.lengths.long() if memory is not None else torch.zeros_like(counts)
    longest, longest_past = _max(counts), _max(past)
    user = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)  # [T]
    row = torch.arange(len(user), device=device) - cu_seqlens.long()[user]  # [T]

    rows = torch.arange(longest, device=device)[:, None]  # [N, 1]
    j = torch.arange(longest_past + longest, device=device)  # [M]
    first = (longest_past - past)[:, None, None]  # [B, 1, 1] the oldest key
    if num_targets is None:
        i = rows + longest_past  # [N, 1]
        visible = (j <= i) & (j > i - window) & (j >= first)
        return _Layout(user, row, longest_past, (i - j).clamp(min=0).expand(visible.shape), visible)
    events = (counts - num_targets)[:, None, None]  # [B, 1, 1] new events that are no targets
    i = rows.minimum(events) + longest_past  # [B, N, 1]
    itself = j == rows + longest_past  # [N, M]
    visible = (j <= i) & (j > i - window) & (j >= first) & (j < longest_past + events) | itself
    return _Layout(user, row, longest_past, (i - j).clamp(min=0).masked_fill(itself, 0), visible)


def _bias(table: torch.Tensor, distance: torch.Tensor, fraction_bits: int) -> torch.Tensor:
    """table [Hq, num_buckets], distance [B, N, M] -> [B, Hq, N, M]."""
    return table[:, bucket_of(distance, fraction_bits, table.shape[1])].transpose(0, 1)


def _max(counts: torch.Tensor) -> int:
    return int(counts.max()) if len(counts) else 0


def _gather_pages(
    memory: PagedMemory, pages: torch.Tensor, scales: torch.Tensor | None, longest: int, dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Memory's entries [sum of lengths, ...] in `dtype`, and their places: user, and right-aligned before `longest`."""
    page_size, past = pages.shape[1], memory.lengths.long()
    user = torch.repeat_interleave(torch.arange(len(past), device=past.device), past)  # [sum of past]
    start = torch.repeat_interleave(past.cumsum(0) - past, past)
    event = torch.arange(len(user), device=past.device) - start
    page = memory.page_indices.long()[memory.page_indptr.long()[user] + event // page_size]
    entries = pages[page, event % page_size].to(dtype)
    if scales is not None:
        entries = entries * scales[page, event % page_size, :, None].to(dtype)
    return (user, longest - past[user] + event), entries
