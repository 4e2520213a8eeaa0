from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from longrec.catalogue import Catalogue
from longrec.cli.main import app
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import DataError
from longrec.modeling import Transformer, load_network, save_run
from longrec.schema import ItemCategories, Schema
from longrec.server.repository import check_repository, write_repository

SCHEMA = Schema(item={"genres": ItemCategories(kind="categories", column="class", values=("a", "b"))})
CONFIG = ModelConfig(num_items=3, dim=8, num_layers=1, hidden_dim=8, window=8, features=SCHEMA)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_run(tmp_path / "run", Transformer(CONFIG), CONFIG, Catalogue(["x", "y", "z"], ["X", "Y", "Z"]), {})
    (tmp_path / "new.csv").write_text("item_id,name,class\nn,New,a|b\nm,Newer,b\n")
    return tmp_path / "run"


def add(target: Path, file: Path) -> str:
    done = CliRunner().invoke(app, ["items", "add", str(target), str(file), "--title", "name", "--categories", "class"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_new_items_join_a_run_and_what_is_exported_from_it(run: Path, tmp_path: Path) -> None:
    assert "added 2 items" in add(run, tmp_path / "new.csv")
    write_repository(run, tmp_path / "repository", engine=EngineConfig(), extras=["recompute"])
    check_repository(tmp_path / "repository")
    for model in ("recommender", "recommender_recompute"):  # the latter's files are links
        network, checkpoint = load_network(tmp_path / "repository" / model / "1")
        assert network.config.num_items == 5
        assert list(checkpoint.catalogue.ids) == ["x", "y", "z", "n", "m"]
        assert list(checkpoint.catalogue.titles[3:]) == ["New", "Newer"]
        assert list(checkpoint.catalogue.categories[3:]) == [["a", "b"], ["b"]]


def test_new_items_join_the_version_that_a_repository_serves(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        write_repository(run, tmp_path / "repository", engine=EngineConfig())
    add(tmp_path / "repository", tmp_path / "new.csv")
    sizes = [load_network(tmp_path / "repository" / "recommender" / str(n))[0].config.num_items for n in (1, 2)]
    assert sizes == [3, 5]


def test_a_second_time_is_refused_and_changes_nothing(run: Path, tmp_path: Path) -> None:
    add(run, tmp_path / "new.csv")
    before = load_network(run)[0].item_table
    with pytest.raises(DataError, match="item 'n': expected new items, got 2 that the catalogue has already"):
        add(run, tmp_path / "new.csv")
    np.testing.assert_array_equal(load_network(run)[0].item_table.detach(), before.detach())
