"""`longrec rollback` without a server; with one it is tested in tests/python_backend/test_served_versions.py."""

from pathlib import Path

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.checkpoint import save_checkpoint
from longrec.cli.rollback import rollback
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, ServerError
from longrec.server.repository import served_version, write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 to 3, the third served."""
    config = ModelConfig(num_items=2)
    weights = {"table": np.ones((2, config.dim), np.float32)}
    save_checkpoint(tmp_path / "run", config, weights, Catalogue(["a", "b"], ["A", "B"]), {})
    for _ in range(3):
        write_repository(tmp_path / "run", tmp_path / "repository", engine=EngineConfig())
    return tmp_path / "repository"


def test_back_by_one_and_to_any(repository: Path) -> None:
    for to, expected in ((None, 2), (None, 1), (3, 3), (1, 1)):
        rollback(repository, to=to)
        assert served_version(repository) == expected


def test_nothing_below(repository: Path) -> None:
    rollback(repository, to=1)
    with pytest.raises(ArgumentError, match=r"--to: expected a version in .* \(1, 2, 3\)"):
        rollback(repository, to=None)
    with pytest.raises(ArgumentError, match=r"--to 9: expected a version in .* \(1, 2, 3\)"):
        rollback(repository, to=9)
    assert served_version(repository) == 1


def test_no_server_leaves_the_repository_alone(repository: Path) -> None:
    with pytest.raises(
        ServerError, match=r"recommender at 127\.0\.0\.1:9: expected version 1 to load, got .*UNAVAILABLE"
    ):
        rollback(repository, to=1, url="127.0.0.1:9")
    assert served_version(repository) == 3
