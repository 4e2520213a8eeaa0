"""`append_memory` in PyTorch."""

import torch

from longrec.kernels.reference.rotary import rotate

__all__ = ["append_memory"]


def append_memory(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    *,
    rotary_base: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k, and write the rotated k and v into pages.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        positions: [T] int64, absolute places of the events in their users' logs.
        slots: [T] int64, page * S + place within the page; -1: not written.
        k_pages, v_pages: [P, S, Hkv, D], written in place.
        rotary_base: base of the rotary frequencies.

    Returns:
        The rotated q [T, Hq, D] and k [T, Hkv, D].
    """
    q, k = rotate(q, positions, rotary_base), rotate(k, positions, rotary_base)
    kept = slots >= 0
    page, place = slots[kept] // k_pages.shape[1], slots[kept] % k_pages.shape[1]
    k_pages[page, place] = k[kept].to(k_pages.dtype)
    v_pages[page, place] = v[kept].to(v_pages.dtype)
    return q, k
