"""Properties of `segment_attention` over paged memory: however a history is cut into calls, whatever the page size,
whoever was evicted in between and rebuilt, the rows are those of one call over the whole history."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.kernels.append import append_memory_triton
from longrec.kernels.attention_plan import AttentionPlan, Tile
from longrec.kernels.reference import segment_attention as reference
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.types import PagedMemory, PositionBias

HEADS, KV_HEADS, HEAD_DIM = 2, 1, 16
LENGTH = 40
PLANS = {
    "split": AttentionPlan(None, Tile(16, 16, 4, 2), short_rows=64, max_parts=3, min_part_tiles=1),
    "tiled": AttentionPlan(Tile(16, 16, 4, 2), None, short_rows=0, max_parts=1, min_part_tiles=1),
    "shipped": None,
}


class User:
    """One user's history and the pages that hold its beginning."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.q = torch.randn(LENGTH, HEADS, HEAD_DIM, generator=generator)
        self.k, self.v = torch.randn(2, LENGTH, KV_HEADS, HEAD_DIM, generator=generator)
        self.pages: list[int] = []
        self.length = 0  # events in pages
        self.rows = torch.full((LENGTH, HEADS, HEAD_DIM), torch.nan)


def make_pool(num_pages: int, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    pages = torch.full((2, num_pages, page_size, KV_HEADS, HEAD_DIM), torch.nan)
    return pages[0], pages[1]


def one_shot(user: User, window: int, **terms: object) -> torch.Tensor:
    """The rows of the whole history in float64, without memory."""
    cu_seqlens = torch.tensor([0, LENGTH], dtype=torch.int32)
    return reference(user.q.double(), user.k.double(), user.v.double(), cu_seqlens, window=window, **terms)[0]


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), page_size=st.sampled_from([16, 32, 64]), window=st.sampled_from([7, 17, 64]), silu=st.booleans())
def test_any_chunks_pages_and_evictions_give_the_one_shot_rows(
    plan: str, data: st.DataObject, page_size: int, window: int, silu: bool
) -> None:
    terms = {
        "kind": "silu" if silu else "softmax",
        "position_bias": PositionBias(torch.linspace(-1, 1, HEADS * 9).view(HEADS, 9), fraction_bits=1),
    }
    users = [User(seed) for seed in range(3)]
    pages_per_user = -(-LENGTH // page_size)
    k_pages, v_pages = make_pool(3 * pages_per_user + 1, page_size)
    free = list(torch.randperm(len(k_pages), generator=torch.Generator().manual_seed(page_size)).tolist())
    for _ in range(3 * LENGTH):  # ends long before
        if all(user.length == LENGTH for user in users):
            break
        evicted = data.draw(st.sampled_from([None, None, None, 0, 1, 2]), label="evicted")
        if evicted is not None and users[evicted].pages:
            user = users[evicted]
            for page in user.pages:
                k_pages[page] = v_pages[page] = torch.nan  # what the next owner finds
            free += user.pages
            user.pages, user.length = [], 0
        counts = [min(data.draw(st.sampled_from([0, 1, 5, 19]), label="new"), LENGTH - user.length) for user in users]
        if not any(counts):
            counts = [LENGTH - user.length for user in users]
        step(users, counts, k_pages, v_pages, free, window, PLANS[plan], terms)
    for user in users:
        expected = one_shot(user, window, **terms)
        torch.testing.assert_close(user.rows.double(), expected, rtol=1e-4, atol=1e-5)


def step(
    users: list[User],
    counts: list[int],
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    free: list[int],
    window: int,
    plan: AttentionPlan | None,
    terms: dict[str, object],
) -> None:
    """The next `counts` events of the users in one call: attend, then append."""
    page_size, slots = k_pages.shape[1], []
    for user, count in zip(users, counts, strict=True):
        while len(user.pages) * page_size < user.length + count:
            user.pages.append(free.pop())
        places = range(user.length, user.length + count)
        slots += [user.pages[place // page_size] * page_size + place % page_size for place in places]
    new = [slice(user.length, user.length + count) for user, count in zip(users, counts, strict=True)]
    q, k, v = (torch.cat([getattr(user, name)[part] for user, part in zip(users, new, strict=True)]) for name in "qkv")
    memory = PagedMemory(k_pages, v_pages, offsets([len(user.pages) for user in users]), *tables(users))
    out, _ = segment_attention(q, k, v, offsets(counts), window=window, memory=memory, plan=plan, **terms)
    positions = torch.cat([torch.arange(part.start, part.stop) for part in new])
    append_memory_triton(q, k, v, positions, torch.tensor(slots), k_pages, v_pages, rotary_base=None)
    for user, part, rows in zip(users, new, out.split(counts), strict=True):
        user.rows[part] = rows
        user.length = part.stop


def offsets(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def tables(users: list[User]) -> tuple[torch.Tensor, torch.Tensor]:
    """page_indices and lengths."""
    indices = torch.tensor([page for user in users for page in user.pages], dtype=torch.int32)
    return indices, torch.tensor([user.length for user in users], dtype=torch.int32)
