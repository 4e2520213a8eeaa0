"""Every configuration of `segment_attention`'s forward that is compiled and checked before it ships.

Made from the launcher's own plan and arguments, so that what is proved is what runs. For each tile the variants are the
least and the most that a kernel is asked to do.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl

from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.attention_forward import merge_kernel
from longrec.kernels.segment_attention import allocate_attention, call_of, launches, plan_of
from longrec.kernels.shipped import MAX_REGISTERS, Shipped

__all__ = ["shipped"]

HEAD_DIMS = (16, 32, 64, 128, 256)
LONG, MIDDLE = (1100,), (300,)  # new events that get the large and the small tile
MEMORY = (600,)
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}


def shipped(target: int) -> Iterator[Shipped]:
    """The configurations for a target: compute capability x 10."""
    for head_dim in HEAD_DIMS:
        for name, dtype, case in _cases(head_dim):
            yield from _configurations(target, f"{TYPES[dtype]}-D{head_dim}-{name}", dtype, case)


def _cases(head_dim: int) -> Iterator[tuple[str, torch.dtype, AttentionCase]]:
    def case(new: tuple[int, ...], past: tuple[int, ...] | None = MEMORY, group: int = 1, **rest: Any) -> AttentionCase:
        return AttentionCase(new, past, (group, 1), head_dim, page_size=32, **rest)

    bf16 = torch.bfloat16
    yield "long", bf16, case(LONG)
    yield "long-hstu-int8-targets", bf16, case(LONG, variant="hstu", memory_dtype="int8", targets=(9,))
    yield "long-relative", bf16, case(LONG, variant="relative")
    yield "middle", bf16, case(MIDDLE)
    yield "middle-time-fp8-targets", bf16, case(MIDDLE, variant="time", memory_dtype="fp8", targets=(9,))
    yield "train-hstu", bf16, case(LONG, None, variant="hstu")
    yield "long", torch.float32, case(LONG)
    yield "long-relative", torch.float32, case(LONG, variant="relative")
    for group in (1, 2, 4, 8):
        yield f"short-16x{group}", bf16, case((16,), group=group)
    yield "short-1x8-int8", bf16, case((1,), group=8, memory_dtype="int8")
    yield "short-16x8-hstu-fp8-targets", bf16, case((16,), group=8, variant="hstu", memory_dtype="fp8", targets=(9,))
    yield "short-relative", bf16, case((16,), variant="relative")
    yield "short-64-relative", bf16, case((64,), variant="relative")
    yield "short-1x8", torch.float32, case((1,), group=8)
    yield "short-relative", torch.float32, case((16,), variant="relative")
    if head_dim in (64, 128):
        yield "long", torch.float16, case(LONG)
        yield "train", bf16, case(LONG, None)


def _configurations(target: int, config: str, dtype: torch.dtype, case: AttentionCase) -> Iterator[Shipped]:
    arguments = case.make(dtype)
    call = call_of(*arguments.tensors, **arguments.keywords)
    plan = plan_of(call, target)
    buffers = allocate_attention(plan, len(call.q), len(call.cu_seqlens) - 1, call.q)
    for launch in launches(call, plan, buffers):
        if max(case.new) > max(MIDDLE) and launch.arguments.get("SPLIT", True):
            continue  # a mixed batch's short users: the same as in the short cases
        part = "merge" if launch.fn is merge_kernel else "split" if launch.arguments["SPLIT"] else "tiled"
        matrix: tuple[str, ...] = ("matrix", "wide_async_copy") if part != "merge" else ()
        if part == "tiled" and dtype != torch.float32:
            matrix += ("wgmma", "tcgen05")
        constants = {
            name: value
            for name, value in launch.arguments.items()
            if value is None or inspect.signature(launch.fn.fn).parameters[name].annotation is tl.constexpr
        }
        yield Shipped(
            kernel=f"segment_attention.{part}",
            config=config,
            fn=launch.fn,
            target=target,
            signature={name: _type(value) for name, value in launch.arguments.items() if name not in constants},
            constexprs=constants,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            expects=matrix,
            maxnreg=MAX_REGISTERS,
            divisible=tuple(name for name in launch.arguments if name.startswith("stride_")),
            subset=config in ("bf16-D64-long", "bf16-D64-short-16x1"),
        )


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"
