"""What ships: the interface by which a kernel's file names every configuration that its launcher may pick.

Holds the types only; `longrec.kernels.bench` compiles and counts what they name. A kernel's file takes part like this:

    def shipped(target: int) -> Iterator[Shipped]:
        for head_dim in (16, 32, 64, 128, 256):
            tile = choose_tile(target, head_dim)          # the very function that the launcher calls
            yield Shipped(
                kernel="segment_attention.long_append",   # operator, then the part of it
                config=f"bf16-D{head_dim}",                # unique within kernel and target
                fn=_long_append_kernel,                    # the @triton.jit function
                target=target,
                signature={"q_ptr": "*bf16", "num_tokens": "i32"},   # every argument that is not a constexpr
                constexprs={"HEAD_DIM": head_dim, "BLOCK_M": tile.block_m},
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                expects=("matrix", "wide_async_copy"),
                subset=head_dim == 64,
            )

and its module's name is added to `SHIPPING_MODULES`. Launcher and table must take their tiles from one function of the
target, so that what is proved is what runs. `target` is 80, 86, 89, 90, 100 or 120; launchers ask `target_of(device)`.
Pointers are taken to be 16-byte aligned, as torch's allocations are; integer arguments named in `divisible` too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from longrec.errors import MachineError

__all__ = ["MAX_REGISTERS", "SHARED_BYTES_LIMIT", "SHIPPING_MODULES", "TARGETS", "Shipped", "matrix_units", "target_of"]

TARGETS = (80, 86, 89, 90, 100, 120)

MAX_REGISTERS = 255  # said aloud, for ptxas else stops at 128 or 168 in the hope of occupancy, and spills a few

# most shared memory that one block may ask for (CUDA C++ Programming Guide, table of compute capabilities)
SHARED_BYTES_LIMIT: Mapping[int, int] = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}

# files that define `shipped(target)`
SHIPPING_MODULES: tuple[str, ...] = (
    "longrec.kernels.append",
    "longrec.kernels.attention_shipped",
    "longrec.kernels.attention_backward_shipped",
    "longrec.kernels.block_decode_kernel",
    "longrec.kernels.cross_entropy_shipped",
    "longrec.kernels.topk",
)


class Shipped(NamedTuple):
    """One configuration of one kernel on one target.

    Args:
        kernel: the operator and its part, `segment_attention.long_append`.
        config: readable id, unique within kernel and target: `bf16-D128-silu`.
        fn: the `@triton.jit` function.
        target: compute capability x 10.
        signature: argument name -> `*bf16`, `*i32`, `i32`, `fp32` …; every argument that isn't a constexpr. An
            argument that is `None` at run time is a constexpr with the value None.
        constexprs: argument name -> value.
        num_warps, num_stages: of the launch.
        expects: classes of instructions that must appear: "matrix" (any matrix instruction), "wgmma" (on sm_90 only),
            "tcgen05" (on sm_100 only), "async_copy", "wide_async_copy" (8 bytes or more at a time).
        divisible: integer arguments that are multiples of 16 in every launch.
        subset: compiled in CI, which does a few of each kernel.
        maxnreg: register cap of the launch, if any.
    """

    kernel: str
    config: str
    fn: Any
    target: int
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    expects: tuple[str, ...] = ()
    divisible: tuple[str, ...] = ()
    subset: bool = False
    maxnreg: int | None = None


def matrix_units(target: int) -> str:
    """By which instructions a target multiplies: "mma" (out of registers), "wgmma" or "tcgen05"."""
    return {90: "wgmma", 100: "tcgen05"}.get(target, "mma")


def target_of(device: torch.device) -> int:
    """The target whose configurations run on a device: the highest that is not above its compute capability.

    Args:
        device: a CUDA device; the CPU counts as sm_90, so that the interpreter runs what an H100 runs.

    Raises:
        MachineError: compute capability below 8.0.
    """
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    fitting = [target for target in TARGETS if target <= major * 10 + minor]
    if not fitting:
        raise MachineError(f"{device}: compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer")
    return fitting[-1]
