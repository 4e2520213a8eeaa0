"""Losses against their formulas, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longrec.config import TrainConfig
from longrec.training.losses import binary_loss, calibrated_power, item_loss
from longrec.training.negatives import Sampler

NUM_ITEMS, ROWS, DIM = 23, 9, 8


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, items (leaves) and targets, of which one is none."""
    torch.manual_seed(0)
    states = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    items = torch.randn(NUM_ITEMS, DIM, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(NUM_ITEMS, (ROWS,))
    targets[2] = -1
    return states, items, targets


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, leaves)])


def test_softmax_is_cross_entropy_over_the_catalogue() -> None:
    states, items, targets = problem()
    expected = F.cross_entropy(states @ items.T, targets, ignore_index=-1, reduction="sum", label_smoothing=0.1)
    assert item_loss(states, items, targets, None, TrainConfig(label_smoothing=0.1)).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize("power", [0.0, 0.7])
def test_a_large_sample_gives_the_softmax_and_its_gradient(power: float) -> None:
    """Without the correction by how likely each item was to be drawn, neither would come near."""
    states, items, targets = problem()
    counts = np.arange(NUM_ITEMS, dtype=np.int64) ** 2
    sampler = Sampler(counts, power=power, num_negatives=400_000, seed=0)
    drawn, log_expected = map(torch.from_numpy, sampler.draw(0))
    sampled = item_loss(states, items, targets, (drawn, log_expected), TrainConfig(loss="sampled_softmax"))
    full = item_loss(states, items, targets, None, TrainConfig(label_smoothing=0.0))
    assert sampled.item() == pytest.approx(full.item(), rel=5e-3)
    expected = gradients(full, states, items)
    difference = (gradients(sampled, states, items) - expected).norm() / expected.norm()
    assert difference < 0.01


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_binary_losses_are_their_formula(loss: str) -> None:
    states, items, targets = problem()
    drawn = torch.randint(NUM_ITEMS, (40,))
    config = TrainConfig.model_validate({"loss": loss, "calibration": 0.6})
    share = min(1.0, 40 / (NUM_ITEMS - 1))
    power = share * (0.6 * (1 - 1 / share) + 1 / share) if loss == "gbce" else 1.0
    scores = states @ items.T
    expected = torch.zeros((), dtype=torch.float64)
    for row, target in enumerate(targets.tolist()):
        if target < 0:
            continue
        others = [item for item in drawn.tolist() if item != target]
        expected = expected - (torch.sigmoid(scores[row, target]) ** power).log() / 41
        expected = expected - (1 - torch.sigmoid(scores[row, others])).log().sum() / 41
    got = item_loss(states, items, targets, (drawn, torch.zeros(40, dtype=torch.float64)), config)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradients(got, states, items), gradients(expected, states, items), rtol=1e-10, atol=1e-12)


def test_calibration_goes_from_bce_to_the_share_that_is_drawn() -> None:
    assert calibrated_power(256, 10_001, 0.0) == pytest.approx(1.0)
    assert calibrated_power(256, 10_001, 1.0) == pytest.approx(0.0256)
    assert 0.0256 < calibrated_power(256, 10_001, 0.75) < 1.0
    assert calibrated_power(256, 100, 0.75) == pytest.approx(1.0)  # all are drawn: nothing to undo


def test_a_calibrated_loss_gives_true_probabilities() -> None:
    """Each of three items comes with its own probability; what BCE learns from few negatives is too high, gBCE's is
    right: the odds of the two differ by the share that is drawn (Petrov & Macdonald, 2023)."""
    probabilities = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    num_items, num_drawn = 3, 1
    targets = torch.arange(3).repeat_interleave((probabilities * 10).long())  # as often as they come
    learnt = {}
    for calibration in (0.0, 1.0):
        scores = torch.zeros(num_items, 1, dtype=torch.float64, requires_grad=True)
        power = calibrated_power(num_drawn, num_items, calibration)
        optimizer = torch.optim.LBFGS([scores], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

        def closure(power: float = power, scores: torch.Tensor = scores) -> torch.Tensor:
            """Every target with every other item as its one negative, which is the expectation over the draw."""
            loss = torch.zeros((), dtype=torch.float64)
            for negative in range(num_items):
                others = targets[targets != negative]
                states = torch.ones(len(others), 1, dtype=torch.float64)
                loss = loss + binary_loss(states, scores, others, torch.tensor([negative]), power) / (num_items - 1)
            scores.grad = torch.autograd.grad(loss, scores)[0]
            return loss

        optimizer.step(closure)
        learnt[calibration] = torch.sigmoid(scores.detach()[:, 0])
    assert torch.allclose(learnt[1.0], probabilities, atol=1e-3)
    assert (learnt[0.0] > learnt[1.0] + 0.05).all()
