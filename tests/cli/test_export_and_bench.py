"""From a run to a served repository and its benchmark, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint
from longrec.cli.export import export
from longrec.config import ModelConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import Transformer, build_network, save_run

IDS = [f"item {n}" for n in range(40)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=40, dim=16)
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, Transformer(config), config, Catalogue(IDS, IDS), {})
    return folder


def test_export_writes_parameters_and_keeps_other_versions(run, tmp_path):
    export(run, tmp_path, set_=["max_k=20", "page_size=16"])
    export(run, tmp_path, version=2, set_=["max_k=30"])
    assert (tmp_path / "recommender" / "1" / "model.py").is_file()
    assert load_checkpoint(tmp_path / "recommender" / "2").catalogue.ids == IDS
    assert 'key: "max_k"\n  value {\n    string_value: "30"' in (tmp_path / "recommender" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("max_k", "NAME=VALUE"), ("max_k=0", "max_k: expected greater"), ("maxk=3", "maxk: expected one of max_k")],
)
def test_export_refuses_unknown_settings(run, tmp_path, setting, message):
    with pytest.raises(ArgumentError, match=message):
        export(run, tmp_path / "repository", set_=[setting])
    assert not (tmp_path / "repository").exists()


def test_export_refuses_weights_of_another_shape(run, tmp_path):
    manifest = json.loads((run / "config.json").read_text())
    manifest["model"]["dim"] = 32
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"expected .*32\] \(from config.json\), got .*16\]"):
        export(tmp_path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_export_fits_the_settings_to_the_family_and_refuses_those_that_cannot(tmp_path):
    config = ModelConfig(num_items=40, dim=16, family="gru")
    save_run(tmp_path / "run", build_network(config), config, Catalogue(IDS, IDS), {})
    with pytest.raises(ArgumentError, match="max_explain=4: expected 0 with family gru"):
        export(tmp_path / "run", tmp_path / "repository", set_=["max_explain=4"])
    assert not (tmp_path / "repository").exists()
    export(tmp_path / "run", tmp_path / "repository")
    written = (tmp_path / "repository" / "recommender" / "config.pbtxt").read_text()
    assert 'key: "max_explain"\n  value {\n    string_value: "0"' in written
