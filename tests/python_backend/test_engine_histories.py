"""Random histories of engine and log against plain lists and a recompute: appends, retries, gaps, bulk, deferred work,
evictions, restarts, a second engine on the same log, retention."""

import itertools

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from longrec.config import EngineConfig
from longrec.protocol import Status
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Answer, Query

K, KEEP, USERS = 7, 100, 9
TOLERANCE = 1e-4
# room for a few users' pages only: they are evicted all the time
CONFIG = {"page_size": 16, "inline_events": 8, "chunk_events": 12, "max_step_events": 40}
COUNTS = st.sampled_from([0, 1, 1, 2, 5, 9, 30])


class _Histories(RuleBasedStateMachine):
    """`folder`, `network`, `recompute` and `memory_bytes` are set by the test; each run has users of its own."""

    runs = itertools.count()

    @initialize(limited=st.booleans())
    def begin(self, limited):
        self.run, self.max_user_events = next(self.runs), KEEP if limited else 0
        self.lists = {b"%d of run %d" % (n, self.run): [] for n in range(USERS)}
        self.clock, self.items = 1_700_000_000_000, np.random.default_rng(self.run)
        self.log, self.engines, self.pending = None, [], {}
        self.open()

    def open(self):
        if self.log is not None:
            self.log.close()
        self.log = LmdbLog(
            self.folder / str(self.run), durability="none", max_bytes=64 << 20, max_user_events=self.max_user_events
        )
        self.engines = [self.make_engine()]

    def make_engine(self):
        return Engine(self.network, self.log, EngineConfig(**CONFIG, memory_bytes=self.memory_bytes))

    @rule(
        asks=st.lists(
            st.tuples(st.integers(0, USERS - 1), st.integers(-1, 4), COUNTS, st.booleans()), min_size=1, max_size=5
        )
    )
    def ask(self, asks):
        """Queries of one batch: whose, from how far before (or past) the end or unchecked, how many events, and whether
        an answer is wanted. What comes later is kept."""
        queries, expected = [], []
        for number, back, count, wanted in asks:
            user = b"%d of run %d" % (number, self.run)
            held = self.lists[user]
            position = -1 if back < 0 else max(0, len(held) + 1 - back)
            rows = np.stack([self.items.integers(0, 100, count), self.clock + self.items.integers(0, 10**8, count)], 1)
            self.clock += 1_000
            queries.append(Query(user, rows, position, None, K if wanted else 0))
            if position > len(held):
                expected.append((Status.GAP, len(held), None))
                continue
            skipped = 0 if position < 0 else min(len(held) - position, count)
            held += rows[skipped:].tolist()
            expected.append((Status.OK, len(held), np.array(held, np.int64).reshape(-1, 2) if wanted else None))
        for answer, wanted in zip(self.engines[0].answer(queries), expected, strict=True):
            if isinstance(answer, Answer):
                self.compare(answer, wanted)
            else:
                self.pending[answer] = wanted

    @rule(turns=st.integers(1, 4))
    def turn(self, turns):
        for _ in range(turns):
            for ticket, answer in self.engines[0].turn():
                self.compare(answer, self.pending.pop(ticket))

    @rule()
    def settle(self):
        """Until nobody waits."""
        while self.pending:
            self.turn(1)

    @rule()
    def other_engine(self):
        """Another instance on the same log goes on."""
        self.settle()
        if len(self.engines) < 2:
            self.engines.append(self.make_engine())
        self.engines.reverse()

    @rule()
    def restart(self):
        self.settle()
        self.open()

    @rule()
    def warm(self):
        """Memories are rebuilt in the background, the latest users' first."""
        self.engines[0].warm_up(self.log.recent_users(USERS))

    @invariant()
    def log_is_the_lists(self):
        if getattr(self, "pending", None) == {} and self.log is not None:
            for user, held in self.lists.items():
                first, length = self.log.extent(user)
                assert length == len(held)
                assert first == 0 or (self.max_user_events and length - first >= KEEP)
                assert self.log.read(user, first, length).tolist() == held[first:]

    def compare(self, answer, expected):
        status, length, history = expected
        assert answer.error is None
        assert (answer.status, answer.length) == (status, length)
        if history is not None:
            scores = self.recompute(history)
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:K], atol=TOLERANCE)
            np.testing.assert_allclose(answer.scores, scores[answer.items], atol=TOLERANCE)

    def teardown(self):
        if getattr(self, "log", None) is not None:
            self.settle()
            self.log_is_the_lists()
            self.log.close()


def test_engine_and_log_behave_like_plain_lists(tmp_path, network, recompute):
    assert network.config.receptive_field < KEEP
    config = network.config
    page_bytes = 2 * config.num_layers * CONFIG["page_size"] * config.num_kv_heads * config.head_dim * 4
    machine = type(
        "Histories",
        (_Histories,),
        {
            "folder": tmp_path,
            "network": network,
            "recompute": staticmethod(recompute),
            "memory_bytes": 10 * page_bytes,  # of nine users, with two or three pages each
        },
    )
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))
