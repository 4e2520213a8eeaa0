"""The model inside a real tritonserver: streamed equals recomputed, and malformed requests change nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from longrec.catalogue import Catalogue
from longrec.client import Client, Options, Status
from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.modeling import recompute_scores, save_run
from longrec.protocol import BECAUSE, CANDIDATE, EVENT, ITEMS, MODEL, SCORES, STATE, USER
from longrec.server.bench.running import BatchCounts
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
WINDOW = 12
CONFIG = EngineConfig(
    max_k=60,
    max_events_per_request=40,
    max_candidates=20,
    max_step_events=64,
    inline_events=8,
    chunk_events=16,
    memory_bytes=1 << 20,
)


@pytest.fixture(scope="module")
def server(network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("served")
    ids = [str(item) for item in range(network.config.num_items)]
    save_run(folder / "run", network, network.config, Catalogue(ids, ids), {})
    write_repository(folder / "run", folder / "repository", engine=CONFIG)
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def scores_after(network, history, lengths):
    return recompute_scores(network, history[:, 0], history[:, 1], np.asarray(lengths))


def rows(history, start, stop):
    return np.column_stack((np.arange(start, stop), history[start:stop]))


def test_interleaved_streams_equal_recompute(server, network, make_history):
    histories = {f"stream {seed}": make_history(seed, 50) for seed in range(30)}
    order = np.random.default_rng(0).permutation(np.repeat(list(histories), 25)).tolist()
    sent = dict.fromkeys(histories, 0)

    def requests():
        for user in order:
            yield user, rows(histories[user], sent[user], sent[user] + 2)
            sent[user] += 2

    batches, answered = BatchCounts(server.grpc_url), {user: [] for user in histories}
    with Client(server.grpc_url) as client, client.stream(k=10, max_in_flight=32) as stream:
        for prediction in stream.map(requests()):
            answered[prediction.user].append(prediction)
    for user, predictions in answered.items():
        assert [prediction.position for prediction in predictions] == list(range(2, 52, 2))
        expected = scores_after(network, histories[user], range(2, 52, 2))
        for prediction, row in zip(predictions, expected, strict=True):
            np.testing.assert_allclose(prediction.scores, np.sort(row)[::-1][:10], atol=TOLERANCE)
            np.testing.assert_allclose(row[prediction.items], prediction.scores, atol=TOLERANCE)
    # how many depends on who is faster, the client or the server
    assert batches.mean_batch() > 1, "requests in flight together must be batched"


def test_gap_retry_conflict_and_length(server, make_history):
    history = make_history(1, 10)
    with Client(server.grpc_url) as client:
        assert client.history_length(user="gap") == 0
        assert client.append(user="gap", events=rows(history, 0, 4)).length == 4
        refused = client.recommend(user="gap", events=rows(history, 6, 8))
        assert (refused.status, refused.position, len(refused.items)) == (Status.GAP, 4, 0)
        retried = client.recommend(user="gap", events=rows(history, 2, 7))
        assert (retried.status, retried.position) == (Status.OK, 7)
        other = rows(history, 5, 9)
        other[1, 1] += 1  # the item
        for refused in (client.recommend(user="gap", events=other), client.recommend(user="gap", events=other[1:])):
            assert (refused.status, refused.position, len(refused.items)) == (Status.CONFLICT, 7, 0)
        assert client.append(user="gap", events=other).status is Status.CONFLICT
        assert client.history_length(user="gap") == 7


def test_a_damaged_log_fails_its_user_alone(server, make_history):
    hurt, well = make_history(6, 30), make_history(7, 30)
    with Client(server.grpc_url) as client:
        client.append(user="hurt", events=rows(hurt, 0, 30))
        client.append(user="well", events=rows(well, 0, 30))
        path, newest = server.repository.parent / "event_log" / "data.mdb", hurt[20:].astype("<i8").tobytes()
        data = path.read_bytes()
        copies = [at for at in range(len(data)) if data.startswith(newest, at)]  # an older page may hold them too
        with path.open("r+b") as file:  # the server maps the file, and sees it at once
            for at in copies:
                file.seek(at)
                file.write(bytes([data[at] ^ 1]))
        answers, failures = {}, []

        def receive(stream):
            try:
                prediction = next(stream)
                answers[prediction.user] = prediction
            except ServerError as error:
                failures.append(error)

        with client.stream(k=5, max_in_flight=12) as stream:
            for user in ["well", "hurt", "fresh"] * 4:
                stream.send(user)
            for _ in range(12):
                receive(stream)
    assert copies
    assert set(answers) == {"well", "fresh"}
    assert len(failures) == 4
    assert all(error.user == "hurt" and "checksum doesn't fit" in str(error) for error in failures)


def test_candidates_are_ranked(server, network, make_history):
    history = make_history(2, 10)
    with Client(server.grpc_url) as client:
        prediction = client.recommend(user="cand", events=rows(history, 0, 10), candidates=[5, 60, 7, 1_000], k=4)
    (row,) = scores_after(network, history, [10])
    assert prediction.items.tolist() == sorted([5, 60, 7], key=lambda item: -row[item])


def test_a_bulk_request_answers_each_user(server, network, make_history):
    histories = [make_history(seed, 6) for seed in (3, 4, 5)]
    events = np.stack([rows(history, 0, 6) for history in histories])
    events[1, 4:, 1] = -1  # padding: this user sends four events
    answer = infer(server, [b"bulk a", b"bulk b", b"bulk c"], events, parameters={"k": 3})
    assert answer.as_numpy(STATE).tolist() == [[0, 6], [0, 4], [0, 6]]
    for b, length in enumerate((6, 4, 6)):
        (row,) = scores_after(network, histories[b], [length])
        np.testing.assert_allclose(answer.as_numpy(SCORES)[b, 0], np.sort(row)[::-1][:3], atol=TOLERANCE)


def test_long_users_are_answered_later_and_in_order_while_short_ones_go_on(server, network, make_history):
    """Requests answered from `execute`'s list and through response senders, in the same batches."""
    histories = {f"{kind} {seed}": make_history(seed, 40) for kind in ("long", "short") for seed in range(12)}
    steps = {"long": (30, 3, 0, 7), "short": (2,) * 20}

    def requests():
        sent = dict.fromkeys(histories, 0)
        for turn in range(20):
            for user, history in histories.items():
                kind = user.split()[0]
                if turn < len(steps[kind]):
                    stop = sent[user] + steps[kind][turn]
                    yield user, rows(history, sent[user], stop)
                    sent[user] = stop

    answered = {user: [] for user in histories}
    with Client(server.grpc_url) as client, client.stream(k=10, max_in_flight=64) as stream:
        for prediction in stream.map(requests()):
            answered[prediction.user].append(prediction)
    for user, predictions in answered.items():
        lengths = np.cumsum(steps[user.split()[0]])
        assert [prediction.position for prediction in predictions] == lengths.tolist()
        expected = scores_after(network, histories[user], lengths)
        for prediction, row in zip(predictions, expected, strict=True):
            np.testing.assert_allclose(prediction.scores, np.sort(row)[::-1][:10], atol=TOLERANCE)


def test_a_bulk_request_waits_for_the_last_of_its_users(server, network, make_history):
    histories = [make_history(seed, 40) for seed in (13, 14, 15)]
    events = np.stack([rows(history, 0, 40) for history in histories])
    events[0, 4:, 1] = events[2, 5:, 1] = -1  # short ones around a long one
    answer = infer(server, [b"part a", b"part b", b"part c"], events, parameters={"k": 3})
    for b, length in enumerate((4, 40, 5)):
        (row,) = scores_after(network, histories[b], [length])
        assert answer.as_numpy(STATE)[b].tolist() == [0, length]
        np.testing.assert_allclose(answer.as_numpy(SCORES)[b, 0], np.sort(row)[::-1][:3], atol=TOLERANCE)


def test_a_rollout_arrives_whole_and_leaves_the_user_as_they_were(server, network, make_history):
    history = make_history(21, 10)
    events = rows(history, 0, 10)[None]
    plain = infer(server, [b"roll"], events, parameters={"k": 4})
    rolled = infer(server, [b"roll"], events, parameters={"k": 4, "horizon": 3})
    assert rolled.as_numpy(ITEMS).shape == rolled.as_numpy(SCORES).shape == (1, 3, 4)
    np.testing.assert_array_equal(rolled.as_numpy(ITEMS)[0, 0], plain.as_numpy(ITEMS)[0, 0])
    again = infer(server, [b"roll"], np.empty((1, 0, 3), np.int64), parameters={"k": 4})
    np.testing.assert_allclose(again.as_numpy(SCORES), plain.as_numpy(SCORES), atol=TOLERANCE)
    refused = infer(server, [b"roll"], [[[50, 1, 1]]], parameters={"k": 4, "horizon": 3})
    assert refused.as_numpy(STATE).tolist() == [[1, 10]]
    assert (refused.as_numpy(ITEMS) == -1).all()


def test_items_are_left_out_on_request_and_by_rules_that_change(server, network, make_history):
    history = make_history(23, 10)
    (row,) = scores_after(network, history, [10])
    best = np.argsort(-row, kind="stable")
    events = rows(history, 0, 10)[None]
    excluded = str(best[:2].tolist())
    answer = infer(server, [b"rule"], events, parameters={"k": 4, "exclude": excluded})
    assert answer.as_numpy(ITEMS)[0, 0].tolist() == best[2:6].tolist()
    folder = server.repository.parent / "rules"
    folder.mkdir()
    (folder / "new").write_text(f"{best[2]}\n{best[3]}\n")
    (folder / "new").rename(folder / "blocked.txt")
    deadline = time.monotonic() + 20
    while best[2] in infer(server, [b"rule"], events, parameters={"k": 4}).as_numpy(ITEMS):
        assert time.monotonic() < deadline
    answer = infer(server, [b"rule"], events, parameters={"k": 4, "exclude": excluded})
    assert answer.as_numpy(ITEMS)[0, 0].tolist() == best[4:8].tolist()
    (folder / "blocked.txt").unlink()
    while best[2] not in infer(server, [b"rule"], events, parameters={"k": 4}).as_numpy(ITEMS):
        assert time.monotonic() < deadline


def test_only_what_is_asked_for_is_made(server):
    answer = infer(server, [b"only"], [[[0, 1, 1]]], outputs=[STATE])
    assert answer.as_numpy(STATE).tolist() == [[0, 1]]
    assert answer.as_numpy(ITEMS) is None


def test_explanations_are_made_only_if_asked_for(server, make_history):
    history = rows(make_history(12, 20), 0, 20)[None]
    by_default = infer(server, [b"why"], history, outputs=None)
    assert by_default.as_numpy(ITEMS).shape == (1, 1, 10), "whoever names no output gets all that there are"
    assert by_default.as_numpy(BECAUSE) is None
    asked = infer(
        server, [b"why", b"new"], np.empty((2, 0, 3), np.int64), outputs=None, parameters={"explain": 3, "k": 4}
    )
    because = asked.as_numpy(BECAUSE)
    assert because.shape == (2, 1, 4, 3)
    assert ((because[0] >= 20 - WINDOW) & (because[0] < 20)).all()
    assert (because[1] == -1).all()
    alone = infer(server, [b"why"], [np.empty((0, 3), np.int64)], outputs=[BECAUSE], parameters={"explain": 3, "k": 4})
    np.testing.assert_array_equal(alone.as_numpy(BECAUSE)[0], because[0])
    assert alone.as_numpy(ITEMS) is None


def test_a_rollout_is_answered_step_by_step(server, network, make_history):
    histories = [make_history(20 + seed, 30) for seed in range(3)]
    events = np.stack([rows(history, 0, 30) for history in histories])
    events[2, :, 0] += 5  # a gap
    asked = {"horizon": 4, "beam": 3, "k": 5, "explain": 2, "scores": "probability"}
    users = [b"roll a", b"roll b", b"roll c"]
    answer = infer(server, users, events, outputs=None, parameters=asked)
    items, scores, because = (answer.as_numpy(name) for name in (ITEMS, SCORES, BECAUSE))
    assert (items.shape, scores.shape, because.shape) == ((3, 4, 5), (3, 4, 5), (3, 4, 5, 2))
    assert answer.as_numpy(STATE).tolist() == [[0, 30], [0, 30], [1, 0]]
    assert ((scores[:2] > 0) & (scores[:2] < 1)).all()
    assert (items[2] == -1).all()
    assert (because[:2] < 30).all()
    (row,) = scores_after(network, histories[0], [30])
    share = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    np.testing.assert_allclose(scores[0, 0], share[items[0, 0]], atol=TOLERANCE)
    (same,) = infer(server, users[:1], np.empty((1, 0, 3), np.int64), parameters={**asked, "explain": 0}).as_numpy(
        ITEMS
    )
    np.testing.assert_array_equal(same, items[0])


def test_the_client_asks_for_everything(server, network, make_history):
    history = make_history(31, 30)
    with Client(server.grpc_url) as client:
        plain = client.recommend(user="ask", events=rows(history, 0, 30), k=6)
        options = Options(exclude=plain.items[:2].tolist(), explain=3, probabilities=True)
        asked = client.recommend(user="ask", k=4, options=options)
        assert asked.items.tolist() == plain.items[2:].tolist()
        assert asked.because.shape == (4, 3)
        assert ((asked.scores > 0) & (asked.scores < 1)).all()
        unseen = client.recommend(user="ask", k=60, options=Options(exclude_seen=True))
        assert not set(unseen.items.tolist()) & set(history[:, 0].tolist())
        rolled = client.recommend(user="ask", k=6, options=Options(horizon=5, beam=4, exclude_seen=True))
        assert rolled.items.shape == (5, 6)
        assert len(set(rolled.items[:, 0].tolist())) == 5
        assert client.history_length(user="ask") == 30


def test_categories_are_read_while_the_server_runs(server):
    folder = server.repository.parent / "rules"
    folder.mkdir(exist_ok=True)

    def ranked(**parameters):
        events = np.empty((1, 0, 3), np.int64)
        return infer(server, [b"ruled"], events, parameters={"k": 9, **parameters}).as_numpy(ITEMS)[0, 0].tolist()

    def knows_jazz():
        try:
            return ranked(categories='["Jazz"]')[:3] == [7, -1, -1]
        except InferenceServerException:
            return False

    (folder / "new").write_text("item,category\n7,Jazz\n5,Folk\n")
    (folder / "new").rename(folder / "categories.csv")
    deadline = time.monotonic() + 20
    while not knows_jazz():
        assert time.monotonic() < deadline
    assert sorted(ranked(categories='["Jazz", "Folk"]')[:3]) == [-1, 5, 7]
    assert ranked(exclude="[7]", categories='["Jazz"]')[0] == -1
    (folder / "categories.csv").unlink()


def test_metrics_are_scraped_and_count_unknown_items(server):
    def unknown():
        lines = urlopen(server.metrics_url).read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("longrec_events_unknown_total{")).split()[-1])

    before = unknown()
    infer(server, [b"odd"], [[[0, 5_000, 1], [1, 3, 1], [2, 97, 1]]])
    deadline = time.monotonic() + 10
    while unknown() == before:  # published twice a second
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert unknown() - before == 2


VICTIM = b"victim"
MALFORMED = {
    "k-zero": ({"parameters": {"k": 0}}, r"k=0: expected an integer in 1..60 (model parameter max_k)"),
    "k-too-large": ({"parameters": {"k": 61}}, r"k=61: expected an integer in 1..60"),
    "k-text": ({"parameters": {"k": "ten"}}, r"k='ten': expected an integer"),
    "horizon": ({"parameters": {"horizon": 17}}, r"horizon=17: expected an integer in 1..16"),
    "beam": ({"parameters": {"beam": True}}, r"beam=True: expected an integer in 1..16"),
    "explain": ({"parameters": {"explain": 99}}, r"explain=99: expected an integer in 0..16"),
    "exclude": ({"parameters": {"exclude": "1,2"}}, r"exclude: expected a JSON array of catalogue indices"),
    "exclude-seen": ({"parameters": {"exclude_seen": 1}}, r"exclude_seen=1: expected true or false"),
    "categories": ({"parameters": {"categories": '["Polka"]'}}, r"categories: expected a JSON array"),
    "scores": ({"parameters": {"scores": "percent"}}, r"scores='percent': expected logit or probability"),
    "rollout-of-candidates": ({"parameters": {"horizon": 2}, "candidates": [[3]]}, r"CANDIDATE: expected none with"),
    "unknown-parameter": ({"parameters": {"top_k": 3}}, r"parameter top_k: expected one of k, horizon, beam"),
    "event-columns": ({"events": np.zeros((1, 2, 4), np.int64)}, r"unexpected shape for input 'EVENT'"),
    "event-rank": ({"events": np.zeros((1, 3), np.int64)}, r"'EVENT'"),
    "event-dtype": ({"events": np.zeros((1, 2, 3), np.float32)}, r"'EVENT'"),
    "negative-item": ({"events": [[[2, -5, 1]]]}, r"EVENT column item: expected a catalogue index >= 0"),
    "negative-time": ({"events": [[[2, 5, -1]]]}, r"EVENT column time: expected unix milliseconds >= 0"),
    "positions-jump": ({"events": [[[2, 5, 1], [4, 5, 1]]]}, r"EVENT column position: expected positions >= 0"),
    "positions-mixed": ({"events": [[[2, 5, 1], [-1, 5, 1]]]}, r"EVENT column position: expected positions >= 0"),
    "empty-user": ({"users": [b""]}, r"USER: expected 1..256 bytes of UTF-8, got 0 bytes"),
    "long-user": ({"users": [b"x" * 257]}, r"USER: expected 1..256 bytes of UTF-8, got 257 bytes"),
    "user-not-utf8": ({"users": [b"\xff\xfe"]}, r"USER: expected UTF-8"),
    "too-many-events": (
        {"events": np.stack([np.arange(2, 43), np.ones(41, int), np.ones(41, int)], axis=1)[None]},
        r"EVENT: expected at most 40 events a user (model parameter max_events_per_request), got 41",
    ),
    "candidate-negative": ({"candidates": [[3, -1]]}, r"CANDIDATE: expected catalogue indices >= 0, got -1"),
    "one-bad-of-two": (
        {"users": [VICTIM, b""], "events": [[[2, 5, 1]], [[0, 5, 1]]], "candidates": np.empty((2, 0), np.int64)},
        r"USER: expected 1..256 bytes",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_are_refused_and_change_nothing(server, case):
    with Client(server.grpc_url) as client:
        if not client.history_length(user=VICTIM.decode()):
            client.append(user=VICTIM.decode(), events=np.array([[0, 1, 1], [1, 2, 2]]))
        before = client.recommend(user=VICTIM.decode())
        arguments, message = MALFORMED[case]
        with pytest.raises(InferenceServerException) as refused:
            infer(server, **{"users": [VICTIM], "events": [[[2, 5, 1]]], **arguments})
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert message in refused.value.message()
        after = client.recommend(user=VICTIM.decode())
    assert after.position == before.position == 2
    np.testing.assert_array_equal(after.items, before.items)


def infer(server, users, events, candidates=None, *, parameters=None, outputs=(ITEMS, SCORES, STATE)):
    """A request as raw tritonclient sends it, well-formed or not."""
    candidates = np.empty((len(users), 0), np.int64) if candidates is None else candidates
    arrays = {USER: np.array(users, np.object_)[:, None], EVENT: np.asarray(events), CANDIDATE: np.asarray(candidates)}
    datatypes = {np.dtype(np.object_): "BYTES", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), datatypes[array.dtype]))
        inputs[-1].set_data_from_numpy(array)
    with InferenceServerClient(server.grpc_url) as client:
        wanted = None if outputs is None else [InferRequestedOutput(name) for name in outputs]
        return client.infer(MODEL, inputs, outputs=wanted, parameters=parameters, client_timeout=60)
