"""Training on the items of several steps after an event."""

import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split, leave_one_out
from longrec.errors import ArgumentError
from longrec.modeling import build_network
from longrec.training import train
from longrec.training.examples import Examples, ExampleTable
from longrec.training.objectives import Objective
from longrec.training.packing import Batch, pack
from longrec.training.stepping import Stepper

NUM_ITEMS = 7
MODEL = ModelConfig(num_items=NUM_ITEMS, dim=8, num_layers=1, hidden_dim=8, num_heads=1, num_kv_heads=1, window=8)
CONFIG = TrainConfig(dropout=0.0, item_dropout=0.0, label_smoothing=0.0, steps_ahead=3, ahead_decay=0.5)


def histories(lengths: list[int], seed: int = 0) -> Dataset:
    """Of items of which each is the one before it, and 2."""
    first = np.random.default_rng(seed).integers(NUM_ITEMS, size=len(lengths)).tolist()
    rows = [
        (f"u{u}", str((first[u] + 2 * n) % NUM_ITEMS), 1000 * n) for u, size in enumerate(lengths) for n in range(size)
    ]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("test", frame)


def whole(data: Dataset, split: Split) -> Batch:
    """The training part, in pieces of 4 events."""
    options = {"sequence_length": 4, "batch_events": 1000}
    (batch,) = pack(data.indptr[:-1], split.train_end, **options, rng=np.random.default_rng(0))
    return batch


def examples_of(data: Dataset, config: TrainConfig = CONFIG, step: int = 0) -> Examples:
    split = leave_one_out(data)
    return ExampleTable(data, split, MODEL, config, torch.device("cpu")).of(whole(data, split), step)


def objective_of(config: TrainConfig, model: ModelConfig = MODEL) -> Objective:
    torch.manual_seed(0)
    objective = Objective(build_network(model).double(), config)
    for weight in objective.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    return objective


@pytest.mark.parametrize("family", ["transformer", "transformer_xl", "hstu", "gru", "lstm"])
def test_the_loss_is_the_cross_entropy_of_each_step_that_the_training_part_has(family: str) -> None:
    data = histories([3, 5, 9, 14])
    split, model = leave_one_out(data), MODEL.model_copy(update={"family": family})
    examples, objective = examples_of(data), objective_of(CONFIG, model)
    network = objective.network
    memory = network.new_memory(examples.events.num_users) if network.recurrent else None
    terms, _ = objective(examples, memory)
    memory = network.new_memory(examples.events.num_users) if network.recurrent else None
    hidden = network.step(examples.events, memory)[0] if network.recurrent else network.states(examples.events)
    ends = np.repeat(split.train_end, np.diff(data.indptr))
    assert objective.ahead is not None
    for step in (2, 3):
        losses = []
        for place, row in enumerate(whole(data, split).rows.tolist()):
            if row + step < ends[row]:
                state = hidden[place] + objective.ahead[step - 2] @ hidden[place]
                losses.append(-network.scores(state).log_softmax(0)[int(data.items[row + step])])
        term = terms[f"item_{step}"]
        assert term.predictions == len(losses) > 0
        torch.testing.assert_close(term.total, 0.5 ** (step - 1) * torch.stack(losses).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ["softmax", "gbce"])
def test_a_step_that_no_history_has_adds_nothing(loss: str) -> None:
    data = histories([4, 4])
    config = CONFIG.model_copy(update={"loss": loss, "num_negatives": 3})
    examples, objective = examples_of(data, config), objective_of(config)
    terms, _ = objective(examples)
    assert [terms[name].predictions for name in ("item_2", "item_3")] == [0, 0]
    sum(term.total for term in terms.values()).backward()
    assert objective.ahead is not None
    assert objective.ahead.grad is not None
    assert objective.ahead.grad.count_nonzero() == 0


@pytest.mark.parametrize("loss", ["softmax", "gbce"])
def test_later_items_are_learnt_by_maps_that_the_network_does_not_keep(loss: str) -> None:
    data = histories([12] * 30)
    config = CONFIG.model_copy(update={"loss": loss, "num_negatives": 6, "weight_decay": 0.0})
    network = build_network(MODEL)
    stepper = Stepper(network, config)
    losses = [stepper.step(examples_of(data, config, step), None, 0.02)[0] for step in range(160)]
    assert losses[-1] < 0.3 * losses[0]
    examples = examples_of(data)
    with torch.no_grad():
        hidden = network.eval().states(examples.events)
    assert stepper.objective.ahead is not None
    for step, (places, items) in enumerate(examples.later, start=2):
        states = hidden[places] + hidden[places] @ stepper.objective.ahead[step - 2].T
        assert (network.scores(states).argmax(1) == items).double().mean() > 0.95
    assert stepper.weights().keys() == build_network(MODEL).state_dict().keys()


@pytest.mark.parametrize("family", ["bert4rec", "seq2seq"])
def test_families_with_other_targets_are_refused(family: str) -> None:
    data = histories([6, 6])
    with pytest.raises(ArgumentError, match=f"steps_ahead=3: expected 1 for family {family}"):
        train(data, leave_one_out(data), MODEL.model_copy(update={"family": family}), CONFIG)
