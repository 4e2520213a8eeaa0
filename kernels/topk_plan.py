"""How `catalogue_topk` cuts its work: sample, threshold, tiles, lists. Host arithmetic; nothing is launched here.

Draw one item from each of s equal strata of the N items. The number of a row's k best among them is at most Poisson in
spread, with mean k s / N, whatever the order of the catalogue. The r-th best of the sample (of its groups' peaks) lies
below the k-th best of all, as it must, unless r of the k best were drawn; r is the least that makes this rarer than
`FAILURE`. The scan then leaves about r N / s candidates a row. A row for which the threshold failed is found out (its
list is too short) and answered by brute force, so that the plan decides speed and never the answer.

The sample costs s rows of items, the lists 16 bytes a candidate and row and a round of sorting each `CHUNK`; s is the
power of two with the least sum.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import triton

from longrec.errors import ArgumentError
from longrec.kernels.shipped import SHARED_BYTES_LIMIT

__all__ = [
    "BRUTE_BLOCK",
    "BRUTE_STEP",
    "BRUTE_WARPS",
    "CHUNK",
    "MAX_DIM",
    "MAX_K",
    "MAX_ROWS",
    "SAMPLE_WARPS",
    "TILE",
    "TopkPlan",
    "TopkTile",
    "plan_topk",
    "topk_tile",
]

MAX_K = 256
MAX_DIM = 256
MAX_ROWS = 64  # rows that share one pass over the items
BRUTE_ITEMS = 8192  # up to here every row is answered by brute force
BRUTE_PARTS = 16  # programs a row there
BRUTE_BLOCK = 256  # items at a time there: at least MAX_K
BRUTE_STEP = 16  # of the items' width at a time there
BRUTE_WARPS = 8
FAILURE = 1e-6  # of the threshold, a row and call
MAX_RANK = 64
TILE = 64  # samples a tile
SAMPLE_WARPS = 8  # drawn items are far apart: a pointer each, and for rows that are not aligned one an element
CHUNK = 1024  # candidates that a round of the last sort takes
SAMPLE_PROGRAMS = 64  # at most, since each reads the hidden states of its rows


class TopkTile(NamedTuple):
    """Tiles and launch options of the scan and of the sample on one target.

    Args:
        rows: of hidden states a tile. block_n: items a tile of the scan.
        num_warps, num_stages: of the launch. precision: of `tl.dot`.
    """

    rows: int
    block_n: int
    num_warps: int
    num_stages: int
    precision: str


class TopkPlan(NamedTuple):
    """How one shape of call is cut.

    Args:
        brute: no sample, no scan; every row by brute force.
        top: power of two that holds k.
        num_tiles: tiles of the sample. tiles: of them a program. groups: of a tile.
        rank: of the threshold among the groups' peaks. top_rank: power of two that holds it.
        capacity: candidates that a row's list holds.
        num_programs, num_blocks: programs of the scan over the items, and blocks of items each.
        brute_programs, brute_blocks: the same of the brute force, for each row.
        expected_bytes: that the launches move, as planned.
    """

    brute: bool
    top: int
    num_tiles: int
    tiles: int
    groups: int
    rank: int
    top_rank: int
    capacity: int
    num_programs: int
    num_blocks: int
    brute_programs: int
    brute_blocks: int
    expected_bytes: int


def topk_tile(target: int, num_rows: int, dim: int, item_bytes: int) -> TopkTile:
    """The tile for a target: two programs' buffers fit a multiprocessor's shared memory where they can."""
    width = max(16, triton.next_power_of_2(dim))
    rows = min(MAX_ROWS, max(16, triton.next_power_of_2(num_rows)))
    scores = 4096  # a tile of more spills on sm_100
    if item_bytes == 4:
        rows = min(rows, 32 if width <= 128 else 16)  # float32 is multiplied on the plain cores, out of registers
        scores = 2048
    most = min(128, scores // rows)
    if dim % 16:
        most = min(most, 4096 // width)  # rows that are not aligned to 16 bytes take a pointer an element
    room = SHARED_BYTES_LIMIT[target] - 4096
    num_warps = 8 if target == 120 and width <= 64 else 4  # there a tile of as many scores takes more registers
    for share in (2, 1):
        for block_n, num_stages in ((128, 4), (128, 3), (64, 4), (64, 3), (128, 2), (64, 2), (32, 4), (32, 2)):
            if block_n <= most and (rows + block_n * num_stages) * width * item_bytes <= room // share:
                return TopkTile(rows, block_n, num_warps, num_stages, "ieee" if item_bytes == 4 else "tf32")
    raise ArgumentError(f"d={dim}", f"at most {MAX_DIM}")


@lru_cache(maxsize=1024)
def plan_topk(
    num_rows: int, num_items: int, dim: int, item_bytes: int, k: int, tile: TopkTile, multiprocessors: int
) -> TopkPlan:
    """The plan of one shape of call."""
    top = max(16, triton.next_power_of_2(k))
    brute_programs = min(BRUTE_PARTS, triton.cdiv(num_items, BRUTE_BLOCK))
    brute_blocks = triton.cdiv(triton.cdiv(num_items, brute_programs), BRUTE_BLOCK)
    hidden_bytes = num_rows * dim * item_bytes
    # each program reads the hidden states: at most 1.6 % on top of the items, but one program a multiprocessor
    num_programs = int(min(2 * multiprocessors, max(multiprocessors, 0.016 * num_items / max(1, min(num_rows, 64)))))
    num_blocks = triton.cdiv(triton.cdiv(num_items, tile.block_n), num_programs)
    num_programs = triton.cdiv(triton.cdiv(num_items, tile.block_n), num_blocks)
    best, least = None, math.inf
    for exponent in range(10, 21):
        sample = 1 << exponent
        rank = threshold_rank(k * sample / num_items)
        if sample > num_items // 4 or rank is None:
            break
        groups = min(TILE, max(1, triton.next_power_of_2(4 * rank) * TILE // sample))  # of a tile
        num_tiles = sample // TILE
        num_groups = groups * num_tiles
        drawn = -num_groups * math.log1p(-rank / num_groups)  # samples above the threshold, some of one group
        candidates = drawn * num_items / sample
        tiles = triton.cdiv(num_tiles, SAMPLE_PROGRAMS)
        moved = (sample + num_items) * dim * item_bytes + num_rows * 16 * (num_groups + candidates)
        moved += (triton.cdiv(num_tiles, tiles) + num_programs) * hidden_bytes
        # a round of the last sort is worth 1 % of the items: about 1 us of 100 for a million of them
        cost = moved + math.ceil(1.2 * candidates / CHUNK) * 0.01 * num_items * dim * item_bytes
        if cost < least:
            least = cost
            best = TopkPlan(
                brute=False,
                top=top,
                num_tiles=num_tiles,
                tiles=tiles,
                groups=groups,
                rank=rank,
                top_rank=max(2, triton.next_power_of_2(rank)),
                capacity=max(brute_programs * top, triton.next_power_of_2(int(3 * candidates))),
                num_programs=num_programs,
                num_blocks=num_blocks,
                brute_programs=brute_programs,
                brute_blocks=brute_blocks,
                expected_bytes=int(moved),
            )
    if best is not None and num_items > BRUTE_ITEMS:
        return best
    return TopkPlan(
        brute=True,
        top=top,
        num_tiles=0,
        tiles=0,
        groups=0,
        rank=0,
        top_rank=1,
        capacity=brute_programs * top,
        num_programs=0,
        num_blocks=0,
        brute_programs=brute_programs,
        brute_blocks=brute_blocks,
        expected_bytes=num_rows * (num_items * dim * item_bytes + 16 * brute_programs * top),
    )


def threshold_rank(mean: float) -> int | None:
    """The least r with P(Poisson(mean) >= r) <= FAILURE; None above MAX_RANK."""
    term, below = math.exp(-mean), 0.0
    for rank in range(1, MAX_RANK + 1):
        below += term
        if 1.0 - below <= FAILURE:
            return rank
        term *= mean / rank
    return None
