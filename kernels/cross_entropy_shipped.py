"""Every configuration of `catalogue_cross_entropy` that is compiled and checked before it ships."""

from collections.abc import Iterator, Mapping
from typing import Any

from longrec.kernels.cross_entropy_kernels import (
    gather_kernel,
    hidden_gradient_kernel,
    item_gradient_kernel,
    loss_kernel,
    lse_kernel,
)
from longrec.kernels.cross_entropy_plan import GATHER_TILE, ROW_TILE, Tile, padded_dim, plan_cross_entropy
from longrec.kernels.shipped import MAX_REGISTERS, Shipped

__all__ = ["shipped"]

DIMS = (10, 16, 22, 32, 46, 64, 94, 128, 190, 256)  # each that is a power of two, and one that is padded to it
ITEMSIZES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
KERNELS: Mapping[str, Any] = {
    "lse": lse_kernel,
    "loss": loss_kernel,
    "hidden": hidden_gradient_kernel,
    "items": item_gradient_kernel,
    "gather": gather_kernel,
}
IN_DTYPE = ("hidden_ptr", "items_ptr", "grad_items_ptr")
INT64 = ("targets_ptr", "negatives_ptr", "item_ptr", "source_ptr")
OF_SAMPLE = ("negatives_ptr", "log_q_ptr", "target_log_q_ptr", "own_slope_ptr")  # None in the full softmax
OF_FULL = ("mean_ptr",)
FLOATS = ("label_smoothing", "certain", "spread", "shift", "unscale")


def shipped(target: int) -> Iterator[Shipped]:
    """The configurations on one target: see `longrec.kernels.shipped`."""
    for dtype, itemsize in ITEMSIZES.items():
        for dim in DIMS:
            plan = plan_cross_entropy(target, dim, itemsize)
            tiles = {**plan._asdict(), "loss": ROW_TILE, "gather": GATHER_TILE}
            for part, tile in tiles.items():
                for sampled in (False, True):
                    if sampled or part != "gather":
                        yield configuration(part, tile, target, dtype, dim, sampled)


def configuration(part: str, tile: Tile, target: int, dtype: str, dim: int, sampled: bool) -> Shipped:
    """One kernel; gradients as they are written where the work is cut into parts, in float32."""
    kernel = KERNELS[part]
    values = {
        "SAMPLED": sampled,
        "WIDTH": dim,
        "DIM": padded_dim(dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": tile.block_d or padded_dim(dim),
        "BLOCK": tile.block_m,
    }
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in values:
            constexprs[name] = values[name]
        elif name in (OF_FULL if sampled else OF_SAMPLE):
            constexprs[name] = None
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype}" if name in IN_DTYPE else "*i64" if name in INT64 else "*fp32"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    multiplies = part in ("lse", "hidden", "items")
    pipelined = tile.num_stages > 1 and dim % 16 == 0
    return Shipped(
        kernel=f"catalogue_cross_entropy.{part}",
        config=f"{dtype}-D{dim}-{'sampled' if sampled else 'full'}",
        fn=kernel,
        target=target,
        signature=signature,
        constexprs=constexprs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=MAX_REGISTERS,
        expects=("matrix", *(("wide_async_copy",) if pipelined else ())) if multiplies else (),
        divisible=() if dim % 16 else ("hidden_stride", "items_stride"),
        subset=(dtype, dim) == ("bf16", 64),
    )
