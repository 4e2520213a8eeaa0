"""Chooses tiles by compiling: of the candidates in order of preference the first of which nothing is wrong.

    python -m longrec.kernels.bench.tiling attention_backward    # writes kernels/attention_backward_table.py
    python -m longrec.kernels.bench.tiling cross_entropy         # writes kernels/cross_entropy_table.py

Registers decide what a tile may be, and how many a kernel takes is known to the assembler alone: hence a search and a
table, where the forward of attention has rules. Done again when a kernel changes; `longrec bench kernels --compile`
then proves every entry. The targets that multiply by mma.sync share tiles, as do bfloat16 and float16,
which differ by a register or two: both are tried.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from longrec.kernels import attention_backward_shipped, cross_entropy_shipped
from longrec.kernels.attention_backward_plan import BackwardTile
from longrec.kernels.bench.workers import available_cores
from longrec.kernels.compile_check import compile_shipped, complaints
from longrec.kernels.cross_entropy_plan import Tile
from longrec.kernels.shipped import Shipped

__all__ = ["Search", "attention_backward", "cross_entropy", "first_clean"]

TRIED_ON = {"mma": (120, 86, 80), "wgmma": (90,), "tcgen05": (100,)}  # sm_89 is compiled as sm_86 is
DTYPES = {2: ("bf16", "fp16"), 4: ("fp32",)}


class Search(NamedTuple):
    """One tile to be chosen: `key` and `part` say which; each of the candidates makes `entries`."""

    key: tuple[Any, ...]
    part: str
    candidates: Sequence[Any]
    entries: Callable[[Any], Iterator[Shipped]]


def attention_backward() -> Iterator[Search]:
    """A search for each part of the backward of `segment_attention`, by units, head_dim, itemsize and terms."""
    for units, head_dim, itemsize, relative, biased in product(
        TRIED_ON, attention_backward_shipped.HEAD_DIMS, DTYPES, (False, True), (False, True)
    ):
        variants = {(0, 0): ("memory", "plain"), (0, 1): ("hstu",), (1, 0): ("relative",), (1, 1): ("all",)}
        for part in attention_backward_shipped.KERNELS:
            if part == "distance" and not relative and not biased:
                continue  # nothing hangs on distances

            def entries(
                tile: BackwardTile,
                part: str = part,
                where: tuple[str, int, int] = (units, head_dim, itemsize),
                names: tuple[str, ...] = variants[relative, biased],
            ) -> Iterator[Shipped]:
                for target, dtype, name in product(TRIED_ON[where[0]], DTYPES[where[2]], names):
                    yield attention_backward_shipped.configuration(part, tile, target, dtype, where[1], name)

            candidates = _backward_candidates(part, head_dim, itemsize, relative)
            yield Search((units, head_dim, itemsize, relative, biased), part, candidates, entries)


def _backward_candidates(part: str, head_dim: int, itemsize: int, relative: bool) -> list[BackwardTile]:
    """Large tiles first: each key is read again for every tile of queries, and each query for every tile of keys."""
    warps = (4, 8) if head_dim <= 64 else (8, 4)
    sides = [(16, 16, 8)] if itemsize == 4 else [(64, 64, warps[0]), (64, 64, warps[1]), (32, 64, 4)]
    sides = [*sides[: 3 * (itemsize == 2)], (32, 32, 4), (32, 32, 8), (16, 32, 4), (16, 16, 4), (16, 16, 8)]
    tiles = [BackwardTile(m, n, head_dim, w, 2) for m, n, w in sides]
    if part == "rows":
        return [tile for tile in tiles if tile.block_m <= 32]
    for block_d in (64, 32, 16):  # rows in pieces: slower, for they are loaded piece by piece and again as a whole
        if block_d < head_dim:
            tiles += [BackwardTile(m, n, block_d, w, 2) for m, n, w in ((16, 32, 4), (16, 16, 4), (16, 16, 8))]
    return [tile for tile in tiles if not relative or tile.block_m <= tile.block_n]


def cross_entropy() -> Iterator[Search]:
    """A search for each part of `catalogue_cross_entropy`, by units, padded width, alignment and itemsize."""
    widths = {(padded, True): padded for padded in (16, 32, 64, 128, 256)}
    widths |= {(padded, False): padded - padded // 4 - 2 for padded in (16, 32, 64, 128, 256)}  # shipped DIMS
    for units, (key, dim), itemsize in product(TRIED_ON, widths.items(), DTYPES):
        for part in ("lse", "hidden", "items"):

            def entries(
                tile: Tile, part: str = part, where: tuple[str, int, int] = (units, dim, itemsize)
            ) -> Iterator[Shipped]:
                for target, dtype, sampled in product(TRIED_ON[where[0]], DTYPES[where[2]], (True, False)):
                    yield cross_entropy_shipped.configuration(part, tile, target, dtype, where[1], sampled)

            yield Search((units, *key, itemsize), part, _loss_candidates(key[0], itemsize), entries)


def _loss_candidates(width: int, itemsize: int) -> list[Tile]:
    """Large tiles first; what could never fit the registers isn't tried, for what spills takes long to compile."""
    if itemsize == 4:
        sides = [(64, 64, 8), (32, 64, 4), (32, 32, 4), (32, 32, 8), (16, 32, 4), (16, 32, 8), (16, 16, 4), (16, 16, 8)]
    else:
        sides = [(128, 128, 8), (128, 64, 8), (64, 64, 4), (64, 64, 8), (64, 32, 4), (32, 32, 4), (32, 32, 8)]
        sides += [(16, 32, 4), (16, 16, 4), (16, 16, 8)]
    pieces = {2: 0.5, 4: 2.0}[itemsize]  # registers an element: float32 is multiplied in parts
    fitting = [
        Tile(m, n, warps, 2)
        for m, n, warps in sides
        if ((m + n) * width * pieces + max(m, n) * width + 2 * m * n) / (32 * warps) < 240
    ]
    if itemsize == 4 and width > 128:
        fitting += [Tile(16, 32, 8, 2, block_d=64), Tile(16, 16, 8, 2, block_d=32)]
    return [*fitting, Tile(16, 16, 8, 1)]


def first_clean(search: Search) -> Any:
    """The first candidate without a complaint; where there is none, the one that spills least, and a line on stderr."""

    def kept(entry: Shipped) -> tuple[str, ...]:
        """A smaller tile doesn't make the compiler pipeline a loop: where it doesn't, `--compile` says so."""
        return tuple(kind for kind in entry.expects if kind == "matrix")

    spilt: dict[Any, int] = {}
    for tile in search.candidates:
        reports = ((entry, compile_shipped(entry)) for entry in search.entries(tile))
        wrong = next(
            (
                (found, report)
                for entry, report in reports
                if (found := complaints(entry._replace(expects=kept(entry)), report))
            ),
            None,
        )
        if wrong is None:
            return tile
        if wrong[1].stack_bytes:
            spilt[tile] = wrong[1].stack_bytes
    print(f"{search.key} {search.part}: no candidate compiles clean", spilt, file=sys.stderr, flush=True)
    return min(spilt, key=lambda tile: spilt[tile])


SEARCHES: dict[str, tuple[Callable[[], Iterator[Search]], str, str]] = {
    "attention_backward": (
        attention_backward,
        "BackwardTile",
        "Tiles of the backward of `segment_attention`, by matrix units, head_dim, itemsize, relative terms and biases",
    ),
    "cross_entropy": (
        cross_entropy,
        "Tile",
        "Tiles of `catalogue_cross_entropy`, by matrix units, padded width, whether rows are aligned, and itemsize",
    ),
}


def _numbered(name: str, number: int) -> tuple[tuple[Any, ...], str, tuple[int, ...]]:
    search = list(SEARCHES[name][0]())[number]
    tile = first_clean(search)
    print(search.key, search.part, tuple(tile), file=sys.stderr, flush=True)
    return search.key, search.part, tuple(tile)


def main(name: str) -> None:
    """Write the table's module."""
    searches, tile, title = SEARCHES[name]
    count = sum(1 for _ in searches())
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        found = list(pool.map(_numbered, [name] * count, range(count)))
    plans: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
    for key, part, values in found:
        plans.setdefault(key, {})[part] = values
    parts = max(plans.values(), key=len)
    lines = [
        f'"""{title}.\n\nMade by `python -m longrec.kernels.bench.tiling {name}`; not for editing.\n"""\n',
        '__all__ = ["TABLE"]\n',
        "# fmt: off",
        "TABLE: dict[tuple[str | int, ...], tuple[tuple[int, ...], ...]] = {",
        f"    # each a {tile}: {', '.join(parts)}",
        *(f"    {key}:\n        {tuple(tiles.values())}," for key, tiles in plans.items()),
        "}",
    ]
    table = Path(__file__).parents[1] / f"{name}_table.py"
    table.write_text("\n".join(lines).replace("'", '"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
