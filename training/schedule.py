"""Learning rate and time budget: how far training has come, and how many epochs it still gets. No torch, no clock:
times are arguments."""

import math
from dataclasses import dataclass, field

__all__ = ["Budget", "learning_rate"]

RECENT = 4  # epochs from whose time that of the next is guessed
SAFETY = 1.03  # times that guess: the last validation has to fit as well


def learning_rate(peak: float, progress: float, step: int, warmup_steps: int) -> float:
    """Linear warm-up by steps times a cosine by progress (Loshchilov & Hutter, SGDR, 2017).

    Args:
        peak: the highest rate.
        progress: 0 at the beginning, 1 at the end.
        step: steps taken so far.
        warmup_steps: 0: no warm-up.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return peak * warm * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class Budget:
    """Epochs that are left and the progress of the schedule, in view of the time spent.

    As long as the epochs asked for fit into the time, the clock has no influence: the number of steps, their learning
    rates and so the weights are those of a run without a limit. Once they don't fit, epochs are dropped and the rest
    of the cosine is run through in those that remain, so that training still ends at a rate of zero.

    Args:
        asked: epochs.
        max_seconds: None: no limit.
    """

    asked: int
    max_seconds: float | None = None
    epochs: int = field(init=False)
    done: int = field(default=0, init=False)
    progress: float = field(default=0.0, init=False)
    ends: list[float] = field(default_factory=lambda: [0.0], init=False)  # seconds at the end of each epoch

    def __post_init__(self) -> None:
        self.epochs = self.asked

    @property
    def left(self) -> int:
        """Epochs still to run."""
        return self.epochs - self.done

    def within(self, fraction: float) -> float:
        """Progress inside the running epoch, `fraction` of which is done."""
        return self.progress + (1.0 - self.progress) / max(self.left, 1) * fraction

    def finish_epoch(self, elapsed_seconds: float) -> None:
        """Book an epoch; `elapsed_seconds` since training began, validation included."""
        self.progress = self.within(1.0)
        self.done += 1
        self.ends.append(elapsed_seconds)
        if self.max_seconds is not None:
            recent = self.ends[-RECENT - 1 :]
            epoch_seconds = (recent[-1] - recent[0]) / (len(recent) - 1)
            affordable = int((self.max_seconds - elapsed_seconds) / (epoch_seconds * SAFETY))
            self.epochs = min(self.asked, self.done + max(affordable, 0))
