"""Many users' events through one stream while the server is killed: all must be answered, in order, each event in the
log once."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longrec.client import Client, Event
from longrec.server.clientbench.rig import Rig, make_event, make_rig

__all__ = ["ChaosResult", "measure_chaos", "run_chaos"]

TIMEOUT_SECONDS = 180.0  # of a request: a server starts anew within it


@dataclass(frozen=True)
class ChaosResult:
    """What came of it.

    Args:
        users, events: how many, events a user.
        kills: of the server.
        answered: predictions.
        out_of_order: predictions that know fewer of their user's events than the one before, or than were sent.
        lost, duplicated: events, in the log.
    """

    users: int
    events: int
    kills: int
    answered: int
    out_of_order: int
    lost: int
    duplicated: int

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, unanswered or out of order."""
        return self.answered == self.users * self.events and not self.out_of_order + self.lost + self.duplicated


def measure_chaos(users: int, events: int, kills: int = 3, *, max_in_flight: int = 1024) -> ChaosResult:
    """One server, of its own.

    Raises:
        MachineError, ServerError: as `Server.start`; and where a request of the stream failed.
    """
    with make_rig() as rig:
        return run_chaos(rig, users, events, kills, max_in_flight=max_in_flight)


def run_chaos(rig: Rig, users: int, events: int, kills: int, *, max_in_flight: int, prefix: str = "u") -> ChaosResult:
    """On a rig's first server."""
    (server, *_), total = rig.servers, users * events
    at = {total * (kill + 1) // (kills + 1) for kill in range(kills)}
    positions: dict[str, list[int]] = {f"{prefix}{user}": [] for user in range(users)}
    restarts: list[threading.Thread] = []
    failures: list[BaseException] = []

    def restart() -> None:
        try:
            server.stop(at_once=True)
            server.start()
        except BaseException as error:  # raised below, in the caller's thread
            failures.append(error)

    def requests() -> Iterator[tuple[str, list[Event]]]:
        for step in range(events):
            for user in range(users):
                yield f"{prefix}{user}", [make_event(user, step)]

    done = 0
    with (
        Client(server.grpc_url, timeout_seconds=TIMEOUT_SECONDS) as client,
        client.stream(k=5, max_in_flight=max_in_flight) as stream,
    ):
        for prediction in stream.map(requests()):
            positions[prediction.user].append(prediction.position)
            done += 1
            if done in at:
                for thread in restarts:
                    thread.join()
                restarts.append(threading.Thread(target=restart))
                restarts[-1].start()
    for thread in restarts:
        thread.join()
    if failures:
        raise failures[0]
    wrong: Counter[Any] = Counter()
    for found in positions.values():
        wrong["order"] += sum(later < earlier for earlier, later in pairwise(found))
        wrong["order"] += sum(position <= step for step, position in enumerate(found))
    check = rig.check(dict.fromkeys(positions, events))
    answered = sum(map(len, positions.values()))
    return ChaosResult(users, events, len(restarts), answered, wrong["order"], check.lost, check.duplicated)
