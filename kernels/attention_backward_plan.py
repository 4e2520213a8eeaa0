"""Tiles of `segment_attention`'s backward on each target, and how many parts the sums over queries are cut into.

Plain Python over shapes; device code is in the `attention_backward_*` kernels' files.
"""

from typing import NamedTuple

from longrec.kernels.attention_plan import Tile

__all__ = ["BackwardPlan", "plan_backward", "sum_parts"]

PROGRAMS = 1024  # of the distance kernel: a few for each multiprocessor of any device
MAX_PARTS = 64


class BackwardPlan(NamedTuple):
    """Tiles of the three kernels; of the distance kernel both sides are `distance.block_n`."""

    query: Tile
    key: Tile
    distance: Tile


def plan_backward(target: int, head_dim: int, itemsize: int, relative: bool) -> BackwardPlan:
    """Tiles for a call.

    Args:
        target: compute capability x 10, one of `shipped.TARGETS`.
        head_dim: D.
        itemsize: bytes of an element of q.
        relative: Transformer-XL's terms, which hold another tile of scores, and need block_m <= block_n.
    """
    tile = Tile(32, 32, 4, 2)
    return BackwardPlan(tile, tile, tile)


def sum_parts(num_distances: int, num_heads: int, num_tiles: int, block: int) -> int:
    """Parts of the query tiles that the distance kernel sums apart: enough programs, but little to add up afterwards."""
    programs = -(-num_distances // block) * num_heads
    return max(1, min(-(-PROGRAMS // programs), num_tiles, MAX_PARTS))
