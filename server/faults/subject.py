"""The network that is served while things go wrong, and the answer that it must go on giving.

The only file of the faults that imports torch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig
from longrec.modeling import Transformer, recompute_scores, save_run

__all__ = ["Subject"]


class Subject:
    """A small random network, whose every part counts.

    Args:
        seed: of its weights.
    """

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.config = ModelConfig(
            num_items=97, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48, num_layers=2, window=12
        )
        self._network = Transformer(self.config).eval()
        with torch.no_grad():
            for weight in self._network.parameters():  # as initialised, attention hardly matters
                if weight.ndim > 1:
                    weight.mul_(8)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.config.num_items

    def save(self, folder: Path) -> Path:
        """Write it as a run that can be exported."""
        names = [str(item) for item in range(self.num_items)]
        save_run(folder, self._network, self.config, Catalogue(names, names), {})
        return folder

    def scores(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Scores [num_items] after a history [n, 2] of items and times, without any memory."""
        (scores,) = recompute_scores(self._network, rows[:, 0], rows[:, 1], np.array([len(rows)]))
        return np.asarray(scores)
