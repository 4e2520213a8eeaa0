"""What the benchmark measures with: fits together, and is like the dataset."""

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig
from longrec.datasets import Dataset
from longrec.errors import CheckpointError, DataError
from longrec.modeling import build_network, save_run
from longrec.server.bench.material import load_material


def test_drawn_histories_have_their_lengths_and_the_datasets_items(material):
    histories = material.drawn([1, 500], seed=3)
    assert [history.shape for history in histories] == [(1, 2), (500, 2)]
    assert set(histories[1][:, 0]) <= set(material.dataset.items)
    assert (np.diff(histories[1][:, 1]) >= 0).all()
    assert np.array_equal(histories[1], material.drawn([1, 500], seed=3)[1])
    assert not np.array_equal(histories[1], material.drawn([1, 500], seed=4)[1])


def test_another_window_has_the_same_weights(material):
    wide = material.with_window(1000)
    assert wide.network.config.window == 1000
    assert material.network.config.window == 64
    for one, other in zip(wide.network.parameters(), material.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_dataset_with_another_catalogue_is_refused(run_folder, tmp_path):
    one = np.zeros(1, np.int64)
    Dataset("other", ["u"], Catalogue(["a"], ["a"]), one, one, np.array([0, 1])).save(tmp_path)
    with pytest.raises(DataError, match=r"expected the catalogue of .*, got another; train on this dataset"):
        load_material(run_folder, tmp_path, tmp_path)


def test_another_family_is_replayed_and_not_benchmarked(dataset_folder, tmp_path):
    dataset = Dataset.load(dataset_folder)
    config = ModelConfig(num_items=len(dataset.catalogue.ids), dim=16, family="gru")
    save_run(tmp_path, build_network(config), config, dataset.catalogue, {})
    with pytest.raises(CheckpointError, match="family: expected transformer, the one that is measured here, got gru"):
        load_material(tmp_path, dataset_folder, tmp_path)
    assert load_material(tmp_path, dataset_folder, tmp_path, any_family=True).network.config == config
