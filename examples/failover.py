"""Two servers that share an event log: when one dies, its users go on at the other, and no event is lost or doubled.

python examples/failover.py 127.0.0.1:8001 127.0.0.1:8011     # stop one of them meanwhile
"""

import sys

from longrec.client import Client, Event

USERS, STEPS = 20, 10


def main(urls: list[str]) -> None:
    """Send each user's events, and print how long the logs are in the end."""
    with Client(urls) as client:
        for step in range(STEPS):
            for user in range(USERS):
                client.recommend(user=f"fan {user}", events=[Event(item=step, time_ms=1_760_000_000_000 + step)], k=3)
            print(f"step {step} done", flush=True)
        print(sorted({client.history_length(user=f"fan {user}") for user in range(USERS)}))


if __name__ == "__main__":
    main(sys.argv[1:])
