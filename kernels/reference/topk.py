"""`catalogue_topk` in PyTorch."""

import torch

__all__ = ["catalogue_topk"]


def catalogue_topk(hidden: torch.Tensor, items: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row by inner product; equal scores go to the lower index.

    Args:
        hidden: [B, d]. items: [N, d].
        k: 1..N.

    Returns:
        scores [B, k], falling, and indices [B, k] int64.
    """
    scores = hidden @ items.T  # [B, N]
    best, index = scores.sort(dim=-1, descending=True, stable=True)
    return best[:, :k], index[:, :k]
