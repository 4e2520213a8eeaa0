"""Thousands of malformed requests at a real tritonserver's wire: each is refused as such, and nothing changes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from longrec.catalogue import Catalogue
from longrec.client import Client
from longrec.config import EngineConfig
from longrec.modeling import save_run
from longrec.protocol import CANDIDATE, EVENT, MODEL, USER
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = [pytest.mark.server, pytest.mark.slow]

CONFIG = EngineConfig(max_k=60, max_events_per_request=12, max_candidates=9, max_excluded=5, memory_bytes=1 << 20)
VICTIM, BYSTANDER = "victim", "bystander"
EXAMPLES, REQUESTS = 210, 10

SCALAR = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=20))
SMALL = st.integers(-3, 0)


def outside(least: int, most: int) -> st.SearchStrategy:
    """Anything but an integer in least..most."""
    return SCALAR.filter(lambda value: isinstance(value, (bool, str)) or not least <= value <= most)


NO_LIST = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.text(max_size=20).filter(lambda text: not text.strip().startswith("[")),
    st.sampled_from(["[", "[1", "[1,]", "[[1]]", '["a"]', "[1.5]", "[true]", "[null]", "[-1]", f"[{2**63}]", "[" * 90]),
    st.sampled_from(["[1,2,3,4,5,6]", "[" + "1," * 5_000 + "1]", '{"a": [1]}', "[NaN]", "[Infinity]", "[1e3]"]),
)
BAD_PARAMETER = st.one_of(
    st.tuples(st.just("k"), outside(1, 60)),
    st.tuples(st.just("horizon"), outside(1, 16)),
    st.tuples(st.just("beam"), outside(1, 16)),
    st.tuples(st.just("explain"), outside(0, 16)),
    st.tuples(st.just("exclude_seen"), st.one_of(st.integers(-2, 2), st.text(max_size=5))),
    st.tuples(st.just("exclude"), NO_LIST),
    st.tuples(st.just("categories"), st.one_of(NO_LIST, st.sampled_from(["[]", '["Jazz"]', '["\\ud800"]']))),
    st.tuples(st.just("scores"), SCALAR.filter(lambda value: value not in ("logit", "probability"))),
    st.tuples(st.text("abcxyz_", min_size=1, max_size=12), SCALAR),
)
GOOD_PARAMETERS = st.fixed_dictionaries(
    {}, optional={"k": st.integers(1, 60), "exclude_seen": st.booleans(), "scores": st.just("probability")}
)


def event(position: int, item: int, time: int) -> list[int]:
    return [position, item, time]


BAD_EVENTS = st.one_of(
    st.integers(-(2**63), -2).map(lambda item: [event(-1, item, 1)]),
    st.integers(-(2**63), -1).map(lambda time: [event(-1, 1, time)]),
    st.integers(-(2**63), -2).map(lambda position: [event(position, 1, 1)]),
    st.integers(2, 2**62).map(lambda position: [event(position, 1, 1), event(position + 2, 1, 1)]),
    st.sampled_from([[event(-1, 1, 1), event(2, 1, 1)], [event(2, 1, 1), event(-1, 1, 1)]]),
    st.sampled_from([[event(2, 1, 1), event(2, 1, 1)], [event(-1, 1, 1)] * 13, [event(2**63 - 1, 1, 1)] * 2]),
)
BAD_USER = st.one_of(
    st.sampled_from([b"", b"\xff", b"a\xc3", b"\xed\xa0\x80", b"x" * 257]), st.binary(min_size=257, max_size=400)
)
BAD_CANDIDATES = st.one_of(st.lists(st.integers(-(2**63), -1), min_size=1, max_size=5), st.just([1] * 10))


def request(**changed):
    """Tensors of a request that would append to the victim's log and a bystander's, but for what is changed."""
    arrays = {
        USER: np.array([[VICTIM.encode()], [BYSTANDER.encode()]], np.object_),
        EVENT: np.array([[event(-1, 3, 5)], [event(-1, 4, 5)]]),
        CANDIDATE: np.empty((2, 0), np.int64),
    }
    return {**arrays, **changed}


def padded(events):
    rest = [event(0, -1, 0)] * (len(events) - 1)
    return np.array([[event(-1, 3, 5), *rest], events])


BAD_TENSORS = st.one_of(
    BAD_EVENTS.map(lambda events: request(**{EVENT: padded(events)})),
    BAD_USER.map(lambda user: request(**{USER: np.array([[VICTIM.encode()], [user]], np.object_)})),
    BAD_CANDIDATES.map(lambda items: request(**{CANDIDATE: np.array([items, items])})),
    st.sampled_from([(2, 1, 2), (2, 1, 4), (2, 3), (2, 1, 3, 1), (2,), (1, 1, 3), (3, 1, 3)]).map(
        lambda shape: request(**{EVENT: np.zeros(shape, np.int64)})
    ),
    st.sampled_from([np.float32, np.int32, np.bool_]).map(lambda kind: request(**{EVENT: np.zeros((2, 1, 3), kind)})),
    st.sampled_from([(2, 0, 1), (2,), (1, 0), (3, 2)]).map(
        lambda shape: request(**{CANDIDATE: np.zeros(shape, np.int64)})
    ),
    st.sampled_from([USER, EVENT, CANDIDATE]).map(
        lambda name: {other: array for other, array in request().items() if other != name}
    ),
    st.just(request(SPY=np.zeros((2, 1), np.int64))),
)
BAD_REQUEST = st.one_of(
    st.tuples(
        st.just(request()),
        st.tuples(GOOD_PARAMETERS, BAD_PARAMETER).map(lambda both: {**both[0], both[1][0]: both[1][1]}),
    ),
    st.tuples(BAD_TENSORS, GOOD_PARAMETERS),
)


@pytest.fixture(scope="module")
def server(network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    ids = [str(item) for item in range(network.config.num_items)]
    save_run(folder / "run", network, network.config, Catalogue(ids, ids), {})
    write_repository(folder / "run", folder / "repository", engine=CONFIG)
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def raw(server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url) as client:
        yield client


def test_malformed_requests_are_refused_and_change_nothing(server, raw):
    sent = 0
    with Client(server.grpc_url) as client:
        for user in (VICTIM, BYSTANDER):
            client.append(user=user, events=np.array([[0, 1, 1], [1, 2, 2]]))
        before = {user: client.recommend(user=user, k=20) for user in (VICTIM, BYSTANDER)}

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
        )
        @given(st.lists(BAD_REQUEST, min_size=REQUESTS, max_size=REQUESTS))
        def refuse(requests):
            nonlocal sent
            for arrays, parameters in requests:
                with pytest.raises(InferenceServerException) as refused:
                    raw.infer(MODEL, inputs_of(arrays), parameters=parameters, client_timeout=60)
                assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", refused.value.message()
                assert VICTIM not in refused.value.message()
                sent += 1
            assert {client.history_length(user=user) for user in (VICTIM, BYSTANDER)} == {2}

        refuse()
        assert sent >= 2_000
        for user, expected in before.items():
            after = client.recommend(user=user, k=20)
            assert after.items.tolist() == expected.items.tolist()
            np.testing.assert_array_equal(after.scores, expected.scores)


def inputs_of(arrays):
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs
