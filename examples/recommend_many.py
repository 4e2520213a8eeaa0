"""Predictions for every user of a data frame, in bulk.

python examples/recommend_many.py 127.0.0.1:8001
"""

import sys

import polars as pl

from longrec.client import Client


def main(url: str) -> None:
    """Append each user's new events, and print a frame of what comes next."""
    events = pl.DataFrame(
        {
            "user": ["ida", "max", "ida", "leo"],
            "item": [1, 2, 3, 4],
            "time_ms": [1_760_000_000_000, 1_760_000_001_000, 1_760_000_002_000, 1_760_000_003_000],
        }
    )
    with Client(url) as client:
        frames = [prediction.to_frame() for prediction in client.recommend_many(events, k=2)]
    print(pl.concat(frames))


if __name__ == "__main__":
    main(sys.argv[1])
