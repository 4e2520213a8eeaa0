"""Arguments to tensors and back, without a server."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec import protocol
from longrec.client.codec import Request, Tensor, decode_appended, decode_prediction, encode
from longrec.client.types import Event, Options
from longrec.errors import ArgumentError, ServerError
from longrec.protocol import Status

INT63 = st.integers(0, 2**63 - 1)
USERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
PAIRS = st.lists(st.tuples(INT63, INT63), max_size=20)


def event_rows(request: Request) -> list[list[int]]:
    tensor = request.inputs["EVENT"]
    rows: list[list[int]] = np.frombuffer(tensor.data, np.int64).reshape(tensor.shape)[0].tolist()
    return rows


@given(user=USERS, pairs=PAIRS, first=st.none() | st.integers(0, 2**40), k=st.integers(1, 256))
def test_a_request_holds_what_was_given(user: str, pairs: list[tuple[int, int]], first: int | None, k: int) -> None:
    events = [Event(item, ms, None if first is None else first + i) for i, (item, ms) in enumerate(pairs)]
    request = encode(user, events, k=k)
    assert request.inputs["USER"].data[4:].decode() == user
    assert int.from_bytes(request.inputs["USER"].data[:4], "little") == len(user.encode())
    assert event_rows(request) == [
        [-1 if event.position is None else event.position, event.item, event.time_ms] for event in events
    ]
    assert request.inputs["CANDIDATE"] == Tensor("INT64", (1, 0), b"")
    assert (request.k, request.outputs) == (k, ("ITEMS", "SCORES", "STATE"))


@given(pairs=PAIRS, first=st.integers(0, 2**40))
def test_an_array_says_the_same_as_events(pairs: list[tuple[int, int]], first: int) -> None:
    events = [Event(item, ms, first + i) for i, (item, ms) in enumerate(pairs)]
    rows = np.array([(first + i, item, ms) for i, (item, ms) in enumerate(pairs)], np.int64).reshape(-1, 3)
    for array in (rows, np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2]):
        assert encode("u", array, k=1) == encode("u", events, k=1)


@given(candidates=st.lists(INT63, min_size=1, max_size=20))
def test_candidates_travel_as_given(candidates: list[int]) -> None:
    for given_ in (candidates, tuple(candidates), np.array(candidates)):
        tensor = encode("u", k=1, candidates=given_).inputs["CANDIDATE"]
        assert (tensor.datatype, tensor.shape) == ("INT64", (1, len(candidates)))
        assert np.frombuffer(tensor.data, np.int64).tolist() == candidates


def test_tensors_have_the_protocols_names_and_ranks() -> None:
    request = encode("u", [Event(1, 2)], k=None)
    assert list(request.inputs) == [spec.name for spec in protocol.INPUTS]
    assert [len(tensor.shape) for tensor in request.inputs.values()] == [len(s.dims) + 1 for s in protocol.INPUTS]
    assert request.outputs == ("STATE",)


EVENT = Event(1, 2)
BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "user-int": ({"user": 7}, r"^user: expected a string, got int$"),
    "user-empty": ({"user": ""}, r"^user: expected 1\.\.256 bytes of UTF-8, got 0 bytes$"),
    "user-257": ({"user": "é" * 128 + "x"}, r"^user: expected 1\.\.256 bytes of UTF-8, got 257 bytes$"),
    "user-surrogate": ({"user": "\ud800"}, r"^user: expected a string that UTF-8 can hold, got a lone surrogate$"),
    "k-0": ({"k": 0}, r"^k=0: expected an integer in 1\.\.256$"),
    "k-257": ({"k": 257}, r"^k=257: expected an integer in 1\.\.256$"),
    "k-float": ({"k": 10.0}, r"^k=10\.0: expected an integer in 1\.\.256$"),
    "k-bool": ({"k": True}, r"^k=True: expected an integer in 1\.\.256$"),
    "events-one": ({"events": EVENT}, r"^events: expected a sequence of Event or an int64 array, got Event$"),
    "events-text": ({"events": "ab"}, r"^events: expected a sequence of Event or an int64 array, got str$"),
    "events-generator": ({"events": iter([EVENT])}, r"^events: expected a sequence .*, got list_iterator$"),
    "events-tuple": ({"events": [EVENT, (1, 2)]}, r"^events\[1\]: expected an Event, got tuple$"),
    "events-dtype": (
        {"events": np.zeros((1, 3))},
        r"^events: expected int64 \[n, 3 or .*, got float64 \[1, 3\]$",
    ),
    "events-columns": (
        {"events": np.zeros((4, 2), np.int64)},
        r"^events: expected int64 \[n, 3 or more\] .*, got int64 \[4, 2\]$",
    ),
    "item-none": ({"events": [Event(None, 2)]}, r"^events\[0\]\.item: expected an integer, got NoneType$"),  # type: ignore[arg-type]
    "item-text": ({"events": [EVENT, Event("7", 2)]}, r"^events\[1\]\.item: expected an integer, got str$"),  # type: ignore[arg-type]
    "item-negative": (
        {"events": [EVENT, Event(-1, 2)]},
        r"^events\[1\]\.item: expected a catalogue index >= 0, got a n",
    ),
    "item-large": ({"events": [Event(2**63, 2)]}, r"^events\[0\]: expected integers below 2\*\*63, got a larger one$"),
    "time-float": ({"events": [Event(1, 2.5)]}, r"^events\[0\]\.time_ms: expected an integer, got float$"),  # type: ignore[arg-type]
    "time-negative": ({"events": [Event(1, -2)]}, r"^events\[0\]\.time_ms: expected unix milliseconds >= 0, got a neg"),
    "position-text": ({"events": [Event(1, 2, "0")]}, r"^events\[0\]\.position: expected an integer, got str$"),  # type: ignore[arg-type]
    "position-negative": (
        {"events": [Event(1, 2, -1)]},
        r"^events\[0\]\.position: expected a position >= 0, or None to",
    ),
    "position-array": (
        {"events": np.array([[-2, 1, 2]])},
        r"^events\[0\]\.position: expected positions that rise by 1",
    ),
    "position-skips": ({"events": [Event(1, 2, 4), Event(1, 2, 6)]}, r"^events\[1\]\.position: expected .*; sort the"),
    "position-repeats": ({"events": [Event(1, 2, 4), Event(1, 2, 4)]}, r"^events\[1\]\.position: expected positions"),
    "position-mixed": ({"events": [EVENT, Event(1, 2, 0)]}, r"^events\[1\]\.position: expected positions that rise"),
    "candidates-none-left": ({"candidates": []}, r"^candidates: expected catalogue indices .*, got none$"),
    "candidates-float": ({"candidates": [1.5]}, r"^candidates: expected catalogue indices .*, got float64 \[1\]$"),
    "candidates-2d": ({"candidates": [[1]]}, r"^candidates: expected catalogue indices .*, got int64 \[1, 1\]$"),
    "candidates-ragged": ({"candidates": [[1], [1, 2]]}, r"^candidates: expected catalogue indices .*, got list$"),
    "candidates-negative": ({"candidates": [1, -1]}, r"^candidates: expected .*, got an integer outside 0\.\.2\*\*63"),
    "candidates-large": (
        {"candidates": [2**63]},
        r"^candidates: expected .*, got an integer outside 0\.\.2\*\*63 - 1$",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        encode(**{"user": "u", "events": [], "k": 10, **arguments})


def answer(k: int, items: list[int], state: tuple[int, int], shape: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    return {
        "ITEMS": Tensor("INT64", shape or (1, 1, k), np.array(items, np.int64).tobytes()),
        "SCORES": Tensor("FP32", shape or (1, 1, k), np.arange(len(items), dtype=np.float32).tobytes()),
        "STATE": Tensor("INT64", (1, 2), np.array(state, np.int64).tobytes()),
    }


@given(items=st.lists(INT63, max_size=20), missing=st.integers(0, 5), length=INT63)
def test_a_prediction_holds_what_was_answered(items: list[int], missing: int, length: int) -> None:
    k = max(1, len(items) + missing)
    padding = [-1] * (k - len(items))
    prediction = decode_prediction(encode("u", k=k), answer(k, items + padding, (0, length)))
    assert (prediction.user, prediction.position, prediction.status) == ("u", length, Status.OK)
    assert (prediction.items.tolist(), prediction.scores.tolist()) == (items, list(range(len(items))))
    assert (prediction.items.dtype, prediction.scores.dtype) == (np.int64, np.float32)


def test_results_are_frozen() -> None:
    prediction = decode_prediction(encode("u", k=2), answer(2, [5, 6], (0, 1)))
    with pytest.raises(ValueError, match="read-only"):
        prediction.items[0] = 1
    with pytest.raises(AttributeError):
        prediction.position = 2  # type: ignore[misc]


@pytest.mark.parametrize("status", [Status.GAP, Status.CONFLICT])
def test_a_gap_or_a_conflict_is_a_result_without_items(status: Status) -> None:
    prediction = decode_prediction(encode("u", k=2), answer(2, [-1, -1], (status, 17)))
    assert (prediction.status, prediction.position, len(prediction.items)) == (status, 17, 0)
    appended = decode_appended(encode("u", k=None), answer(2, [], (status, 17)))
    assert (appended.status, appended.length) == (status, 17)


GARBAGE: dict[str, tuple[dict[str, Tensor], str]] = {
    "no-outputs": ({}, r"^STATE: expected it among the outputs, got none$"),
    "no-items": (
        {name: tensor for name, tensor in answer(2, [1, 2], (0, 1)).items() if name != "ITEMS"},
        r"^ITEMS: expected it among the outputs, got SCORES, STATE$",
    ),
    "shape": (
        answer(2, [1, 2], (0, 1), (1, 2)),
        r"^ITEMS: expected INT64 \[1, 1, 2\] in 16 bytes, got INT64 \[1, 2\] in 16",
    ),
    "short": (answer(2, [1], (0, 1)), r"^ITEMS: expected INT64 \[1, 1, 2\] in 16 bytes, got INT64 \[1, 1, 2\] in 8$"),
    "dtype": (
        answer(2, [1, 2], (0, 1)) | {"SCORES": Tensor("FP64", (1, 1, 2), bytes(16))},
        r"^SCORES: expected FP32 \[1, 1, 2\] in 8 bytes, got FP64 \[1, 1, 2\] in 16$",
    ),
    "status": (
        answer(2, [1, 2], (9, 1)),
        r"^STATE: expected a status of 0 OK, 1 GAP, 2 CONFLICT, got 9; the server is newer: upgrade$",
    ),
    "length": (answer(2, [1, 2], (0, -1)), r"^STATE: expected a length >= 0, got -1$"),
}


@pytest.mark.parametrize(("outputs", "message"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_named(outputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        decode_prediction(encode("u", k=2), outputs)


def test_options_travel_as_parameters_and_defaults_not_at_all() -> None:
    assert encode("u", k=7).parameters == encode("u", k=7, options=Options()).parameters == {"k": 7}
    options = Options(
        horizon=3,
        beam=2,
        exclude_seen=True,
        exclude=[9, 4],
        categories=("Sci-Fi", "a, b"),
        explain=5,
        probabilities=True,
    )
    request = encode("u", k=7, options=options)
    assert request.parameters == {
        "k": 7,
        "horizon": 3,
        "beam": 2,
        "exclude_seen": True,
        "exclude": "[9, 4]",
        "categories": '["Sci-Fi", "a, b"]',
        "explain": 5,
        "scores": "probability",
    }
    assert set(request.parameters) == set(protocol.PARAMETERS)
    assert request.outputs == ("ITEMS", "SCORES", "STATE", "BECAUSE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, r"options.horizon=0: expected an integer of at least 1"),
        ({"beam": True}, r"options.beam=True"),
        ({"explain": 1.5}, r"options.explain=1.5: expected an integer of at least 0"),
        ({"exclude_seen": 1}, r"options.exclude_seen: expected True or False, got int"),
        ({"exclude": [-1]}, r"options.exclude: expected catalogue indices >= 0"),
        ({"categories": "Drama"}, r"options.categories: expected a sequence of names, got str"),
        ({"categories": [1]}, r"options.categories"),
    ],
    ids=str,
)
def test_malformed_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        encode("u", k=3, options=Options(**options))


def test_a_rollout_of_candidates_is_refused() -> None:
    with pytest.raises(ArgumentError, match="candidates: expected None with a horizon above 1"):
        encode("u", k=3, candidates=[1], options=Options(horizon=2))


def test_rollouts_and_reasons_are_read() -> None:
    def answer(horizon: int, items: list[int], explain: int) -> dict[str, Tensor]:
        k = len(items) // horizon
        return {
            "STATE": Tensor("INT64", (1, 2), np.array([0, 8]).tobytes()),
            "ITEMS": Tensor("INT64", (1, horizon, k), np.array(items).tobytes()),
            "SCORES": Tensor("FP32", (1, horizon, k), np.zeros(len(items), np.float32).tobytes()),
            "BECAUSE": Tensor("INT64", (1, horizon, k, explain), np.arange(len(items) * explain).tobytes()),
        }

    rolled = decode_prediction(encode("u", k=2, options=Options(horizon=2)), answer(2, [4, 3, -1, -1], 1))
    assert (rolled.items.tolist(), rolled.scores.shape, rolled.because) == ([[4, 3], [-1, -1]], (2, 2), None)
    why = decode_prediction(encode("u", k=2, options=Options(explain=3)), answer(1, [4, -1], 3))
    assert why.because is not None
    assert (why.items.tolist(), why.because.tolist()) == ([4], [[0, 1, 2]])
    with pytest.raises(ServerError, match=r"BECAUSE: expected INT64 \[1, 1, 2, 3\]"):
        decode_prediction(encode("u", k=2, options=Options(explain=3)), answer(1, [4, -1], 2))
