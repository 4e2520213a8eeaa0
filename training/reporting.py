"""What a training run shows and records: a progress bar, TensorBoard scalars, a plot of its history."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Observer", "ProgressBar", "TensorBoard", "plot_history"]


class Observer(Protocol):
    """Told of a run's progress."""

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """An epoch has ended; `record` is its line of the history, `epochs` how many there will be."""


class ProgressBar:
    """A rich progress bar; to be used in a `with` statement."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Move on by an epoch."""
        text = f"loss {record['loss']:.3f}"
        if "validation" in record:
            text += f"  NDCG@10 {record['validation']['ndcg@10']:.4f}"
        self.bar.update(self.task, completed=record["epoch"], total=epochs, description=text)


class TensorBoard:
    """Scalars for TensorBoard, a point an epoch; to be used in a `with` statement.

    Args:
        folder: where the event file goes.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.writer.close()

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Write the numbers of an epoch."""
        for name in ("loss", "learning_rate", "events_per_second"):
            self.writer.add_scalar(f"training/{name}", record[name], record["epoch"])
        for name, value in record.get("validation", {}).items():
            self.writer.add_scalar(f"validation/{name}", value, record["epoch"])


def plot_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and validation NDCG@10 against the epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    loss = figure.add_subplot(xlabel="epoch", ylabel="training loss (nats)")
    loss.plot([record["epoch"] for record in history], [record["loss"] for record in history], color="tab:gray")
    validated = [record for record in history if "validation" in record]
    quality = loss.twinx()
    quality.set_ylabel("validation NDCG@10", color="tab:blue")
    quality.plot(
        [record["epoch"] for record in validated],
        [record["validation"]["ndcg@10"] for record in validated],
        color="tab:blue",
        marker="o",
        markersize=3,
    )
    figure.savefig(path)
