"""Raw requests on a real server: what they carry, what comes back, what a failure says."""

import time

import numpy as np
import pytest

from longrec.client import Client
from longrec.errors import ServerError
from longrec.modeling import recompute_scores
from longrec.server.bench.load import Channel, SteadyLoad, answered_a_second, bulk_request, fill, read_bulk

pytestmark = pytest.mark.server

K = 5


def appended(history):
    return np.array([[-1, *history[-1]]])


def test_filled_users_answer_in_bulk_as_a_recompute_does(server, material):
    histories = material.drawn([1, 70, 2100, 30])  # one longer than a request may be
    users = [f"filled {number}" for number in range(len(histories))]
    fill(server.grpc_url, users, histories)
    with Channel(server.grpc_url) as channel:
        answer = read_bulk(channel.send(bulk_request(users, [appended(history) for history in histories], k=K)))
    assert answer.lengths.tolist() == [2, 71, 2101, 31]
    for history, items, scores in zip(histories, answer.items, answer.scores, strict=True):
        whole = np.concatenate((history, history[-1:]))
        (expected,) = recompute_scores(material.network, whole[:, 0], whole[:, 1], np.array([len(whole)]))
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:K], atol=1e-4)
        np.testing.assert_allclose(scores, expected[items], atol=1e-4)


def test_filling_a_log_that_has_events_is_an_error(server, material):
    (history,) = material.drawn([4])
    with Client(server.grpc_url) as client:
        longer = np.concatenate((history, history[-2:]))
        client.append(user="known", events=np.column_stack((np.arange(6), longer)))
    with pytest.raises(ServerError, match="expected logs of the histories just sent, got others"):
        fill(server.grpc_url, ["known"], [history])


def test_users_can_be_filled_without_a_memory(server, material):
    fill(server.grpc_url, ["cold"], material.drawn([9]), warm=False)
    with Client(server.grpc_url) as client:
        assert client.history_length(user="cold") == 9


def test_requests_are_answered_round_and_round(server, material):
    histories = material.drawn([3] * 4)
    users = [f"round {number}" for number in range(4)]
    messages = [bulk_request([user], [appended(rows)], k=K) for user, rows in zip(users, histories, strict=True)]
    windows = answered_a_second(server.grpc_url, messages, in_flight=2, window_seconds=0.3, windows=2)
    assert len(windows) == 2
    assert all(window > 0 for window in windows)
    with Client(server.grpc_url) as client:
        lengths = [client.history_length(user=user) for user in users]
    assert max(lengths) - min(lengths) <= 1
    assert sum(lengths) >= 0.3 * sum(windows)  # each answer appended an event


def test_a_steady_load_keeps_its_rate_and_counts_from_when_requests_were_due(server, material):
    (history,) = material.drawn([3])
    message = bulk_request(["steady"], [appended(history)], k=K)
    began = time.perf_counter()
    with SteadyLoad(server.grpc_url, [message], rate=50.0) as load:
        time.sleep(1.0)
    samples = load.samples()
    due = samples[:, 0] - began
    np.testing.assert_allclose(np.diff(due), 1 / 50, atol=1e-6)
    assert 0 <= due[0] < due[-1] <= time.perf_counter() - began
    assert (samples[:, 1] > 0).all()
    with Client(server.grpc_url) as client:
        assert client.history_length(user="steady") == len(samples)


def test_a_refused_request_is_an_error(server):
    wrong = bulk_request(["wrong"], [np.array([[-1, -7, 0]])], k=K)
    with Channel(server.grpc_url) as channel, pytest.raises(ServerError, match="INVALID_ARGUMENT"):
        read_bulk(channel.send(wrong))
    with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
        answered_a_second(server.grpc_url, [wrong], in_flight=1, window_seconds=0.1)
    with SteadyLoad(server.grpc_url, [wrong], rate=100.0) as load:
        time.sleep(0.3)
    with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
        load.samples()


def test_a_gap_is_an_error(server):
    with Channel(server.grpc_url) as channel, pytest.raises(ServerError, match="expected status 0, got 1"):
        read_bulk(channel.send(bulk_request(["gap"], [np.array([[8, 1, 0]])], k=None)))
