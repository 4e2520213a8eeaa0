"""Rollouts: the next `horizon` items of a user, one after the other, by beam search over forks of their memory.

A path is a sequence of predicted items. Each has a fork of the user's memory (`paths.py`), advanced by one event a
step, all paths of all users in one pass of the network. A user's paths are extended by the items of largest summed
log-probability; greedy is a beam of one. The forks are gone when a rollout ends, and the user's memory is as it was.
What an answer holds is said in `longrec.protocol`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, LongrecError, MachineError
from longrec.protocol import NO_ITEM
from longrec.python_backend.explain import NO_POSITION, Explainer
from longrec.python_backend.memory_pool import NO_ROW
from longrec.python_backend.paths import Paths
from longrec.python_backend.query import Query
from longrec.python_backend.ranking import Ranker

__all__ = ["RolledOut", "Rollouts", "Root"]

Ints = NDArray[np.int64]
MAX_PATHS = 64  # under way at a time, so of a step: everybody waits for it


class Root(NamedTuple):
    """Where a rollout begins.

    Args:
        query: what was asked for.
        length: of the user's log; their memory stands there, unless it is 0: then there is none.
        gap_ms: milliseconds from one predicted event to the next.
        left_out: items that it must not get, or None.
        newest: [2 + F], item and `Events.gaps` of event length - 1, to explain by; void where `explain` or length is 0.
        seen: items of the user's newest events, oldest first, as `Ranker` takes them; None: they don't count.
    """

    query: Query
    length: int
    gap_ms: int
    left_out: Ints | None
    newest: Ints
    seen: Ints | None = None


class RolledOut(NamedTuple):
    """A rollout's answer after `length` events: items, scores [horizon, k], because [horizon, k, explain] or None."""

    length: int
    items: Ints
    scores: NDArray[np.float32]
    because: Ints | None


@dataclass(slots=True, eq=False)
class _Path:
    """A path of `depth` items, and what the network makes of it.

    Args:
        row: among the `Paths`; NO_ROW until it has one.
        log_probability: summed over its items.
        parent, chosen: the path before its last item, and that item's place in the parent's `items`.
        items, scores, log_total: the best items after it; their log-probability is score - log_total.
        because: [K, explain] of `items`.
    """

    row: int
    log_probability: float = 0.0
    parent: "_Path | None" = None
    chosen: int = 0
    items: Ints | None = None
    scores: NDArray[np.float32] | None = None
    log_total: float = 0.0
    because: Ints | None = None


class _Rollout:
    """One user's rollout on its way.

    Args:
        root: where it begins.

    Attributes:
        paths: the best ones so far, all of `depth` items; none before the first step.
        newest: [P, 2 + F] item and `Events.gaps` of each path's last event.
        row: of the root's path; NO_ROW before the first step.
        forks: rows of the other paths; they are there to be released at any moment.
    """

    def __init__(self, root: Root) -> None:
        self.root, self.depth = root, 0
        self.paths: list[_Path] = []
        self.newest = root.newest[None]
        self.row = NO_ROW
        self.forks: set[int] = set()


class Rollouts:
    """Rolls users out, a step at a time: between steps others use the network, and may need pages.

    Several users' rollouts take their steps together, whatever depth each is at. Where the pool has no room for all of
    them, none goes on, and fewer are under way from then on until some have ended.

    Args:
        kept: where paths are kept.
        ranker: of the catalogue. explainer: of the items; None: nobody may ask.
    """

    def __init__(self, kept: Paths, ranker: Ranker, explainer: Explainer | None) -> None:
        self._kept, self._ranker, self._explainer = kept, ranker, explainer
        self._running: dict[bytes, _Rollout] = {}
        self._max_paths = MAX_PATHS

    @property
    def users(self) -> Collection[bytes]:
        """Whose rollouts are under way; their memories must stay pinned and as they are."""
        return self._running.keys()

    def admits(self, query: Query) -> bool:
        """Whether a rollout may begin now, beside those that are under way."""
        return query.user not in self._running and (
            not self._running or self._num_paths + query.settings.beam <= self._max_paths
        )

    def begin(self, root: Root) -> None:
        """Begin one that is admitted; it takes nothing of the pool before its first step."""
        self._running[root.query.user] = _Rollout(root)

    def step(self) -> dict[bytes, RolledOut | LongrecError]:
        """One item more for all that are under way.

        Returns:
            The results of those that have ended, by user. Whoever is neither here nor among `users` afterwards shall
            begin anew. A `MachineError`: there is no room for it even alone. A `DataError`: its user's log is damaged.

        Raises:
            Exception: the network failed; no rollout is under way any more.
        """
        rollouts = list(self._running.values())
        self._kept.begin_step()
        try:
            return self._step(rollouts)
        except MachineError as error:
            num_paths = self._num_paths
            self.stop()
            if len(rollouts) == 1:
                return {rollouts[0].root.query.user: error}
            self._max_paths = max(1, num_paths // 2)
            return {}
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all, without results; their forks are free."""
        for rollout in list(self._running.values()):
            self._end(rollout)

    @property
    def _num_paths(self) -> int:
        return sum(rollout.root.query.settings.beam for rollout in self._running.values())

    def _step(self, rollouts: Sequence[_Rollout]) -> dict[bytes, RolledOut | LongrecError]:
        results: dict[bytes, RolledOut | LongrecError] = {}
        for rollout in rollouts:
            error = self._open(rollout)
            if error is not None:
                results[rollout.root.query.user] = error
                self._end(rollout)
        rollouts = [rollout for rollout in rollouts if rollout.paths]
        if rollouts:
            self._look(rollouts)
        going_on: list[tuple[_Rollout, list[_Path]]] = []
        for rollout in rollouts:
            settings, paths = rollout.root.query.settings, rollout.paths
            is_last = rollout.depth + 1 == settings.horizon
            found = _extend(paths, 1 if is_last else settings.beam)
            if found and not is_last:
                going_on.append((rollout, found))
                continue
            # where nothing may be recommended any more, the rollout ends before its horizon
            best = found[0] if found else _Path(NO_ROW, parent=max(paths, key=lambda path: path.log_probability))
            results[rollout.root.query.user] = _collect(rollout.root, best)
            self._end(rollout)
            self._max_paths = min(MAX_PATHS, self._max_paths + 1)
        for rollout, children in going_on:
            self._fork(children, rollout)
        if going_on:
            self._advance([rollout for rollout, _ in going_on])
        return results

    def _open(self, rollout: _Rollout) -> DataError | None:
        """Place the root's path, if it isn't; why that can't be."""
        if rollout.row == NO_ROW:
            try:
                rollout.row = self._kept.open(rollout.root.query.user, rollout.root.length)
            except DataError as error:
                return error
            rollout.paths = [_Path(rollout.row)]
        return None

    def _end(self, rollout: _Rollout) -> None:
        del self._running[rollout.root.query.user]
        self._kept.release(sorted(rollout.forks))
        if rollout.row != NO_ROW:
            self._kept.close(rollout.row)

    def _look(self, rollouts: Sequence[_Rollout]) -> None:
        """Rank, and where asked for explain, the items after each path."""
        paths = [path for rollout in rollouts for path in rollout.paths]
        owners = [rollout for rollout in rollouts for _ in rollout.paths]
        hidden = self._kept.hidden([path.row for path in paths])  # [P, dim]
        settings = [rollout.root.query.settings for rollout in owners]
        most = max(max(each.k, each.beam) for each in settings)
        left_out = [_left_out(rollout.root, path) for rollout, path in zip(owners, paths, strict=True)]
        seen = [_seen(rollout.root, path) for rollout, path in zip(owners, paths, strict=True)]
        found = self._ranker.top(hidden, most, left_out, [each.allowed for each in settings], seen)
        scores, items = (each.cpu().numpy() for each in found)
        totals = np.zeros(len(paths))
        if any(each.beam > 1 or each.probability for each in settings):
            totals = self._ranker.totals(hidden, seen)
        for at, path in enumerate(paths):
            count = max(settings[at].k, settings[at].beam)
            path.items, path.scores, path.log_total = items[at, :count], scores[at, :count], float(totals[at])
        asked = np.array([at for at, each in enumerate(settings) if each.explain], np.int64)
        if not len(asked):
            return
        assert self._explainer is not None, "the settings allow explanations"
        count = max(settings[at].explain for at in asked)
        newest = np.concatenate([rollout.newest for rollout in rollouts])
        ends = np.array([owners[at].root.length for at in asked])
        depths = np.array([owners[at].depth for at in asked])
        because = np.full((len(asked), most, count), NO_POSITION)
        some = np.flatnonzero(ends + depths > 0)  # the others have no event that could explain anything
        if len(some):
            rows = np.array([paths[at].row for at in asked[some]])
            because[some] = self._explainer.explain(rows, newest[asked[some]], items[asked[some]], count, ends[some])
        for place, at in enumerate(asked):
            paths[at].because = because[place, :, : settings[at].explain]

    def _fork(self, children: list[_Path], rollout: _Rollout) -> None:
        """Give each child a memory of its own: a parent's fork goes to its first child, the others get copies."""
        forks = rollout.forks
        taken: set[int] = set()
        new: list[_Path] = []
        for child in children:
            assert child.parent is not None
            child.row = child.parent.row
            if child.row in forks and child.row not in taken:
                taken.add(child.row)
            else:
                new.append(child)
        ended = forks - taken - {child.row for child in new}
        forks -= ended
        self._kept.release(sorted(ended))
        if new:
            made = self._kept.fork([child.row for child in new])
            forks.update(made)
            for child, row in zip(new, made, strict=True):
                child.row = row
        rollout.paths = children

    def _advance(self, rollouts: Sequence[_Rollout]) -> None:
        """Run each path's last item through the network."""
        paths = [path for rollout in rollouts for path in rollout.paths]
        sizes = [len(rollout.paths) for rollout in rollouts]
        gaps_ms = np.repeat(np.array([rollout.root.gap_ms for rollout in rollouts], np.int64), sizes)
        newest = self._kept.advance([path.row for path in paths], [_last_item(path) for path in paths], gaps_ms)
        for rollout, each in zip(rollouts, np.split(newest, np.cumsum(sizes)[:-1]), strict=True):
            rollout.newest = each
            rollout.depth += 1


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
    return [_Path(NO_ROW, -cost, parent=paths[at], chosen=place) for cost, at, place in sorted(found)[:count]]


def _last_item(path: _Path) -> int:
    assert path.parent is not None
    assert path.parent.items is not None
    return int(path.parent.items[path.chosen])


def _left_out(root: Root, path: _Path) -> Ints | None:
    """Items that the next step may not choose: the root's, and the path's own if seen ones are excluded."""
    if not root.query.settings.exclude_seen:
        return root.left_out
    return np.concatenate(([] if root.left_out is None else root.left_out, _items(path))).astype(np.int64)


def _seen(root: Root, path: _Path) -> Ints | None:
    """`Root.seen` and the path's items."""
    return None if root.seen is None else np.concatenate((root.seen, _items(path)))


def _items(path: _Path) -> Ints:
    """Of a path, the first one first."""
    own: list[int] = []
    while path.parent is not None:
        own.append(_last_item(path))
        path = path.parent
    return np.array(own[::-1], np.int64)


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
    return RolledOut(root.length, items, scores, because)
