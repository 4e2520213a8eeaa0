"""Ranking: hidden states and queries to items and scores, and what must not be among them.

Queries over the whole catalogue share a call of the kernel: one for those that leave nothing out for themselves, one
for the others. Candidates are gathered and scored together, as are the items that a user has seen where the network has
a term for those. Which items a query leaves out is for the caller to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from longrec import kernels
from longrec.modeling.repeats import Repeats
from longrec.protocol import NO_ITEM
from longrec.python_backend.query import Query
from longrec.python_backend.repeats import RepeatTerms, Terms
from longrec.python_backend.rules import EVERY, Rules, RuleSet

__all__ = ["NO_ITEMS", "Ranked", "Ranker", "first_of", "log_partition"]

Int64Array = NDArray[np.int64]
Ranked = tuple[Int64Array, NDArray[np.float32]]
NO_ITEMS: Ranked = (np.empty(0, np.int64), np.empty(0, np.float32))
NOTHING_LEFT_OUT: Mapping[int, Int64Array] = MappingProxyType({})
CHUNK_SCORES = 1 << 21  # scores of the catalogue at a time
DENSE = 16  # a score of all items' product costs a sixteenth of one that is gathered
CHUNK_PAIRS = 1 << 15  # candidates scored at a time: 8 MB of float32 rows at dim 64


class Ranker:
    """Ranks the catalogue, or the given candidates.

    Args:
        item_table: [num_items, dim], on the device that the states are on.
        rules: what is blocked and which categories items have; None: nothing and none.
        repeats: the network's term for items seen lately, if it has one.

    Attributes:
        num_seen: newest events of a user whose items count for their scores; 0: none do.
    """

    def __init__(self, item_table: torch.Tensor, rules: Rules | None = None, repeats: Repeats | None = None) -> None:
        self._table, self._rules = item_table, rules
        self._repeats = None if repeats is None else RepeatTerms(repeats, len(item_table))
        self.num_seen = 0 if self._repeats is None else self._repeats.reach
        self._unruled = RuleSet.nothing(len(item_table))
        self._prepared: RuleSet | None = None  # whose tensors follow
        self._blocked: torch.Tensor | None = None  # [ceil(N / 32)] int32
        self._categories: torch.Tensor | None = None  # [N] int64

    def rank(
        self,
        hidden: torch.Tensor,
        queries: Sequence[Query],
        left_out: Mapping[int, Int64Array] = NOTHING_LEFT_OUT,
        seen: Mapping[int, Int64Array] = NOTHING_LEFT_OUT,
    ) -> list[Ranked]:
        """Items [k] and scores [k] of each query, best first; equal scores: the lower index first.

        An item is never ranked twice, nor one that is blocked, not of an allowed category, or left out. NO_ITEM at -inf
        stands where there are fewer than k.

        Args:
            hidden: [Q, dim].
            queries: each with k > 0.
            left_out: number of a query -> items that it must not get, in any order; some may be unknown.
            seen: number of a query -> items of its user's last `num_seen` events, oldest first; some may be unknown.
        """
        terms = self._terms([seen.get(number) for number in range(len(queries))])
        plain: list[int] = []
        masked: list[int] = []
        given: list[int] = []
        with_probabilities = False
        for number, query in enumerate(queries):
            settings = query.settings
            with_probabilities |= settings.probability
            if query.candidates is not None:
                given.append(number)
            elif number in left_out or settings.allowed or (terms and terms[number]):
                masked.append(number)
            else:
                plain.append(number)
        ranked: list[Ranked] = [NO_ITEMS] * len(queries)
        for numbers in (plain, masked):
            if numbers:
                most = max(queries[number].k for number in numbers)
                rows = hidden if len(numbers) == len(queries) else hidden[numbers]
                out = allowed = own = None
                if numbers is masked:
                    own = terms and [terms[number] for number in numbers]
                    out = [left_out.get(number) for number in numbers]
                    allowed = [queries[number].settings.allowed for number in numbers]
                scores, items = (found.cpu().numpy() for found in self._top(rows, most, out, allowed, own))
                for row, number in enumerate(numbers):
                    k = queries[number].k
                    ranked[number] = items[row, :k], scores[row, :k]
        if given:
            self._rank_candidates(given, hidden, queries, left_out, terms, ranked)
        if with_probabilities:
            self._make_probabilities(hidden, queries, terms, ranked)
        return ranked

    def top(
        self,
        hidden: torch.Tensor,
        k: int,
        left_out: Sequence[Int64Array | None] | None = None,
        allowed: Sequence[int] | None = None,
        seen: Sequence[Int64Array | None] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [R, k] float32 and items [R, k] int64 of the catalogue's best for each state.

        Args:
            hidden: [R, dim].
            left_out: [R] items that a row must not get; None: none.
            allowed: [R] bits of the categories that a row allows; 0 or None: all.
            seen: [R] items of the last `num_seen` events before it.
        """
        return self._top(hidden, k, left_out, allowed, self._terms(seen))

    def totals(self, hidden: torch.Tensor, seen: Sequence[Int64Array | None] = ()) -> NDArray[np.float64]:
        """log sum of exp(score) over the catalogue, [R]: a score less this is a log-probability. As in `top`."""
        return self._totals(hidden, self._terms(seen))

    def _terms(self, seen: Sequence[Int64Array | None]) -> list[Terms | None] | None:
        if self._repeats is None or all(items is None for items in seen):
            return None
        return [None if items is None else self._repeats.after(items) for items in seen]

    def _totals(self, hidden: torch.Tensor, terms: Sequence[Terms | None] | None) -> NDArray[np.float64]:
        totals: NDArray[np.float64] = log_partition(hidden, self._table).double().cpu().numpy()
        if terms:
            rows, items, own = _flat(terms)
            grown = np.exp(self._scores(hidden, rows, items) - totals[rows]) * np.expm1(own)
            totals = totals + np.log1p(np.bincount(rows, grown, len(totals)))
        return totals

    def _top(
        self,
        hidden: torch.Tensor,
        k: int,
        left_out: Sequence[Int64Array | None] | None,
        allowed: Sequence[int] | None,
        terms: Sequence[Terms | None] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if terms is None:
            return self._unseen(hidden, k, left_out, allowed)
        banned = [NO_ITEMS[0] if items is None else items for items in left_out or [None] * len(terms)]
        others = [
            items if own is None else np.concatenate((items, own.items))
            for items, own in zip(banned, terms, strict=True)
        ]
        scores, items = (found.cpu().numpy() for found in self._unseen(hidden, k, others, allowed))
        rules = self._prepare()
        bits = [0] * len(terms) if allowed is None else allowed
        permitted = [
            own and own.only(rules.permits(own.items, bit) & ~np.isin(own.items, out))
            for own, bit, out in zip(terms, bits, banned, strict=True)
        ]
        rows, seen, own_terms = _flat(permitted)
        seen_scores = self._scores(hidden, rows, seen) + own_terms
        near = seen_scores >= scores[rows, -1]  # the others have k better ones: few are to be sorted
        rows, seen = rows[near], seen[near]
        of_row = np.append(np.repeat(np.arange(len(terms)), k), rows)
        all_items, all_scores = np.append(items, seen), np.append(scores, seen_scores[near])
        order = np.lexsort((all_items, -all_scores, all_items == NO_ITEM, of_row))
        begins = np.searchsorted(of_row[order], np.arange(len(terms)))
        best = order[begins[:, None] + np.arange(k)]  # [R, k]; the kernel gave k of each row
        return torch.from_numpy(all_scores[best]), torch.from_numpy(all_items[best])

    def _unseen(
        self,
        hidden: torch.Tensor,
        k: int,
        left_out: Sequence[Int64Array | None] | None,
        allowed: Sequence[int] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By inner products alone, on the states' device."""
        self._prepare()
        indptr = indices = categories = bits = None
        if left_out is not None and any(items is not None for items in left_out):
            indptr, indices = self._rows_of(left_out)
        if allowed is not None and any(allowed):
            categories = self._categories
            bits = torch.tensor([row or EVERY for row in allowed], device=hidden.device)
        return kernels.catalogue_topk(
            hidden,
            self._table,
            k,
            seen_indptr=indptr,
            seen_indices=indices,
            blocked=self._blocked,
            categories=categories,
            allowed=bits,
            validate=False,
        )

    def _prepare(self) -> RuleSet:
        """The rules as they are now; their tensors are made when they are new."""
        current = self._unruled if self._rules is None else self._rules.current
        if current is not self._prepared:
            device = self._table.device
            self._blocked = None
            if current.blocked is not None:
                bits = np.zeros(-(-len(current.blocked) // 32) * 32, bool)
                bits[: len(current.blocked)] = current.blocked
                words = np.packbits(bits, bitorder="little").view(np.int32)
                self._blocked = torch.from_numpy(words).to(device)
            self._categories = torch.from_numpy(current.categories).to(device)
            self._prepared = current
        return current

    def _rows_of(self, left_out: Sequence[Int64Array | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' known items, rising, as indptr [R + 1] and indices."""
        none, num_items = NO_ITEMS[0], len(self._table)
        rows = [none if items is None else np.unique(items) for items in left_out]
        rows = [row[np.searchsorted(row, 0) : np.searchsorted(row, num_items)] for row in rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=indptr[1:])
        device = self._table.device
        return torch.from_numpy(indptr).to(device), torch.from_numpy(np.concatenate(rows)).to(device)

    def _rank_candidates(
        self,
        numbers: list[int],
        hidden: torch.Tensor,
        queries: Sequence[Query],
        left_out: Mapping[int, Int64Array],
        terms: Sequence[Terms | None] | None,
        ranked: list[Ranked],
    ) -> None:
        rules, num_items = self._prepare(), len(self._table)
        rows: list[Int64Array] = []
        for number in numbers:
            query = queries[number]
            assert query.candidates is not None
            items = np.unique(query.candidates)
            items = items[: np.searchsorted(items, num_items)]
            items = items[rules.permits(items, query.settings.allowed)]
            if number in left_out:
                items = np.setdiff1d(items, left_out[number], assume_unique=True)
            rows.append(items)
        counts = np.array([len(items) for items in rows])
        flat, of_query = np.concatenate(rows), np.repeat(np.array(numbers), counts)
        scores = self._scores(hidden, of_query, flat)
        if terms:
            own = [terms[number] for number in numbers]
            scores = scores + np.concatenate(
                [np.zeros(len(r), np.float32) if t is None else t.of(r) for r, t in zip(rows, own, strict=True)]
            )
        order = np.lexsort((flat, -scores, of_query))
        order = order[scores[order] > -np.inf]  # neither NaN nor -inf is a score
        bounds = np.searchsorted(of_query[order], [*numbers, len(queries)])
        for at, number in enumerate(numbers):
            best = order[bounds[at] : bounds[at + 1]][: queries[number].k]
            ranked[number] = first_of(flat[best], scores[best], queries[number].k)

    def _scores(self, hidden: torch.Tensor, rows: Int64Array, items: Int64Array) -> NDArray[np.float32]:
        """[n], inner products of the states at `rows` [n] with `items` [n], in float32."""
        if len(self._table) * len(hidden) <= DENSE * len(items):
            everything = hidden.float() @ self._table.float().T
            dense: NDArray[np.float32] = everything.cpu().numpy()[rows, items]
            return dense
        device, parts = hidden.device, [NO_ITEMS[1]]
        for start in range(0, len(items), CHUNK_PAIRS):
            chunk = slice(start, start + CHUNK_PAIRS)
            vectors = self._table[torch.from_numpy(items[chunk]).to(device)].float()
            states = hidden[torch.from_numpy(rows[chunk]).to(device)].float()
            parts.append((vectors * states).sum(dim=1).cpu().numpy())
        return np.concatenate(parts)

    def _make_probabilities(
        self,
        hidden: torch.Tensor,
        queries: Sequence[Query],
        terms: Sequence[Terms | None] | None,
        ranked: list[Ranked],
    ) -> None:
        numbers = [number for number, query in enumerate(queries) if query.settings.probability]
        totals = self._totals(hidden[numbers], terms and [terms[number] for number in numbers])
        for number, total in zip(numbers, totals, strict=True):
            items, scores = ranked[number]
            ranked[number] = items, np.where(items == NO_ITEM, -np.inf, np.exp(scores - total)).astype(np.float32)


def _flat(terms: Sequence[Terms | None]) -> tuple[Int64Array, Int64Array, NDArray[np.float32]]:
    """Rows [n], items [n] and terms [n] of all rows."""
    some = [(row, own) for row, own in enumerate(terms) if own is not None]
    rows = np.repeat(np.array([row for row, _ in some], np.int64), [len(own.items) for _, own in some])
    items = np.concatenate([NO_ITEMS[0], *(own.items for _, own in some)])
    return rows, items, np.concatenate([NO_ITEMS[1], *(own.terms for _, own in some)])


def log_partition(hidden: torch.Tensor, item_table: torch.Tensor) -> torch.Tensor:
    """log sum over items n of exp(hidden . item_n), [R] float32: a score less this is a log-probability.

    Args:
        hidden: [R, dim]. item_table: [N, dim]. Scored in float32, `CHUNK_SCORES` at a time.
    """
    total = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    states = hidden.float()
    for items in _chunks(item_table, max(1024, CHUNK_SCORES // max(1, len(hidden)))):
        total = torch.logaddexp(total, (states @ items.float().T).logsumexp(dim=1))
    return total


def _chunks(table: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(table), size):
        yield table[start : start + size]


def first_of(items: Int64Array, scores: NDArray[np.float32], k: int) -> Ranked:
    """The first k, filled up with NO_ITEM at -inf."""
    missing = k - len(items)
    if missing > 0:
        items = np.append(items, np.full(missing, NO_ITEM))
        scores = np.append(scores, np.full(missing, -np.inf, np.float32))
    return items[:k], scores[:k]
