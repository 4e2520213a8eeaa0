"""`longrec stream`: events in as JSON lines, predictions out as JSON lines."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from longrec.cli.items import Items
from longrec.errors import ArgumentError, DataError, ServerError

if TYPE_CHECKING:
    from longrec.client import Event, Prediction, Stream

__all__ = ["stream"]


def stream(
    file: Annotated[str, typer.Argument(help="Events, one JSON object a line; - reads them from stdin.")] = "-",
    url: Annotated[str, typer.Option(help="host:port of the server's gRPC service.")] = "127.0.0.1:8001",
    k: Annotated[int, typer.Option(help="Items of each prediction, 1 to 256.")] = 10,
    catalogue: Annotated[
        Path | None,
        typer.Option(help="Run folder, or its catalogue.parquet: items are external ids then, and titles are printed."),
    ] = None,
    max_in_flight: Annotated[int, typer.Option(help="Events sent and not yet answered, at most.")] = 256,
    timeout_seconds: Annotated[float, typer.Option(help="Longest wait for an answer.")] = 30.0,
) -> None:
    """Send events as they happen, print predictions as they come.

    A line in: {"user": "u1", "item": 50, "time": 1700000000000}, time in unix milliseconds; with "position" (the
    event's place in the user's log, from 0) a repeated run appends nothing twice.

    A line out: {"user", "position", "items", "scores"}, in each user's order; position counts the user's events so far.
    {"user", "position", "status": "gap"} asks for that user's events from position on; "status": "conflict" says that
    the log holds another event at the event's position, and that it was not taken; {"user", "error"} is a request that
    the server failed, and makes the exit status 2.

    Example: tail -f events.jsonl | longrec stream --catalogue runs/ml-100k --k 5
    """
    from longrec.client import Client

    items = Items(catalogue)
    lines = _open(file)
    with (
        Client(url, timeout_seconds=timeout_seconds) as client,
        client.stream(k=k, max_in_flight=max_in_flight) as events,
    ):
        feeder = _Feeder(events, _read(lines, file, items))
        failed = sum(_print_next(outcome, items) for outcome in _outcomes(events))
    if items.unknown:
        typer.echo(f"longrec: {items.unknown} events of items outside the catalogue, served as unknown", err=True)
    if feeder.error is not None:
        raise feeder.error
    if failed:
        raise ServerError(f"{failed} of {feeder.sent} requests failed: see the lines with an error")


class _Feeder:
    """Sends from a thread of its own, so that predictions are printed while the next line is waited for."""

    def __init__(self, stream: "Stream", lines: "Iterator[tuple[str, str, Event]]") -> None:
        self.sent = 0
        self.error: Exception | None = None
        self._stream, self._lines = stream, lines
        threading.Thread(target=self._run, daemon=True).start()  # nothing interrupts a read from a pipe

    def _run(self) -> None:
        try:
            for place, user, event in self._lines:
                try:
                    self._stream.send(user, [event])
                except ArgumentError as error:
                    raise DataError(f"{place}: {error}") from None
                self.sent += 1
        except Exception as error:  # raised by the main thread, after the predictions of what was sent
            self.error = error
        self._stream.finish()


def _open(file: str) -> BinaryIO:
    """For the feeder alone; never closed, as that would wait for its read. Nor sys.stdin, which is closed at exit."""
    try:
        return open(0, "rb", closefd=False) if file == "-" else open(file, "rb")
    except OSError as error:
        raise DataError(f"{file}: expected a file of JSON lines ({error.strerror})") from None


def _read(lines: BinaryIO, file: str, items: Items) -> "Iterator[tuple[str, str, Event]]":
    """(file and line, user, event) of each line."""
    from longrec.client import Event

    for number, line in enumerate(lines, 1):
        place = f"{file}, line {number}"
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: expected a JSON object ({error})") from None
        if not isinstance(row, dict) or not {"user", "item", "time"} <= row.keys():
            raise DataError(f"{place}: expected an object with user, item and time")
        user = str(row["user"]) if isinstance(row["user"], int) else row["user"]
        yield place, user, Event(items.index(row["item"]), row["time"], row.get("position"))


def _outcomes(stream: "Stream") -> "Iterator[Prediction | ServerError]":
    while (outcome := _next(stream)) is not None:
        yield outcome


def _next(stream: "Stream") -> "Prediction | ServerError | None":
    try:
        return next(stream, None)
    except ServerError as error:
        if error.user is None:
            raise
        return error


def _print_next(outcome: "Prediction | ServerError", items: Items) -> bool:
    """Print a line; whether it is that of a failed request."""
    row: dict[str, Any] = {"user": outcome.user}
    if isinstance(outcome, ServerError):
        row["error"] = str(outcome)
    elif outcome.status:
        row |= {"position": outcome.position, "status": outcome.status.name.lower()}
    else:
        row |= {"position": outcome.position, **items.describe(outcome.items.tolist())}
        row["scores"] = [round(score, 6) for score in outcome.scores.tolist()]
    print(json.dumps(row, ensure_ascii=False), flush=True)  # flushed: the reader of the pipe waits for this line
    return isinstance(outcome, ServerError)
