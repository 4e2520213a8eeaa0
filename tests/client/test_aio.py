"""`AsyncClient` and `AsyncStream` over a real gRPC connection: what the sync ones promise, with asyncio."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from longrec.client import (
    ArgumentError,
    AsyncClient,
    DeadlineError,
    Event,
    MissingModelError,
    Options,
    RejectedError,
    ServerError,
    Status,
)

Program = Callable[[AsyncClient], Awaitable[None]]


def run(url: str | list[str], program: Program, **arguments: Any) -> None:
    async def main() -> None:
        async with AsyncClient(url, **{"timeout_seconds": 10, **arguments}) as client:
            await program(client)

    asyncio.run(main())


def events(*items: int) -> list[Event]:
    return [Event(item, 1000) for item in items]


def test_every_call_answers(url: str, servicer: Any) -> None:
    async def program(client: AsyncClient) -> None:
        prediction = await client.recommend(user="u", events=events(1, 2), k=3)
        assert (prediction.items.tolist(), prediction.position) == (servicer.expected_items(2, 3), 2)
        assert (await client.append(user="u", events=events(3))).length == 3
        assert await client.history_length(user="u") == 3
        scored = await client.score(user="u", candidates=[7, 5])
        assert scored.candidates.tolist() == [7, 5]
        assert await client.is_ready()
        assert [p.position async for p in client.recommend_many(["u", ("v", events(9))])] == [3, 1]
        info = await client.model_info()
        assert (info.max_users, info.settings["max_k"]) == (256, "256")
        assert client.unacknowledged(user="u") == []
        client.forget(user="u")
        await client.flush()

    run(url, program)
    assert [item for item, _ in servicer.logs["u"]] == [1, 2, 3]


def test_calls_of_one_user_at_once_are_in_the_log_once(url: str, servicer: Any) -> None:
    async def program(client: AsyncClient) -> None:
        await asyncio.gather(*(client.append(user="u", events=events(item)) for item in range(40)))

    run(url, program)
    assert sorted(item for item, _ in servicer.logs["u"]) == list(range(40))


def test_a_passing_failure_is_tried_again_and_a_refusal_is_not(url: str, servicer: Any) -> None:
    calls = {"n": 0}

    def twice(request: Any, context: Any) -> Any:
        calls["n"] += 1
        if calls["n"] < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return servicer.answer("u", request)

    servicer.faults["u"] = twice
    servicer.faults["bad"] = lambda request, context: "refused"

    async def program(client: AsyncClient) -> None:
        assert (await client.append(user="u", events=events(1))).status is Status.OK
        with pytest.raises(RejectedError):
            await client.recommend(user="bad")
        with pytest.raises(ArgumentError, match=r"^k=0"):
            await client.recommend(user="u", k=0)

    run(url, program)
    assert servicer.logs["u"] == [(1, 1000)]


def test_a_cancelled_call_leaves_its_events_to_the_next(url: str, servicer: Any) -> None:
    async def program(client: AsyncClient) -> None:
        await client.append(user="u", events=events(1))
        hang = asyncio.Event()

        async def never(request: Any, seconds: float) -> Any:
            await hang.wait()

        real, client.transports[0].infer = client.transports[0].infer, never  # type: ignore[method-assign]
        call = asyncio.ensure_future(client.append(user="u", events=events(2)))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        client.transports[0].infer = real  # type: ignore[method-assign]
        assert [event.position for event in client.unacknowledged(user="u")] == [1]
        await client.flush()

    run(url, program)
    assert [item for item, _ in servicer.logs["u"]] == [1, 2]


def test_history_may_be_a_coroutine(url: str, servicer: Any) -> None:
    async def history(user: str) -> list[Event]:
        return events(0, 1, 2)

    async def program(client: AsyncClient) -> None:
        assert (await client.append(user="u", events=[Event(3, 1000, 3)])).length == 4
        async with client.stream(k=2) as stream:
            await stream.send("v", [Event(3, 1000, 3)])
            assert (await stream.__anext__()).position == 4

    run(url, program, history=history)
    assert [item for item, _ in servicer.logs["v"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("max_in_flight", [1, 7, 1000])
def test_a_stream_answers_every_user_in_order(url: str, servicer: Any, max_in_flight: int) -> None:
    async def requests() -> AsyncIterator[tuple[str, list[Event]]]:
        for step in range(9):
            for user in range(7):
                yield f"u{user}", events(step)

    async def program(client: AsyncClient) -> None:
        positions = defaultdict(list)
        async with client.stream(k=3, max_in_flight=max_in_flight) as stream:
            async for prediction in stream.map(requests()):
                positions[prediction.user].append(prediction.position)
            assert stream.in_flight == 0
        assert all(found == sorted(found) and len(found) == 9 for found in positions.values())

    run(url, program)
    assert all([item for item, _ in servicer.logs[f"u{user}"]] == list(range(9)) for user in range(7))


def test_a_stream_survives_its_connection(url: str, servicer: Any) -> None:
    breaks = iter(range(3))

    def break_three_times(request: Any, context: Any) -> Any:
        answer = servicer.answer("u", request)  # written, and the answer lost
        if next(breaks, None) is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return answer

    servicer.faults["u"] = break_three_times

    async def program(client: AsyncClient) -> None:
        async with client.stream(k=2) as stream:
            requests: Iterator[tuple[str, list[Event]]] = (("u", events(item)) for item in range(20))
            found = [prediction.position async for prediction in stream.map(requests)]
        assert found == sorted(found)
        assert len(found) == 20

    run(url, program)
    assert [item for item, _ in servicer.logs["u"]] == list(range(20))


def test_a_stream_names_what_fails_and_goes_on(url: str, servicer: Any) -> None:
    servicer.faults["bad"] = lambda request, context: "refused"
    servicer.faults["silent"] = lambda request, context: None

    async def program(client: AsyncClient) -> None:
        stream = client.stream()
        await stream.send("bad")
        with pytest.raises(RejectedError) as caught:
            await stream.__anext__()
        assert caught.value.user == "bad"
        await stream.send("silent")
        with pytest.raises(DeadlineError, match=r"no answer for 1 s|no answer for 1\.0 s"):
            await stream.__anext__()
        await stream.send("well")
        assert [prediction.user for prediction in await stream.flush()] == ["well"]
        stream.finish()
        with pytest.raises(ArgumentError, match="expected an open stream"):
            await stream.send("u")
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()
        await stream.close()

    run(url, program, timeout_seconds=1)


def test_a_full_stream_makes_the_sender_wait_and_a_broken_one_says_so(url: str, servicer: Any) -> None:
    servicer.faults["last"] = lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "who?")

    async def program(client: AsyncClient) -> None:
        async with client.stream(max_in_flight=1, options=Options(exclude_seen=True)) as stream:
            await stream.send("a")
            with pytest.raises(DeadlineError, match="no room"):
                await stream.send("b")
            await stream.flush()
        stream = client.stream()
        await stream.send("last")
        with pytest.raises(ServerError, match=r"credentials.*; 1 requests of the stream went unanswered"):
            await stream.__anext__()
        await stream.close()
        stream = client.stream()
        await stream.send("silent")
        servicer.faults["silent"] = lambda request, context: None
        await stream.close()
        with pytest.raises(ServerError, match="closed"):
            await stream.__anext__()

    servicer.faults["silent"] = lambda request, context: None
    run(url, program, timeout_seconds=0.5)


def test_bulk_names_the_users_who_fail(url: str, servicer: Any) -> None:
    servicer.faults["bad"] = lambda request, context: "refused"

    async def program(client: AsyncClient) -> None:
        errors: list[ServerError] = []
        found = [p.user async for p in client.recommend_many(["bad", "a", "b"], errors=errors)]
        assert (found, [error.user for error in errors]) == (["a", "b"], ["bad"])
        with pytest.raises(RejectedError):
            _ = [p async for p in client.recommend_many(["bad", "a"])]

    run(url, program)


def test_a_model_that_is_not_there(url: str) -> None:
    async def program(client: AsyncClient) -> None:
        assert not await client.is_ready()
        with pytest.raises(MissingModelError):
            await client.model_info()

    run(url, program, model="another")


def test_a_bulk_call_cancelled_before_it_began_leaves_its_events_owed(url: str, servicer: Any) -> None:
    async def program(client: AsyncClient) -> None:
        users = [f"u{number}" for number in range(4)]
        for user in users:
            await client.append(user=user, events=events(1))
        bulk = client.recommend_many([(user, events(2)) for user in users], batch_size=1)
        first = asyncio.ensure_future(bulk.__anext__())
        await asyncio.sleep(0)  # its tasks are made, and none of them has run
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert [event.position for user in users for event in client.unacknowledged(user=user)] == [1] * 4
        assert sorted(client.core.ledger.owed()) == users
        await client.append(user="u0", events=events(3))
        await client.flush()

    run(url, program)
    assert [item for item, _ in servicer.logs["u0"]] == [1, 2, 3]
    assert all([item for item, _ in servicer.logs[f"u{number}"]] == [1, 2] for number in range(1, 4))
