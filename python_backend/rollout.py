"""Rollouts: the next `horizon` items of a user, one after the other, by beam search over forks of their memory.

A path is a sequence of predicted items. Each has a copy-on-write fork of the user's memory, advanced by one event a
step, all paths of all users in one pass of the network. A user's paths are extended by the items of largest summed
log-probability; greedy is a beam of one. The forks are gone when `run` returns or raises, and the users' memories are
as they were. What an answer holds is said in `longrec.protocol`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import MachineError
from longrec.modeling.transformer import Transformer
from longrec.protocol import NO_ITEM
from longrec.python_backend.catch_up import step_inputs
from longrec.python_backend.explain import NO_POSITION, Explainer
from longrec.python_backend.memory_pool import NO_ROW, NO_TIME, MemoryPool
from longrec.python_backend.query import Query
from longrec.python_backend.ranking import Ranker, log_partition
from longrec.python_backend.step import StepInputs, StepRunner

__all__ = ["RolledOut", "Rollouts", "Root"]

Ints = NDArray[np.int64]
MAX_TIME = np.iinfo(np.int64).max


class Root(NamedTuple):
    """Where a rollout begins.

    Args:
        query: what was asked for.
        length: of the user's log; their memory stands there, unless it is 0: then there is none.
        gap_ms: milliseconds from one predicted event to the next.
        left_out: items that it must not get, or None.
        newest: item and gap bucket of event length - 1, for explanations; void where `explain` or length is 0.
    """

    query: Query
    length: int
    gap_ms: int
    left_out: Ints | None
    newest: tuple[int, int]


class RolledOut(NamedTuple):
    """A rollout's answer: items and scores [horizon, k], because [horizon, k, explain] or None."""

    items: Ints
    scores: NDArray[np.float32]
    because: Ints | None


@dataclass(slots=True, eq=False)
class _Path:
    """A path of `depth` items, and what the network makes of it.

    Args:
        root: number of its rollout.
        row: of the pool; NO_ROW until it has one.
        log_probability: summed over its items.
        parent, chosen: the path before its last item, and that item's place in the parent's `items`.
        items, scores, log_total: the best items after it; their log-probability is score - log_total.
        because: [K, explain] of `items`.
    """

    root: int
    row: int
    log_probability: float = 0.0
    parent: "_Path | None" = None
    chosen: int = 0
    items: Ints | None = None
    scores: NDArray[np.float32] | None = None
    log_total: float = 0.0
    because: Ints | None = None


class Rollouts:
    """Rolls users out.

    Args:
        network: in evaluation mode.
        pool: the memories. steps: runs the network over it.
        ranker: of the catalogue. explainer: of the items.
    """

    def __init__(
        self, network: Transformer, pool: MemoryPool, steps: StepRunner, ranker: Ranker, explainer: Explainer
    ) -> None:
        self._network, self._pool, self._steps = network, pool, steps
        self._ranker, self._explainer = ranker, explainer

    def run(self, roots: Sequence[Root], hidden: torch.Tensor) -> list[RolledOut]:
        """Roll out all roots together.

        Args:
            hidden: [R, dim], the states of the roots, which a step doesn't overwrite.

        Raises:
            MachineError: the pool has no room for the forks.
        """
        pool = self._pool
        rows = [pool.row(root.query.user) for root in roots]
        fresh = [root.query.user for root, row in zip(roots, rows, strict=True) if row == NO_ROW]
        pinned = pool.pinned.copy()
        forks: set[int] = set()
        try:
            for at, root in enumerate(roots):
                if rows[at] == NO_ROW:  # may be a second root of a user that has just been opened
                    rows[at] = pool.row(root.query.user)
                if rows[at] == NO_ROW and root.length == 0:
                    rows[at] = pool.open(root.query.user, 0, NO_TIME)
                if rows[at] == NO_ROW:
                    raise MachineError("memory_bytes: expected room for a rollout's user, got none: raise it")
                pool.pinned[rows[at]] = True
            return self._search(roots, rows, hidden, forks)
        finally:
            pool.release(np.array(sorted(forks), np.int64))
            pool.pinned[rows] = pinned[rows]
            for user in fresh:
                pool.drop(user)

    def _search(
        self, roots: Sequence[Root], rows: Sequence[int], hidden: torch.Tensor, forks: set[int]
    ) -> list[RolledOut]:
        """The search itself; the rows in `forks` are there to be released at any moment."""
        paths = [_Path(number, row) for number, row in enumerate(rows)]
        newest = np.array([root.newest for root in roots], np.int64)  # [P, 2] item and gap bucket
        best: list[_Path | None] = [None] * len(roots)
        depth = 0
        while True:
            self._look(roots, paths, hidden, newest, depth)
            children: list[_Path] = []
            for number, root in enumerate(roots):
                mine = [path for path in paths if path.root == number]
                if not mine:
                    continue
                is_last = depth + 1 == root.query.settings.horizon
                found = _extend(mine, 1 if is_last else root.query.settings.beam)
                if is_last or not found:
                    # where nothing may be recommended any more, the rollout ends before its horizon
                    best[number] = found[0] if found else max(mine, key=lambda path: path.log_probability)
                    if not found:
                        best[number] = _Path(number, NO_ROW, parent=best[number], chosen=0)
                else:
                    children += found
            if not children:
                return [_collect(root, path) for root, path in zip(roots, best, strict=True) if path is not None]
            self._fork(children, paths, forks)
            hidden, inputs = self._advance(roots, children)
            newest = np.stack([inputs.items, inputs.gaps], axis=1)
            paths, depth = children, depth + 1

    def _look(
        self, roots: Sequence[Root], paths: Sequence[_Path], hidden: torch.Tensor, newest: Ints, depth: int
    ) -> None:
        """Rank, and where asked for explain, the items after each path."""
        settings = [roots[path.root].query.settings for path in paths]
        most = max(max(each.k, each.beam) for each in settings)
        left_out = [_left_out(roots[path.root], path) for path in paths]
        found = self._ranker.top(hidden, most, left_out, [each.allowed for each in settings])
        scores, items = (each.cpu().numpy() for each in found)
        totals = np.zeros(len(paths))
        if any(each.beam > 1 or each.probability for each in settings):
            totals = log_partition(hidden, self._network.item_table).double().cpu().numpy()
        for at, path in enumerate(paths):
            count = max(settings[at].k, settings[at].beam)
            path.items, path.scores, path.log_total = items[at, :count], scores[at, :count], float(totals[at])
        asked = np.array([at for at, each in enumerate(settings) if each.explain], np.int64)
        if not len(asked):
            return
        count = max(settings[at].explain for at in asked)
        ends = np.array([roots[paths[at].root].length for at in asked])
        because = np.full((len(asked), most, count), NO_POSITION)
        some = np.flatnonzero(ends + depth > 0)  # the others have no event that could explain anything
        if len(some):
            rows = np.array([paths[at].row for at in asked[some]])
            because[some] = self._explainer.explain(
                rows, newest[asked[some], 0], newest[asked[some], 1], items[asked[some]], count, ends[some]
            )
        for place, at in enumerate(asked):
            paths[at].because = because[place, :, : settings[at].explain]

    def _fork(self, children: Sequence[_Path], parents: Sequence[_Path], forks: set[int]) -> None:
        """Give each child a memory of its own: a parent's fork goes to its first child, the others get copies."""
        taken: set[int] = set()
        new: list[_Path] = []
        for child in children:
            assert child.parent is not None
            row = child.parent.row
            if row in forks and row not in taken:
                taken.add(row)
                child.row = row
            else:
                new.append(child)
        if new:
            sources = np.array([child.parent.row for child in new if child.parent is not None], np.int64)
            made = self._pool.fork(sources)
            forks.update(made.tolist())
            for child, row in zip(new, made.tolist(), strict=True):
                child.row = row
        ended = [path.row for path in parents if path.row in forks and path.row not in taken]
        forks.difference_update(ended)
        self._pool.release(np.array(ended, np.int64))

    def _advance(self, roots: Sequence[Root], paths: Sequence[_Path]) -> tuple[torch.Tensor, StepInputs]:
        """Run each path's last item through the network; the states [P, dim] after it."""
        pool = self._pool
        rows = np.array([path.row for path in paths], np.int64)
        counts = np.ones(len(paths), np.int64)
        gaps = np.array([roots[path.root].gap_ms for path in paths], np.int64)
        times = np.maximum(pool.time[rows], 0)
        times += np.minimum(gaps, MAX_TIME - times)
        events = np.stack([[_last_item(path) for path in paths], times], axis=1)
        if pool.num_fitting(rows, counts) < len(rows):
            raise MachineError("memory_bytes: expected room for a rollout's events, got none: raise it")
        pool.reserve(rows, counts)
        try:
            inputs = step_inputs(pool, self._network.config, rows, counts, events)
            hidden = self._steps.run(inputs)
        except BaseException:
            pool.unreserve(rows, counts)
            raise
        pool.advance(rows, counts, events[:, 1], hidden)
        return hidden, inputs


def _extend(paths: Sequence[_Path], count: int) -> list[_Path]:
    """The `count` best paths of one item more, the best first; equal ones: of the better path, the better item."""
    found: list[tuple[float, int, int]] = []
    for at, path in enumerate(paths):
        assert path.items is not None
        assert path.scores is not None
        for place in range(min(count, len(path.items))):
            if path.items[place] != NO_ITEM:
                gain = float(path.scores[place]) - path.log_total
                found.append((-(path.log_probability + gain), at, place))
    return [
        _Path(paths[at].root, NO_ROW, -cost, parent=paths[at], chosen=place)
        for cost, at, place in sorted(found)[:count]
    ]


def _last_item(path: _Path) -> int:
    assert path.parent is not None
    assert path.parent.items is not None
    return int(path.parent.items[path.chosen])


def _left_out(root: Root, path: _Path) -> Ints | None:
    """Items that the next step may not choose: the root's, and the path's own if seen ones are excluded."""
    if not root.query.settings.exclude_seen:
        return root.left_out
    own: list[int] = []
    while path.parent is not None:
        own.append(_last_item(path))
        path = path.parent
    return np.concatenate(([] if root.left_out is None else root.left_out, own)).astype(np.int64)


def _collect(root: Root, path: _Path) -> RolledOut:
    """The answer of the path that was found best, its last item among its items."""
    settings = root.query.settings
    k, horizon = settings.k, settings.horizon
    items = np.full((horizon, k), NO_ITEM)
    scores = np.full((horizon, k), -np.inf, np.float32)
    because = np.full((horizon, k, settings.explain), NO_POSITION) if settings.explain else None
    nodes: list[tuple[_Path, int]] = []
    while path.parent is not None:
        nodes.append((path.parent, path.chosen))
        path = path.parent
    for step, (node, chosen) in enumerate(reversed(nodes)):
        assert node.items is not None
        assert node.scores is not None
        order = [chosen, *(place for place in range(len(node.items)) if place != chosen)][:k]
        items[step] = node.items[order]
        values = node.scores[order]
        scores[step] = np.exp(values - node.log_total) if settings.probability else values
        scores[step][items[step] == NO_ITEM] = -np.inf
        if because is not None and node.because is not None:
            because[step] = node.because[order]
    return RolledOut(items, scores, because)
