"""The book finds what a log lacks, has twice, or never was sent."""

import json

import numpy as np
import pytest

from longrec.server.faults.ledger import Ledger
from longrec.server.faults.report import FaultResult, faults_as_json, faults_table


@pytest.fixture
def book():
    (book,) = Ledger(50).open(["u"])
    book.acknowledge(book.make(6), 6)
    book.make(2)  # sent, not acknowledged
    return book


def rows(book, *positions):
    return book.events(0, book.length)[list(positions), 1:].reshape(-1, 2)


def test_acknowledged_events_must_be_there_and_others_may(book):
    assert book.compare(rows(book, *range(6))) == (6, 0, 0, ())
    assert book.compare(rows(book, *range(8))) == (6, 0, 0, ())


def test_a_lost_a_doubled_and_a_foreign_event_are_found(book):
    assert book.compare(rows(book, *range(5)))[:3] == (6, 1, 0)
    doubled = book.compare(rows(book, 0, 1, 1, 2, 3, 4, 5))
    assert doubled[:3] == (6, 0, 1)
    assert "no beginning of what was sent" in doubled.problems[0]
    swapped = book.compare(rows(book, 1, 0, 2, 3, 4, 5))
    assert (swapped.lost, swapped.duplicated, len(swapped.problems)) == (0, 0, 1)
    other = rows(book, *range(6))
    other[2, 0] += 1
    assert "another item" in book.compare(other).problems[0]


def test_what_retention_dropped_is_not_lost(book):
    assert book.compare(rows(book, 4, 5), first=4) == (6, 0, 0, ())


def test_without_positions_events_may_come_in_any_order_once():
    (book,) = Ledger(50).open(["u"], checked=False)
    first, second, third = book.make(2), book.make(2), book.make(1)
    assert (first[:, 0] == -1).all()
    book.acknowledge(first, 4)
    book.acknowledge(third, 3)
    both = np.concatenate((third, first))[:, 1:]
    assert book.compare(both) == (3, 0, 0, ())
    assert book.compare(np.concatenate((both, second[:, 1:]))) == (3, 0, 0, ())
    assert book.compare(np.concatenate((both, first[:, 1:])))[:3] == (3, 0, 2)
    assert book.compare(first[:, 1:])[:3] == (3, 1, 0)


def test_later_answers_acknowledge_what_came_before():
    """An answer that was lost is made up for by the next one, which tells the log's length."""
    (book,) = Ledger(50).open(["u"])
    book.make(2)
    book.acknowledge(book.make(2), 4)
    assert book.acknowledged == 4


def test_a_result_passes_only_without_any_fault():
    good = FaultResult("f", 1, 10, 0, 0, 1e-6)
    assert good.passed
    for bad in (
        FaultResult("f", 1, 10, 1, 0, 0.0),
        FaultResult("f", 1, 10, 0, 1, 0.0),
        FaultResult("f", 1, 10, 0, 0, 2e-4),
        FaultResult("f", 1, 10, 0, 0, 0.0, ("it said nothing",)),
    ):
        assert not bad.passed
    assert json.loads(faults_as_json([good])) == [
        {
            "fault": "f",
            "runs": 1,
            "acknowledged": 10,
            "lost": 0,
            "duplicated": 0,
            "max_score_difference": 1e-6,
            "note": "",
            "passed": True,
        }
    ]
    assert faults_table([good]).row_count == 1
