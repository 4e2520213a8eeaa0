import pytest

from longrec.training.schedule import Budget, learning_rate


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    assert learning_rate(2.0, 0.0, 0, 10) == pytest.approx(0.2)
    assert learning_rate(2.0, 0.0, 9, 10) == pytest.approx(2.0)
    assert learning_rate(2.0, 0.5, 99, 10) == pytest.approx(1.0)
    assert learning_rate(2.0, 1.0, 99, 10) == pytest.approx(0.0)
    assert learning_rate(2.0, 0.0, 0, 0) == 2.0


def progress(budget: Budget, seconds: list[float]) -> list[float]:
    """Progress at the beginning of each epoch, of which the n-th takes seconds[n]."""
    seen, elapsed = [], 0.0
    while budget.left:
        seen.append(budget.within(0.0))
        elapsed += seconds[budget.done]
        budget.finish_epoch(elapsed)
    return seen


def test_a_limit_that_is_not_met_changes_nothing() -> None:
    free = progress(Budget(10), [1.0] * 10)
    assert free == pytest.approx([n / 10 for n in range(10)])
    assert progress(Budget(10, 15.0), [1.0, 1.2, 0.9, 1.3, 1.0, 1.0, 0.8, 1.0, 1.0, 1.0]) == free


def test_epochs_that_do_not_fit_are_dropped_and_the_schedule_still_ends() -> None:
    budget = Budget(100, 10.5)
    seen = progress(budget, [1.0] * 100)
    assert len(seen) == 10
    assert budget.progress == pytest.approx(1.0)
    assert seen == sorted(seen)


def test_training_that_becomes_slow_still_ends_in_time() -> None:
    seconds = [1.0] * 5 + [3.0] * 15
    budget = Budget(20, 21.0)
    seen = progress(budget, seconds)
    assert sum(seconds[: len(seen)]) <= 21.0
    assert budget.progress == pytest.approx(1.0)


def test_at_least_one_epoch_is_run() -> None:
    assert len(progress(Budget(5, 0.1), [1.0] * 5)) == 1
