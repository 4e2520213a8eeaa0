from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from longrec.added_items import AddedItems
from longrec.attributes import encode_attributes
from longrec.catalogue import CATALOGUE, Catalogue
from longrec.checkpoint import load_checkpoint
from longrec.config import ModelConfig
from longrec.errors import ArgumentError, CheckpointError, DataError
from longrec.modeling import Network, build_network, load_run, network_of, recompute_scores, save_run
from longrec.modeling.attributes import attach, merged
from longrec.modeling.new_items import add_items
from longrec.schema import ItemCategories, ItemVector, Schema

SCHEMA = Schema(
    item={
        "genres": ItemCategories(kind="categories", values=("a", "b", "c")),
        "text": ItemVector(kind="vector", file="text.npy", width=2),
    }
)
FRAME = pl.DataFrame(
    {
        "genres": [["a", "c"], ["b"], None, ["a", "never seen"]],
        "text": [[1.0, 2.0], None, [0.5, 0.0], None],
    }
)
CONFIG = ModelConfig(num_items=4, dim=8, num_layers=1, hidden_dim=8, window=8, features=SCHEMA)
NAMES = Catalogue(list("wxyz"), list("WXYZ"))
NEW = pl.DataFrame({"genres": [["c"], None], "text": [[0.0, 0.0], [1.0, 1.0]]})


def network() -> Network:
    torch.manual_seed(0)
    return build_network(CONFIG)


def expected(made: Network, genres: list[list[int]], text: list[list[float]]) -> torch.Tensor:
    assert made.attributes is not None
    values, linear = made.attributes.values.weight, made.attributes.vectors["text"].weight
    rows = [values[names].sum(0) / max(1, len(names)) ** 0.5 for names in genres]
    return torch.stack(rows) + torch.tensor(text) @ linear.T


def test_a_table_is_own_vectors_and_what_the_features_add() -> None:
    made = network().eval()
    own = made.items.weight.detach().clone()
    attach(made, encode_attributes(SCHEMA, FRAME), 0.0)
    parts = expected(made, [[0, 2], [1], [], [0]], [[1, 2], [0, 0], [0.5, 0], [0, 0]])
    torch.testing.assert_close(made.item_table, own[:-1] + parts)
    assert torch.equal(made.items.weight[-1], own[-1])  # the unknown item
    whole = merged(made, made.state_dict())
    assert torch.equal(whole["items.weight"], made.items.weight)
    assert set(whole) == set(network().state_dict())
    again = network_of(CONFIG, whole)
    attach(again, encode_attributes(SCHEMA, FRAME), 0.0, merged=True)
    torch.testing.assert_close(again.item_table, made.item_table)
    torch.testing.assert_close(again.items.parametrizations["weight"].original, own)


def test_gradients_reach_own_vectors_and_features() -> None:
    made = network().train()
    attach(made, encode_attributes(SCHEMA, FRAME), 0.5)
    made.item_table.sum().backward()
    assert made.attributes is not None
    for name, weight in made.named_parameters():
        if name.startswith(("attributes.", "items.")):
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name


def test_a_share_of_the_items_has_no_own_vector_while_training() -> None:
    made = network().train()
    attach(made, encode_attributes(SCHEMA, FRAME), 0.5)
    parts = expected(made, [[0, 2], [1], [], [0]], [[1, 2], [0, 0], [0.5, 0], [0, 0]])
    hidden = torch.stack([(made.item_table - parts).abs().amax(1) < 1e-7 for _ in range(200)])
    assert 0.4 < hidden.float().mean() < 0.6
    assert not hidden.all(1).all()
    assert torch.equal(made.eval().item_table, made.item_table)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run", network(), CONFIG, NAMES, {})
    return tmp_path / "run"


def test_new_items_stand_behind_the_others_by_what_they_are(run: Path) -> None:
    before, checkpoint = load_run(run)
    add_items(run, Catalogue(["n"], ["New"], [["films"]]), NEW[:1])
    add_items(run, Catalogue(["m"], ["Newer"]), NEW[1:])
    made, after = load_run(run)
    assert after.weights_hash == checkpoint.weights_hash
    assert made.config.num_items == after.config.num_items == 6
    assert list(after.catalogue.ids) == [*"wxyz", "n", "m"] == list(Catalogue.load(run / CATALOGUE).ids)
    assert [list(names) for names in after.catalogue.categories] == [[], [], [], [], ["films"], []]
    torch.testing.assert_close(made.item_table[4:], expected(before, [[2], []], [[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(made.items.weight[-1], before.items.weight[-1])
    items, times = np.array([0, 3, 4]), np.array([0, 1000, 2000])
    old = recompute_scores(before, np.array([0, 3, 99]), times, np.array([2, 3]))
    new = recompute_scores(made, np.array([0, 3, 99]), times, np.array([2, 3]))
    np.testing.assert_array_equal(new[:, :4], old)  # the old items' scores stay, after an unknown item too
    assert not np.allclose(recompute_scores(made, items, times, np.array([3])), new[1:])  # the new one counts as itself


def test_a_run_that_is_saved_again_has_its_items_in_its_weights(run: Path, tmp_path: Path) -> None:
    add_items(run, Catalogue(["n"], ["New"]), NEW[:1])
    made, checkpoint = load_run(run)
    save_run(run, made, made.config, checkpoint.catalogue, {})
    again, after = load_run(run)
    assert len(after.added) == 0
    assert after.config.num_items == 5
    assert torch.equal(again.item_table, made.item_table)


@pytest.mark.parametrize(
    ("ids", "frame", "message"),
    [
        (["n", "x"], NEW, "item 'x': expected new items, got 1 that the catalogue has already"),
        (
            ["n"],
            pl.DataFrame({"genres": [["never seen"]], "text": [None]}, schema_overrides={"text": pl.List(pl.Float32)}),
            "item 'n': expected a value that the run was trained with",
        ),
    ],
)
def test_items_that_are_there_or_of_which_nothing_is_known_are_refused(
    run: Path, ids: list[str], frame: pl.DataFrame, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        add_items(run, Catalogue(ids, ids), frame)
    assert len(load_checkpoint(run).added) == 0


def test_a_run_without_features_takes_no_items(tmp_path: Path) -> None:
    plain = CONFIG.model_copy(update={"features": Schema()})
    save_run(tmp_path, build_network(plain), plain, NAMES, {})
    with pytest.raises(ArgumentError, match="a run whose schema has features of items"):
        add_items(tmp_path, Catalogue(["n"], ["n"]), NEW[:1])


def test_a_wrong_file_of_added_items_is_refused(run: Path) -> None:
    AddedItems(["n"], ["n"], [[]], np.zeros((1, 3), np.float32)).save(run)
    with pytest.raises(CheckpointError, match=r"added_items.parquet: expected finite vectors of 8, got 3"):
        load_run(run)
    (run / "added_items.parquet").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="expected what `longrec items add` writes"):
        load_run(run)
