"""A server that lost its log, or never had it, gets what it lacks from you: `history` says what a user did.

python examples/history.py 127.0.0.1:8001
"""

import sys

from longrec.client import Client, Event

ORDERS = {"kim": [Event(item=item, time_ms=1_760_000_000_000 + item, position=item) for item in range(6)]}
"""Your own database: each user's events, with their positions."""


def main(url: str) -> None:
    """Send the sixth event alone: the server lacks the five before, and the client fetches them from `history`."""
    with Client(url, history=lambda user: ORDERS[user]) as client:
        prediction = client.recommend(user="kim", events=ORDERS["kim"][5:], k=3)
        print(prediction.status.name, prediction.position)


if __name__ == "__main__":
    main(sys.argv[1])
