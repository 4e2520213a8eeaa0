"""Several engines at once on one log, each with its own pool: random queries of every kind, deferred work left standing
on one while the others append. The log says what an answer must be; pages are nobody's or one's."""

import itertools

import numpy as np
import pytest

from longrec.config import EngineConfig
from longrec.errors import MachineError
from longrec.protocol import Status
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.settings import Settings

K, USERS, STEPS = 5, 7, 60
SIZES = ((8, 12, 40), (20, 24, 2048), (1, 3, 7))  # inline_events, chunk_events, max_step_events


class _Players:
    """Engines on one log, and what each owes."""

    def __init__(self, seed, network, log, recompute, num_pages, host_pages, memory_dtype):
        self.rng, self.network, self.log, self.recompute = np.random.default_rng(seed), network, log, recompute
        model = network.config
        width = 4 if memory_dtype == "same" else 1 + 4 / model.head_dim
        page_bytes = int(2 * model.num_layers * 16 * model.num_kv_heads * model.head_dim * width)
        inline, chunk, step = SIZES[seed % len(SIZES)]
        self.config = EngineConfig(
            page_size=16,
            inline_events=inline,
            chunk_events=chunk,
            max_step_events=step,
            memory_bytes=num_pages * page_bytes,
            host_memory_bytes=host_pages * page_bytes,
            memory_dtype=memory_dtype,
            max_seen=20,
        )
        self.tolerance = 1e-4 if memory_dtype == "same" else None
        self.engines = [Engine(network, log, self.config) for _ in range(2)]
        self.pending = [{}, {}]  # ticket -> query, oldest first
        self.clock = 1_700_000_000_000

    def query(self):
        rng = self.rng
        user = f"ü{rng.integers(USERS)}"
        count = int(rng.choice([0, 0, 1, 1, 2, 5, 30, 70]))
        self.clock += 1_000
        rows = np.stack([rng.integers(0, 100, count), self.clock + rng.integers(0, 10**7, count)], axis=1)
        held = self.log.length(user.encode())
        position = int(rng.choice([-1, -1, held, max(0, held - 2), held + 3, (1 << 63) - 1 - count]))
        if (
            0 <= position < held and rng.random() < 0.5
        ):  # a retry; else another's events, where the log has some already
            again = self.log.read(user.encode(), position, min(held, position + count))
            rows[: len(again)] = again
        k = 0 if rng.random() < 0.2 else K
        explain, horizon = int(rng.choice([0, 0, 0, 3])), int(rng.choice([1, 1, 1, 3]))
        settings = Settings(k=K, explain=explain, horizon=horizon, beam=int(rng.integers(1, 3)))
        candidates = None
        if horizon == 1 and rng.random() < 0.3:
            candidates = rng.integers(0, 120, 9)
        settings = settings._replace(exclude_seen=bool(rng.random() < 0.3))
        return Query(user.encode(), rows, position if count else -1, candidates, k, settings)

    def ask(self, at):
        queries = [self.query() for _ in range(self.rng.integers(0, 6))]
        found = self.engines[at].answer(queries)
        for query, answer in zip(queries, found, strict=True):
            if isinstance(answer, Answer):
                self.check(query, answer)
            else:
                self.pending[at][answer] = query

    def turn(self, at):
        for ticket, answer in self.engines[at].turn():
            query = self.pending[at].pop(ticket)
            assert query.user not in {other.user for each, other in self.pending[at].items() if each < ticket}
            self.check(query, answer)

    def settle(self):
        for at in range(2):
            for _ in range(3000):
                if not self.engines[at].has_work:
                    break
                self.turn(at)
            assert not self.pending[at]
            assert not self.engines[at].has_work

    def check(self, query, answer):
        settings = query.settings
        if isinstance(answer.error, MachineError):
            assert "fork" in str(answer.error) or "rollout" in str(answer.error)
            assert settings.horizon > 1
            return
        assert answer.error is None
        if answer.status is Status.GAP:
            assert query.position > answer.length or query.position > 1 << 40
            return
        if answer.status is Status.CONFLICT:
            held = self.log.read(query.user, query.position, answer.length)[: len(query.events)]
            assert (held != query.events[: len(held)]).any()
            return
        history = self.log.read(query.user, 0, answer.length)
        held = history[query.position :][: len(query.events)] if query.position >= 0 else query.events[:0]
        if answer.status is Status.CONFLICT:
            assert (held != query.events[: len(held)]).any()
            return
        np.testing.assert_array_equal(held, query.events[: len(held)])
        if len(query.events) and query.position < 0:
            np.testing.assert_array_equal(history[-len(query.events) :], query.events)
        if not query.k:
            return
        items = answer.items if settings.horizon == 1 else answer.items[0]
        scores = answer.scores if settings.horizon == 1 else answer.scores[0]
        expected = self.recompute(history)
        allowed = np.zeros(len(expected), bool)
        allowed[slice(None) if query.candidates is None else query.candidates[query.candidates < len(expected)]] = True
        if settings.exclude_seen:
            seen = history[-20:, 0]
            allowed[seen[seen < len(expected)]] = False
        best = np.sort(expected[allowed])[::-1][:K]
        assert allowed[items[: len(best)]].all()
        assert (items[len(best) :] == -1).all()
        if self.tolerance is not None:
            np.testing.assert_allclose(scores[: len(best)], expected[items[: len(best)]], atol=self.tolerance)
            if settings.beam == 1 or settings.horizon == 1:
                np.testing.assert_allclose(scores[: len(best)], best, atol=self.tolerance)
        if settings.explain:
            because = answer.because[..., : len(best), :] if settings.horizon == 1 else answer.because[0, : len(best)]
            assert (because < answer.length).all()
            assert (because[..., 0] >= 0).all() or not answer.length

    def pages_are_ones_own(self, at):
        pool = self.engines[at].pool
        held = []
        for row in pool._rows.values():
            count = int(-((pool.first[row] - pool.length[row]) // pool.page_size))
            held += pool._tables[row, :count].tolist()
        forks = sorted(set(range(pool.num_pages)) - set(pool._free_rows) - set(pool._rows.values()))
        for row in forks:  # of rollouts that are under way
            count = int(-((pool.first[row] - pool.length[row]) // pool.page_size))
            held += pool._tables[row, pool._borrowed[row] : count].tolist()
        held += pool._free[: pool._num_free].tolist()
        assert sorted(held) == list(range(pool.num_pages))
        assert len(pool._free_rows) + len(pool._rows) + len(forks) == pool.num_pages
        assert not np.delete(pool._borrowed, forks).any()
        if not self.pending[at]:
            assert not forks
            assert not pool.pinned.any()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("num_pages", "host_pages", "memory_dtype"),
    [(10, 0, "same"), (9, 6, "same"), (40, 0, "same"), (12, 5, "int8")],
    ids=["tight", "tier", "roomy", "int8"],
)
def test_engines_answer_what_the_log_says(tmp_path, network, recompute, seed, num_pages, host_pages, memory_dtype):
    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    players = _Players(seed, network, log, recompute, num_pages, host_pages, memory_dtype)
    for _ in range(STEPS):
        at = int(players.rng.integers(2))
        action = players.rng.choice(["ask", "ask", "turn", "turn", "turn", "warm", "drop"])
        if action == "ask":
            players.ask(at)
        elif action == "turn":
            for _ in range(players.rng.integers(1, 6)):
                players.turn(at)
        elif action == "warm":
            players.engines[at].warm_up(log.recent_users(USERS))
        elif not players.pending[at]:
            for user in itertools.islice(list(players.engines[at].pool._rows), 2):
                players.engines[at].pool.drop(user)
        players.pages_are_ones_own(at)
    players.settle()
    for at in range(2):
        players.pages_are_ones_own(at)
    log.close()
