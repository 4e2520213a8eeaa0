"""CUDA graphs of the operators: captured once, replayed with other lengths and values, equal to a plain call."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpucheck.comparing import compare_attention, same
from longrec.kernels.append import append_memory
from longrec.kernels.append_cases import AppendCase
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.block_decode import block_decode
from longrec.kernels.block_decode_cases import SETTINGS, BlockCase
from longrec.kernels.exactness import Comparison
from longrec.kernels.segment_attention import allocate_attention, call_of, plan_of, segment_attention
from longrec.kernels.topk import allocate_topk, catalogue_topk
from longrec.kernels.topk_cases import TopkCase

__all__ = ["capture", "graph_results"]

WARM_UPS = 3  # compile, fill caches and let libraries allocate before a capture
Results = Callable[[torch.device], list[Comparison]]

# what is captured, and the lengths that it is replayed with: as many events and pages in all
ATTENTION = (
    (AttentionCase((3, 1), (60, 0), (4, 2)), (1, 3), (17, 20)),
    (AttentionCase((70, 3), (130, 200), (8, 2), 64, 32), (3, 70), (150, 200)),
    (AttentionCase((3, 1), (60, 0), (4, 2), memory_dtype="int8"), (1, 3), (17, 20)),
    (AttentionCase((3, 1), (60, 0), (4, 2), memory_dtype="fp8"), (1, 3), (17, 20)),
    (AttentionCase((9, 30), (60, 0), variant="hstu", window=30, targets=(2, 8)), (30, 9), (17, 20)),
    (AttentionCase((9, 30), (60, 0), variant="relative", window=25), (30, 9), (17, 20)),
)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of a call, and the results that each replay writes. Warms up on a stream of its own, as captures
    must."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def graph_results() -> Iterator[tuple[str, Results]]:
    """Name and run of each check."""
    for case, new, past in ATTENTION:
        yield f"attention bfloat16 {case.id}", _attention(case, case._replace(new=new, past=past))
    yield "topk bfloat16", _topk
    yield "append bfloat16", _append
    yield "block decode bfloat16", _block_decode


def _attention(first: AttentionCase, second: AttentionCase) -> Results:
    def run(device: torch.device) -> list[Comparison]:
        fixed, other = (case.make(torch.bfloat16, device, seed) for seed, case in enumerate((first, second)))
        bounds = {"max_new": max(first.new), "max_memory": max(*(first.past or [0]), *(second.past or [0]))}
        plan = plan_of(call_of(*fixed.tensors, **fixed.keywords, **bounds))
        buffers, plain = (allocate_attention(plan, sum(first.new), len(first.new), fixed.tensors[0]) for _ in range(2))

        def attend() -> tuple[torch.Tensor, torch.Tensor]:
            return segment_attention(
                *fixed.tensors, **fixed.keywords, **bounds, plan=plan, buffers=buffers, validate=False
            )

        graph, _ = capture(attend)
        comparisons = []
        for arguments in (other, first.make(torch.bfloat16, device)):
            for target, source in zip(_tensors(fixed), _tensors(arguments), strict=True):
                target.copy_(source)
            for buffer in buffers:
                if buffer is not None:
                    buffer.fill_(torch.nan)
            graph.replay()
            out, lse2 = segment_attention(
                *arguments.tensors, **arguments.keywords, **bounds, plan=plan, buffers=plain, validate=False
            )
            comparisons += compare_attention(arguments, buffers.out, buffers.lse2, torch.bfloat16)
            comparisons += [same("out as eager", buffers.out, out), same("lse2 as eager", buffers.lse2, lse2)]
        return comparisons

    return run


def _tensors(arguments: AttentionArguments) -> list[torch.Tensor]:
    """Every tensor among the arguments, in one order."""
    found = list(arguments.tensors)
    for value in arguments.keywords.values():
        parts = value if isinstance(value, tuple) else (value,)
        found += [part for part in parts if isinstance(part, torch.Tensor)]
    return found


def _topk(device: torch.device) -> list[Comparison]:
    case = TopkCase(17, 100_003, 128, 10)
    hidden, items, _ = case.make(torch.bfloat16, device)
    buffers = allocate_topk(case.num_rows, items, case.k)
    graph, (scores, indices) = capture(lambda: catalogue_topk(hidden, items, case.k, buffers=buffers, validate=False))
    hidden.copy_(case.make(torch.bfloat16, device, seed=1)[0])
    graph.replay()
    expected = catalogue_topk(hidden, items, case.k)
    return [same("scores", scores, expected[0]), same("indices", indices, expected[1])]


def _append(device: torch.device) -> list[Comparison]:
    case = AppendCase(17, 8, 2, 64, 32)
    fixed = case.make(torch.bfloat16, device=device)
    out_q, out_k = torch.empty_like(fixed["q"]), torch.empty_like(fixed["k"])
    graph, _ = capture(lambda: append_memory(**fixed, out_q=out_q, out_k=out_k, validate=False))
    other = case.make(torch.bfloat16, device=device, seed=1)
    for name, tensor in other.items():
        if isinstance(tensor, torch.Tensor):
            fixed[name].copy_(tensor)
    graph.replay()
    q, k = append_memory(**other)
    pages = [same(n, fixed[n].nan_to_num(-9.0), other[n].nan_to_num(-9.0)) for n in ("k_pages", "v_pages")]
    return [same("q", out_q, q), same("k", out_k, k), *pages]


def _block_decode(device: torch.device) -> list[Comparison]:
    lengths = (0, 1, 15, 16, 37)  # in another order: as many pages
    case = BlockCase(48, 4, 2, 16, 40, 16, lengths)
    fixed = case.make(torch.bfloat16, device)
    out = torch.empty_like(fixed.x)
    graph, _ = capture(lambda: block_decode(*fixed, **SETTINGS, out=out, validate=False))
    other = case._replace(lengths=lengths[::-1]).make(torch.bfloat16, device, seed=1)
    for target, source in (
        (fixed.x, other.x),
        (fixed.positions, other.positions),
        (fixed.slots, other.slots),
        *zip(fixed.weights, other.weights, strict=True),
        *zip(fixed.memory[:5], other.memory[:5], strict=True),
    ):
        target.copy_(source)
    graph.replay()
    expected = block_decode(*other, **SETTINGS)
    pages = [
        same(name, ours.nan_to_num(-9.0), theirs.nan_to_num(-9.0))
        for name, ours, theirs in zip(("k_pages", "v_pages"), fixed.memory[:2], other.memory[:2], strict=True)
    ]
    return [same("out", out, expected), *pages]
