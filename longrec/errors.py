"""The exceptions of longrec.

    LongrecError
    ├── ArgumentError (ValueError)   an argument of a call: names it, what was expected, what came, the remedy
    ├── DataError (ValueError)       a file of interactions that can't be read as such
    ├── CheckpointError (ValueError) a checkpoint whose files, hash, shapes or config don't fit each other
    ├── MachineError (RuntimeError)  this machine lacks something: a library, a port, a program
    └── ServerError (RuntimeError)   a server that failed, or can't be reached
        ├── RejectedError            the server refused the request as malformed; retrying can't help
        ├── UnavailableError         it can't be reached, or the model isn't ready; retrying may help
        ├── DeadlineError            no answer in time; retrying may help
        ├── AccessError              it wants other credentials
        ├── MissingModelError        it has no such model
        ├── ProtocolError            what answers speaks another protocol, or answered garbage
        ├── GapError                 events before these are missing in the user's log, and nobody has them
        └── ConflictError            somebody else wrote to the user's log at the same time

Messages never contain tensor contents or event payloads.
"""

__all__ = [
    "AccessError",
    "ArgumentError",
    "CheckpointError",
    "ConflictError",
    "DataError",
    "DeadlineError",
    "GapError",
    "LongrecError",
    "MachineError",
    "MissingModelError",
    "ProtocolError",
    "RejectedError",
    "ServerError",
    "UnavailableError",
]


class LongrecError(Exception):
    """Base of every exception that longrec raises on purpose."""


class ArgumentError(LongrecError, ValueError):
    """An argument doesn't fit. Reads `k=0: expected 1..256 (model parameter max_k)`.

    Args:
        argument: the argument's name, with its value where that is a short scalar: `"k=0"`.
        expected: what would have been accepted.
        got: what came, if the first part doesn't say it already.
        remedy: what to do about it.
    """

    def __init__(self, argument: str, expected: str, got: str = "", remedy: str = "") -> None:
        self.argument = argument
        message = f"{argument}: expected {expected}"
        if got:
            message += f", got {got}"
        if remedy:
            message += f"; {remedy}"
        super().__init__(message)


class DataError(LongrecError, ValueError):
    """A data file that can't be read as interactions: the message names file, column and row."""


class CheckpointError(LongrecError, ValueError):
    """A checkpoint whose files, hash, shapes or config don't fit each other."""


class MachineError(LongrecError, RuntimeError):
    """Something that this machine lacks; the message says what to type."""


class ServerError(LongrecError, RuntimeError):
    """The server failed or can't be reached.

    Attributes:
        user: whose request on a stream failed, where one request did and the stream goes on; else None.
    """

    user: str | None = None


class RejectedError(ServerError):
    """The server refused the request as malformed (INVALID_ARGUMENT)."""


class UnavailableError(ServerError):
    """The server can't be reached, or the model isn't ready."""


class DeadlineError(ServerError):
    """No answer came in time. Whether the events are in the log is unknown."""


class AccessError(ServerError):
    """The server wants other credentials (UNAUTHENTICATED, PERMISSION_DENIED)."""


class MissingModelError(ServerError):
    """The server has no model of that name."""


class ProtocolError(ServerError):
    """What answers there speaks another protocol than this library, or answered garbage."""


class GapError(ServerError):
    """Events before those that were sent are missing in the user's log, and neither the client nor its `history` has
    them. Nothing was written, and the client has forgotten the user: the next events are numbered after what is there.

    Attributes:
        length: of the user's log.
        events: those of earlier calls that the client still held for the user, as (item, unix ms), oldest first.
    """

    length: int = 0
    events: tuple[tuple[int | str, int], ...] = ()


class ConflictError(ServerError):
    """The user's log holds other events where these were to stand: somebody else writes to it. Nothing of this call was
    written, and the client has forgotten the user: the next events are numbered after what is there.

    Attributes:
        length, events: as `GapError`; some of `events` may be in the log.
    """

    length: int = 0
    events: tuple[tuple[int | str, int], ...] = ()
