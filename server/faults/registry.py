"""All faults by name, and how they are run: those that leave their server as it was share one."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from longrec.errors import ArgumentError, LongrecError
from longrec.server.faults import crashes, messages, models, stores
from longrec.server.faults.report import FaultResult
from longrec.server.faults.rig import Rig, make_rig
from longrec.server.faults.subject import Subject

__all__ = ["FAULTS", "QUICK", "Fault", "run_faults"]


class Fault(NamedTuple):
    """One fault.

    Args:
        run: does it so many times.
        runs: how many times it is done, and how many in continuous integration (0: not there).
    """

    run: Callable[[Subject, int], FaultResult]
    runs: int
    quick_runs: int


def _shared(run: Callable[[Rig, int], FaultResult]) -> Callable[[Subject, int], FaultResult]:
    def alone(subject: Subject, runs: int) -> FaultResult:
        with make_rig(subject) as rig:
            return run(rig, runs)

    return alone


# those that need nothing but a running server, and leave it as it was
MESSAGES: Final = {
    "messages": messages.twice_and_lost,
    "late-messages": messages.late,
    "cancellations": messages.cancelled,
    "two-writers": messages.two_writers,
}
FAULTS: Final = {
    "kill-server": Fault(crashes.kill_server, 20, 1),
    "kill-stub": Fault(crashes.kill_stub, 20, 1),
    **{name: Fault(_shared(run), 10, 2) for name, run in MESSAGES.items()},
    "log-full": Fault(stores.full_log, 1, 1),
    "disk-full": Fault(stores.full_disk, 5, 1),
    "read-only": Fault(stores.read_only, 1, 1),
    "damaged-page": Fault(stores.damaged_page, 3, 1),
    "redis-gone": Fault(stores.redis_gone, 5, 1),
    "small-pool": Fault(models.small_pool, 3, 1),
    "new-version": Fault(models.new_version, 3, 1),
    "leak": Fault(models.leak, 1, 0),
}
QUICK: Final = tuple(name for name, fault in FAULTS.items() if fault.quick_runs)


def run_faults(names: Sequence[str], *, quick: bool = False, runs: int | None = None) -> Iterator[FaultResult]:
    """Do the faults one after the other, each to a real server.

    Args:
        names: keys of `FAULTS`.
        quick: a few runs only.
        runs: of each fault, instead of its own number.

    Raises:
        ArgumentError: a name isn't one.
    """
    for name in names:
        if name not in FAULTS:
            raise ArgumentError(f"fault {name}", f"one of {', '.join(FAULTS)}")
    subject = Subject()
    with contextlib.ExitStack() as stack:
        rig: Rig | None = None
        for name in names:
            fault = FAULTS[name]
            times = runs or (fault.quick_runs if quick else fault.runs) or fault.runs
            try:
                if name in MESSAGES:
                    rig = rig or stack.enter_context(make_rig(subject))
                    result = MESSAGES[name](rig, times)
                else:
                    result = fault.run(subject, times)
                yield replace(result, fault=name)
            except LongrecError as error:
                yield FaultResult(name, 0, 0, 0, 0, 0.0, (str(error),))
