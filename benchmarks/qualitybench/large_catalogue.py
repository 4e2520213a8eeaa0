"""The memory of one training step over a catalogue of a million items, in a process of its own, since the peak of a
process never falls.

    python large_catalogue.py        # prints JSON
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.training import train

__all__ = ["NUM_ITEMS", "STEP_EVENTS", "measure"]

NUM_ITEMS, STEP_EVENTS, USERS = 1_000_000, 2048, 8


def measure(timeout_seconds: float = 900.0) -> dict[str, float]:
    """Peak bytes of a process that builds, trains one step and validates; the step's events and CPU seconds."""
    command = [sys.executable, str(Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_seconds)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def random_histories() -> Dataset:
    """Histories of equal length that make one step, of items drawn from the whole catalogue."""
    length = STEP_EVENTS // USERS + 3  # the last row of what is trained on is a target, and two events are held out
    items = np.random.default_rng(0).integers(NUM_ITEMS, size=USERS * length)
    ids = [str(item) for item in range(NUM_ITEMS)]
    indptr = np.arange(USERS + 1, dtype=np.int64) * length
    times_ms = np.tile(np.arange(length, dtype=np.int64) * 1000, USERS)
    return Dataset("large", [f"u{user}" for user in range(USERS)], Catalogue(ids, ids), items, times_ms, indptr)


def main() -> None:
    dataset = random_histories()
    config = TrainConfig(sequence_length=STEP_EVENTS, batch_events=STEP_EVENTS, epochs=1)
    trained = train(dataset, leave_one_out(dataset), ModelConfig(num_items=NUM_ITEMS), config)
    (record,) = trained.history
    figures = {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "step_cpu_seconds": record["cpu_seconds"],
        "step_events": round(record["events_per_second"] * record["train_seconds"]),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
