"""Requests that are lost, late, doubled or out of order, that nobody waits for, and that contradict each other.

The network's part is played by the driver: it holds a request back, sends it again, sends it after a later one, or
doesn't listen to the answer. Whatever it does, the server gets whole gRPC requests.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from longrec.server.faults.ledger import Book
from longrec.server.faults.report import FaultResult
from longrec.server.faults.rig import Rig
from longrec.server.faults.wire import Fate, Outcome, Pending, Wire

__all__ = ["cancelled", "late", "twice_and_lost", "two_writers"]

USERS = 8
WINDOW = 3  # requests of a user under way at once
MOST_REFUSALS = 1_000  # of one event, before a writer gives up
Send = Callable[[Wire, Book, NDArray[np.int64], random.Random], "Pending | None"]


def twice_and_lost(rig: Rig, runs: int) -> FaultResult:
    """Requests are doubled, dropped on the way, answered to nobody, and overtake each other."""
    late: list[Pending] = []

    def send(wire: Wire, book: Book, events: NDArray[np.int64], rng: random.Random) -> Pending | None:
        chance = rng.random()
        if chance < 0.15:
            return None  # dropped
        one = wire.send(book.user, events, k=5)
        if chance < 0.4:
            late.append(wire.send(book.user, events, k=5))  # doubled; the copy may overtake
        if chance > 0.85:
            late.append(one)  # its answer is dropped
            return None
        return one

    return _chaos("messages doubled, dropped, reordered", rig, runs, send, late)


def late(rig: Rig, runs: int) -> FaultResult:
    """Copies of requests arrive long after the retries that replaced them."""
    held: list[tuple[Book, NDArray[np.int64]]] = []
    sent: list[Pending] = []

    def send(wire: Wire, book: Book, events: NDArray[np.int64], rng: random.Random) -> Pending | None:
        if held and rng.random() < 0.5:
            old, rows = held.pop(rng.randrange(len(held)))
            sent.append(wire.send(old.user, rows, k=5))
        if rng.random() < 0.3:
            held.append((book, events))
            return None
        return wire.send(book.user, events, k=5)

    return _chaos("messages delayed", rig, runs, send, sent)


def cancelled(rig: Rig, runs: int) -> FaultResult:
    """Clients give up: by a deadline of a few milliseconds, or by cancelling."""

    def send(wire: Wire, book: Book, events: NDArray[np.int64], rng: random.Random) -> Pending | None:
        chance = rng.random()
        one = wire.send(book.user, events, k=5, seconds=rng.uniform(0.0005, 0.02) if chance < 0.3 else None)
        if chance > 0.7:
            one.cancel()
        return one

    return _chaos("deadlines and cancellations", rig, runs, send, [])


def two_writers(rig: Rig, runs: int) -> FaultResult:
    """Two clients write for the same users: the same history with positions; events of their own without; and events of
    their own with positions, which each counts for itself."""
    seen, length = rig.ledger.acknowledged, 20 * runs
    same = rig.ledger.open(f"same history {n} {seen}" for n in range(USERS // 2))
    apart = rig.ledger.open((f"two histories {n} {seen}" for n in range(USERS // 2)), checked=False)
    against = rig.ledger.open((f"against each other {n} {seen}" for n in range(USERS // 2)), checked=False)
    for book in (*same, *apart, *against):
        book.make(length)

    def write(number: int) -> tuple[list[Outcome], int]:
        failed: list[Outcome] = []
        conflicts = 0
        counted = dict.fromkeys(against, 0)  # events that this client thinks the user has
        with rig.wire() as wire:
            for start in range(0, length, 2):
                for book in (*same, *apart):
                    # of two histories each client sends its half
                    events = (
                        book.events(start, start + 2)
                        if book.checked
                        else book.events(start + number, start + number + 1)
                    )
                    outcome = wire.send(book.user, events, k=5).outcome()
                    if outcome.fate is Fate.OK:
                        book.acknowledge(events, outcome.length)
                    else:
                        failed.append(outcome)
                for book in against:
                    outcome, refusals = _insist(wire, book, start + number, counted[book])
                    conflicts += refusals
                    counted[book] = outcome.length
                    if outcome.fate is not Fate.OK:
                        failed.append(outcome)
        return failed, conflicts

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(write, range(2)))
    problems = [outcome.message or outcome.fate.value for failed, _ in parts for outcome in failed][:3]
    # both begin at position 0 with another event, so that the second to come must be refused
    if (conflicts := sum(count for _, count in parts)) < len(against):
        problems.append(f"expected a conflict for each of {len(against)} users, got {conflicts}")
    return rig.result("two clients, one user", runs, *problems, books=[*same, *apart, *against])


def _insist(wire: Wire, book: Book, number: int, position: int) -> tuple[Outcome, int]:
    """Send event `number` of a user at `position`, and where that is another's, at the end that the server tells; the
    last outcome, and how many conflicts came before it."""
    events, refusals = book.events(number, number + 1), 0
    events[:, 0] = position
    while (outcome := wire.send(book.user, events, k=5).outcome()).fate is Fate.CONFLICT and refusals < MOST_REFUSALS:
        refusals += 1
        events[:, 0] = outcome.length
    if outcome.fate is Fate.OK:
        book.acknowledge(events, outcome.length)
    return outcome, refusals


def _chaos(fault: str, rig: Rig, runs: int, send: Send, stragglers: Sequence[Pending]) -> FaultResult:
    """Write for users with positions until everything is acknowledged, by way of `send`."""
    rng = random.Random(f"{fault} {runs}")
    books = rig.ledger.open(f"{fault} {n}" for n in range(USERS))
    problems: list[str] = []
    with rig.wire() as wire:
        for _ in range(runs):
            for book in books:
                book.make(rng.randint(10, 20))
            while behind := [book for book in books if book.acknowledged < book.length]:
                pending = [pair for book in behind for pair in _window(wire, book, send, rng)]
                for book, events, one in pending:
                    outcome = one.outcome()
                    if outcome.fate is Fate.OK:
                        book.acknowledge(events, outcome.length)
                    elif outcome.fate in (Fate.REFUSED, Fate.CONFLICT):
                        problems.append(outcome.message or f"{book.user}: a retry was taken for a conflict")
                if problems:
                    break
            for one in stragglers:
                one.outcome()
    return rig.result(fault, runs, *problems[:3], books=books)


def _window(wire: Wire, book: Book, send: Send, rng: random.Random) -> list[tuple[Book, NDArray[np.int64], Pending]]:
    """Send the next few requests of a user at once, in any order; those that were not dropped."""
    at = book.acknowledged
    parts: list[NDArray[np.int64]] = []
    while at < book.length and len(parts) < WINDOW:
        parts.append(book.events(at, min(at + rng.randint(1, 4), book.length)))
        at += len(parts[-1])
    rng.shuffle(parts)
    sent = [(book, events, send(wire, book, events, rng)) for events in parts]
    return [(book, events, one) for book, events, one in sent if one is not None]
