"""The documentation site: it builds without a warning, and the reference has every public name."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("client", "datasets", "errors", "training", "metrics", "kernels")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "--silent", "build/typecheck/longrec"], cwd=ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_has_every_public_name(site: Path, page: str) -> None:
    text = (site / "api" / f"{page}.html").read_text()
    room = importlib.import_module("longrec.training.metrics" if page == "metrics" else f"longrec.{page}")
    if page == "client":  # its errors stand on their own page
        text += (site / "api" / "errors.html").read_text()
    missing = [name for name in room.__all__ if f'.{name}"' not in text]
    assert not missing


def test_arguments_and_errors_are_read_from_docstrings(site: Path) -> None:
    text = (site / "api" / "client.html").read_text()
    entry = text[text.index('id="longrec.client.Client.recommend"') : text.index('id="longrec.client.Client.score"')]
    for said in ("Parameters:", "items to rank, at least one", "Raises:", "the server refused the request"):
        assert said in entry
