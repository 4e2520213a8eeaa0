"""Bulk by shared memory on a real server: the answers of plain gRPC, also after a restart, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from longrec.client import ArgumentError, Client, Event, Options, Prediction, ServerError
from longrec.client.shared_memory import SharedMemoryTransport
from longrec.server.clientbench.rig import Rig, make_rig

USERS = [f"shared {number}" for number in range(60)]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with make_rig() as rig:
        yield rig


def regions() -> set[str]:
    """On this machine, of clients of this process."""
    return {path.name for path in Path("/dev/shm").glob("longrec-*")}


def plain(predictions: Iterator[Prediction]) -> list[tuple[str, int, list[int], list[float]]]:
    return [(one.user, one.position, one.items.tolist(), one.scores.tolist()) for one in predictions]


@pytest.mark.server
def test_the_answers_are_those_of_grpc_and_nothing_is_left(rig: Rig) -> None:
    before = regions()
    events = [
        (user, [Event(number % 97, 1000 + step) for step in range(number % 5)]) for number, user in enumerate(USERS)
    ]
    options = Options(explain=2)
    with (
        Client(rig.urls[0], transport=SharedMemoryTransport, timeout_seconds=60) as shared,
        Client(rig.urls[0]) as other,
    ):
        for _ in range(2):  # regions are used again, and grow
            found = plain(shared.recommend_many(events, k=5, batch_size=16, in_flight=2))
            assert found == [(u, e, *rest) for (u, e, *rest) in plain(other.recommend_many(USERS, k=5))]
        assert 0 < len(regions() - before) <= 2
        assert plain(shared.recommend_many(USERS, k=50, options=options)) == plain(
            other.recommend_many(USERS, k=50, options=options)
        )
        errors: list[ServerError] = []
        refused = Options(horizon=17)
        assert list(shared.recommend_many(USERS[:3], k=5, options=refused, errors=errors)) == []
        assert [error.user for error in errors] == USERS[:3]
        assert plain(shared.recommend_many(USERS[:3], k=5)) == plain(other.recommend_many(USERS[:3], k=5))
    assert regions() == before
    with InferenceServerClient(rig.urls[0]) as raw:
        assert not raw.get_system_shared_memory_status().regions


@pytest.mark.server
def test_a_server_that_was_restarted_gets_the_regions_again(rig: Rig) -> None:
    before = regions()
    with Client(rig.urls[0], transport=SharedMemoryTransport, timeout_seconds=60) as client:
        first = plain(client.recommend_many(USERS, k=5))
        rig.servers[0].stop(at_once=True)
        rig.servers[0].start()
        again = plain(client.recommend_many(USERS, k=5))
        assert [one[:3] for one in again] == [one[:3] for one in first]
    assert regions() == before


@pytest.mark.server
def test_a_region_that_the_server_forgot_is_registered_again_and_used(rig: Rig) -> None:
    with (
        Client(rig.urls[0], transport=SharedMemoryTransport) as client,
        InferenceServerClient(rig.urls[0]) as raw,
    ):
        first = plain(client.recommend_many(USERS, k=5, in_flight=1))
        known = set(raw.get_system_shared_memory_status().regions)
        assert len(known) == 1
        raw.unregister_system_shared_memory()
        assert plain(client.recommend_many(USERS, k=5, in_flight=1)) == first
        assert set(raw.get_system_shared_memory_status().regions) == known


def test_a_server_without_shared_memory_is_asked_user_by_user_and_nothing_is_left(url: str) -> None:
    before = regions()
    errors: list[ServerError] = []
    with Client(url, transport=SharedMemoryTransport, timeout_seconds=5) as client:
        assert [one.user for one in client.recommend_many(["a", "b"], errors=errors)] == ["a", "b"]
    assert not errors
    assert regions() == before


def test_an_address_elsewhere_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"url='10\.0\.0\.1:8001': expected an address on this machine"):
        Client("10.0.0.1:8001", transport=SharedMemoryTransport)
