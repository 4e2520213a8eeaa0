"""Every fault, a few times, to a real server. `longrec bench faults` does the same more often."""

import pytest

from longrec.errors import ArgumentError
from longrec.server.faults.registry import FAULTS, MESSAGES, QUICK, run_faults

# the others' servers start and stop often: make test-slow
PROMPT = {"kill-stub", "damaged-page", "disk-full", "small-pool"}


def check(results, names):
    results = list(results)
    assert [result.fault for result in results] == list(names)
    for result in results:
        assert result.passed, result
        assert result.runs >= 1
        assert result.acknowledged > 0


@pytest.mark.server
def test_messages_that_go_astray():
    """One server for all of them."""
    check(run_faults(list(MESSAGES), quick=True), MESSAGES)


@pytest.mark.server
@pytest.mark.parametrize(
    "name",
    [name if name in PROMPT else pytest.param(name, marks=pytest.mark.slow) for name in QUICK if name not in MESSAGES],
)
def test_fault(name):
    check(run_faults([name], quick=True), [name])


def test_a_fault_that_is_none_is_named():
    with pytest.raises(ArgumentError, match="fault kill-cat: expected one of kill-server, kill-stub"):
        next(run_faults(["kill-cat"]))
    assert set(FAULTS) - set(QUICK) == {"leak"}
