"""The client's promises on real tritonservers that are killed: exactly once over a stream, and failover to another."""

from collections.abc import Iterator

import pytest

from longrec.client import Client, Event, ModelInfo, RejectedError
from longrec.server.clientbench.chaos import run_chaos
from longrec.server.clientbench.failover import run_failover
from longrec.server.clientbench.rig import Rig, make_event, make_rig

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with make_rig(2) as rig:
        yield rig


@pytest.mark.slow
def test_a_stream_survives_three_kills_of_the_server(rig: Rig) -> None:
    result = run_chaos(rig, 400, 6, 3, max_in_flight=256)
    assert result.kills == 3
    assert result.passed, result


@pytest.mark.slow
def test_users_go_elsewhere_when_their_server_dies_and_nothing_is_lost(rig: Rig) -> None:
    result = run_failover(rig, 60, threads=4, rate=80.0, before=1.5, after=2.5)
    assert (result.lost, result.duplicated) == (0, 0)
    assert 0 < result.moved < 60
    assert result.returned


def test_the_real_server_says_what_the_library_expects(rig: Rig) -> None:
    with Client(rig.urls) as client:
        info = client.model_info()
        assert isinstance(info, ModelInfo)
        assert (info.name, info.max_users, info.settings["max_k"]) == ("recommender", 256, "256")
        with pytest.raises(RejectedError):
            client.recommend(user="ask", horizon=17)
        found = list(client.recommend_many([(f"m{n}", [Event(n, 1000)]) for n in range(20)], k=3))
        assert [prediction.position for prediction in found] == [1] * 20
        assert [client.recommend(user=p.user, k=3).items.tolist() for p in found] == [p.items.tolist() for p in found]
        scored = client.score(user="m1", candidates=[3, 96, 5, 1000])
        assert [bool(score > -1e30) for score in scored.scores] == [True, True, True, False]


def test_a_stream_goes_on_where_another_server_is_left(rig: Rig) -> None:
    """The last: it leaves one server dead."""
    answered = []
    with Client(rig.urls) as client, client.stream(k=2, max_in_flight=32) as stream:
        requests = ((f"s{user}", [make_event(user, step)]) for step in range(8) for user in range(40))
        for number, prediction in enumerate(stream.map(requests)):
            answered.append((prediction.user, prediction.position))
            if number == 100:
                rig.servers[0].stop(at_once=True)
    assert len(answered) == 320
    assert {user for user, position in answered if position == 8} == {f"s{user}" for user in range(40)}
    assert rig.check({f"s{user}": 8 for user in range(40)}) == (0, 0)
