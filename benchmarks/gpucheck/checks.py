"""Every correctness case of every operator on a device, by name."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from gpucheck.comparing import compare_attention, same
from gpucheck.graphs import graph_results
from longrec.kernels import append_cases, attention_cases, block_decode_cases, cross_entropy_cases, topk_cases
from longrec.kernels.attention_cases import AttentionCase, small_plan
from longrec.kernels.attention_gradients import compare_gradients, kernel_gradients
from longrec.kernels.attention_plan import AttentionPlan
from longrec.kernels.block_decode import block_decode_fits
from longrec.kernels.exactness import Comparison
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.topk import catalogue_topk_triton

__all__ = ["Check", "checks"]

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
FAR_ELEMENTS = 1 << 31  # of one pool of pages: past what an int32 offset reaches


class TooSmallError(Exception):
    """The device has no room for a case, which says nothing about the kernel."""


class Check(NamedTuple):
    """One case.

    Args:
        id: unique: operator, dtype, case.
        run: its results on a device.
        quick: part of a quick run.
        interpreted: part of a run without a GPU.
    """

    id: str
    run: Callable[[torch.device], list[Comparison]]
    quick: bool = False
    interpreted: bool = False

    def answer(self, device: torch.device) -> dict[str, Any]:
        """`{"passed", "comparisons": [{"name", "error", "allowed", "rms_error", "rms_allowed", "wrong"}]}`, or
        `{"left_out": why}`."""
        try:
            comparisons = self.run(device)
        except TooSmallError as error:
            return {"left_out": str(error)}
        return {
            "passed": all(comparison.passed for comparison in comparisons),
            "comparisons": [comparison._asdict() for comparison in comparisons],
        }


def checks() -> list[Check]:
    """Every check, the long ones first, so that no process ends long after the others."""
    return [
        *_far_pages(),
        *_topk(),
        *_attention(),
        *_gradients(),
        *_cross_entropy(),
        *_append(),
        *_block_decode(),
        *_graphs(),
    ]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention() -> Iterator[Check]:
    """Each case under the plan that ships, and under small tiles, so that every loop has several."""

    def run(
        case: AttentionCase, dtype: torch.dtype, plan: AttentionPlan | None
    ) -> Callable[[torch.device], list[Comparison]]:
        def attend(device: torch.device) -> list[Comparison]:
            arguments = case.make(dtype, device)
            out, lse2 = segment_attention(*arguments.tensors, **arguments.keywords, plan=plan)
            return compare_attention(arguments, out, lse2, dtype)

        return attend

    for case in attention_cases.SHIPPED_PLAN:
        for dtype in DTYPES:
            yield Check(f"attention {name_of(dtype)} {case.id}", run(case, dtype, None), quick=dtype == torch.bfloat16)
    tables = (attention_cases.SHAPES, attention_cases.WINDOWS, attention_cases.VARIANTS, attention_cases.NO_MEMORY)
    for case in (case for table in tables for case in table):
        for dtype in DTYPES:
            first = case in (attention_cases.SHAPES[1], attention_cases.VARIANTS[3], attention_cases.VARIANTS[8])
            name = f"attention {name_of(dtype)} {case.id}"
            yield Check(name, run(case, dtype, None), quick=dtype == torch.bfloat16)
            small = run(case, dtype, small_plan(case))
            yield Check(f"{name} small tiles", small, interpreted=first and dtype == torch.bfloat16)


def _gradients() -> Iterator[Check]:
    def run(case: AttentionCase, dtype: torch.dtype) -> Callable[[torch.device], list[Comparison]]:
        return lambda device: compare_gradients(case, dtype, device)

    def twice(device: torch.device) -> list[Comparison]:
        arguments = attention_cases.GRADIENTS[-1].make(torch.bfloat16, device)
        weight = torch.randn(arguments.tensors[0].shape, device=device).bfloat16()
        first, second = (kernel_gradients(arguments, weight) for _ in range(2))
        return [same(f"grad {name}", second[name], first[name]) for name in first]

    for case in attention_cases.GRADIENTS:
        for dtype in DTYPES:
            name = f"attention backward {name_of(dtype)} {case.id}"
            plain = case == attention_cases.GRADIENTS[0]
            yield Check(
                name, run(case, dtype), quick=dtype == torch.bfloat16, interpreted=plain and dtype == torch.float32
            )
    yield Check("attention backward bfloat16 twice, to the bit", twice, quick=True)


def _far_pages() -> Iterator[Check]:
    """Pages past 2^31 elements of their pool answer as near ones do."""

    def run(device: torch.device) -> list[Comparison]:
        case = AttentionCase((1, 70), (300, 200), (8, 2), 128, 64)
        arguments = case.make(torch.bfloat16, device)
        near = arguments.keywords["memory"]
        pages = len(near.k_pages)
        shape = (FAR_ELEMENTS // near.k_pages[0].numel() + pages, *near.k_pages.shape[1:])
        needed, free = 2 * 2 * torch.Size(shape).numel(), torch.cuda.mem_get_info(device)[0]
        if free < 1.2 * needed:
            raise TooSmallError(f"needs {1.2 * needed / 2**30:.0f} GiB of free device memory, has {free / 2**30:.0f}")
        far = near._replace(
            k_pages=near.k_pages.new_empty(shape),
            v_pages=near.v_pages.new_empty(shape),
            page_indices=near.page_indices + (shape[0] - pages),
        )
        far.k_pages[-pages:], far.v_pages[-pages:] = near.k_pages, near.v_pages
        got, expected = (
            segment_attention(*arguments.tensors, **{**arguments.keywords, "memory": memory}) for memory in (far, near)
        )
        return [same("out", got[0], expected[0]), same("lse2", got[1], expected[1])]

    yield Check("attention bfloat16 pages beyond 2^31 elements", run)


def _append() -> Iterator[Check]:
    def plain(case: append_cases.AppendCase, dtype: torch.dtype) -> Callable[[torch.device], list[Comparison]]:
        return lambda device: append_cases.compare_append(case, dtype, device)

    def quantised(case: append_cases.AppendCase, dtype: torch.dtype) -> Callable[[torch.device], list[Comparison]]:
        return lambda device: append_cases.compare_quantised(case, dtype, device)

    for case in append_cases.SHAPES:
        first = case == append_cases.SHAPES[1]
        for dtype in DTYPES:
            yield Check(f"append {name_of(dtype)} {case.id}", plain(case, dtype), dtype == torch.bfloat16, first)
        for dtype in (torch.int8, torch.float8_e4m3fn):
            yield Check(f"append bfloat16 to {name_of(dtype)} {case.id}", quantised(case, dtype), True, first)


def _topk() -> Iterator[Check]:
    def run(case: topk_cases.TopkCase, dtype: torch.dtype) -> Callable[[torch.device], list[Comparison]]:
        def best(device: torch.device) -> list[Comparison]:
            hidden, items, masks = case.make(dtype, device)
            scores, indices = catalogue_topk_triton(hidden, items, case.k, **masks)
            wanted = (torch.from_numpy(array) for array in topk_cases.expected(hidden, items, case.k, masks))
            return [same("scores", scores.cpu().double(), next(wanted)), same("indices", indices.cpu(), next(wanted))]

        return best

    for case in (*topk_cases.LARGE, *topk_cases.SHAPES, *topk_cases.MASKED):
        large = case in topk_cases.LARGE
        for dtype in DTYPES:
            yield Check(
                f"topk {name_of(dtype)} {case.id}",
                run(case, dtype),
                quick=dtype == torch.bfloat16 and not (large and case.num_rows > 17),
                interpreted=case == topk_cases.MASKED[0] and dtype == torch.float32,
            )


def _cross_entropy() -> Iterator[Check]:
    def run(case: cross_entropy_cases.CrossEntropyCase, dtype: torch.dtype) -> Callable[[torch.device], Any]:
        return lambda device: cross_entropy_cases.compare_cross_entropy(case, dtype, device)

    for case in (*cross_entropy_cases.SHAPES, *cross_entropy_cases.SAMPLED):
        for dtype in DTYPES:
            name = f"cross entropy {name_of(dtype)} {case.id}"
            first = case.num_items < 200 and dtype == torch.float32
            yield Check(name, run(case, dtype), quick=dtype == torch.bfloat16, interpreted=first)


def _block_decode() -> Iterator[Check]:
    def run(case: block_decode_cases.BlockCase, dtype: torch.dtype) -> Callable[[torch.device], list[Comparison]]:
        return lambda device: block_decode_cases.compare_block(case, dtype, device)

    for case in block_decode_cases.SHAPES:
        for dtype in DTYPES:
            if block_decode_fits(case.dim, case.num_heads, case.num_kv_heads, case.head_dim, case.page_size, dtype):
                yield Check(
                    f"block decode {name_of(dtype)} {case.id}",
                    run(case, dtype),
                    quick=dtype == torch.bfloat16,
                    interpreted=len(case.lengths) == 1 and dtype == torch.bfloat16,
                )


def _graphs() -> Iterator[Check]:
    """Captured once, replayed with other lengths and values."""
    for name, run in graph_results():
        yield Check(f"graph {name}", run, quick=True)
