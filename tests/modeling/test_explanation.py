"""Explanations against a recomputation in float64: what the last layer's output loses without an event's value."""

import numpy as np
import pytest
import torch

from longrec.config import ModelConfig
from longrec.kernels import rotate, segment_attention
from longrec.modeling.events import Events
from longrec.modeling.explanation import attention_contributions
from longrec.modeling.families import build_network
from longrec.modeling.hstu import HSTU
from longrec.modeling.paged import PagedNetwork
from longrec.modeling.transformer import ServingMemory, Transformer

WINDOW, PAGE_SIZE, POISON = 9, 4, float("nan")
CONFIG = ModelConfig(num_items=50, dim=16, num_heads=4, num_kv_heads=2, hidden_dim=24, num_layers=3, window=WINDOW)


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(5)
    network = Transformer(CONFIG).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8) if weight.ndim > 1 else weight.add_(torch.rand_like(weight))
    return network


def losses_by_removal(network, items, gaps, vectors):
    """[k, n]: how much each event's value adds to (last layer's attention output * gain) . vector of the item."""
    length = len(items)
    cu_seqlens, positions = torch.tensor([0, length], dtype=torch.int32), torch.arange(length)
    x = network.items(items) + network.gaps(gaps)
    for index, block in enumerate(network.blocks[:-1]):
        x = block(x, positions, cu_seqlens, None, index)
    last = network.blocks[-1]
    q, k, v = last.qkv(last.attention_norm(x)).reshape(length, 8, 4).split((4, 2, 2), dim=1)
    q, k = rotate(q, positions, CONFIG.rotary_base)[-1], rotate(k, positions, CONFIG.rotary_base)

    def score(values):
        heads = []
        for head in range(4):
            logits = k[:, head // 2] @ q[head] / 4**0.5
            logits[: max(0, length - WINDOW)] = -torch.inf
            heads.append(logits.softmax(dim=0) @ values[:, head // 2])
        return vectors @ (network.norm.weight * last.out(torch.cat(heads)))

    columns = []
    for event in range(length):
        without = v.clone()
        without[event] = 0
        columns.append(score(v) - score(without))
    return torch.stack(columns, dim=1)


def attended(network: PagedNetwork, events: Events, removed: int | None = None) -> torch.Tensor:
    """[Hq * D], the last layer's attention output of the last event, without the value of the event that is removed."""
    x, last = network.embed(events), network.blocks[-1]
    if isinstance(network, HSTU):
        for index, block in enumerate(network.blocks[:-1]):
            x = block(x, events, None, index)
        gate, q, k, v = last.uqkv_of(x)
        position, time = last.biases(events, None)
        terms = {"kind": "silu", "position_bias": position, "time_bias": time}
    else:
        distances = network._distances(x)
        for index, block in enumerate(network.blocks[:-1]):
            x = block(x, distances, events, None, index)
        q, k, v = last.qkv_of(x)
        gate, terms = None, {"relative": last.terms(distances)}
    if removed is not None:
        v = v.clone()
        v[removed] = 0
    out = segment_attention(q, k, v, events.cu_seqlens, window=WINDOW, **terms)[0][-1].flatten()
    if gate is None:
        return out
    return out * WINDOW * last.out_norm.weight * gate[-1].flatten()  # what all events have in common left out


@pytest.mark.parametrize("family", ["transformer_xl", "hstu"])
@pytest.mark.parametrize("length", [1, 7, WINDOW, 23])
@torch.no_grad()
def test_families_with_other_scores_explain_by_what_the_output_loses(family, length):
    torch.manual_seed(5)
    network = build_network(CONFIG.model_copy(update={"family": family})).double().eval()
    for weight in network.parameters():
        weight.add_(0.3 * torch.randn_like(weight))
    rng = torch.Generator().manual_seed(length)
    events = Events(
        torch.randint(0, 50, (length,), generator=rng),
        torch.randint(0, 32, (length,), generator=rng),
        torch.randint(0, 9_000, (length,), generator=rng).cumsum(0).int(),
        torch.arange(length),
        torch.tensor([0, length], dtype=torch.int32),
    )
    before = events.take(torch.arange(length - 1), torch.tensor([length - 1]))
    newest = events.take(torch.tensor([length - 1]), torch.tensor([1]))
    _, held = network.step(before, network.new_memory(1))
    memory = held.reserve(newest)._replace(slots=torch.tensor([-1]))
    vectors = network.item_table[torch.tensor([[3, 17]])]
    found = attention_contributions(network, newest, memory, vectors)[0]
    wanted = vectors[0] * network.norm.weight @ network.blocks[-1].out.weight
    whole = attended(network, events)
    seen = found.shape[1] - 1  # events in the pages, the newest aside
    for column in range(seen + 1):
        event = length - 1 - seen + column
        if event <= length - 1 - WINDOW:
            assert (found[:, column] == -torch.inf).all()
        else:
            lost = wanted @ (whole - attended(network, events, event))
            torch.testing.assert_close(found[:, column], lost, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [[1], [2, 7], [WINDOW, WINDOW + 1, 23, 1], [40, 8, 16]], ids=str)
@torch.no_grad()
def test_contributions_equal_what_the_score_loses_without_the_event(network, lengths):
    rng = np.random.default_rng(sum(lengths))
    histories = [(rng.integers(0, 51, n), rng.integers(0, 32, n)) for n in lengths]
    histories = [tuple(torch.from_numpy(part) for part in history) for history in histories]
    firsts = [max(0, (n - WINDOW) // PAGE_SIZE * PAGE_SIZE) for n in lengths]  # the pages that a pool still holds
    pages = torch.full((2, 3, 64, PAGE_SIZE, 2, 4), POISON, dtype=torch.float64)
    order, indptr, indices, free = [], [0], [], rng.permutation(64).tolist()
    for (items, gaps), first in zip(histories, firsts, strict=True):
        length = len(items)
        own = [free.pop() for _ in range(-(-(length - first) // PAGE_SIZE))]
        slots = np.array(
            [own[(p - first) // PAGE_SIZE] * PAGE_SIZE + (p - first) % PAGE_SIZE for p in range(first, length)]
        )
        slots = torch.from_numpy(np.concatenate([np.full(first, -1), slots]).astype(np.int64))
        empty = torch.zeros(2, dtype=torch.int32)
        memory = ServingMemory(list(pages[0]), list(pages[1]), empty, empty[:0], empty[:1], slots)
        network(items, gaps, torch.arange(length), torch.tensor([0, length], dtype=torch.int32), memory)
        kept = own[: -(-(length - 1 - first) // PAGE_SIZE)]
        indices += kept
        indptr.append(indptr[-1] + len(kept))
        order.append(length - 1)
    before = pages.clone()
    memory = ServingMemory(
        list(pages[0]),
        list(pages[1]),
        torch.tensor(indptr, dtype=torch.int32),
        torch.tensor(indices, dtype=torch.int32),
        torch.tensor([position - first for position, first in zip(order, firsts, strict=True)], dtype=torch.int32),
        torch.full((len(lengths),), -1),
        max_new=1,
    )
    wanted = torch.from_numpy(rng.integers(0, 50, (len(lengths), 3)))
    found = attention_contributions(
        network,
        Events(
            torch.stack([items[-1] for items, _ in histories]),
            torch.stack([gaps[-1] for _, gaps in histories]),
            torch.zeros(len(lengths), dtype=torch.int32),
            torch.tensor(order),
            torch.arange(len(lengths) + 1, dtype=torch.int32),
        ),
        memory,
        network.item_table[wanted],
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(pages, before, rtol=0, atol=0, equal_nan=True, msg="nothing is written")
    for b, (items, gaps) in enumerate(histories):
        expected = losses_by_removal(network, items, gaps, network.item_table[wanted[b]])
        seen = len(items) - firsts[b] - 1
        torch.testing.assert_close(found[b, :, -1], expected[:, -1], rtol=1e-9, atol=1e-9)
        mine, theirs = found[b, :, :seen], expected[:, firsts[b] : -1]
        visible = torch.arange(firsts[b], len(items) - 1) > len(items) - 1 - WINDOW
        torch.testing.assert_close(mine[:, visible], theirs[:, visible], rtol=1e-9, atol=1e-9)
        assert (mine[:, ~visible] == -torch.inf).all()
        assert (found[b, :, seen:-1] == -torch.inf).all()
