"""`segment_attention`, the public operator: which body runs, and how the GPU's forward and backward hang together.

On a GPU the Triton kernels (`segment_attention`, `segment_attention_backward`). On the CPU numba's bodies
for float32 events over memory, without gradient; the packed body for users without a past, where scores have no extra
terms; else the reference. The formula is in `reference/attention.py`.
"""

from typing import Any

import torch

from longrec.errors import ArgumentError
from longrec.kernels.attention_checks import DTYPES, SCALED_DTYPES, check_attention_values, check_memory
from longrec.kernels.attention_plan import AttentionPlan
from longrec.kernels.checks import check_tensor
from longrec.kernels.cpu.attention import attend_paged, fits_paged, fits_pages, prepare_paged
from longrec.kernels.cpu.attention_terms import attend_with_terms, fits_terms
from longrec.kernels.cpu.blocks import prepare_blocks
from longrec.kernels.cpu.packed import attend_packed
from longrec.kernels.cpu.topk import prepare_topk
from longrec.kernels.reference.attention import segment_attention as segment_attention_reference
from longrec.kernels.segment_attention import AttentionBuffers, call_of
from longrec.kernels.segment_attention import segment_attention as segment_attention_triton
from longrec.kernels.segment_attention_backward import segment_attention_backward
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = ["prepare_attention", "segment_attention", "segment_attention_with_gradient"]


def prepare_attention(pages: torch.Tensor, dtype: torch.dtype, kind: AttentionKind = "softmax") -> None:
    """Compile what a CPU needs to serve events of `dtype` over such pages [P, S, Hkv, D], so that no request waits:
    attention, the blocks around it, and the catalogue's top-k.

    Takes 6 to 10 s the first time on a machine, and from then on 2 s, most of them numba's import;
    `cpu/attention_body.py` says where compiled code is kept. Does nothing on a GPU, or for what the reference does.

    Raises:
        MachineError: numba is missing.
    """
    if not pages.is_cuda and dtype == torch.float32 and fits_pages(pages):
        prepare_paged(pages.shape[-1], pages.dtype, kind)
        prepare_blocks(pages.dtype)
        prepare_topk(dtype)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float | None = None,
    memory: PagedMemory | None = None,
    kind: AttentionKind = "softmax",
    relative: RelativeTerms | None = None,
    position_bias: PositionBias | None = None,
    time_bias: TimeBias | None = None,
    num_targets: torch.Tensor | None = None,
    memory_gradient: bool = False,
    max_new: int | None = None,
    max_memory: int | None = None,
    plan: AttentionPlan | None = None,
    buffers: AttentionBuffers | None = None,
    validate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of ragged new events over their users' memory and themselves.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D], Hq a multiple of Hkv.
        cu_seqlens: [B + 1] int32; user b's new events are rows cu_seqlens[b] to cu_seqlens[b + 1].
        window: events that a query sees, itself included.
        scale: of the scores; 1 / sqrt(D) by default.
        memory: the users' past; None: no past.
        kind: "softmax" or "silu". relative, position_bias, time_bias, num_targets: as in the reference.
        memory_gradient: whether memory's pages get gradients, or are constants as in Transformer-XL (Dai et al., 2019,
            section 3.2).
        max_new, max_memory, plan, buffers, validate: as in `segment_attention_triton`; a CPU has no use for plans.

    Returns:
        out [T, Hq, D] in q's dtype, and lse2 [T, Hq], the base-2 log-sum-exp of the scores: -inf (and out 0) for a row
        that sees nothing; zeros for "silu". lse2 carries no gradient on the CPU's packed body.

    Raises:
        ArgumentError: what doesn't fit; everything is checked before any launch.
    """
    terms: dict[str, Any] = {
        "relative": relative,
        "position_bias": position_bias,
        "time_bias": time_bias,
        "num_targets": num_targets,
    }
    if q.is_cuda:
        bounds: dict[str, Any] = {"max_new": max_new, "max_memory": max_memory, "validate": validate}
        arguments: dict[str, Any] = {"window": window, "scale": scale, "memory": memory, "kind": kind, **terms}
        if torch.is_grad_enabled() and any(
            x.requires_grad for x in _differentiable(q, k, v, arguments) if x is not None
        ):
            return segment_attention_with_gradient(
                q, k, v, cu_seqlens, memory_gradient=memory_gradient, **arguments, **bounds
            )
        return segment_attention_triton(q, k, v, cu_seqlens, plan=plan, buffers=buffers, **arguments, **bounds)
    _check_cpu(q, k, v, cu_seqlens, window, memory)
    if validate:
        bounds = {"max_new": max_new, "max_memory": max_memory}
        check_attention_values(call_of(q, k, v, cu_seqlens, window=window, memory=memory, **terms, **bounds))
    if memory is not None and not memory_gradient:
        memory = memory._replace(k_pages=memory.k_pages.detach(), v_pages=memory.v_pages.detach())
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    biases: dict[str, Any] = {"relative": relative, "position_bias": position_bias, "time_bias": time_bias}
    if all(term is None for term in terms.values()):
        if memory is None and kind == "softmax":
            return attend_packed(q, k, v, cu_seqlens, window=window, scale=scale)
        if memory is not None and fits_paged(q, k, v, memory):
            return attend_paged(q, k, v, cu_seqlens, window=window, scale=scale, memory=memory, kind=kind)
    elif memory is not None and num_targets is None and fits_paged(q, k, v, memory) and fits_terms(q, **biases):
        return attend_with_terms(q, k, v, cu_seqlens, window=window, scale=scale, memory=memory, kind=kind, **biases)
    return segment_attention_reference(
        q, k, v, cu_seqlens, window=window, scale=scale, memory=memory, kind=kind, **terms
    )


def segment_attention_with_gradient(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    memory_gradient: bool = False,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels' forward, differentiable by the kernels' backward; arguments as `segment_attention_triton`."""
    tensors = _differentiable(q, k, v, arguments)
    return _SegmentAttention.apply(cu_seqlens, memory_gradient, arguments, *tensors)


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cu_seqlens: Any, memory_gradient: bool, arguments: Any, *tensors: Any) -> Any:
        q, k, v = tensors[:3]
        out, lse2 = segment_attention_triton(q, k, v, cu_seqlens, **arguments)
        bounds = ("max_new", "max_memory", "validate")
        ctx.arguments = {name: value for name, value in arguments.items() if name not in bounds}
        ctx.memory_gradient = memory_gradient
        ctx.save_for_backward(q, k, v, out, lse2, cu_seqlens)
        return out, lse2

    @staticmethod
    def backward(ctx: Any, grad_out: Any, grad_lse2: Any) -> Any:
        q, k, v, out, lse2, cu_seqlens = ctx.saved_tensors
        gradients = segment_attention_backward(
            grad_out, grad_lse2, q, k, v, out, lse2, cu_seqlens, memory_gradient=ctx.memory_gradient, **ctx.arguments
        )
        return None, None, None, *gradients


def _differentiable(q: Any, k: Any, v: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor | None, ...]:
    """The tensors that may have gradients, in the order of `AttentionGradients`."""
    memory, relative = arguments.get("memory"), arguments.get("relative")
    position, time = arguments.get("position_bias"), arguments.get("time_bias")
    pages = (None, None) if memory is None else (memory.k_pages, memory.v_pages)
    terms = (None, None, None) if relative is None else relative
    tables = (None if position is None else position.table, None if time is None else time.table)
    return (q, k, v, *pages, *terms, *tables)


def _check_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    memory: PagedMemory | None,
) -> None:
    """What the host knows; bodies on the CPU take any float dtype, head_dim and page size."""
    if q.ndim != 3 or k.ndim != 3 or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        expected = "[T, Hkv, D] for q [T, Hq, D], Hq a multiple of Hkv"
        raise ArgumentError("k", expected, f"{list(k.shape)} for q {list(q.shape)}")
    if v.shape != k.shape:
        raise ArgumentError("v", f"k's shape {list(k.shape)}", str(list(v.shape)))
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ArgumentError("k and v", f"q's dtype {q.dtype}", f"{k.dtype} and {v.dtype}")
    check_tensor("cu_seqlens", cu_seqlens, [("B + 1", None)], (torch.int32,), q, 0)
    if not len(cu_seqlens):
        raise ArgumentError("cu_seqlens", "B + 1 offsets, the first 0", "none")
    if window < 1:
        raise ArgumentError(f"window={window}", "at least 1: a query sees itself")
    if memory is not None:
        check_memory(memory, q, len(cu_seqlens) - 1, k.shape[1], (*DTYPES, torch.float64, *SCALED_DTYPES))
