"""The exceptions of longrec.

    LongrecError
    ├── ArgumentError (ValueError)   an argument of a call: names it, what was expected, what came, the remedy
    ├── DataError (ValueError)       a file of interactions that can't be read as such
    ├── CheckpointError (ValueError) a checkpoint whose files, hash, shapes or config don't fit each other
    ├── MachineError (RuntimeError)  this machine lacks something: a library, a port, a program
    └── ServerError (RuntimeError)   a server that failed, or can't be reached
        └── RejectedError            the server refused the request as malformed; retrying can't help

Messages never contain tensor contents or event payloads.
"""

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "LongrecError",
    "MachineError",
    "RejectedError",
    "ServerError",
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
