"""Calls that start at once on a fresh client ask a server once what it speaks, and all learn what came of it."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from longrec.client import AsyncClient, Client, DeadlineError, ProtocolError, Retry, ServerError

CALLS = 8


class Gate:
    """Holds the server's answer to what it speaks until it is opened."""

    def __init__(self, servicer: Any) -> None:
        self._open, self.asked, describe = threading.Event(), threading.Event(), servicer.ModelConfig

        def held(request: Any, context: Any) -> Any:
            self.asked.set()
            assert self._open.wait(20)
            return describe(request, context)

        servicer.ModelConfig = held

    def open(self) -> None:
        """Let it answer."""
        self._open.set()


@pytest.fixture
def gate(servicer: Any) -> Iterator[Gate]:
    """Before the server is made, which looks the method up then."""
    gate = Gate(servicer)
    yield gate
    gate.open()


def other_protocol(servicer: Any) -> None:
    servicer.config.parameters["protocol_version"].string_value = "2"


@pytest.mark.parametrize("fits", [True, False])
def test_threads_share_the_question_and_its_outcome(gate: Gate, url: str, servicer: Any, fits: bool) -> None:
    if not fits:
        other_protocol(servicer)
    with Client(url) as client, ThreadPoolExecutor(CALLS) as pool:
        waits = threading.Semaphore(0)
        wait = client._wait

        def counted(future: Any, seconds: float) -> Any:
            waits.release()
            return wait(future, seconds)

        client._wait = counted  # type: ignore[method-assign]
        calls = [pool.submit(client.history_length, user=f"u{number}") for number in range(CALLS)]
        for _ in range(CALLS - 1):
            assert waits.acquire(timeout=20)
        gate.open()
        for call in calls:
            if fits:
                assert call.result(20) == 0
            else:
                assert isinstance(call.exception(20), ProtocolError)
    assert servicer.descriptions == 1
    assert len(servicer.requests) == (CALLS if fits else 0)


@pytest.mark.parametrize("fits", [True, False])
def test_tasks_share_it_too(url: str, servicer: Any, fits: bool) -> None:
    if not fits:
        other_protocol(servicer)

    async def main() -> None:
        async with AsyncClient(url) as client:
            calls = (client.history_length(user=f"u{number}") for number in range(CALLS))
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(one == 0 if fits else isinstance(one, ProtocolError) for one in found)

    asyncio.run(main())
    assert servicer.descriptions == 1


def test_whoever_waits_has_a_deadline_of_its_own_and_spoils_nothing(gate: Gate, url: str, servicer: Any) -> None:
    with Client(url, timeout_seconds=20) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.history_length, user="a")
        assert gate.asked.wait(20)
        client.core.timeout_seconds = 0.05
        with pytest.raises(DeadlineError):
            client.history_length(user="b")
        gate.open()
        assert first.result(20) == 0


def test_where_the_one_that_asks_is_cancelled_another_asks(gate: Gate, url: str, servicer: Any) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            first = asyncio.ensure_future(client.history_length(user="a"))
            second = asyncio.ensure_future(client.history_length(user="b"))
            third = asyncio.ensure_future(client.history_length(user="c"))
            while not gate.asked.is_set():
                await asyncio.sleep(0)
            first.cancel()
            third.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            gate.open()
            assert await second == 0
            with pytest.raises(asyncio.CancelledError):
                await third

    asyncio.run(main())


def test_a_task_that_waits_has_a_deadline_too(gate: Gate, url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url, timeout_seconds=20, retry=Retry(first_seconds=0.01)) as client:
            first = asyncio.ensure_future(client.history_length(user="a"))
            while not gate.asked.is_set():
                await asyncio.sleep(0)
            client.core.timeout_seconds = 0.05
            with pytest.raises(ServerError, match="no answer in time"):
                await client.history_length(user="b")
            gate.open()
            assert await first == 0

    asyncio.run(main())
