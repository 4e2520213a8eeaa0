"""Parts run in order, and one that fails doesn't keep the others from running."""

import pytest

from longrec.errors import ArgumentError, ServerError
from longrec.server.bench import suite
from longrec.server.bench.long_history import LongHistoryResult
from longrec.server.bench.start import StartResult


def test_a_part_that_fails_is_told_and_the_others_run(material, monkeypatch):
    def fail(*_):
        raise ServerError("it is gone")

    monkeypatch.setattr(suite, "measure_long_history", fail)
    monkeypatch.setattr(suite, "measure_start", lambda *_: StartResult((2.0,)))
    begun: list[str] = []
    results = suite.run_parts(material, suite.QUICK, only=["start", "long_history"], on_begin=begun.append)
    assert begun == ["long_history", "start"]
    assert results.failures == {"long_history": "ServerError: it is gone"}
    assert results.long_history is None
    assert results.start == StartResult((2.0,))
    assert results.seconds.keys() == {"long_history", "start"}


def test_each_part_gets_its_own_plan(material, monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "measure_long_history", lambda _, plan: asked.append(plan) or LongHistoryResult(1, 1))
    suite.run_parts(material, suite.QUICK, only=["long_history"])
    suite.run_parts(material, only=["long_history"])
    assert asked == [suite.QUICK.long_history, suite.FULL.long_history]


def test_unknown_part(material):
    with pytest.raises(ArgumentError, match="only=bulks: expected one of echo, recompute, bulk"):
        suite.run_parts(material, only=["bulks"])
