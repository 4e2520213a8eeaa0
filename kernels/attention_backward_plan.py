"""Tiles of `segment_attention`'s backward on each target, and how many parts the sums over queries are cut into.

Plain Python over shapes; device code is in the `attention_backward_*` kernels' files, the tiles are in
`attention_backward_table`.
"""

from typing import NamedTuple

from longrec.kernels.attention_backward_table import TABLE
from longrec.kernels.shipped import matrix_units

__all__ = ["BackwardPlan", "BackwardTile", "plan_backward", "sum_parts"]

PROGRAMS = 1024  # of the distance kernel: a few for each multiprocessor of any device
MAX_PARTS = 64


class BackwardTile(NamedTuple):
    """Shape of a program's tile: queries, keys (or distances), dimensions at a time; and how it is launched."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


class BackwardPlan(NamedTuple):
    """Tiles of the four kernels. `rows` has only a block_m; both sides of the distance kernel's are its block_n, and
    there is none where scores don't hang on distances."""

    rows: BackwardTile
    query: BackwardTile
    key: BackwardTile
    distance: BackwardTile | None = None


def plan_backward(target: int, head_dim: int, itemsize: int, relative: bool, biased: bool) -> BackwardPlan:
    """Tiles for a call.

    Args:
        target: compute capability x 10, one of `shipped.TARGETS`.
        head_dim: D.
        itemsize: bytes of an element of q.
        relative: Transformer-XL's terms, which hold another tile of scores, and need block_m <= block_n.
        biased: with a position or time table.
    """
    tiles = TABLE[matrix_units(target), head_dim, itemsize, relative, biased]
    return BackwardPlan(*(BackwardTile(*tile) for tile in tiles))


def sum_parts(programs: int, num_tiles: int) -> int:
    """Parts of the query tiles that the distance kernel sums apart: enough programs, but little to add up
    afterwards."""
    return max(1, min(-(-PROGRAMS // programs), num_tiles, MAX_PARTS))
