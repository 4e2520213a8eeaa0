"""Exactly once, without a server: what deliveries send until a log has every event, whatever goes wrong on the way."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.client import delivery as delivery_module
from longrec.client.codec import Request, Tensor, prepare
from longrec.client.delivery import Delivery, Next
from longrec.client.ledger import Ledger
from longrec.client.types import Appended, Event, Prediction
from longrec.errors import ConflictError, GapError, RejectedError, ServerError, UnavailableError
from longrec.protocol import Status


@dataclass
class Log:
    """A server with one user: compare-and-append."""

    items: list[int] = field(default_factory=list)
    requests: int = 0

    def answer(self, request: Request) -> dict[str, Tensor]:
        self.requests += 1
        tensor = request.inputs["EVENT"]
        status, before = Status.OK, list(self.items)
        for position, item, _ in np.frombuffer(tensor.data, np.int64).reshape(tensor.shape[1:]).tolist():
            if 0 <= position < len(self.items) and self.items[position] != item:
                status, self.items[:] = Status.CONFLICT, before
                break
            if position > len(self.items):
                status = Status.GAP
                break
            if position in (-1, len(self.items)):
                self.items.append(item)
        k = request.k or 0
        return {
            "STATE": Tensor("INT64", (1, 2), np.array([status, len(self.items)]).tobytes()),
            "ITEMS": Tensor("INT64", (1, 1, k), np.arange(k).tobytes()),
            "SCORES": Tensor("FP32", (1, 1, k), np.zeros(k, np.float32).tobytes()),
        }


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(ledger: Ledger, *items: int, first: int | None = None, k: int | None = None, **options: Any) -> Delivery:
    events = [Event(item, 1000, None if first is None else first + i) for i, item in enumerate(items)]
    return Delivery(ledger, prepare("u", events, k=k), **options)


def run(delivery: Delivery, log: Log, history: Any = None) -> Prediction | Appended:
    outcome: Any = Next.SEND
    while isinstance(outcome, Next):
        sends = outcome is Next.SEND
        outcome = delivery.receive(log.answer(delivery.request())) if sends else delivery.supply(history)
    return outcome  # type: ignore[no-any-return]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_each_event_is_in_the_log_once_and_in_order_whatever_happens(data: st.DataObject) -> None:
    """Requests overtake each other, answers are lost, calls are given up, the server forgets its newest events."""
    log, ledger = Log(list(range(data.draw(st.integers(0, 3)))), 0), Ledger(1e9)
    expected = list(log.items)
    kept = len(expected)  # nobody but the server has these
    waiting: list[tuple[Delivery, Request | None, dict[str, Tensor] | None]] = []
    item = 100
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["send", "serve", "serve", "receive", "receive", "repeat", "fail", "lose"]))
        if action == "send":
            count = data.draw(st.integers(0, 3))
            delivery = make(ledger, *range(item, item + count))
            expected += range(item, item + count)
            item += count
            waiting.append((delivery, delivery.request(), None))
        elif action == "lose":
            del log.items[max(kept, len(log.items) - data.draw(st.integers(1, 3))) :]
        elif waiting:
            place = data.draw(st.integers(0, len(waiting) - 1))
            delivery, request, answer = waiting.pop(place)
            if action == "serve" and answer is None and request is not None:
                waiting.insert(place, (delivery, request, log.answer(request)))
            elif action == "receive" and answer is not None:
                if delivery.receive(answer) is Next.SEND:
                    waiting.insert(place, (delivery, delivery.request(), None))
            elif action == "repeat":
                waiting.insert(place, (delivery, request, None))
            elif action == "fail" and delivery._base is not None:
                delivery.fail(UnavailableError("gone"))
            else:
                waiting.insert(place, (delivery, request, answer))
    for delivery, _, _ in waiting:
        run(delivery, log)
    run(make(ledger), log)
    run(make(ledger, item), log)  # whatever the server forgot last comes with the next event
    assert log.items == [*expected, item]
    assert ledger.unacknowledged("u") == []


def test_the_first_request_asks_for_the_length_and_later_ones_do_not() -> None:
    log, ledger = Log([7, 8]), Ledger(5)
    assert run(make(ledger, 1, k=3), log).status is Status.OK
    assert (log.items, log.requests) == ([7, 8, 1], 2)
    prediction = run(make(ledger, 2, k=3), log)
    assert isinstance(prediction, Prediction)
    assert (prediction.position, log.items, log.requests) == (4, [7, 8, 1, 2], 3)


def test_what_was_given_up_goes_along_with_the_next_request() -> None:
    log, ledger = Log(), Ledger(5)
    run(make(ledger, 1), log)
    lost = make(ledger, 2, 3)
    lost.request()
    lost.fail(UnavailableError("gone"))
    assert [(event.item, event.position) for event in ledger.unacknowledged("u")] == [(2, 1), (3, 2)]
    assert ledger.owed() == ["u"]
    run(make(ledger), log)  # a question is a request too
    assert log.items == [1, 2, 3]
    assert ledger.owed() == []
    written = make(ledger, 4)
    log.answer(written.request())  # written, and the answer lost
    written.fail(UnavailableError("gone"))
    run(make(ledger, 5), log)
    assert log.items == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("items", [(), (5,)])
def test_what_was_given_up_before_the_length_was_known_goes_along_too(items: tuple[int, ...]) -> None:
    log, ledger = Log([9]), Ledger(5, most_users=1)
    lost, later = make(ledger, 2, 3), make(ledger, 4)
    lost.request()
    lost.fail(UnavailableError("gone"))
    run(Delivery(ledger, prepare("v", [], k=None)), Log())  # the book is kept
    assert [(event.item, event.position) for event in ledger.unacknowledged("u")] == [(2, None), (3, None)]
    assert ledger.owed() == ["u"]
    run(make(ledger, *items), log)
    run(later, log)
    assert (log.items, ledger.owed()) == ([9, 2, 3, 4, *items], [])


def test_what_was_refused_before_the_length_was_known_is_the_callers_again() -> None:
    log, ledger = Log(), Ledger(5)
    make(ledger, 2).fail(RejectedError("user"))
    assert (ledger.unacknowledged("u"), ledger.owed()) == ([], [])
    run(make(ledger, 3), log)
    assert log.items == [3]


def test_what_the_server_refused_is_the_callers_again() -> None:
    log, ledger = Log(), Ledger(5)
    run(make(ledger, 1), log)
    refused = make(ledger, 2)
    refused.request()
    refused.fail(RejectedError("k"))
    assert ledger.unacknowledged("u") == []
    run(make(ledger, 3), log)
    assert log.items == [1, 3]


def test_acknowledged_events_are_sent_again_within_resend_seconds() -> None:
    clock = Clock()
    log, ledger = Log(), Ledger(5, clock=clock)
    for item in range(6):
        run(make(ledger, item), log)
    del log.items[3:]
    clock.now = 4
    run(make(ledger, 6), log)
    assert log.items == [0, 1, 2, 3, 4, 5, 6]
    del log.items[2:]
    run(make(ledger), log)  # a question sees that the log got shorter
    assert log.items == [0, 1, 2, 3, 4, 5, 6]


def test_old_events_come_from_the_history_or_are_missed() -> None:
    clock = Clock()
    log, ledger = Log(), Ledger(5, clock=clock)
    for item in range(6):
        run(make(ledger, item), log)
    clock.now = 100
    run(make(ledger, 6), log)
    del log.items[2:]
    history = [Event(item, 1000) for item in range(7)]
    run(make(ledger, 7), log, history)
    assert log.items == [0, 1, 2, 3, 4, 5, 6, 7]
    clock.now = 200
    run(make(ledger, 8), log)
    del log.items[2:]
    with pytest.raises(GapError, match=r"'u': the server's log ends at 2, and nobody has the events 2\.\.8;") as caught:
        run(make(ledger, 9), log, history[:5])
    assert (caught.value.length, caught.value.user, caught.value.events) == (2, "u", ((8, 1000),))
    run(make(ledger, 9), log)  # said once; then the server's length counts
    assert log.items == [0, 1, 9]


def test_own_positions_are_sent_as_they_are_and_a_gap_is_the_callers() -> None:
    log, ledger = Log(), Ledger(5)
    assert run(make(ledger, 1, 2, first=0), log).status is Status.OK
    gap = run(make(ledger, 9, first=5, k=2), log)
    assert isinstance(gap, Prediction)
    assert (gap.status, gap.position, len(gap.items)) == (Status.GAP, 2, 0)
    assert run(make(ledger, 2, 3, first=1), log).status is Status.OK  # a retry and one more
    run(make(ledger, 4), log)  # numbered after them
    assert log.items == [1, 2, 3, 4]
    assert log.requests == 4


def test_a_gap_of_own_positions_is_filled_from_the_history() -> None:
    log, ledger = Log(), Ledger(5)
    history = np.array([(i, 100 + i, 1) for i in range(5)])
    run(make(ledger, 9, first=5), log, history)
    assert log.items == [100, 101, 102, 103, 104, 9]
    gap = run(make(ledger, 9, first=9), log, history)
    assert gap.status is Status.GAP


def test_many_events_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "MOST_ROWS", 3)
    log, ledger = Log([5]), Ledger(5)
    assert run(make(ledger, *range(10), k=2), log).status is Status.OK
    assert log.items == [5, *range(10)]
    run(make(ledger, *range(10), 77, first=1), log)
    assert log.items == [5, *range(10), 77]


def test_another_writer_is_noticed_and_nothing_lost() -> None:
    log, ledger = Log(), Ledger(5)
    run(make(ledger, 1), log)
    log.items.append(50)
    with pytest.raises(ConflictError, match="'u': the log, of 2 events, holds others where these") as caught:
        run(make(ledger, 2), log)
    assert (caught.value.user, caught.value.length, caught.value.events) == ("u", 2, ())
    run(make(ledger, 2), log)  # the caller sends it again
    assert log.items == [1, 50, 2]
    log.items.append(52)
    run(make(ledger), log)  # a question learns of it
    run(make(ledger, 4), log)
    assert log.items == [1, 50, 2, 52, 4]
    late = make(ledger, 5)
    answer = log.answer(late.request())
    log.items.append(53)  # after ours: no conflict
    assert isinstance(late.receive(answer), Appended)
    with pytest.raises(ConflictError):
        run(make(ledger, 6), log)


def test_a_conflict_of_own_positions_is_the_callers() -> None:
    log, ledger = Log([1, 2]), Ledger(5)
    conflict = run(make(ledger, 9, first=1, k=2), log)
    assert isinstance(conflict, Prediction)
    assert (conflict.status, conflict.position, len(conflict.items)) == (Status.CONFLICT, 2, 0)
    run(make(ledger, 9), log)
    assert log.items == [1, 2, 9]


def test_without_numbers_events_are_appended_unchecked_and_never_repeated() -> None:
    log, ledger = Log([1]), Ledger(5)
    delivery = make(ledger, 2, number=False)
    assert not delivery.repeatable
    run(delivery, log)
    assert (log.items, log.requests) == ([1, 2], 1)
    assert make(ledger, 2, first=1, number=False).repeatable
    assert make(ledger, number=False).repeatable


def test_a_server_that_never_gets_further_ends_in_an_error() -> None:
    ledger = Ledger(5)
    delivery = make(ledger, 1, 2)
    log = Log()
    assert delivery.receive(log.answer(delivery.request())) is Next.SEND
    stuck = {"STATE": Tensor("INT64", (1, 2), np.array([Status.GAP, 0]).tobytes())}

    def turn() -> None:
        for _ in range(100):
            delivery.request()
            delivery.receive(stuck)

    with pytest.raises(GapError):
        turn()


def test_the_books_are_bounded_and_keep_what_nobody_else_has() -> None:
    ledger = Ledger(5, most_users=3)
    owed = Delivery(ledger, prepare("owed", [Event(1, 1)], k=None))
    log = Log()
    assert owed.receive(log.answer(owed.request())) is Next.SEND
    owed.fail(UnavailableError("gone"))
    for number in range(20):
        run(Delivery(ledger, prepare(f"u{number}", [Event(1, 1)], k=None)), Log())
    assert len(ledger) <= 4
    assert ledger.owed() == ["owed"]
    ledger.forget("owed")
    assert ledger.owed() == []
    assert ledger.unacknowledged("owed") == []


def test_garbage_fails_the_delivery() -> None:
    ledger = Ledger(5)
    delivery = make(ledger, 1)
    with pytest.raises(ServerError, match="STATE: expected it among the outputs"):
        delivery.receive({})
