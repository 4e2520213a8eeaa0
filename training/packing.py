"""Histories cut into pieces and packed into ragged batches without padding: which rows of the dataset a step sees.
NumPy only; deterministic under its generator."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "cut", "pack", "share"]

Rows = NDArray[np.int64]


class Batch(NamedTuple):
    """One optimiser step.

    Args:
        rows: [T] rows of the dataset that are the input, piece after piece; the target of row r is the item of r + 1.
        positions: [T] their places in their users' logs.
        cu_seqlens: [B + 1] int32 borders of the pieces, longest piece first.
        first: [F] rows that begin a user's history and stand in this batch: targets of the start state.
        fresh: pieces before which there is no past; of `recurrence.pack_lanes` alone.
    """

    rows: Rows
    positions: Rows
    cu_seqlens: NDArray[np.int32]
    first: Rows
    fresh: Sequence[int] = ()


def cut(starts: Rows, ends: Rows, sequence_length: int, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    """Cut each user's rows starts[u]..ends[u] into pieces of at most `sequence_length` input rows.

    A history that fits stays whole. A longer one is cut every `sequence_length` rows from a random offset on, so that
    over the epochs each event is seen with every length of past. A history's last row is a target only.

    Returns:
        [P] user, first row and end row (exclusive) of each piece's inputs; pieces without an input are left out, save
        a history of one event, whose single item the start state still predicts.
    """
    counts = np.maximum(ends - starts - 1, 0)  # input rows of each user
    long = counts > sequence_length
    offset = np.where(long, rng.integers(1, sequence_length, len(counts), endpoint=True), counts)  # the first piece
    pieces = 1 + np.where(long, -(-(counts - offset) // sequence_length), 0)
    user = np.repeat(np.arange(len(counts)), pieces)
    nth = np.arange(len(user)) - np.repeat(pieces.cumsum() - pieces, pieces)
    base = starts[user] + offset[user]
    first = np.where(nth == 0, starts[user], base + (nth - 1) * sequence_length)
    end = np.minimum(base + nth * sequence_length, starts[user] + counts[user])
    kept = ends[user] > starts[user]
    return user[kept], first[kept], end[kept]


def pack(starts: Rows, ends: Rows, *, sequence_length: int, batch_events: int, rng: np.random.Generator) -> list[Batch]:
    """One epoch: every piece of `cut` once, in random order, filled up to `batch_events` a batch.

    Inside a batch the pieces stand by falling length: equal lengths side by side are what attention runs without
    padding.
    """
    user, first, end = cut(starts, ends, sequence_length, rng)
    order = rng.permutation(len(user))
    filled = (end - first)[order].cumsum()
    group = (filled - 1) // batch_events  # a piece belongs to the batch in which its last event falls
    batches = []
    for pieces in np.split(order, np.flatnonzero(np.diff(group)) + 1):
        by_length = pieces[np.argsort(first[pieces] - end[pieces], kind="stable")]
        lengths = (end - first)[by_length]
        cu_seqlens = np.concatenate(([0], lengths.cumsum()))
        rows = np.repeat(first[by_length] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        positions = rows - np.repeat(starts[user[by_length]], lengths)
        begins = first[by_length]
        batches.append(Batch(rows, positions, cu_seqlens.astype(np.int32), begins[begins == starts[user[by_length]]]))
    return batches


def share(batch: Batch, rank: int, size: int) -> Batch:
    """The part of a batch that one of `size` ranks learns: every size-th piece, from the rank-th on."""
    if size == 1:
        return batch
    begins, ends = batch.cu_seqlens[:-1][rank::size], batch.cu_seqlens[1:][rank::size]
    cu_seqlens = np.concatenate(([0], (ends - begins).cumsum()))
    rows = np.repeat(begins - cu_seqlens[:-1], ends - begins) + np.arange(cu_seqlens[-1])
    fresh = [lane // size for lane in batch.fresh if lane % size == rank]
    first = batch.first[rank::size]
    return Batch(batch.rows[rows], batch.positions[rows], cu_seqlens.astype(np.int32), first, fresh)
