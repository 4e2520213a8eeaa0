"""Rotary position embedding in PyTorch."""

import torch

__all__ = ["rotate"]


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary position embedding, halves paired (Su et al., RoFormer, 2021).

    Args:
        x: [T, H, D], D even.
        positions: [T] int64, absolute. Angles are taken in float64: at position 1e6 a float32 angle is off by 0.06 rad.
        base: of the frequencies base^(-2 i / D).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)  # [D / 2]
    angle = positions.double()[:, None, None] * frequency  # [T, 1, D / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
