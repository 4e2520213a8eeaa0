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


def test_a_shop_learns_what_fits_and_obeys_its_rules() -> None:
    printed = run("shop.py", "--customers", 800)
    answers = dict(line.split(": ", 1) for line in printed.replace("film 3; goes", "film 3, goes").splitlines()[-4:])
    basket, chargers, offers, recalled = answers.values()
    assert {"case 3", "charger 3"} & set(basket.partition("with it: ")[2].split(", "))
    assert chargers.split(", ")[0] == "charger 3"
    assert offers == "case 3"
    assert "charger 3" not in recalled.split(", ")


def test_films_are_explained_kept_to_a_genre_and_streamed(tmp_path: Path) -> None:
    printed = run("video.py", "--data", tmp_path / "data", "--epochs", 4, "--users", 300)
    film, because = re.search(r"^│ (.+?) +│ (.+?) +│$", printed, re.MULTILINE).groups()
    assert film != because
    (hits, popular) = re.search(r"hit@10 (\d\.\d+), the most popular films (\d\.\d+)", printed).groups()
    assert float(hits) > float(popular)


def test_todays_news_are_learnt_at_noon() -> None:
    printed = run("news.py", "--readers", 400)
    morning, afternoon = (float(found) for found in re.findall(r"hit@10 (\d\.\d+)", printed))
    assert morning < 0.3
    assert afternoon > morning + 0.2
    assert "version 2" in printed
