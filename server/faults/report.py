"""What a fault did to a server, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rich.table import Table

__all__ = ["TOLERANCE", "FaultResult", "faults_as_json", "faults_table"]

TOLERANCE = 1e-4  # of scores, between the server's answers and a recompute of the whole log


@dataclass(frozen=True)
class FaultResult:
    """What became of the events and the answers.

    Args:
        fault: its name.
        runs: how many times it was done.
        acknowledged: events that the server said it has.
        lost: of those, the ones that aren't in the log afterwards.
        duplicated: events that are in the log more often than they were sent on purpose.
        max_score_difference: between the answers afterwards and a recompute without a server.
        problems: what else isn't as it should be, a line each.
        note: how it was done, where that depends on the machine.
    """

    fault: str
    runs: int
    acknowledged: int
    lost: int
    duplicated: int
    max_score_difference: float
    problems: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, or answered wrongly."""
        return not (self.lost or self.duplicated or self.problems) and self.max_score_difference <= TOLERANCE


def faults_as_json(results: Sequence[FaultResult]) -> str:
    """A JSON list of `{fault, runs, acknowledged, lost, duplicated, max_score_difference, note, passed}`."""
    names = [field.name for field in fields(FaultResult) if field.name != "problems"] + ["passed"]
    return json.dumps([{name: getattr(result, name) for name in names} for result in results], indent=2)


def faults_table(results: Sequence[FaultResult]) -> Table:
    """The same for a terminal."""
    table = Table("fault", "runs", "acknowledged", "lost", "doubled", "score diff", "passed", "note")
    for result in results:
        table.add_row(
            result.fault,
            f"{result.runs}",
            f"{result.acknowledged:,}",
            f"{result.lost}",
            f"{result.duplicated}",
            f"{result.max_score_difference:.1e}",
            "yes" if result.passed else "NO",
            result.note,
        )
    return table
