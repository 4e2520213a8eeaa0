"""Compressed checkpoints: how near the weights stay, what they take on disk, and that they load as any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from longrec.client import Client
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import FAMILIES, build_network, load_run, recompute_scores, save_run
from longrec.modeling.compression import METHODS, compress, unpack
from longrec.python_backend.local import serve_locally

ITEMS = 200
CATALOGUE = Catalogue([str(item) for item in range(ITEMS)], [str(item) for item in range(ITEMS)])


def make(family: str = "transformer") -> tuple[ModelConfig, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    config = ModelConfig(num_items=ITEMS, family=family, dim=32, num_layers=2, hidden_dim=64, window=16)
    return config, {name: weight.numpy() for name, weight in build_network(config).state_dict().items()}


def test_int8_is_within_half_a_step_of_each_row() -> None:
    config, weights = make()
    weights["items.weight"][3] = 0
    same, packed = compress(config, weights, "int8", None)
    assert same == config
    dense = unpack(packed)
    assert dense.keys() == weights.keys()
    for name, weight in weights.items():
        step = np.abs(weight).max(axis=-1, keepdims=True) / 127 if weight.ndim == 2 else 0.0
        assert (np.abs(dense[name] - weight) <= 0.5001 * step).all()
    only_items = compress(config, weights, "int8-items", None)[1]
    assert [name for name in only_items if ":" in name] == ["items.weight:int8", "items.weight:scale"]


def test_low_rank_is_the_best_of_its_rank() -> None:
    config, weights = make()
    dense = unpack(compress(config, weights, "low-rank", 0.25)[1])["items.weight"]
    sizes = np.linalg.svd(weights["items.weight"].astype(np.float64), compute_uv=False)
    assert np.linalg.matrix_rank(dense, tol=1e-4) == 8
    error = np.linalg.norm(dense - weights["items.weight"])
    assert error == pytest.approx(np.sqrt((sizes[8:] ** 2).sum()), rel=1e-4)  # Eckart and Young, 1936


def test_pruning_keeps_the_largest_weights_as_they_are() -> None:
    config, weights = make()
    dense = unpack(compress(config, weights, "prune", 0.3)[1])
    for name, weight in weights.items():
        if weight.ndim == 2:
            kept = dense[name] != 0
            assert kept.mean() == pytest.approx(0.3, abs=0.01)
            np.testing.assert_array_equal(dense[name][kept], weight[kept])
            assert np.abs(weight[~kept]).max() <= np.abs(weight[kept]).min()


@pytest.mark.parametrize("family", ["transformer", "transformer_xl", "bert4rec", "seq2seq"])
def test_units_that_do_nothing_are_pruned_without_a_trace(family: str, tmp_path: Path) -> None:
    config, weights = make(family)
    dead = np.random.default_rng(0).permutation(64)[:32]
    for name in weights:
        if name.endswith("down.weight"):
            weights[name][:, dead] = 0
    small, packed = compress(config, weights, "prune-hidden", 0.5)
    assert small.hidden_dim == 32
    histories = np.arange(20), 1000 * np.arange(20), np.array([0, 7, 20])
    scores = []
    for name, shape, found in (("whole", config, weights), ("small", small, packed)):
        save_checkpoint(tmp_path / name, shape, found, CATALOGUE, {})
        scores.append(recompute_scores(load_run(tmp_path / name)[0], *histories))
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_checkpoint_is_served_as_any_other(method: str, tmp_path: Path) -> None:
    config, weights = make()
    save_checkpoint(tmp_path / "whole", config, weights, CATALOGUE, {})
    save_checkpoint(tmp_path / "small", *compress(config, weights, method, None), CATALOGUE, {})
    sizes = {name: (tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "small")}
    assert sizes["small"] < 0.95 * sizes["whole"]
    network, _ = load_run(tmp_path / "small")
    history = np.array([[0, 5, 0], [1, 7, 1000], [2, 5, 2000]])
    (expected,) = recompute_scores(network, history[:, 1], history[:, 2], np.array([3]))
    engine = EngineConfig(memory_bytes=1 << 20, log_bytes=1 << 20)
    with serve_locally(tmp_path / "small", config=engine) as local, Client(transport=local.transport) as client:
        answer = client.recommend(user="u", events=history, k=5)
    np.testing.assert_allclose(answer.scores, np.sort(expected)[::-1][:5], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_int8(family: str, tmp_path: Path) -> None:
    config, weights = make(family)
    save_checkpoint(tmp_path, *compress(config, weights, "int8", None), CATALOGUE, {})
    network, _ = load_run(tmp_path)
    save_run(tmp_path / "dense", network, config, CATALOGUE, {})  # whoever trains on writes dense weights again
    assert load_checkpoint(tmp_path / "dense").weights.keys() == weights.keys()


def test_misfits_are_named(tmp_path: Path) -> None:
    config, weights = make()
    with pytest.raises(ArgumentError, match="method=zip: expected one of int8, int8-items, low-rank"):
        compress(config, weights, "zip", None)
    with pytest.raises(ArgumentError, match=r"keep=1.0: expected a share above 0 and below 1"):
        compress(config, weights, "prune", 1.0)
    with pytest.raises(ArgumentError, match=r"keep=0.5: expected none, as int8 keeps every weight"):
        compress(config, weights, "int8", 0.5)
    with pytest.raises(ArgumentError, match=r"expected a family with gated feed-forwards, got gru"):
        compress(*make("gru"), "prune-hidden", None)
    packed = dict(compress(config, weights, "prune", None)[1])
    packed["items.weight:values"] = packed["items.weight:values"][1:]
    with pytest.raises(CheckpointError, match=r"items\.weight: expected \d+ values"):
        unpack(packed)
    del packed["items.weight:values"]
    save_checkpoint(tmp_path, config, packed, CATALOGUE, {})
    with pytest.raises(CheckpointError, match=r"items\.weight: expected int8 and scale, left and right, or kept"):
        load_run(tmp_path)
