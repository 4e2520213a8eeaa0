"""Whole histories segment by segment, for networks that carry a memory through training. NumPy only; deterministic
under its generator."""

import numpy as np

from longrec.training.packing import Batch, Rows, cut

__all__ = ["pack_lanes"]


def pack_lanes(
    starts: Rows, ends: Rows, *, sequence_length: int, batch_events: int, rng: np.random.Generator
) -> list[Batch]:
    """One epoch: every piece of `packing.cut` once, those of a history in successive batches and in its order.

    Piece b of a batch is the next one of the history that lane b runs through; `Batch.fresh` are the lanes in which
    another history begins. There are as many lanes as pieces of mean length make `batch_events`, in the first batch and
    in the last; a lane that has run through its history takes the next one, in random order, or stays without events.
    """
    user, first, end = cut(starts, ends, sequence_length, rng)
    if not len(user):
        return []
    borders = np.flatnonzero(np.diff(user)) + 1
    waiting = np.split(np.arange(len(user)), borders)  # the pieces of each history
    order = rng.permutation(len(waiting)).tolist()
    mean = max(1.0, float((end - first).mean()))
    lanes: list[list[int]] = [[] for _ in range(max(1, min(round(batch_events / mean), len(waiting))))]
    batches: list[Batch] = []
    while True:
        fresh, pieces = [], []
        for lane, left in enumerate(lanes):
            if not left and order:
                left += waiting[order.pop()].tolist()
                fresh.append(lane)
            pieces.append(left.pop(0) if left else -1)
        if max(pieces) < 0:
            return batches
        batches.append(_batch(np.array(pieces), starts[user], first, end, fresh))


def _batch(pieces: Rows, starts: Rows, first: Rows, end: Rows, fresh: list[int]) -> Batch:
    """As `packing.pack` makes it; piece -1 has no events."""
    begins, lengths = first[pieces], np.where(pieces < 0, 0, end[pieces] - first[pieces])
    cu_seqlens = np.concatenate(([0], lengths.cumsum()))
    rows = np.repeat(begins - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
    positions = rows - np.repeat(starts[pieces], lengths)
    opening = begins[(pieces >= 0) & (begins == starts[pieces])]
    return Batch(rows, positions, cu_seqlens.astype(np.int32), opening, fresh)
