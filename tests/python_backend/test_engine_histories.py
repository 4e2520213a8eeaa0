"""Random histories of engine and log against plain lists and a recompute: appends, retries, gaps, conflicts, bulk,
deferred work, evictions, restarts, a second engine on the same log, retention.

Where engine or log are broken it says so at once: no loop is without an end, and nothing more is asked of them then."""

import contextlib
import itertools

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
BACK = st.sampled_from([-1, 0, 1, 1, 1, 2, 3, 4, 12, 40])
# a query needs at most the receptive field and its own events, a chunk a turn, and shares turns with a batch's others
MOST_TURNS = 30


class _Histories(RuleBasedStateMachine):
    """`folder`, `network`, `recompute` and `memory_bytes` are set by the test; each run has users of its own."""

    runs = itertools.count()

    @initialize(limited=st.booleans())
    def begin(self, limited):
        self.run, self.max_user_events = next(self.runs), KEEP if limited else 0
        self.lists = {b"%d of run %d" % (n, self.run): [] for n in range(USERS)}
        self.clock, self.items = 1_700_000_000_000, np.random.default_rng(self.run)
        self.log, self.engines, self.pending, self.broken = None, [], {}, False
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
            st.tuples(st.integers(0, USERS - 1), BACK, COUNTS, st.integers(-6, 2), st.booleans()),
            min_size=2,
            max_size=8,
        )
    )
    def ask(self, asks):
        """Queries of one batch: whose, from how far before (or past) the end or unchecked, how many events, which of
        those that are sent again is another one (below 0: none), and whether an answer is wanted. What comes later is
        kept."""
        queries, expected = [], []
        for number, back, count, wrong, wanted in asks:
            user = b"%d of run %d" % (number, self.run)
            held = self.lists[user]
            position = -1 if back < 0 else max(0, len(held) + 1 - back)
            rows = np.stack([self.items.integers(0, 100, count), self.clock + self.items.integers(0, 10**8, count)], 1)
            self.clock += 1_000
            skipped = 0 if position < 0 else min(max(0, len(held) - position), count)
            rows[:skipped] = np.array(held[position : position + skipped]).reshape(-1, 2)
            if differs := 0 <= wrong < skipped:
                rows[wrong, wrong % 2] += 1
            queries.append(Query(user, rows, position, None, K if wanted else 0))
            if position > len(held):
                expected.append((Status.GAP, len(held), None))
                continue
            if differs:
                expected.append((Status.CONFLICT, len(held), None))
                continue
            held += rows[skipped:].tolist()
            expected.append((Status.OK, len(held), np.array(held, np.int64).reshape(-1, 2) if wanted else None))
        with self.checked():
            answers = self.engines[0].answer(queries)
        for answer, wanted in zip(answers, expected, strict=True):
            if isinstance(answer, Answer):
                self.compare(answer, wanted)
            else:
                self.pending[answer] = wanted

    @precondition(lambda self: self.pending)
    @rule(turns=st.integers(1, 4))
    def turn(self, turns):
        for _ in range(turns):
            with self.checked():
                done = self.engines[0].turn()
                assert {ticket for ticket, _ in done} <= set(self.pending), "an answer that nobody waits for"
            for ticket, answer in done:
                self.compare(answer, self.pending.pop(ticket))

    @precondition(lambda self: self.pending)
    @rule()
    def settle(self):
        """Until nobody waits."""
        for _ in range(MOST_TURNS * len(self.pending)):
            if not self.pending:
                return
            self.turn(1)
        with self.checked():
            assert not self.pending, "deferred queries that are never answered"

    @rule()
    def other_engine(self):
        """Another instance on the same log goes on."""
        self.settle()
        if len(self.engines) < 2:
            self.engines.append(self.make_engine())
        self.engines.reverse()

    @rule(number=st.integers(0, USERS - 1))
    def evict(self, number):
        """A user loses their memory, whatever is under way for them."""
        self.engines[0].pool.drop(b"%d of run %d" % (number, self.run))

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
        if getattr(self, "pending", None) == {} and self.log is not None and not self.broken:
            with self.checked():
                for user, held in self.lists.items():
                    first, length = self.log.extent(user)
                    assert length == len(held)
                    assert first == 0 or (self.max_user_events and length - first >= KEEP)
                    assert self.log.read(user, first, length).tolist() == held[first:]

    def compare(self, answer, expected):
        status, length, history = expected
        with self.checked():
            assert answer.error is None
            assert (answer.status, answer.length) == (status, length)
            if history is not None:
                scores = self.recompute(history)
                np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:K], atol=TOLERANCE)
                np.testing.assert_allclose(answer.scores, scores[answer.items], atol=TOLERANCE)

    @contextlib.contextmanager
    def checked(self):
        """What fails in here is the log's or the engine's fault: nothing more is asked of them."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def teardown(self):
        if getattr(self, "log", None) is not None:
            try:
                if not self.broken:
                    self.settle()
                    self.log_is_the_lists()
            finally:
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
    # not shrunk: that takes minutes, and a history of 25 steps can be read
    phases = (Phase.explicit, Phase.generate)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None, phases=phases)
    )
