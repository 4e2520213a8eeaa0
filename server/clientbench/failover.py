"""Two servers on one log, under a steady load; one is killed, and comes back: no request may fail, and the others may
wait for a moment only."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from longrec.client import Client, ServerError
from longrec.client.fleet import Fleet
from longrec.server.clientbench.rig import Rig, make_event, make_rig

__all__ = ["FailoverResult", "measure_failover", "run_failover"]

BIN_SECONDS = 0.5
BACK_SECONDS = 10.0
WORSE = 3.0  # a bin has recovered when its p99 is at most so many times the p99 before


@dataclass(frozen=True)
class FailoverResult:
    """What came of it.

    Args:
        requests: how many.
        lost: requests that failed, and events that the log lacks.
        duplicated: events that it has twice.
        moved: users whose server was killed.
        returned: whether they went back, once it had come back.
        recover_seconds: from the kill until p99 was as before.
        p99_ms: before the kill.
        worst_ms: the slowest request after it.
    """

    requests: int
    lost: int
    duplicated: int
    moved: int
    returned: bool
    recover_seconds: float
    p99_ms: float
    worst_ms: float


def measure_failover(users: int = 200, *, threads: int = 8, rate: float = 150.0) -> FailoverResult:
    """On two servers of its own."""
    with make_rig(2) as rig:
        return run_failover(rig, users, threads=threads, rate=rate)


def run_failover(
    rig: Rig, users: int, *, threads: int, rate: float, before: float = 4.0, after: float = 8.0, prefix: str = "f"
) -> FailoverResult:
    """Load of `rate` requests a second for `before` seconds, the kill, and `after` more.

    A request's time counts from when it was due, so that a request that waits behind a slow one shows.
    """
    sent: dict[str, int] = defaultdict(int)
    times: list[tuple[float, float]] = []  # when due, seconds it took
    failures: list[ServerError] = []
    stop = threading.Event()
    with Client(rig.urls, timeout_seconds=60.0) as client:
        began = time.monotonic() + 0.1

        def work(number: int) -> None:
            own = range(number, users, threads)
            turn = 0
            while not stop.is_set():
                due = began + turn * threads / rate
                if stop.wait(max(0.0, due - time.monotonic())):
                    return
                user = own[turn % len(own)]
                key = f"{prefix}{user}"
                step, sent[key] = sent[key], sent[key] + 1
                try:
                    client.recommend(user=key, events=[make_event(user, step)], k=5)
                except ServerError as error:
                    failures.append(error)
                times.append((due, time.monotonic() - due))
                turn += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        time.sleep(before)
        killed = time.monotonic()
        rig.servers[0].stop(at_once=True)
        time.sleep(after)
        stop.set()
        for worker in workers:
            worker.join()
        down, everywhere = client.core.fleet.down, Fleet(rig.urls)
        moved = sum(everywhere.pick(key) == 0 for key in sent)
        rig.servers[0].start()
        client.flush()
        patience = time.monotonic() + BACK_SECONDS
        while client.core.fleet.down and time.monotonic() < patience:
            time.sleep(0.05)
        returned = down == {0} and not client.core.fleet.down
    check = rig.check(sent)
    due, took = np.array(times).T
    calm = float(np.percentile(took[due < killed - BIN_SECONDS], 99))
    late = due >= killed - BIN_SECONDS
    recover = 0.0
    for bin_ in range(int((after + BIN_SECONDS) / BIN_SECONDS) + 1):
        start = killed - BIN_SECONDS + bin_ * BIN_SECONDS
        own = took[late & (due >= start) & (due < start + BIN_SECONDS)]
        if len(own) and np.percentile(own, 99) > WORSE * calm:
            recover = max(recover, start + BIN_SECONDS - killed)
    return FailoverResult(
        len(times),
        len(failures) + check.lost,
        check.duplicated,
        moved,
        returned,
        recover,
        1e3 * calm,
        1e3 * float(took[late].max()),
    )
