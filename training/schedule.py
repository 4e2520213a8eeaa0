"""Learning rate and time budget: how far training has come, and how many epochs it still gets. No torch, no clock:
times are arguments."""

import math
from dataclasses import dataclass

__all__ = ["Budget", "learning_rate"]

SAFETY = 1.03  # of an epoch's time: later epochs may be slower, and the last validation has to fit as well


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
        epochs: asked for.
        max_seconds: None: no limit.
    """

    epochs: int
    max_seconds: float | None = None
    done: int = 0
    progress: float = 0.0

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
        if self.max_seconds is not None:
            affordable = (self.max_seconds - elapsed_seconds) / (elapsed_seconds / self.done * SAFETY)
            self.epochs = self.done + min(self.left, max(int(affordable), 0))
