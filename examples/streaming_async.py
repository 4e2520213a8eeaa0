"""`streaming.py` for asyncio: one task sends what arrives, another reads.

python examples/streaming_async.py 127.0.0.1:8001
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from longrec.client import AsyncClient, AsyncStream, Event


async def clicks() -> AsyncIterator[tuple[str, list[Event]]]:
    """Events as they happen: here, three users who take turns."""
    for step in range(5):
        for number, user in enumerate(("ann", "ben", "eva")):
            yield user, [Event(item=3 * step + number, time_ms=1_760_000_000_000 + 1000 * step)]


async def send(stream: AsyncStream) -> None:
    """Send everything; `send` waits while too much is in flight."""
    async for user, events in clicks():
        await stream.send(user, events)
    stream.finish()


async def main(url: str) -> None:
    """Print the three best items after each event."""
    async with AsyncClient(url) as client, client.stream(k=3, max_in_flight=64) as stream:
        sending = asyncio.create_task(send(stream))
        async for prediction in stream:
            print(prediction.user, prediction.position, prediction.items.tolist())
        await sending


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
