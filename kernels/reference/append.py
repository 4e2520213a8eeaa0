"""`append_memory` in PyTorch."""

import torch

from longrec.kernels.reference.rotary import rotate

__all__ = ["QUANTISED_PEAK", "append_memory", "as_stored"]

# the largest code of each quantised page dtype: a row's largest magnitude becomes it
QUANTISED_PEAK = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST_PEAK = 1e-30  # rows below count as zero, so that 1 / scale stays finite


def append_memory(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    *,
    rotary_base: float | None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out_q: torch.Tensor | None = None,
    out_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k, and write the rotated k and v into pages. `longrec.kernels.append_memory` says what is what."""
    if rotary_base is not None:
        q, k = rotate(q, positions, rotary_base), rotate(k, positions, rotary_base)
    kept = slots >= 0
    page, place = slots[kept] // k_pages.shape[1], slots[kept] % k_pages.shape[1]
    for rows, pages, scales in ((k[kept], k_pages, k_scale), (v[kept], v_pages, v_scale)):
        if scales is not None:
            rows, scales[page, place] = quantise(rows, pages.dtype)
        pages[page, place] = rows.to(pages.dtype)
    if out_q is not None:
        q = out_q.copy_(q)
    if out_k is not None:
        k = out_k.copy_(k)
    return q, k


def quantise(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the rows [..., D] in `dtype`, still as floats, and their float32 scales [...]: row = code * scale.

    A row with a NaN or an infinity gets an infinite scale: it reads back as NaN, not as numbers.
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    peak = rows.abs().amax(-1)
    peak = peak.masked_fill(peak.isnan(), torch.inf).masked_fill(peak < SMALLEST_PEAK, 0.0)
    inverse = (QUANTISED_PEAK[dtype] / peak).masked_fill(peak == 0, 0.0)
    codes = (rows * inverse[..., None]).nan_to_num(nan=0.0)
    if dtype == torch.int8:
        codes = codes.round()
    return codes, (peak / QUANTISED_PEAK[dtype]).float()


def as_stored(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What rows [..., D] read as, in their own dtype, once they were written to pages of `dtype`."""
    if dtype not in QUANTISED_PEAK:
        return rows.to(dtype).to(rows.dtype)
    codes, scale = quantise(rows, dtype)
    return (codes.to(dtype).to(codes.dtype) * scale[..., None]).to(rows.dtype)
