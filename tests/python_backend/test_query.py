"""Every malformed request is refused with argument, expected and got; a well-formed one is cut into queries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.python_backend.query import parse_queries
from longrec.python_backend.settings import Settings

CONFIG = EngineConfig(max_k=50, max_events_per_request=4, max_candidates=3)


def parse(users=(b"u",), events=(), candidates=(), *, wants_items=True, settings=Settings(k=7), config=CONFIG):  # noqa: B008
    users = np.array([[user] for user in users], np.object_)
    events = np.array(events, np.int64).reshape(len(users), -1, 3)
    candidates = np.array(candidates, np.int64).reshape(len(users), -1)
    return parse_queries(users, events, candidates, settings, config, wants_items=wants_items)


def test_a_request_is_cut_into_one_query_a_user():
    first, second = parse([b"a", "bé".encode()], [[[5, 1, 10], [6, 2, 20]], [[-1, 3, 30], [-1, -1, 0]]], [[9], [8]])
    assert (first.user, first.position, first.k) == (b"a", 5, 7)
    assert first.events.tolist() == [[1, 10], [2, 20]]
    assert second.events.tolist() == [[3, 30]], "item -1 is padding"
    assert (second.user.decode(), second.position, second.candidates.tolist()) == ("bé", -1, [8])


def test_predict_only_and_append_only():
    (query,) = parse()
    assert (len(query.events), query.position, query.candidates, query.k) == (0, -1, None, 7)
    assert parse(events=[[0, 1, 2]], wants_items=False)[0].k == 0


def test_the_query_keeps_a_copy_of_the_requests_memory():
    events = np.array([[[0, 1, 2]]], np.int64)
    (query,) = parse_queries(
        np.array([[b"u"]], np.object_), events, np.empty((1, 0), np.int64), Settings(), CONFIG, wants_items=True
    )
    events[:] = 99
    assert query.events.tolist() == [[1, 2]]


def test_time_that_runs_backwards_is_accepted_in_arrival_order():
    assert parse(events=[[0, 1, 20], [1, 2, 10]])[0].events.tolist() == [[1, 20], [2, 10]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"users": [b""]}, r"USER: expected 1..256 bytes of UTF-8, got 0 bytes"),
        ({"users": [b"x" * 257]}, r"USER: expected 1..256 bytes of UTF-8, got 257 bytes"),
        ({"users": [b"\xff\xfe"]}, r"USER: expected UTF-8, got 2 bytes that are not"),
        ({"events": [[0, -2, 1]]}, r"EVENT column item: expected a catalogue index >= 0, or -1 for padding"),
        ({"events": [[0, 1, -1]]}, r"EVENT column time: expected unix milliseconds >= 0"),
        ({"events": [[-2, 1, 1]]}, r"EVENT column position: expected positions >= 0 that rise by 1"),
        ({"events": [[3, 1, 1], [5, 1, 1]]}, r"EVENT column position: .*got 2 rows that start at 3 and don't"),
        ({"events": [[3, 1, 1], [3, 1, 1]]}, r"EVENT column position"),
        ({"events": [[-1, 1, 1], [0, 1, 1]]}, r"EVENT column position"),
        ({"events": [[0, 1, 1], [-1, 1, 1]]}, r"EVENT column position"),
        (
            {"events": [[p, 1, 1] for p in range(5)]},
            r"EVENT: expected at most 4 events .*max_events_per_request.*got 5",
        ),
        ({"candidates": [1, -1]}, r"CANDIDATE: expected catalogue indices >= 0, got -1"),
        ({"candidates": [1, 2, 3, 4]}, r"CANDIDATE: expected at most 3 \(model parameter max_candidates\), got 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_content(request_, message):
    with pytest.raises(ArgumentError, match=message):
        parse(**request_)


@pytest.mark.parametrize(
    ("users", "events", "candidates", "message"),
    [
        ((2, 1), (1, 0, 3), (2, 0), r"EVENT: expected INT64 \[2, n, 3\], got int64 \[1, 0, 3\]"),
        ((1, 2), (1, 0, 3), (1, 0), r"USER: expected shape \[B, 1\], got \[1, 2\]"),
        ((1, 1), (1, 0, 4), (1, 0), r"EVENT: expected INT64 \[1, n, 3\], got int64 \[1, 0, 4\]"),
        ((1, 1), (1, 0, 3), (1, 0, 1), r"CANDIDATE: expected INT64 \[1, c\], got int64 \[1, 0, 1\]"),
    ],
)
def test_malformed_shapes(users, events, candidates, message):
    arrays = np.full(users, b"u", np.object_), np.zeros(events, np.int64), np.zeros(candidates, np.int64)
    with pytest.raises(ArgumentError, match=message):
        parse_queries(*arrays, Settings(), CONFIG, wants_items=True)


def test_malformed_dtype():
    arrays = np.array([[b"u"]], np.object_), np.zeros((1, 1, 3), np.float32), np.zeros((1, 0), np.int64)
    with pytest.raises(ArgumentError, match=r"EVENT: expected INT64 \[1, n, 3\], got float32"):
        parse_queries(*arrays, Settings(), CONFIG, wants_items=True)


EVENT = st.tuples(st.integers(-2, 3), st.integers(-2, 2), st.integers(-1, 2))
ONE_USERS = st.integers(1, 12).flatmap(lambda n: st.lists(EVENT, min_size=n, max_size=n))
RUN = st.tuples(st.integers(-1, 5), st.lists(st.booleans(), min_size=1, max_size=12)).map(
    lambda run: [
        (-1 if run[0] < 0 else run[0] + sum(run[1][:at]), at if real else -1, at) for at, real in enumerate(run[1])
    ]
)


@given(st.one_of(ONE_USERS, RUN))
def test_a_request_of_one_is_read_as_a_part_of_a_bulk_request(events):
    """Few events go another way than many; both accept, refuse and understand the same."""
    config = EngineConfig(max_events_per_request=16)

    def outcome(**request):
        try:
            query = parse(config=config, **request)[0]
        except ArgumentError as error:
            return str(error)
        return query.user, query.position, query.events.tolist()

    padding = [(7, -1, 9)] * len(events)
    alone = outcome(events=events)
    assert outcome(users=[b"u", b"v"], events=[events, padding]) == alone
    padded = outcome(events=[*events, *[(0, -1, 0)] * (16 - len(events))])
    assert padded == alone, "padding changes nothing, and 16 rows are read as arrays"


def test_bulk_events_lie_in_memory_of_their_own():
    events = np.zeros((3, 20, 3), np.int64)
    events[:, :, 0] = np.arange(20)
    users = np.array([[b"a"], [b"b"], [b"c"]], np.object_)
    config = EngineConfig()
    for batch in (1, 3):  # one user's long run is read in a way of its own
        candidates = np.empty((batch, 0), np.int64)
        queries = parse_queries(users[:batch], events[:batch], candidates, Settings(), config, wants_items=True)
        assert not any(np.shares_memory(query.events, events) for query in queries)


def test_a_position_that_runs_past_int64_is_no_run():
    most = 2**63 - 1
    long = [[position, 1, 1] for position in (*range(most - 9, most + 1), *range(-most - 1, -most + 4))]
    for rows in ([[most, 1, 1], [-most - 1, 1, 1]], [[most, 1, 1]] * 2, long):
        for events in (rows, [*rows, *[[0, -1, 0]] * 10]):
            with pytest.raises(ArgumentError, match="column position"):
                parse(events=events, config=EngineConfig())


def test_a_rollout_takes_no_candidates():
    with pytest.raises(ArgumentError, match=r"CANDIDATE: expected none with horizon > 1, got 2; ask step by step"):
        parse(candidates=[1, 2], settings=Settings(horizon=2))


def test_explanations_are_made_only_where_they_are_read():
    arrays = np.array([[b"u"]], np.object_), np.empty((1, 0, 3), np.int64), np.empty((1, 0), np.int64)
    for wanted in (0, 3):
        (query,) = parse_queries(*arrays, Settings(explain=3), CONFIG, wants_items=True, wants_because=wanted > 0)
        assert query.settings.explain == wanted
