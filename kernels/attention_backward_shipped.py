"""Every configuration of `segment_attention`'s backward that is compiled and checked before it ships.

Four sets of features for each dtype, head_dim and target; what a call asks for lies between the least and the most of
them, with fewer or as many registers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from longrec.kernels.attention_backward_distance import distance_gradient_kernel
from longrec.kernels.attention_backward_key import key_gradient_kernel
from longrec.kernels.attention_backward_plan import BackwardTile, plan_backward
from longrec.kernels.attention_backward_query import query_gradient_kernel
from longrec.kernels.attention_backward_rows import row_gradient_kernel
from longrec.kernels.shipped import MAX_REGISTERS, Shipped

__all__ = ["shipped"]

HEAD_DIMS = (16, 32, 64, 128, 256)
ITEMSIZES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
POINTERS: Mapping[
    str, tuple[str, str]
] = {  # argument -> its type, "" for the queries' dtype, and the feature without which it is None
    "q_ptr": ("", ""),
    "k_ptr": ("", ""),
    "v_ptr": ("", ""),
    "out_ptr": ("", ""),
    "grad_out_ptr": ("", ""),
    "lse2_ptr": ("fp32", ""),
    "delta_ptr": ("fp32", ""),
    "grad_lse2_ptr": ("fp32", "softmax"),
    "grad_own_ptr": ("fp32", "targets"),
    "grad_q_ptr": ("", ""),
    "grad_k_ptr": ("", ""),
    "grad_v_ptr": ("", ""),
    "grad_k_listed_ptr": ("", "memory"),
    "grad_v_listed_ptr": ("", "memory"),
    "grad_u_ptr": ("fp32", "relative"),
    "grad_r_ptr": ("fp32", "relative"),
    "grad_v_relative_ptr": ("fp32", "relative"),
    "grad_time_ptr": ("fp32", "bias"),
    "by_distance_ptr": ("fp32", "bias"),
    "cu_seqlens_ptr": ("i32", ""),
    "num_targets_ptr": ("i32", "targets"),
    "k_pages_ptr": ("", "memory"),
    "v_pages_ptr": ("", "memory"),
    "page_indptr_ptr": ("i32", "memory"),
    "page_indices_ptr": ("i32", "memory"),
    "lengths_ptr": ("i32", "memory"),
    "u_ptr": ("", "relative"),
    "v_relative_ptr": ("", "relative"),
    "r_ptr": ("", "relative"),
    "position_ptr": ("fp32", "bias"),
    "time_ptr": ("fp32", "bias"),
    "query_seconds_ptr": ("i32", "bias"),
    "key_seconds_ptr": ("i32", "bias"),
    "memory_seconds_ptr": ("i32", "bias memory"),
}
FLOATS = ("scale", "inverse_window")
VARIANTS: Mapping[str, frozenset[str]] = {
    "plain": frozenset({"softmax"}),
    "memory": frozenset({"softmax", "memory", "targets"}),
    "hstu": frozenset({"silu", "bias", "memory", "targets"}),
    "relative": frozenset({"softmax", "relative", "memory", "targets"}),
    "all": frozenset({"softmax", "relative", "bias", "memory", "targets"}),
}
KERNELS: Mapping[str, Any] = {
    "rows": row_gradient_kernel,
    "query": query_gradient_kernel,
    "key": key_gradient_kernel,
    "distance": distance_gradient_kernel,
}


def shipped(target: int) -> Iterator[Shipped]:
    """The configurations on one target: see `longrec.kernels.shipped`."""
    for dtype, itemsize in ITEMSIZES.items():
        for head_dim in HEAD_DIMS:
            for variant, features in VARIANTS.items():
                plan = plan_backward(target, head_dim, itemsize, "relative" in features, "bias" in features)
                for part, tile in plan._asdict().items():
                    if tile is not None:
                        yield configuration(part, tile, target, dtype, head_dim, variant)


def configuration(part: str, tile: BackwardTile, target: int, dtype: str, head_dim: int, variant: str) -> Shipped:
    """One of the four kernels, compiled for one set of features."""
    features, kernel = VARIANTS[variant], KERNELS[part]
    values: dict[str, Any] = {
        "SILU": "silu" in features,
        "GROUP": 2,
        "HEAD_DIM": head_dim,
        "PAGE_SIZE": 64 if "memory" in features else 1,
        "POSITION_BITS": 16,
        "TIME_BITS": 2,
        "TIME_LANES": 64,
        "KINDS": 2 if "targets" in features else 1,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": tile.block_d,
    }
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in values:
            constexprs[name] = values[name]
        elif name in POINTERS:
            kind, needs = POINTERS[name]
            if set(needs.split()) <= features:
                signature[name] = f"*{kind or dtype}"
            else:
                constexprs[name] = None
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    expects = ["matrix"] if part != "rows" and dtype != "fp32" else []
    # a loop with a branch or another loop inside is not pipelined
    if part == "key" or (part == "query" and "bias" not in features):
        # tf32's operands of 4 bytes can't be transposed as they leave shared memory, so they are as they enter it
        expects.append("async_copy" if (part, dtype) == ("key", "fp32") else "wide_async_copy")
    return Shipped(
        kernel=f"segment_attention_backward.{part}",
        config=f"{dtype}-D{head_dim}-{variant}",
        fn=kernel,
        target=target,
        signature=signature,
        constexprs=constexprs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        expects=tuple(expects),
        maxnreg=MAX_REGISTERS,
        divisible=tuple(name for name in signature if name.startswith("stride_")),
        subset=(dtype, head_dim) == ("bf16", 64) and variant != "all",
    )
