"""What a step does to the weights, by the ways that the config knows."""

import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.modeling import FAMILIES, Network, build_network
from longrec.training.adversarial import Adversary
from longrec.training.examples import Examples, ExampleTable
from longrec.training.objectives import Objective
from longrec.training.packing import pack
from longrec.training.stepping import Stepper

PLAIN = TrainConfig(dropout=0.0, item_dropout=0.0, label_smoothing=0.0, weight_decay=0.0, clip_norm=1e9)
MODEL = ModelConfig(num_items=7, dim=8, num_layers=1, hidden_dim=8, num_heads=1, num_kv_heads=1, window=8)


def batch_of(model: ModelConfig = MODEL) -> Examples:
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", str(rng.integers(7)), 1000 * n) for u in range(6) for n in range(5 + u)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    data = Dataset.from_interactions("test", frame)
    split = leave_one_out(data)
    (batch,) = pack(data.indptr[:-1], split.train_end, sequence_length=8, batch_events=1000, rng=rng)
    return ExampleTable(data, split, model, PLAIN, torch.device("cpu")).of(batch, 0)


def network_of(model: ModelConfig = MODEL, dropout: float = 0.0) -> Network:
    torch.manual_seed(1)
    network = build_network(model, dropout=dropout).double()
    for weight in network.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    return network.train()


def flat(network: Network) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def gradients(network: Network) -> torch.Tensor:
    return torch.cat(
        [(weight.grad if weight.grad is not None else 0 * weight).flatten() for weight in network.parameters()]
    )


def test_sgd_without_momentum_goes_down_the_gradient() -> None:
    network = network_of()
    stepper = Stepper(network, PLAIN.model_copy(update={"optimizer": "sgd", "momentum": 0.0}))
    before = flat(network)
    stepper.step(batch_of(), None, 0.5)
    assert torch.allclose(flat(network), before - 0.5 * gradients(network), rtol=0, atol=1e-15)


def test_the_average_of_the_weights_is_what_is_judged() -> None:
    network = network_of()
    stepper = Stepper(network, PLAIN.model_copy(update={"ema_decay": 0.15}))
    expected = flat(network)
    for step in range(4):
        stepper.step(batch_of(), None, 0.05)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flat(network)
    judged = stepper.weights()
    assert torch.allclose(torch.cat([judged[name].flatten() for name, _ in network.named_parameters()]), expected)
    assert judged.keys() == network.state_dict().keys()
    assert not torch.allclose(expected, flat(network), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adversary_moves_each_embedding_against_the_loss(family: str) -> None:
    """A step's gradient is that of two passes; the second is worse than the first, and than at the other side of it."""
    model, config = MODEL.model_copy(update={"family": family}), PLAIN.model_copy(update={"adversarial": 0.05})
    network, examples = network_of(model), batch_of()
    objective, radius = Objective(network, config), 0.05

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        memory = network.new_memory(examples.events.num_users) if network.recurrent else None
        term = objective(examples, memory)[0]["item"]
        mean: torch.Tensor = term.total / term.predictions
        return mean

    found = []
    for sign in (1, -1):
        network.zero_grad()
        adversary = Adversary(network.items, sign * radius)
        with adversary.watching():
            plain = loss()
            plain.backward()
        with adversary.attacking():
            moved = loss()
            moved.backward()
        found.append(moved.item() - plain.item())
        if sign == 1:
            both = gradients(network)
    assert found[0] > 0 > found[1]
    torch.manual_seed(0)
    stepper = Stepper(network, config.model_copy(update={"optimizer": "sgd", "momentum": 0.0}))
    before = flat(network)
    loss_before, _ = stepper.step(examples, network.new_memory(6) if network.recurrent else None, 1.0)
    assert loss_before == pytest.approx(plain.item())
    assert torch.allclose(before - flat(network), both, atol=1e-12)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        network = network_of().float()
        stepper = Stepper(network, PLAIN.model_copy(update={"precision": precision}))
        losses.append([stepper.step(batch_of(), None, 0.01)[0] for _ in range(3)])
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "gbce"])
def test_every_family_learns_by_every_loss(family: str, loss: str) -> None:
    model = MODEL.model_copy(update={"family": family})
    network, examples = network_of(model), batch_of()
    config = PLAIN.model_copy(update={"loss": loss, "num_negatives": 5})
    drawn = torch.tensor([0, 2, 3, 5, 6])
    examples = examples._replace(negatives=(drawn, torch.full((5,), -0.3, dtype=torch.float64)))
    stepper = Stepper(network, config)
    memory = network.new_memory(examples.events.num_users) if network.recurrent else None
    losses = []
    for _ in range(15):
        if memory is not None:
            memory.reset(range(examples.events.num_users))
        torch.manual_seed(0)  # the same masks and cuts: the losses can be compared
        loss_before, memory = stepper.step(examples, memory, 0.02)
        losses.append(loss_before)
    assert losses[-1] < 0.9 * losses[0]
