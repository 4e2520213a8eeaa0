"""The other models of a repository in a real tritonserver, beside `recommender`: loaded, warmed up, on the wire."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from longrec.catalogue import Catalogue
from longrec.client import Client
from longrec.config import EngineConfig
from longrec.modeling import recompute_scores, save_run
from longrec.protocol import BECAUSE, CANDIDATE, EVENT, ITEMS, MODEL, OUTPUTS, SCORES, STATE, USER
from longrec.server.model_configs import EXTRAS, WARMUP_USER
from longrec.server.perf_analyzer import run_perf_analyzer
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
SEQUENCE, ECHO, RECOMPUTE = (EXTRAS[name].name for name in ("sequence", "echo", "recompute"))


@pytest.fixture(scope="module")
def server(network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("variants")
    ids = [str(item) for item in range(network.config.num_items)]
    save_run(folder / "run", network, network.config, Catalogue(ids, ids), {})
    config = EngineConfig(memory_bytes=1 << 20, log_bytes=64 << 20)
    write_repository(folder / "run", folder / "repository", engine=config, extras=list(EXTRAS))
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def infer(server, model, user, events=(), *, outputs=(ITEMS, SCORES, STATE), parameters=None, **options):
    arrays = {
        USER: np.array([[user]], np.object_),
        EVENT: np.asarray(events, np.int64).reshape(1, -1, 3),
        CANDIDATE: np.empty((1, 0), np.int64),
    }
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), "BYTES" if name == USER else "INT64"))
        inputs[-1].set_data_from_numpy(array)
    wanted = [InferRequestedOutput(name) for name in outputs]
    with InferenceServerClient(server.grpc_url) as client:
        answer = client.infer(model, inputs, outputs=wanted, parameters=parameters, client_timeout=60, **options)
    return {name: answer.as_numpy(name) for name in outputs}


def rows(history, start, stop):
    return np.column_stack((np.arange(start, stop), history[start:stop]))


def queries_counted(server, model):
    lines = urlopen(server.metrics_url).read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("longrec_queries_total{") and f'"{model}"' in line
    )


def test_warm_up_asked_once_and_wrote_nothing(server):  # the first: later ones ask this model too
    deadline = time.monotonic() + 30
    while not (counted := queries_counted(server, RECOMPUTE)):  # metrics come a moment later
        assert time.monotonic() < deadline
    assert counted == 1
    with Client(server.grpc_url) as client:
        assert client.history_length(user=WARMUP_USER.decode()) == 0


def test_every_model_is_on_the_wire(server):
    with InferenceServerClient(server.grpc_url) as client:
        for model in (MODEL, SEQUENCE, ECHO, RECOMPUTE):
            metadata = client.get_model_metadata(model)
            assert list(metadata.versions) == ["1"]
            assert [tensor.name for tensor in metadata.outputs] == [spec.name for spec in OUTPUTS]


def test_recompute_answers_as_the_recommender_does_from_a_log_of_its_own(server, make_history):
    histories = {f"both {seed}": make_history(seed, 60) for seed in range(8)}
    answers = {}
    for model in (MODEL, RECOMPUTE):
        requests = (
            (user, rows(history, start, start + 5)) for start in range(0, 60, 5) for user, history in histories.items()
        )
        with Client(server.grpc_url, model=model) as client, client.stream(k=20, max_in_flight=8) as stream:
            answers[model] = [(answer.user, answer.position, answer) for answer in stream.map(requests)]
            answers[model].sort(key=lambda entry: entry[:2])
    assert len(answers[MODEL]) == 8 * 12
    for (user, position, one), (other_user, other_position, other) in zip(*answers.values(), strict=True):
        assert (user, position) == (other_user, other_position)
        np.testing.assert_allclose(one.scores, other.scores, atol=TOLERANCE)
        np.testing.assert_array_equal(one.items, other.items)
    with Client(server.grpc_url) as client, Client(server.grpc_url, model=RECOMPUTE) as other_client:
        client.append(user="one log", events=rows(histories["both 0"], 0, 3))
        assert other_client.history_length(user="one log") == 0


@pytest.mark.parametrize(
    ("parameters", "shape"), [({}, (1, 10)), ({"k": 3}, (1, 3)), ({"k": 4, "horizon": 2}, (2, 4))], ids=str
)
def test_echo_has_the_shapes_of_an_answer(server, parameters, shape):
    answer = infer(server, ECHO, b"u", [[0, 1, 2]], parameters=parameters)
    assert answer[ITEMS].shape == answer[SCORES].shape == (1, *shape)
    assert answer[STATE].tolist() == [[0, 0]]
    explained = infer(server, ECHO, b"u", outputs=[BECAUSE], parameters={**parameters, "explain": 5})
    assert explained[BECAUSE].shape == (1, *shape, 5)


def test_sequences_need_no_end_and_may_start_again(server, network, make_history):
    histories = {number: make_history(number, 12) for number in (7, 8)}
    starts = {0: True, 3: True}  # the second is a client that came back
    for at in range(6):
        for number, history in histories.items():
            user = f"sequence {number}".encode()
            events = rows(history, 2 * at, 2 * at + 2)
            options = {"sequence_id": number, "sequence_start": starts.get(at, False), "sequence_end": False}
            answer = infer(server, SEQUENCE, user, events, parameters={"k": 8}, **options)
            assert answer[STATE].tolist() == [[0, 2 * at + 2]]
            (expected,) = recompute_scores(network, history[:, 0], history[:, 1], np.array([2 * at + 2]))
            np.testing.assert_allclose(answer[SCORES][0, 0], np.sort(expected)[::-1][:8], atol=TOLERANCE)
    with Client(server.grpc_url) as client:  # one log, whichever model was asked
        assert client.history_length(user="sequence 7") == 12
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        infer(server, SEQUENCE, b"sequence 9", sequence_id=9)


def test_perf_analyzer_speaks_sequences(server, tmp_path):
    def step(user):
        return {
            USER: {"content": [user], "shape": [1]},
            EVENT: {"content": [-1, 3, 1_000], "shape": [1, 3]},
            CANDIDATE: {"content": [], "shape": [0]},
        }

    (tmp_path / "requests.json").write_text(json.dumps({"data": [[step(f"perf {n}")] * 5 for n in range(8)]}))
    (result,) = run_perf_analyzer(server.grpc_url, SEQUENCE, tmp_path / "requests.json", [4], window_ms=300)
    assert result.throughput > 0
    with Client(server.grpc_url) as client:
        assert client.history_length(user="perf 0") > 0
