"""Histograms count as Prometheus does, and every field of an engine's observations is of a known kind."""

from dataclasses import fields

import numpy as np
import pytest

from longrec.python_backend.observations import SECONDS, SIZES, Histogram, Observations

VALUES = [0.0, 1.0, 1.0000001, 2.0, 3.5, 4.0, 4.1, 1e9]


@pytest.mark.parametrize("many", [False, True])
def test_a_bound_belongs_to_its_bucket(many: bool) -> None:
    histogram = Histogram([1, 2, 4])
    if many:
        histogram.observe_many(np.array(VALUES))
    else:
        for value in VALUES:
            histogram.observe(value)
    assert histogram.counts == (2, 2, 2, 2)
    assert histogram.total == pytest.approx(sum(VALUES))


def test_many_at_once_equals_one_by_one() -> None:
    values = np.random.default_rng(0).lognormal(-5, 2, 1000)
    one, many = Histogram(SECONDS), Histogram(SECONDS)
    for value in values:
        one.observe(float(value))
    many.observe_many(values[:400])
    many.observe_many(values[400:].reshape(-1, 20))
    many.observe_many([])
    assert one.counts == many.counts
    assert sum(one.counts) == 1000
    assert one.total == pytest.approx(many.total)


@pytest.mark.parametrize("bounds", [SECONDS, SIZES])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_every_field_is_a_count_a_gauge_or_a_histogram() -> None:
    named = [name for kind in (int, float, Histogram) for name in Observations.names(kind)]
    assert sorted(named) == sorted(entry.name for entry in fields(Observations))


def test_engines_share_no_histogram() -> None:
    one, other = Observations(), Observations()
    one.step_seconds.observe(0.1)
    assert sum(other.step_seconds.counts) == 0
