"""The examples that bring everything along, data to server: each run as its first lines say, on less data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.server, pytest.mark.slow]


def run(name: str, *options: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(printed: str, row: str) -> list[float]:
    """The numbers of a table's row, by its first cell."""
    (line,) = re.findall(rf"^│ {row} +│(.*)$", printed, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_purchases_find_each_users_rhythm() -> None:
    printed = run("purchases.py", "--users", 1000, "--epochs", 10)
    for step in ("1", "2"):
        rollout, usual, best = figures(printed, step)
        assert usual + 0.05 < rollout <= best + 0.02
