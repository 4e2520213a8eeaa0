"""How `catalogue_cross_entropy` is cut into programs: tiles for each target, and parts of what a program goes over.

Plain Python over shapes; device code is in `cross_entropy_kernels`, the tiles are in `cross_entropy_table`.
"""

from typing import NamedTuple

import triton

from longrec.kernels.cross_entropy_table import TABLE
from longrec.kernels.shipped import matrix_units

__all__ = ["GATHER_TILE", "ROW_TILE", "CrossEntropyPlan", "Tile", "padded_dim", "part_size", "plan_cross_entropy"]

PROGRAMS_PER_MULTIPROCESSOR = 2
LEAST_TILES = 2  # tiles a part: a shorter one mostly loads its own rows


class Tile(NamedTuple):
    """Shape of a program's tile, and how it is launched: block_m rows by block_n columns of logits.

    block_d: dimensions that the gradients' logits are summed over at a time; 0: all at once.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    block_d: int = 0


ROW_TILE = Tile(16, 1, 4, 1)  # of the kernel of losses: rows alone
GATHER_TILE = Tile(16, 1, 4, 1)  # of the kernel that adds by item: entries a step


class CrossEntropyPlan(NamedTuple):
    """Tiles of the three kernels that hold logits."""

    lse: Tile
    hidden: Tile
    items: Tile


def padded_dim(dim: int) -> int:
    """The power of two that holds a row of d: at least 16, the depth of a matrix instruction."""
    return max(16, triton.next_power_of_2(dim))


def plan_cross_entropy(target: int, dim: int, itemsize: int) -> CrossEntropyPlan:
    """Tiles for a call.

    Args:
        target: compute capability x 10, one of `shipped.TARGETS`.
        dim: d.
        itemsize: bytes of an element of hidden.
    """
    tiles = TABLE[matrix_units(target), padded_dim(dim), dim % 16 == 0, itemsize]
    return CrossEntropyPlan(*(Tile(*tile) for tile in tiles))


def part_size(owned: int, block_owned: int, passed: int, block_passed: int, multiprocessors: int) -> int:
    """Rows (or columns) that one program goes over, a multiple of its tile's.

    Every program keeps a tile of the `owned` and goes over the `passed`; where the tiles alone don't fill the device,
    the passed are cut into parts, whose results are added in order afterwards.
    """
    tiles = triton.cdiv(passed, block_passed)
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, triton.cdiv(owned, block_owned))
    parts = max(1, min(wanted, tiles // LEAST_TILES))
    return triton.cdiv(tiles, parts) * block_passed
