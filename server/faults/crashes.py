"""Kill -9 of the server, and of its stub, at random moments under load."""

import random

from longrec.server.faults.load import Load
from longrec.server.faults.report import FaultResult
from longrec.server.faults.rig import make_rig
from longrec.server.faults.subject import Subject

__all__ = ["kill_server", "kill_stub"]

USERS = 12


def kill_server(subject: Subject, runs: int) -> FaultResult:
    """Kill tritonserver; the supervisor ends its stub."""
    return _kill("server", subject, runs)


def kill_stub(subject: Subject, runs: int) -> FaultResult:
    """Kill the Python process that holds engine and log."""
    return _kill("stub", subject, runs)


def _kill(what: str, subject: Subject, runs: int) -> FaultResult:
    moments = random.Random(f"{what} {runs}")
    problems: list[str] = []
    difference = 0.0
    with make_rig(subject, durability="commit") as rig:
        books = rig.ledger.open(f"checked {n}" for n in range(USERS))
        books += rig.ledger.open((f"unchecked {n}" for n in range(USERS // 3)), checked=False)
        for _ in range(runs):
            with Load(rig.url, books) as load:
                load.wait_for(moments.randint(10, 300))
                rig.kill(what)
                load.wait_for_failure()
            rig.restart()
            found = rig.result(f"kill {what}", runs)
            problems += found.problems
            difference = max(difference, found.max_score_difference)
            if found.lost or found.duplicated:
                return found
        with Load(rig.url, books) as load:  # the events that were under way are sent again
            load.wait_for(50)
        last = rig.result(f"kill {what}", runs, *problems)
    return FaultResult(
        last.fault,
        runs,
        last.acknowledged,
        last.lost,
        last.duplicated,
        max(difference, last.max_score_difference),
        last.problems,
    )
