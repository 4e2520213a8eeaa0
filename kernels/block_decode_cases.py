"""Problems for `block_decode`: what its tests and the check on a GPU run on."""

from typing import Any, NamedTuple

import torch

from longrec.kernels.block_decode import BlockWeights, block_decode_reference, block_decode_triton
from longrec.kernels.exactness import Comparison, compare
from longrec.kernels.types import PagedMemory

__all__ = ["SETTINGS", "SHAPES", "BlockCase", "BlockProblem", "compare_block"]

SETTINGS: dict[str, Any] = {"window": 20, "rotary_base": 10_000.0}


class BlockProblem(NamedTuple):
    """Arguments of `block_decode`: call it with `*problem`."""

    x: torch.Tensor
    weights: BlockWeights
    positions: torch.Tensor
    slots: torch.Tensor
    memory: PagedMemory

    def copy(self, dtype: torch.dtype) -> "BlockProblem":
        """The same values in a dtype, with pages of its own."""
        k_pages, v_pages = (pages.to(dtype, copy=True) for pages in (self.memory.k_pages, self.memory.v_pages))
        weights = BlockWeights(*(weight.to(dtype) for weight in self.weights))
        memory = self.memory._replace(k_pages=k_pages, v_pages=v_pages)
        return BlockProblem(self.x.to(dtype), weights, self.positions, self.slots, memory)


class BlockCase(NamedTuple):
    """A block of width d, Hq and Hkv heads of D and a feed-forward of F, over memories of these lengths in pages of
    S."""

    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    page_size: int
    lengths: tuple[int, ...]

    @property
    def id(self) -> str:
        """`d48-Hq4-Hkv2-D16-F40-S16-B5`."""
        return "d{}-Hq{}-Hkv{}-D{}-F{}-S{}-B{}".format(*self[:6], len(self.lengths))

    def make(self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> BlockProblem:
        """Pages in random order, free places full of NaN, logs longer than memories."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64) * scale

        dim, num_heads, num_kv_heads, head_dim, hidden_dim, page_size, _ = self
        weights = BlockWeights(
            attention_norm=1 + normal(dim, scale=0.1),
            qkv=normal((num_heads + 2 * num_kv_heads) * head_dim, dim, scale=dim**-0.5),
            out=normal(dim, num_heads * head_dim, scale=(num_heads * head_dim) ** -0.5),
            feed_forward_norm=1 + normal(dim, scale=0.1),
            gate_up=normal(2 * hidden_dim, dim, scale=dim**-0.5),
            down=normal(dim, hidden_dim, scale=hidden_dim**-0.5),
        )
        lengths = torch.tensor(self.lengths)
        held = lengths // page_size + 1  # the new event included
        num_pages = int(held.sum()) + 3
        indices = torch.randperm(num_pages, generator=generator)[: int(held.sum())]
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64), held.cumsum(0)])
        pages = normal(2, num_pages, page_size, num_kv_heads, head_dim)
        free = torch.ones(num_pages, page_size, dtype=torch.bool)
        for user, length in enumerate(self.lengths):
            event = torch.arange(length)
            free[indices[indptr[user] + event // page_size], event % page_size] = False
        pages[:, free] = torch.nan
        slots = indices[indptr[:-1] + lengths // page_size] * page_size + lengths % page_size
        x = normal(len(lengths), dim).to(device, dtype)
        memory = PagedMemory(
            *(page.to(device, dtype, copy=True) for page in pages),
            *(numbers.to(device, torch.int32) for numbers in (indptr, indices, lengths)),
        )
        weights = BlockWeights(*(weight.to(device, dtype) for weight in weights))
        return BlockProblem(x, weights, (lengths + 1000).to(device), slots.to(device), memory)


SHAPES = (
    BlockCase(64, 2, 2, 32, 128, 16, (7,)),
    BlockCase(48, 4, 2, 16, 40, 16, (0, 1, 15, 16, 37)),
    BlockCase(128, 8, 1, 16, 96, 32, (31, 33, 64)),
    BlockCase(100, 2, 2, 64, 64, 128, (3, 129, 0)),
    BlockCase(16, 1, 1, 16, 200, 64, (64, 2, 65, 19, 20, 21, 0, 5, 63)),
)


def compare_block(case: BlockCase, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Comparison]:
    """The output and what was appended, as one row a user."""
    problem = case.make(dtype, device)
    same_dtype, exact = problem.copy(dtype), problem.copy(torch.float64)
    rows = []
    for body, given in (
        (block_decode_triton, problem),
        (block_decode_reference, same_dtype),
        (block_decode_reference, exact),
    ):
        out = body(*given, **SETTINGS)
        page, place = given.slots // case.page_size, given.slots % case.page_size
        written = (pages[page, place].flatten(1) for pages in (given.memory.k_pages, given.memory.v_pages))
        rows.append(torch.cat([part.double() for part in (out, *written)], dim=1))
    ours, theirs, truth = rows
    return [compare("out and appended", ours, theirs, truth, dtype)]
