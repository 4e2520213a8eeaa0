"""Stream many users' events to a running server; predictions come back as they are ready, each user's in order.

python examples/streaming.py 127.0.0.1:8001
"""

import sys
from collections.abc import Iterator

from longrec.client import Client, Event


def clicks() -> Iterator[tuple[str, list[Event]]]:
    """Events as they happen: here, three users who take turns."""
    for step in range(5):
        for number, user in enumerate(("ada", "bob", "eve")):
            yield user, [Event(item=3 * step + number, time_ms=1_760_000_000_000 + 1000 * step)]


def main(url: str) -> None:
    """Print the three best items after each event."""
    with Client(url) as client, client.stream(k=3, max_in_flight=64) as stream:
        for prediction in stream.map(clicks()):
            print(prediction.user, prediction.position, prediction.items.tolist())


if __name__ == "__main__":
    main(sys.argv[1])
