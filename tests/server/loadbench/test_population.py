"""Who asks with which event: real ones, in each user's order, by the law that was asked for."""

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.server.loadbench.population import Population

LENGTHS = [1, 4, 9]


@pytest.fixture
def dataset() -> Dataset:
    indptr = np.concatenate(([0], np.cumsum(LENGTHS)))
    items = np.arange(indptr[-1])
    ids = [str(item) for item in items]
    return Dataset("small", ["a", "b", "c"], Catalogue(ids, ids), items, 1000 * items, indptr)


def make(dataset: Dataset, users: int = 50, zipf: float = 1.0) -> Population:
    return Population(dataset, users, zipf=zipf, prefix="p-")


def test_a_log_begins_with_half_the_recorded_history_and_goes_round(dataset):
    population = make(dataset)
    assert [len(population.beginning(user)) for user in range(6)] == [1, 2, 4, 1, 2, 4]
    history = population.history(4, 10)  # of user b: items 1 to 4
    assert history[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert (np.diff(history[:, 1]) == 1000).all()


def test_requests_continue_each_log_without_a_hole(dataset):
    population = make(dataset)
    lengths = {user: len(population.beginning(user)) for user in range(50)}
    for sent in (300, 40, 300):  # of the second draw the rest is never sent
        arrivals = population.draw(300, 0.2)
        for user, position in zip(arrivals.users[:sent].tolist(), arrivals.positions[:sent].tolist(), strict=True):
            assert position == lengths.setdefault(user, len(population.beginning(user)))
            lengths[user] += 1
        population.commit(arrivals.users[:sent])


def test_cold_users_are_new_each_time(dataset):
    population = make(dataset)
    first, second = population.draw(1000, 0.25), population.draw(1000, 0.25)
    cold = np.concatenate((first.users[first.cold], second.users[second.cold]))
    assert len(set(cold.tolist())) == len(cold)
    assert cold.min() == 50
    assert 400 < len(cold) < 600
    assert population.key(int(cold[0])) == "p-50"


@pytest.mark.parametrize("zipf", [0.0, 1.0, 1.5])
def test_users_return_by_the_law(dataset, zipf):
    arrivals = make(dataset, users=20, zipf=zipf).draw(200_000, 0.0)
    found = np.sort(np.bincount(arrivals.users, minlength=20))[::-1] / 200_000
    law = np.arange(1, 21) ** -zipf
    np.testing.assert_allclose(found, law / law.sum(), rtol=0.1)


def test_what_does_not_fit_is_named(dataset):
    with pytest.raises(ArgumentError, match="users=0: expected at least 1"):
        make(dataset, users=0)
    with pytest.raises(ArgumentError, match=r"zipf=-1\.0: expected an exponent >= 0"):
        make(dataset, zipf=-1.0)
    with pytest.raises(ArgumentError, match=r"cold=1\.5: expected a share"):
        make(dataset).draw(3, 1.5)
    none = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="expected a data set with events"):
        make(Dataset("none", [], Catalogue([], []), none, none, np.zeros(1, np.int64)))
