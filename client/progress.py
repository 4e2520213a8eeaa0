"""A progress bar on stderr, on demand: rich is imported only then."""

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["showing"]


@contextlib.contextmanager
def showing(wanted: bool) -> Iterator[Callable[[], None]]:
    """What to call for each one that is done."""
    if not wanted:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("users", total=None)
        yield lambda: bar.advance(task)
