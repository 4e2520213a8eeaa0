"""A server that speaks another protocol, or lacks the model, is named on every way in, and nothing is written to it."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from longrec.client import (
    AsyncClient,
    Client,
    DeadlineError,
    Event,
    MissingModelError,
    ProtocolError,
    Retry,
    ServerError,
)

EVENTS = [Event(1, 1000)]
WAYS: dict[str, Callable[[Client], Any]] = {
    "recommend": lambda client: client.recommend(user="u", events=EVENTS),
    "score": lambda client: client.score(user="u", candidates=[1]),
    "append": lambda client: client.append(user="u", events=EVENTS),
    "history_length": lambda client: client.history_length(user="u"),
    "recommend_many": lambda client: list(client.recommend_many([("u", EVENTS)])),
    "model_info": lambda client: client.model_info(),
    "stream": lambda client: stream(client),
}


def stream(client: Client) -> None:
    stream = client.stream()
    stream.send("u", EVENTS)
    try:
        next(stream)
    finally:
        stream.close()


async def every_way(client: AsyncClient, error: type[ServerError]) -> None:
    with pytest.raises(error):
        await client.recommend(user="u", events=EVENTS)
    with pytest.raises(error):
        await client.score(user="u", candidates=[1])
    with pytest.raises(error):
        await client.append(user="u", events=EVENTS)
    with pytest.raises(error):
        await client.history_length(user="u")
    with pytest.raises(error):
        _ = [one async for one in client.recommend_many([("u", EVENTS)])]
    stream = client.stream()
    await stream.send("u", EVENTS)
    with pytest.raises(error):
        await stream.__anext__()
    await stream.close()


def change(servicer: Any, what: str) -> None:
    if what == "inputs":
        del servicer.config.input[2]
    else:
        servicer.config.parameters["protocol_version"].string_value = "2"


@pytest.mark.parametrize("what", ["inputs", "version"])
@pytest.mark.parametrize("way", WAYS)
def test_another_protocol_is_named_and_nothing_is_sent(url: str, servicer: Any, way: str, what: str) -> None:
    change(servicer, what)
    with Client(url) as client, pytest.raises(ProtocolError, match="install the longrec of the server's version"):
        WAYS[way](client)
    assert not servicer.requests


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_not_there_is_named(url: str, servicer: Any, way: str) -> None:
    with Client(url, model="another") as client, pytest.raises(MissingModelError, match="has no such model"):
        WAYS[way](client)
    assert not servicer.requests


@pytest.mark.parametrize("model", ["recommender", "another"])
def test_with_asyncio_too(url: str, servicer: Any, model: str) -> None:
    change(servicer, "version")
    error = ProtocolError if model == "recommender" else MissingModelError

    async def main() -> None:
        async with AsyncClient(url, model=model) as client:
            await every_way(client, error)

    asyncio.run(main())
    assert not servicer.requests


def test_a_server_is_asked_once_and_again_after_it_was_away(url: str, servicer: Any) -> None:
    failures = iter(range(2))

    def away(request: Any, context: Any) -> Any:
        if next(failures, None) is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return servicer.answer("u", request)

    with Client(url, retry=Retry(first_seconds=0.001, most_seconds=0.01)) as client:
        for _ in range(3):
            client.append(user="v", events=EVENTS)
        list(client.recommend_many(["v", "w"]))
        with client.stream() as stream:
            stream.send("v")
        assert servicer.descriptions == 1
        servicer.faults["u"] = away
        client.history_length(user="u")
        assert servicer.descriptions == 3
        change(servicer, "version")
        failures = iter(range(1))
        with pytest.raises(ProtocolError):
            client.history_length(user="u")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "model_info"])
def test_garbage_is_named_on_every_way_in(url: str, servicer: Any, way: str) -> None:
    servicer.faults["u"] = lambda request, context: servicer.respond(request.id, {})
    with Client(url) as client, pytest.raises(ProtocolError, match="STATE: expected it among the outputs, got none"):
        WAYS[way](client)


def test_garbage_is_named_with_asyncio(url: str, servicer: Any) -> None:
    servicer.faults["u"] = lambda request, context: servicer.respond(request.id, {})

    async def main() -> None:
        async with AsyncClient(url) as client:
            await every_way(client, ProtocolError)

    asyncio.run(main())


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("way", WAYS)
def test_silence_ends_with_the_deadline(silent: str, way: str) -> None:
    with Client(silent, timeout_seconds=0.2) as client, pytest.raises(DeadlineError):
        WAYS[way](client)


def test_silence_ends_with_the_deadline_with_asyncio(silent: str) -> None:
    async def main() -> None:
        async with AsyncClient(silent, timeout_seconds=0.2) as client:
            await every_way(client, DeadlineError)

    asyncio.run(main())
