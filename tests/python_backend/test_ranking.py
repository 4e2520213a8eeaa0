"""Ranking against a plain sort of all scores: masks, ties, candidates, probabilities, many queries at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.modeling.repeats import Repeats
from longrec.protocol import NO_ITEM
from longrec.python_backend.query import Query
from longrec.python_backend.ranking import Ranker, log_partition
from longrec.python_backend.rules import EVERY, RuleSet
from longrec.python_backend.settings import Settings

NUM_ITEMS, DIM = 40, 3
TABLE = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, (NUM_ITEMS, DIM)).astype(np.float32))  # many ties
CATEGORIES = EVERY | np.random.default_rng(1).integers(0, 8, NUM_ITEMS)
REPEATS = Repeats(dim=1, reach=7)
REPEATS.table.data = torch.tensor([-3.0, 1, 2, 0, 0, 0, 0, 0])  # newest, 1 or 2 before it, 3 to 6
BLOCKED = np.random.default_rng(2).random(NUM_ITEMS) < 0.2


def expected(state, query, left_out, rules, seen):
    """The answer by the book: every item that may be recommended, sorted by falling score, then index."""
    scores = TABLE.double().numpy() @ state
    ages = {item: age for age, item in reversed(list(enumerate(seen[::-1][:7]))) if item < NUM_ITEMS}
    for item, age in ages.items():
        scores[item] += [-3, 1, 1, 2, 2, 2, 2][age]
    pool = range(NUM_ITEMS) if query.candidates is None else {c for c in query.candidates.tolist() if c < NUM_ITEMS}
    allowed = query.settings.allowed or EVERY
    fits = [
        item
        for item in pool
        if item not in left_out
        and rules.categories[item] & allowed
        and not (rules.blocked is not None and rules.blocked[item])
    ]
    best = sorted(fits, key=lambda item: (-scores[item], item))[: query.k]
    values = scores[best]
    if query.settings.probability:
        values = np.exp(values - np.log(np.exp(scores).sum()))
    missing = query.k - len(best)
    return best + [NO_ITEM] * missing, np.append(values, [-np.inf] * missing)


QUERY = st.tuples(
    st.one_of(st.none(), st.lists(st.integers(0, NUM_ITEMS + 5), min_size=1, max_size=12)),
    st.integers(1, NUM_ITEMS + 3),
    st.sampled_from([0, 0, 1, 6, 8]),
    st.booleans(),
    st.one_of(st.none(), st.lists(st.integers(-1, NUM_ITEMS + 9), max_size=30)),
    st.one_of(st.none(), st.lists(st.integers(0, NUM_ITEMS + 2), max_size=10)),
    st.tuples(*[st.integers(-2, 2)] * DIM),
)


@settings(deadline=None)
@given(st.lists(QUERY, min_size=1, max_size=6), st.booleans())
def test_any_batch_is_ranked_as_by_the_book(batch, with_rules):
    rules = RuleSet(BLOCKED if with_rules else None, CATEGORIES)
    ranker = Ranker(TABLE, SimpleNamespace(current=rules), REPEATS)
    queries, left_out, seen = [], {}, {}
    for number, (candidates, k, allowed, probability, out, met, _) in enumerate(batch):
        given_items = None if candidates is None else np.array(candidates)
        settings = Settings(k=k, allowed=allowed, probability=probability)
        queries.append(Query(b"u", np.empty((0, 2), np.int64), -1, given_items, k, settings))
        if out is not None:
            left_out[number] = np.array(out, np.int64)
        if met is not None:
            seen[number] = np.array(met, np.int64)
    states = np.array([query[-1] for query in batch], np.float32)
    ranked = ranker.rank(torch.from_numpy(states), queries, left_out, seen)
    for number, (items, scores) in enumerate(ranked):
        out, met = (of.get(number, np.empty(0, np.int64)).tolist() for of in (left_out, seen))
        best, values = expected(states[number], queries[number], set(out), rules, met)
        assert items.tolist() == best
        assert (items.dtype, scores.dtype) == (np.int64, np.float32)
        np.testing.assert_allclose(scores, values, rtol=1e-5)


def test_new_rules_hold_from_the_next_call_on():
    rules = SimpleNamespace(current=RuleSet.nothing(NUM_ITEMS))
    ranker, state = Ranker(TABLE, rules), torch.ones(1, DIM)
    queries = [Query(b"u", np.empty((0, 2), np.int64), -1, None, 1)]
    ((first,), _) = ranker.rank(state, queries)[0]
    blocked = np.zeros(NUM_ITEMS, bool)
    blocked[first] = True
    rules.current = RuleSet(blocked, rules.current.categories)
    ((second,), _) = ranker.rank(state, queries)[0]
    assert second != first
    candidates = queries[0]._replace(candidates=np.array([first, second]))
    assert ranker.rank(state, [candidates])[0][0].tolist() == [second]


def test_candidates_beyond_a_chunk(monkeypatch):
    monkeypatch.setattr("longrec.python_backend.ranking.CHUNK_PAIRS", 7)
    candidates = np.arange(NUM_ITEMS)[::-1].copy()
    query = Query(b"u", np.empty((0, 2), np.int64), -1, candidates, NUM_ITEMS)
    state = torch.tensor([[1.0, -1.0, 0.5]])
    whole = Ranker(TABLE).rank(state, [query._replace(candidates=None)])[0]
    for found in Ranker(TABLE).rank(state.expand(3, -1), [query] * 3):
        np.testing.assert_array_equal(found[0], whole[0])
        np.testing.assert_allclose(found[1], whole[1], rtol=1e-6)


def test_scores_that_are_none_are_left_out():
    table = TABLE.clone()
    table[3], table[4] = torch.nan, -torch.inf
    query = Query(b"u", np.empty((0, 2), np.int64), -1, np.array([3, 4, 5]), 3)
    items, scores = Ranker(table).rank(torch.ones(1, DIM), [query])[0]
    assert items.tolist() == [5, NO_ITEM, NO_ITEM]
    assert scores[1:].tolist() == [-np.inf] * 2


@pytest.mark.parametrize("rows", [1, 5])
def test_log_partition_block_by_block(monkeypatch, rows):
    monkeypatch.setattr("longrec.python_backend.ranking.CHUNK_SCORES", 64)
    table = torch.randn(3_000, 8, generator=torch.Generator().manual_seed(0)) * 4
    states = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1)) * 4
    exact = (states.double() @ table.double().T).logsumexp(dim=1)
    torch.testing.assert_close(log_partition(states, table).double(), exact, rtol=1e-6, atol=1e-5)
