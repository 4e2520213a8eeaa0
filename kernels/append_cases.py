"""Problems for `append_memory`: what its tests and the check on a GPU run on, and how its results are read back."""

from typing import Any, NamedTuple

import torch

from longrec.kernels.append import append_memory_reference, append_memory_triton
from longrec.kernels.exactness import Comparison, compare

__all__ = ["BASE", "SHAPES", "AppendCase", "compare_append", "compare_quantised", "rotated", "written"]

BASE = 10_000.0
QUANTISED = (torch.int8, torch.float8_e4m3fn)
Arguments = dict[str, Any]


class AppendCase(NamedTuple):
    """T events of Hq and Hkv heads of D into pages of S."""

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int

    @property
    def id(self) -> str:
        """`T17-Hq8-Hkv1-D96-S32`."""
        return "T{}-Hq{}-Hkv{}-D{}-S{}".format(*self)

    def make(
        self,
        dtype: torch.dtype = torch.float32,
        page_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> Arguments:
        """Arguments for one call: random rows far out in the logs, a third of them not written, pages full of NaN."""
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(self.num_tokens, heads, self.head_dim, generator=generator, dtype=torch.float64).to(dtype)
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        positions = torch.randint(0, 2_000_000, (self.num_tokens,), generator=generator)
        num_pages = self.num_tokens // self.page_size + 3
        slots = torch.randperm(num_pages * self.page_size, generator=generator)[: self.num_tokens]
        slots[2::3] = -1
        page_dtype = page_dtype or dtype
        pages = torch.full((2, num_pages, self.page_size, self.num_kv_heads, self.head_dim), torch.nan)
        pages = torch.full(pages.shape, 77, dtype=torch.int8) if page_dtype == torch.int8 else pages.to(page_dtype)
        arguments: Arguments = {"q": q, "k": k, "v": v, "positions": positions, "slots": slots}
        arguments |= {"k_pages": pages[0].clone(), "v_pages": pages[1].clone(), "rotary_base": BASE}
        if page_dtype in QUANTISED:
            scales = torch.full(pages.shape[1:4], torch.nan)
            arguments |= {"k_scale": scales, "v_scale": scales.clone()}
        return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


SHAPES = (
    AppendCase(1, 1, 1, 16, 16),
    AppendCase(5, 4, 2, 64, 16),
    AppendCase(17, 8, 1, 96, 32),
    AppendCase(3, 3, 3, 6, 5),
    AppendCase(257, 2, 1, 32, 64),
)


def written(arguments: Arguments, name: str) -> torch.Tensor:
    """What stands in the pages for the rows that were to be written, read back as float64."""
    page_size = arguments["k_pages"].shape[1]
    slots = arguments["slots"][arguments["slots"] >= 0]
    rows: torch.Tensor = arguments[f"{name}_pages"][slots // page_size, slots % page_size].double()
    scale = arguments.get(f"{name}_scale")
    return rows if scale is None else rows * scale[slots // page_size, slots % page_size].double()[..., None]


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary position as complex multiplication, in float64: another formulation than the reference's."""
    half = x.shape[-1] // 2
    frequency = torch.tensor([BASE ** (-i / half) for i in range(half)], dtype=torch.float64, device=x.device)
    turns = torch.polar(torch.ones_like(frequency), positions.double()[:, None] * frequency)
    y = torch.complex(*x.double().split(half, dim=-1)) * turns[:, None]
    return torch.cat([y.real, y.imag], dim=-1)


def compare_append(case: AppendCase, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Comparison]:
    """The rotated q and k, and what was written, in `dtype`."""
    exact, same_dtype, arguments = (case.make(dtype, device=device) for _ in range(3))
    for name in ("q", "k", "v", "k_pages", "v_pages"):
        exact[name] = exact[name].double()
    got, theirs, truth = (
        (*body(**given), written(given, "k"), written(given, "v"))
        for body, given in (
            (append_memory_triton, arguments),
            (append_memory_reference, same_dtype),
            (append_memory_reference, exact),
        )
    )
    names = ("q", "k", "written k", "written v")
    return [compare(n, ours, same, true, dtype) for n, ours, same, true in zip(names, got, theirs, truth, strict=True)]


def compare_quantised(
    case: AppendCase, page_dtype: torch.dtype, device: torch.device | str = "cpu"
) -> list[Comparison]:
    """What was written in bfloat16 to quantised pages; errors in units of half a step of the code, where 1 is allowed.

    int8: a step is peak / 127; e4m3: a unit of 3 fraction bits, or of the subnormals' 2^-9 x scale.
    """
    arguments = case.make(torch.bfloat16, page_dtype, device)
    append_memory_triton(**arguments)
    kept = arguments["slots"] >= 0
    comparisons = []
    for name, exact in (("k", rotated(arguments["k"], arguments["positions"])), ("v", arguments["v"].double())):
        exact = exact[kept]
        peak = exact.abs().amax(-1, keepdim=True)
        step = peak / 127 if page_dtype == torch.int8 else torch.maximum(exact.abs() / 8, peak / 448 * 2**-9)
        off = (written(arguments, name) - exact).abs() / (step / 2 * (1 + 1e-5) + 1e-6 * peak)
        comparisons.append(Comparison(f"written {name}", float(off.max()), 1.0, float(off.square().mean().sqrt()), 1.0))
    return comparisons
