"""Every family through the engine, against its own network over whole histories in float64: however events arrive and
whatever is evicted, over restarts, in rollouts; and the settings that a family can't take."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError
from longrec.family_settings import fit_engine
from longrec.modeling import FAMILIES, Events, Network, build_network, gap_buckets, memory_layout, recompute_scores
from longrec.modeling.seq2seq import Seq2Seq
from longrec.python_backend.engine import Engine, Ticket
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Query
from longrec.python_backend.settings import Settings

NUM_ITEMS, WINDOW, HORIZON = 61, 11, 4
TOLERANCE = 1e-4
NO_EVENTS = np.empty((0, 2), np.int64)
REPEATS = ("transformer repeats", "gru repeats")  # with a term for items seen lately
IDS = [*FAMILIES, *REPEATS]


def make_network(name: str) -> Network:
    torch.manual_seed(4)
    family, *repeats = name.split()
    config = ModelConfig(
        num_items=NUM_ITEMS,
        family=family,
        dim=32,
        num_heads=4,
        num_kv_heads=2,
        hidden_dim=24,
        window=WINDOW,
        horizon=HORIZON,
        repeats=bool(repeats),
    )
    network = build_network(config).eval()
    with torch.no_grad():
        for weight in network.parameters():  # as initialised, the past hardly matters: make every part count
            weight.add_(0.2 * torch.randn_like(weight))
    return network


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Network, Network]]:
    """Each family's network, and the same in float64."""
    made = {}
    for family in IDS:
        network, exact = make_network(family), make_network(family).double()
        exact.load_state_dict(network.state_dict())
        made[family] = network, exact
    return made


@pytest.fixture
def open_log(tmp_path_factory) -> Callable[[], LmdbLog]:
    logs = []

    def make() -> LmdbLog:
        logs.append(LmdbLog(tmp_path_factory.mktemp("log"), durability="none", max_bytes=64 << 20))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def make_engine(network: Network, log: LmdbLog, *, small: bool = False, **sent) -> Engine:
    """An engine; a small one has room for a user's pages or two states, and a host tier for a few more."""
    config = {"page_size": 16, "inline_events": 5, "chunk_events": 12, "max_step_events": 40, "memory_bytes": 1 << 20}
    if small and network.memory != "window":
        layout = memory_layout(network.config, torch.float32, "same", 16)
        pages = max(2, layout.most_pages(WINDOW + 6))
        config |= {"memory_bytes": pages * layout.page_bytes, "host_memory_bytes": 4 * layout.page_bytes}
    return Engine(network, log, fit_engine(EngineConfig(**{**config, **sent}), network.config))


def expected_scores(exact: Network, history) -> np.ndarray:
    (scores,) = recompute_scores(exact, history[:, 0], history[:, 1], np.array([len(history)]))
    return scores


def assert_ranks(answer, scores):
    assert answer.error is None
    np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][: len(answer.items)], atol=TOLERANCE)
    np.testing.assert_allclose(scores[answer.items], answer.scores, atol=TOLERANCE)


@pytest.mark.parametrize("family", IDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_streamed_equals_recomputed_over_evictions_and_restarts(networks, open_log, make_history, family, data):
    network, exact = networks[family]
    log = open_log()
    engine = make_engine(network, log, small=True)
    histories = [make_history(seed, 60) for seed in range(4)]
    sent = [0] * 4
    for _ in range(6):
        if data.draw(st.integers(0, 4)) == 0:
            engine = make_engine(network, log, small=True)
        batch, expected = [], []
        for user in data.draw(st.lists(st.integers(0, 3), max_size=6)):
            start = sent[user]
            sent[user] = min(60, start + data.draw(st.sampled_from([0, 1, 1, 2, 7, 25])))
            events = histories[user][start : sent[user]]
            wants = data.draw(st.sampled_from([5, 5, 5, 0]))
            batch.append(Query(b"%d" % user, events, start, None, wants))
            expected.append(histories[user][: sent[user]] if wants else None)
        for answer, history in zip(engine.answer_all(batch), expected, strict=True):
            if history is not None:
                assert answer.length == len(history)
                assert_ranks(answer, expected_scores(exact, history))


@pytest.mark.parametrize("family", [name for name in IDS if FAMILIES[name.split()[0]].memory != "window"])
def test_memories_are_evicted_and_come_back(networks, open_log, make_history, family):
    """So that the test above means something."""
    network, exact = networks[family]
    engine = make_engine(network, open_log(), small=True)
    for start in range(0, 20, 4):
        for user in range(5):
            events = make_history(user, 20)[start : start + 4]
            (answer,) = engine.answer_all([Query(b"%d" % user, events, start, None, 5)])
            assert_ranks(answer, expected_scores(exact, make_history(user, 20)[: start + 4]))
    engine.observe()
    assert engine.observations.evictions > 10
    assert engine.observations.pages_restored > 0


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_free_states_may_hold_anything(networks, open_log, make_history, family):
    network, exact = networks[family]
    engine = make_engine(network, open_log())
    for tensor in engine.pool.store.tensors:
        tensor.fill_(torch.nan)
    history = make_history(2, 9)
    for start in range(0, 9, 3):
        (answer,) = engine.answer_all([Query(b"u", history[start : start + 3], start, None, 5)])
        assert_ranks(answer, expected_scores(exact, history[: start + 3]))


@pytest.mark.parametrize("family", ["transformer_xl", "hstu"])
def test_steps_over_fixed_buffers_as_on_a_gpu(networks, open_log, make_history, family):
    network, exact = networks[family]
    config = EngineConfig(page_size=16, memory_bytes=1 << 20)
    engine, histories = (
        Engine(network, open_log(), config, decode_batches=(2, 4)),
        [make_history(at, 30) for at in range(4)],
    )
    engine.answer_all([Query(b"%d" % at, history[:9], 0, None, 0) for at, history in enumerate(histories)])
    for stop in range(10, 31):
        users = range(stop % 4 + 1) if stop > 13 else range(4)
        batch = [Query(b"%d" % at, histories[at][engine.log.length(b"%d" % at) : stop], -1, None, 5) for at in users]
        for at, answer in zip(users, engine.answer_all(batch), strict=True):
            assert_ranks(answer, expected_scores(exact, histories[at][:stop]))


@pytest.mark.parametrize("family", ["bert4rec", "seq2seq"])
def test_a_window_that_retention_overtakes_is_that_of_what_the_log_holds(networks, tmp_path, make_history, family):
    network, exact = networks[family]
    log = LmdbLog(tmp_path / "short", durability="none", max_bytes=64 << 20, max_user_events=WINDOW + 1)
    late, other = make_engine(network, log, max_step_events=WINDOW), make_engine(network, log)
    history = make_history(3, 300)
    other.answer_all([Query(user, history[:20], 0, None, 0) for user in (b"first", b"u")])
    answers = late.answer([Query(user, NO_EVENTS, -1, None, 5) for user in (b"first", b"u")])
    assert [isinstance(answer, Ticket) for answer in answers] == [False, True], "there is room for one"
    for start in range(20, 300, 40):
        other.answer_all([Query(b"u", history[start : start + 40], start, None, 0)])
    assert log.extent(b"u").first > 20
    ((ticket, answer),) = late.turn() or late.turn()
    assert ticket == answers[1]
    assert answer.length == 300
    assert_ranks(answer, expected_scores(exact, history))
    log.close()


def step_scores(exact: Network, history, path, gap: int) -> np.ndarray:
    """Scores [num_items] of the step after a path of predicted items."""
    if isinstance(exact, Seq2Seq) and len(history):
        buckets = gap_buckets(history[:, 1], None, exact.config.num_gap_buckets)
        items, gaps = (torch.from_numpy(part[-WINDOW:]) for part in (np.minimum(history[:, 0], NUM_ITEMS), buckets))
        count = len(items)
        events = Events(items, gaps, items.int(), items, torch.tensor([0, count], dtype=torch.int32))
        emitted = torch.tensor([path], dtype=torch.int64).view(1, -1)
        with torch.no_grad():
            return exact.scores(exact.decode(exact.encode(events), events.counts, emitted)[0, -1]).numpy()
    last = max(int(history[-1, 1]), 0) if len(history) else 0
    more = np.array([(item, last + gap * (at + 1)) for at, item in enumerate(path)], np.int64).reshape(-1, 2)
    return expected_scores(exact, np.concatenate((history, more)))


@pytest.mark.parametrize("family", IDS)
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 7, 30])
def test_a_rollout_s_steps_are_those_of_the_network(networks, open_log, make_history, family, beam, length):
    network, exact = networks[family]
    engine, history = make_engine(network, open_log()), make_history(length, length)
    gap = int(np.median(np.maximum(np.diff(history[:, 1]), 0))) if length > 1 else 0
    asked = Settings(k=4, horizon=HORIZON, beam=beam)
    (answer, other) = engine.answer_all([Query(user, history, -1, None, 4, asked) for user in (b"u", b"v")])
    assert answer.error is None
    assert answer.items.shape == (HORIZON, 4)
    np.testing.assert_array_equal(answer.items, other.items)
    path = answer.items[:, 0].tolist()
    for step in range(HORIZON):
        scores = step_scores(exact, history, path[:step], gap)
        np.testing.assert_allclose(answer.scores[step], scores[answer.items[step]], atol=TOLERANCE)
        if beam == 1:
            assert answer.scores[step, 0] >= scores.max() - TOLERANCE
    (after,) = engine.answer_all([Query(b"u", NO_EVENTS, -1, None, 5)])
    assert_ranks(after, expected_scores(exact, history))
    if network.memory != "window":
        assert not engine.pool.pinned.any()
        assert len(engine.pool) == 2 * (length > 0)


@pytest.mark.parametrize("family", ["transformer_xl", "hstu"])
def test_explanations_name_events_of_the_window(networks, open_log, make_history, family):
    network, _ = networks[family]
    engine, history = make_engine(network, open_log()), make_history(3, 40)
    asked = Settings(k=4, explain=3)
    (answer,) = engine.answer_all([Query(b"u", history, 0, None, 4, asked)])
    assert answer.because.shape == (4, 3)
    assert ((answer.because >= 40 - WINDOW) & (answer.because < 40)).all()
    (rolled,) = engine.answer_all([Query(b"u", NO_EVENTS, -1, None, 4, Settings(k=4, explain=3, horizon=3))])
    assert (rolled.because < 40).all()
    assert (rolled.because >= 0).any()


@pytest.mark.parametrize("family", ["transformer_xl", "hstu"])
def test_int8_pages_answer_nearly_as_exact_ones(networks, open_log, make_history, family):
    network, exact = networks[family]
    engine, history = make_engine(network, open_log(), memory_dtype="int8"), make_history(3, 40)
    for start in range(0, 40, 8):
        (answer,) = engine.answer_all([Query(b"u", history[start : start + 8], start, None, NUM_ITEMS)])
    scores = expected_scores(exact, history)
    assert np.abs(scores[answer.items] - answer.scores).max() < 0.03 * np.abs(scores).max()


@pytest.mark.parametrize(
    ("family", "setting", "message"),
    [
        ("gru", {"max_explain": 4}, r"max_explain=4: expected 0 with family gru: it has no attention"),
        ("lstm", {"max_user_events": 500}, r"max_user_events=500: expected 0 with family lstm: all events"),
        ("gru", {"memory_dtype": "int8"}, r"memory_dtype=int8: expected same with family gru"),
        ("bert4rec", {"host_memory_bytes": 1 << 20}, r"host_memory_bytes=1048576: expected 0 with family bert4rec"),
        ("bert4rec", {"memory_dtype": "bfloat16"}, r"memory_dtype=bfloat16: expected same with family bert4rec"),
        ("seq2seq", {"max_horizon": 5}, r"max_horizon=5: expected at most 4 with family seq2seq"),
    ],
    ids=str,
)
def test_a_setting_that_means_nothing_to_a_family_is_refused(networks, family, setting, message):
    with pytest.raises(ArgumentError, match=message):
        fit_engine(EngineConfig(**setting), networks[family][0].config)


def test_what_nobody_set_is_set_to_what_a_family_can_do(networks):
    fitted = {family: fit_engine(EngineConfig(), network.config) for family, (network, _) in networks.items()}
    assert [family for family, config in fitted.items() if config.max_explain] == [
        "transformer",
        "transformer_xl",
        "hstu",
        "transformer repeats",
    ]
    assert fitted["seq2seq"].max_horizon == HORIZON
    assert fitted["transformer"] == EngineConfig()
