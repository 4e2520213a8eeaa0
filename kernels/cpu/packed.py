"""Attention of packed sequences without a past, in PyTorch without padding: what training runs on a CPU.

The reference pads every user to the longest, which costs a trainer most of its time where histories differ.
"""

import itertools
import math

import torch

__all__ = ["attend_packed"]

LOG2_E = 1.0 / math.log(2.0)


def attend_packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, *, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`segment_attention` without memory, targets or biases; differentiable in q, k and v, lse2 carries no gradient.

    Runs of users of equal length are views [users, length, ...], so nothing is padded: a trainer that orders the users
    of a batch by length gets few runs. split and cat, not slices: their backward is one copy for all runs.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        cu_seqlens: [B + 1] int32.
        window, scale: as in the reference.

    Returns:
        out [T, Hq, D], lse2 [T, Hq].
    """
    counts = cu_seqlens.diff().tolist()
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
