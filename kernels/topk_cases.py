"""Problems for `catalogue_topk`, and their answers by sorting every score in float64."""

from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["LARGE", "MASKED", "SHAPES", "TopkCase", "expected"]

Masks = dict[str, torch.Tensor]


class TopkCase(NamedTuple):
    """The k best of N items of width d for B rows, among all or behind every kind of mask."""

    num_rows: int
    num_items: int
    dim: int
    k: int
    masked: bool = False

    @property
    def id(self) -> str:
        """`B3-N700-d64-k10-masked`."""
        text = f"B{self.num_rows}-N{self.num_items}-d{self.dim}-k{self.k}"
        return f"{text}-masked" if self.masked else text

    def make(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, Masks]:
        """Hidden, items and masks. Small integers: a score is exact in every dtype, and many are equal."""
        generator = torch.Generator().manual_seed(seed)
        hidden, items = (
            torch.randint(-3, 4, (rows, self.dim), generator=generator).to(device, dtype)
            for rows in (self.num_rows, self.num_items)
        )
        return hidden, items, {name: mask.to(device) for name, mask in self._masks().items()}

    def _masks(self) -> Masks:
        if not self.masked:
            return {}
        rng = np.random.default_rng(1)
        most_seen = max(1, self.num_items // 2)
        seen = [
            np.sort(rng.choice(self.num_items, rng.integers(0, most_seen), replace=False)) for _ in range(self.num_rows)
        ]
        words = -(-self.num_items // 32)
        return {
            "seen_indptr": torch.from_numpy(np.cumsum([0, *map(len, seen)])),
            "seen_indices": torch.from_numpy(np.concatenate(seen)),
            "blocked": torch.from_numpy(rng.integers(-(2**31), 2**31, words).astype(np.int32)),
            "categories": torch.from_numpy(rng.integers(0, 16, self.num_items)),
            "allowed": torch.from_numpy(rng.integers(1, 16, self.num_rows)),
        }


SHAPES = (TopkCase(1, 5, 16, 3), TopkCase(3, 700, 64, 10), TopkCase(2, 40, 24, 64))
MASKED = tuple(case._replace(masked=True) for case in SHAPES)
# beyond brute force: sample, threshold and scan too; minutes in the interpreter
LARGE = tuple(
    TopkCase(num_rows, num_items, dim, k, masked)
    for num_rows, num_items, dim, k in ((1, 200_001, 64, 100), (17, 100_003, 128, 10), (70, 60_000, 50, 256))
    for masked in (False, True)
)


def expected(hidden: torch.Tensor, items: torch.Tensor, k: int, masks: Masks) -> tuple[Any, Any]:
    """Scores and indices, [B, k] arrays, by (score falling, index rising) among what the masks leave; -inf and -1
    behind."""
    scores = (hidden.cpu().double() @ items.cpu().double().T).numpy()
    num_items = len(items)
    if masks:
        masks = {name: mask.cpu() for name, mask in masks.items()}
        bits = masks["blocked"].numpy()[np.arange(num_items) // 32] >> (np.arange(num_items) % 32)
        scores[:, (bits & 1) == 1] = -np.inf
        scores[(masks["categories"].numpy() & masks["allowed"].numpy()[:, None]) == 0] = -np.inf
        for row in range(len(scores)):
            begin, end = masks["seen_indptr"][row : row + 2].tolist()
            scores[row, masks["seen_indices"][begin:end].numpy()] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(num_items), scores.shape), -scores))[:, :k]
    best = np.take_along_axis(scores, order, 1)
    order = np.where(np.isneginf(best), -1, order)
    filling = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, filling, constant_values=-np.inf), np.pad(order, filling, constant_values=-1)
