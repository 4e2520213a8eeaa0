"""The network in float64: what it may see, and that paged memory changes nothing."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from longrec.config import ModelConfig
from longrec.modeling import ServingMemory, Transformer

ITEMS = 50


def network(**shape: int) -> Transformer:
    options = {"num_items": ITEMS, "dim": 16, "hidden_dim": 24, "num_heads": 4, "num_kv_heads": 2, "window": 6, **shape}
    config = ModelConfig(**options)
    torch.manual_seed(5)
    net = Transformer(config, dropout=0.5).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # away from the small initial weights, so that faults show
    return net


def events(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return (
        torch.randint(0, ITEMS + 1, (total,), generator=rng),
        torch.randint(0, 32, (total,), generator=rng),
        positions,
        cumulative(lengths),
    )


def cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(np.cumsum((0, *lengths)), dtype=torch.int32)


@torch.no_grad()
def test_packed_users_do_not_see_each_other() -> None:
    net = network()
    items, gaps, positions, cu_seqlens = events(9, 0, 3, 14)
    packed = net(items, gaps, positions, cu_seqlens)
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        alone = net(items[start:stop], gaps[start:stop], positions[start:stop], cumulative([stop - start]))
        torch.testing.assert_close(packed[start:stop], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_event_reaches_no_earlier_state_and_none_beyond_the_receptive_field() -> None:
    net = network()
    items, gaps, positions, cu_seqlens = events(30)
    before = net(items, gaps, positions, cu_seqlens)
    items[10] = (items[10] + 1) % ITEMS
    changed = (net(items, gaps, positions, cu_seqlens) - before).abs().amax(1) > 1e-9
    field = net.config.receptive_field
    assert changed.nonzero().flatten().tolist() == list(range(10, 10 + field))


@torch.no_grad()
def test_the_newest_receptive_field_of_events_is_enough_at_any_position() -> None:
    net = network()
    items, gaps, positions, cu_seqlens = events(40)
    whole = net(items, gaps, positions + 1_000_000, cu_seqlens)
    field = net.config.receptive_field
    rest = net(items[-field:], gaps[-field:], positions[-field:], cumulative([field]))
    torch.testing.assert_close(rest[-1], whole[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_events_in_pieces_over_paged_memory_give_the_states_of_the_whole(kv_heads: int) -> None:
    """Two users served in turns and together, through NaN-filled pages in a random order."""
    net, page_size = network(num_kv_heads=kv_heads), 4
    lengths = (21, 13)
    items, gaps, positions, cu_seqlens = events(*lengths)
    whole = net(items, gaps, positions, cu_seqlens)
    k_pages = [torch.full((16, page_size, kv_heads, 4), torch.nan, dtype=torch.float64) for _ in range(2)]
    v_pages = [pages.clone() for pages in k_pages]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    tables = (order[:6], order[6:10])
    rows: list[list[int]] = [[], []]
    states = torch.empty_like(whole)
    for pieces in ((5, 0), (1, 4), (0, 1), (7, 1), (1, 7), (7, 0)):
        chosen, slots, pages = [], [], []
        past = [len(row) for row in rows]
        for user, count in enumerate(pieces):
            new = [int(cu_seqlens[user]) + past[user] + n for n in range(count)]
            rows[user] += new
            chosen += new
            place = positions[new]
            slots.append(tables[user][place // page_size] * page_size + place % page_size)
            pages.append(tables[user][: -(-len(rows[user]) // page_size)])
        memory = ServingMemory(
            k_pages,
            v_pages,
            cumulative([len(page) for page in pages]),
            torch.cat(pages).int(),
            torch.tensor(past, dtype=torch.int32),
            torch.cat(slots),
        )
        states[chosen] = net(items[chosen], gaps[chosen], positions[chosen], cumulative(pieces), memory)
    assert [len(row) for row in rows] == list(lengths)
    torch.testing.assert_close(states, whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_block_in_one_launch_is_the_block() -> None:
    """A decode step of three users, one of them new; both ways write the same pages."""
    net, page_size, past = network(), 4, [9, 0, 3]
    block, x = net.blocks[0], torch.randn(3, 16, dtype=torch.float64)
    pages = torch.randn(2, 8, page_size, 2, 4, dtype=torch.float64)
    tables = [torch.tensor([3, 1, 6]), torch.tensor([0]), torch.tensor([2])]
    slots = torch.stack([t[n // page_size] * page_size + n % page_size for t, n in zip(tables, past, strict=True)])
    results = []
    for decode in (False, True):
        k_pages, v_pages = pages.clone()
        memory = ServingMemory(
            [k_pages], [v_pages], cumulative([3, 1, 1]), torch.cat(tables).int(), torch.tensor(past).int(), slots
        )
        positions = torch.tensor(past)
        offsets = cumulative([1, 1, 1])
        y = block.decode(x, positions, memory, 0) if decode else block(x, positions, offsets, memory, 0)
        results.append((y, k_pages, v_pages))
    for whole, launched in zip(*results, strict=True):
        torch.testing.assert_close(launched, whole, rtol=0, atol=1e-12)
    assert not torch.equal(results[0][1], pages[0])


def test_scores_are_inner_products_with_the_item_table() -> None:
    net = network()
    hidden = torch.randn(3, 16, dtype=torch.float64)
    assert net.item_table.shape == (ITEMS, 16)
    torch.testing.assert_close(net.scores(hidden), hidden @ net.item_table.T)
    assert net.scores(net.start).shape == (ITEMS,)


def test_every_weight_gets_a_gradient() -> None:
    net = network()
    items, gaps, positions, cu_seqlens = events(40, 30)
    items[0] = ITEMS  # the unknown item's row too
    gaps[:32] = torch.arange(32)
    states = torch.cat((net(items, gaps, positions, cu_seqlens), net.start[None]))
    net.scores(states).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    assert net.items.weight.grad is not None
    assert net.items.weight.grad[ITEMS].abs().sum() > 0


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    net = network()
    batch = events(20)
    torch.testing.assert_close(net(*batch), net(*batch), rtol=0, atol=0)
    net.train()
    assert not torch.equal(net(*batch), net(*batch))
    ones = torch.ones(100_000)
    dropped = net.dropout(ones)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(float(dropped.mean()) - 1.0) < 0.02


def test_a_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([w.flatten() for w in Transformer(ModelConfig(num_items=9)).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
