import numpy as np
import pytest

from longrec.training.negatives import Sampler


def test_a_step_draws_the_same_and_another_step_does_not() -> None:
    sampler = Sampler(np.zeros(50, dtype=np.int64), power=0.0, num_negatives=30, seed=3)
    assert sampler.draw(7).items.tolist() == sampler.draw(7).items.tolist()
    assert sampler.draw(7).items.tolist() != sampler.draw(8).items.tolist()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_items_come_as_often_as_they_are_expected(power: float) -> None:
    counts = np.array([0, 3, 8, 99])
    sampler = Sampler(counts, power=power, num_negatives=1000, seed=0)
    draws = [sampler.draw(step) for step in range(50)]
    found = np.bincount(np.concatenate([draw.items for draw in draws]), minlength=4) / len(draws)
    expected = 1000 * (counts + 1.0) ** power / ((counts + 1.0) ** power).sum()
    assert found == pytest.approx(expected, rel=0.1)
    for draw in draws[:2]:
        assert np.exp(draw.log_expected) == pytest.approx(expected[draw.items])
