"""Every malformed request is refused with argument, expected and got; a well-formed one is cut into queries."""

import numpy as np
import pytest

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.python_backend.query import Settings, parse_queries, parse_settings

CONFIG = EngineConfig(max_k=50, max_events_per_request=4, max_candidates=3)


def parse(users=(b"u",), events=(), candidates=(), *, wants_items=True):
    users = np.array([[user] for user in users], np.object_)
    events = np.array(events, np.int64).reshape(len(users), -1, 3)
    candidates = np.array(candidates, np.int64).reshape(len(users), -1)
    return parse_queries(users, events, candidates, Settings(k=7), CONFIG, wants_items=wants_items)


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


def test_settings_have_defaults_and_ignore_the_servers_own():
    assert parse_settings({"triton_enable_empty_final_response": False}, CONFIG) == (10, 1)
    assert parse_settings({"k": 50, "horizon": 1}, CONFIG) == (50, 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, r"k=0: expected an integer in 1..50 \(model parameter max_k\)"),
        ({"k": 51}, r"k=51: expected an integer in 1..50"),
        ({"k": "ten"}, r"k='ten': expected an integer"),
        ({"k": True}, r"k=True: expected an integer"),
        ({"horizon": 2}, r"horizon=2: expected 1"),
        ({"kk": 3}, r"parameter kk: expected one of k, horizon; remove it"),
    ],
)
def test_malformed_settings(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        parse_settings(parameters, CONFIG)
