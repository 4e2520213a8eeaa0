"""How `catalogue_topk` cuts its work: sample, threshold, tiles, lists. Host arithmetic; nothing is launched here.

Cut the N items into strata of w = 2^shift neighbours and draw one item from each. Whatever the order of the catalogue,
the number of a row's k best among the drawn is a sum of independent draws of mean k / w, whose tail is at most that of
Binomial(k, 1 / w) (Hoeffding 1956, "On the distribution of the number of successes"). The r-th best of the sample lies
below the k-th best of all, as it must, unless r of the k best were drawn; r is the least that makes this rarer than
`FAILURE`. Then about r w items reach the threshold, and are the row's candidates. Each program of the sample keeps the
few best of its share, and the threshold never falls to what was not kept, so that the scan can leave out what was
drawn: no item is read twice. A row for which the threshold failed is found out (its list is too short) and answered by
brute force, so that the plan decides speed and never the answer.

Bytes, for B <= 64 rows of hidden states and items of e bytes each: N e for the items, and on top of them

    B e a program (it reads the hidden states), 24 a candidate and row (written, read, counted by an atomic),
    16 (kept + 1) a program of the sample and row; w and the sample's programs are those with the least sum.

No cut of the scan into P programs that read B items or more each moves less than N e + P B e. Say program p reads b_p
rows and n_p items, in units of e. Every product of a row and an item is made by a program that has read both, so

    sum b_p n_p >= B N,  so  sum n_p >= N + sum (B - b_p) n_p / B >= N + sum (B - b_p),  so  sum (b_p + n_p) >= N + P B.

So P B / N of the items' bytes stands above the least whatever is done: for 64 rows and one program for each of an
H100's multiprocessors 6.4 % of 2^17 items, 3.2 % of 2^18, 0.8 % of 2^20. Fewer programs would leave multiprocessors
idle in order to spare reads that the second-level cache answers.
"""

import itertools
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
    "KEPT",
    "MAX_DIM",
    "MAX_K",
    "MAX_ROWS",
    "SAMPLE_WARPS",
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
SAMPLE_TILES = (1, 2, 4, 8)  # that a program of the sample may take, one after the other
SAMPLE_PROGRAMS = 128  # at most
KEPT = (8, 16)  # samples that such a program may keep a row
SAMPLE_WARPS = 8  # drawn items are far apart: a pointer each, and for rows that are not aligned one an element
CHUNK = 1024  # candidates that a round of the last sort takes
SPARE_BYTES = 0.04  # of the items' bytes: up to here fewer bytes are worth nothing, and the time of the sample counts
CANDIDATE_BYTES = 24  # a key written and read, and the atomic that finds its place


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
        shift: a stratum of the sample has 2^shift items. sample_tile: strata a tile. num_tiles: such tiles.
        num_shares: programs of the sample. kept: of each one's share for a row.
        rank: of the threshold among the sample. top_rank: power of two that holds it.
        capacity: candidates that a row's list holds.
        num_programs, num_blocks: programs of the scan over the items, and blocks of items each.
        brute_programs, brute_blocks: the same of the brute force, for each row.
        expected_bytes: that the launches move, as planned.
    """

    brute: bool
    top: int
    shift: int
    sample_tile: int
    num_tiles: int
    num_shares: int
    kept: int
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
    items_bytes = num_items * dim * item_bytes
    # a tile of 64 spills: float32 is multiplied out of registers, and wide rows wait in them
    sample_tile = 32 if item_bytes == 4 or dim > 128 else 64
    best, least = None, math.inf
    for shift, tiles in itertools.product(range(3, num_items.bit_length() - 10), SAMPLE_TILES):
        rank = binomial_bound(k, 1 / (1 << shift), FAILURE)
        num_tiles = triton.cdiv(num_items >> shift, sample_tile)
        num_shares = triton.cdiv(num_tiles, tiles)
        # keys of a share that reach the threshold and aren't kept raise it, which fails if they are of the k best
        most = binomial_bound(k, 1 / (num_shares << shift), FAILURE / num_shares)
        kept = next((kept for kept in KEPT if most <= kept and rank <= kept * num_shares), None)
        if kept is None or rank > MAX_RANK or num_shares > SAMPLE_PROGRAMS:
            continue
        candidates = rank << shift
        moved = items_bytes + (num_shares + num_programs) * hidden_bytes
        moved += num_rows * (CANDIDATE_BYTES * candidates + 16 * (kept + 1) * num_shares)
        # a round of the last sort takes about 1 us, 1 % of the time for a million items of 128; a tile of the sample is
        # as long, but worth less here, so that it never costs a small catalogue its bytes
        rounds = math.ceil(1.2 * candidates / CHUNK)
        cost = max(moved, (1 + SPARE_BYTES) * items_bytes) + (0.01 * rounds + 0.001 * tiles) * items_bytes
        if cost < least:
            least = cost
            lists = max(brute_programs * top, num_shares * kept, int(3 * candidates))
            best = TopkPlan(
                brute=False,
                top=top,
                shift=shift,
                sample_tile=sample_tile,
                num_tiles=num_tiles,
                num_shares=num_shares,
                kept=kept,
                rank=rank,
                top_rank=max(2, triton.next_power_of_2(rank)),
                capacity=triton.next_power_of_2(lists),
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
        shift=0,
        sample_tile=0,
        num_tiles=0,
        num_shares=0,
        kept=0,
        rank=0,
        top_rank=1,
        capacity=brute_programs * top,
        num_programs=0,
        num_blocks=0,
        brute_programs=brute_programs,
        brute_blocks=brute_blocks,
        expected_bytes=num_rows * (num_items * dim * item_bytes + 16 * brute_programs * top),
    )


def binomial_bound(trials: int, chance: float, failure: float) -> int:
    """The least r with P(Binomial(trials, chance) >= r) <= failure."""
    term = below = (1.0 - chance) ** trials
    rank = 1
    while 1.0 - below > failure:
        term *= (trials - rank + 1) / rank * chance / (1.0 - chance)
        below += term
        rank += 1
    return rank
