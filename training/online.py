"""Learning on from what a server has logged: old and new events mixed, and a judgement whether the weights got better.

The newest event of each user is held out to judge by and the one before it to choose the epoch by, as in
`longrec evaluate`; both are learnt the next time, when they are somebody's past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.config import TrainConfig
from longrec.datasets import Dataset, Split, leave_one_out
from longrec.errors import ArgumentError, DataError
from longrec.modeling import Network
from longrec.training.evaluation import evaluate
from longrec.training.metrics import Metrics, ranking_metrics
from longrec.training.reporting import Observer
from longrec.training.trainer import Trained, train

__all__ = ["Judgement", "NewEvents", "UpdatePlan", "Updated", "update"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class UpdatePlan:
    """How an update learns and judges.

    Args:
        replay: old events learnt again for each one of the log, against forgetting.
        forgetting: share of NDCG@10 that old users may lose, at most.
        min_users: with new events, to judge by: fewer would be chance.
    """

    replay: float = 1.0
    forgetting: float = 0.1
    min_users: int = 100

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("replay", 0 <= self.replay < np.inf, "0 or more"),
            ("forgetting", 0 <= self.forgetting <= 1, "0 to 1"),
            ("min_users", self.min_users >= 1, "at least 1"),
        ):
            if not fits:
                raise ArgumentError(f"{name}={getattr(self, name)}", expected)


class NewEvents(NamedTuple):
    """What was logged.

    Args:
        dataset: users with new events: these, and the past before them as far as it reaches an answer.
        fresh: [U] how many of a user's events, the last ones, are new; at least 1.
    """

    dataset: Dataset
    fresh: Rows

    @property
    def newest(self) -> Rows:
        """[U] row of each user's newest event."""
        return self.dataset.indptr[1:] - 1

    @classmethod
    def from_log(
        cls, users: Sequence[bytes], rows: Sequence[Rows], fresh: Rows, catalogue: Catalogue
    ) -> tuple["NewEvents", int]:
        """Of the items that the catalogue has.

        Args:
            users: [U] keys.
            rows: a [n, 2] array a user: item, unix ms.
            fresh: [U] how many of a user's rows, the last ones, are new; at least 1.
            catalogue: the network's.

        Returns:
            The events, and how many new ones are left out, as they are of other items: there is nothing to learn.
        """
        known = [(row[:, 0] >= 0) & (row[:, 0] < len(catalogue)) for row in rows]
        left = np.array([int(mask[-new:].sum()) for mask, new in zip(known, fresh.tolist(), strict=True)], np.int64)
        some = np.flatnonzero(left).tolist()
        kept = [rows[user][known[user]] for user in some]
        indptr = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        flat = np.concatenate([*kept, np.zeros((0, 2), np.int64)])
        keys = [users[user].decode() for user in some]
        dataset = Dataset("log", keys, catalogue, flat[:, 0].copy(), flat[:, 1].copy(), indptr)
        return cls(dataset, left[some]), int(fresh.sum() - left.sum())


class Judgement(NamedTuple):
    """Metrics of the same held-out events under the weights from before the update, and after it."""

    before: Metrics
    after: Metrics

    @property
    def change(self) -> float:
        """Of NDCG@10, as a share of what it was."""
        before, after = self.before.ndcg[10], self.after.ndcg[10]
        return (after - before) / before if before else after

    def as_dict(self) -> dict[str, dict[str, float]]:
        """JSON-able."""
        return {"before": self.before.as_dict(), "after": self.after.as_dict()}


class Updated(NamedTuple):
    """What an update came to.

    Args:
        trained: the new weights.
        learnt, replayed: events of an epoch from the log, new ones with their past, and old ones.
        new: on each user's newest event in the log.
        old: on the old data's test events; None: there is no old data.
        refusal: why the new weights aren't to be used; "": they are.
    """

    trained: Trained
    learnt: int
    replayed: int
    new: Judgement
    old: Judgement | None
    refusal: str


def update(
    network: Network,
    new: NewEvents,
    old: Dataset | None,
    config: TrainConfig,
    plan: UpdatePlan,
    observers: Sequence[Observer] = (),
) -> Updated:
    """Fine-tune a network on new events and replayed old ones, and compare it with what it was.

    Args:
        network: that is served, in evaluation mode; stays as it is.
        new: in its catalogue.
        old: what it was trained on, in its catalogue; None: nothing is replayed but the new events' own past.
        config: of the fine-tuning; a user's past beyond `sequence_length` events isn't learnt again.
        plan: how much is replayed, and what is asked of the result.
        observers: told after each epoch.

    Raises:
        DataError: too few users have new events, or none has three: two are held out.
    """
    users = len(new.fresh)
    if users < plan.min_users:
        raise DataError(
            f"log: expected new events of at least {plan.min_users} users (min_users), to judge by, got {users}; "
            "update later"
        )
    mixed, split, learnt = _mix(new, old, config, plan)
    if not len(split.evaluated):
        raise DataError("log: expected a user with at least 3 new events, as two are held out; update later")
    trained = train(mixed, split, network.config, config, observers, initial=network.state_dict())
    judged = _judge((network, trained.network), new.dataset, np.arange(users), new.newest)
    kept = None
    if old is not None:
        held_out = leave_one_out(old)
        kept = _judge((network, trained.network), old, held_out.evaluated, held_out.test)
    replayed = int((split.train_end - mixed.indptr[:-1]).sum()) - learnt
    return Updated(trained, learnt, replayed, judged, kept, _refusal(judged, kept, plan))


def _refusal(new: Judgement, old: Judgement | None, plan: UpdatePlan) -> str:
    if new.change < 0:
        return f"NDCG@10 of the newest events falls from {new.before.ndcg[10]:.4f} to {new.after.ndcg[10]:.4f}"
    if old is not None and old.change < -plan.forgetting:
        return (
            f"NDCG@10 of the old data falls from {old.before.ndcg[10]:.4f} to {old.after.ndcg[10]:.4f}, by more than "
            f"{plan.forgetting:.0%} (forgetting)"
        )
    return ""


def _judge(networks: tuple[Network, Network], dataset: Dataset, users: Rows, rows: Rows) -> Judgement:
    before, after = (ranking_metrics(evaluate(network, dataset, users, rows).numpy()) for network in networks)
    return Judgement(before, after)


def _mix(new: NewEvents, old: Dataset | None, config: TrainConfig, plan: UpdatePlan) -> tuple[Dataset, Split, int]:
    """The data set of an update: users of the log, then old ones; and how many events of the former are learnt."""
    ends = new.dataset.indptr[1:]
    begins = np.maximum(new.dataset.indptr[:-1], ends - new.fresh - config.sequence_length)
    begins = np.where(new.fresh > 1, begins, ends - 1)  # whose only new event is held out has nothing to learn
    train_lengths = [ends - begins - np.where(new.fresh > 2, 2, 1)]
    learnt = int(train_lengths[0].sum())
    parts = [(new.dataset, begins, ends)]
    if old is not None and plan.replay:
        old_begins, old_ends = old.indptr[:-1], leave_one_out(old).train_end
        order = np.random.default_rng(config.seed).permutation(len(old_begins))
        enough = np.searchsorted((old_ends - old_begins)[order].cumsum(), plan.replay * learnt)
        chosen = order[: int(enough) + 1]
        parts.append((old, old_begins[chosen], old_ends[chosen]))
        train_lengths.append((old_ends - old_begins)[chosen])
    mixed = _join(parts)
    train_end = mixed.indptr[:-1] + np.concatenate(train_lengths)
    evaluated = np.flatnonzero(new.fresh > 2)
    last = mixed.indptr[evaluated + 1] - 1
    return mixed, Split(train_end, evaluated, last - 1, last), learnt


def _join(parts: Sequence[tuple[Dataset, Rows, Rows]]) -> Dataset:
    """One data set of the rows begins[u]..ends[u] of several, a user each."""
    first, _, _ = parts[0]
    items, times, lengths = [], [], []
    for dataset, begins, ends in parts:
        counts = ends - begins
        offsets = np.repeat(begins - (counts.cumsum() - counts), counts)
        rows = offsets + np.arange(len(offsets))
        items.append(dataset.items[rows])
        times.append(dataset.times_ms[rows])
        lengths.append(counts)
    indptr = np.concatenate(([0], np.concatenate(lengths).cumsum())).astype(np.int64)
    users = [str(user) for user in range(len(indptr) - 1)]
    return Dataset("update", users, first.catalogue, np.concatenate(items), np.concatenate(times), indptr)
