"""What an engine has done since it began."""

from dataclasses import dataclass

__all__ = ["Observations"]


@dataclass(slots=True)
class Observations:
    """Counts; each only grows.

    Attributes:
        queries: answered, gaps included. gaps: refused for a gap.
        events_appended: new in the log. events_skipped: sent again by a retry, already in the log.
        events_unknown: among the appended, those whose item isn't in the catalogue.
        events_computed: run through the network; events_rebuilt: those of them that came from the log.
        waves: passes through the network.
    """

    queries: int = 0
    gaps: int = 0
    events_appended: int = 0
    events_skipped: int = 0
    events_unknown: int = 0
    events_computed: int = 0
    events_rebuilt: int = 0
    waves: int = 0
