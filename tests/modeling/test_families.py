"""What every family promises, in float64: streamed = recomputed over its memory, users apart, a reach that is exact."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from longrec import kernels
from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint
from longrec.config import ModelConfig, parse_config
from longrec.errors import ArgumentError, CheckpointError
from longrec.kernels.attention import segment_attention_with_gradient
from longrec.modeling import FAMILIES, Events, Network, Transformer, build_network, load_network, load_run, save_run
from longrec.modeling.seq2seq import Seq2Seq

ITEMS = 30


def network(family: str, **shape: int) -> Network:
    options = {
        "num_items": ITEMS,
        "dim": 16,
        "hidden_dim": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "window": 37,
        **shape,
    }
    torch.manual_seed(5)
    net = build_network(ModelConfig(family=family, **options), dropout=0.5).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # away from the small initial weights, so that faults show
    return net


def events(*lengths: int) -> Events:
    rng, total = torch.Generator().manual_seed(sum(lengths)), sum(lengths)
    seconds = torch.randint(0, 10**5, (total,), generator=rng).cumsum(0).int()
    return Events(
        torch.randint(0, ITEMS + 1, (total,), generator=rng),
        torch.randint(0, 32, (total,), generator=rng),
        seconds,
        torch.cat([torch.arange(n) for n in lengths]),
        cumulative(lengths),
    )


def cumulative(lengths: Sequence[int]) -> torch.Tensor:
    return torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def user(batch: Events, index: int, start: int = 0, stop: int | None = None) -> Events:
    """Events start..stop of one user, as a batch."""
    first, end = batch.cu_seqlens[index : index + 2].tolist()
    rows = torch.arange(end)[first:][start:stop]
    return batch.take(rows, torch.tensor([len(rows)]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_events_in_pieces_over_the_memory_give_the_states_of_the_whole(family: str) -> None:
    """Three users in turns and together, beyond the window and over many pages; one of them begins anew."""
    net, lengths = network(family), (150, 71, 9)
    batch = events(*lengths)
    whole, streamed = net.states(batch), torch.full((230, 16), torch.nan, dtype=torch.float64)
    memory, done = net.new_memory(3), [0, 0, 0]
    for pieces in ((5, 0, 3), (1, 33, 0), (0, 1, 6), (70, 4, 0), (1, 33, 0), (73, 0, 0)):
        rows = [int(batch.cu_seqlens[u]) + done[u] + n for u, count in enumerate(pieces) for n in range(count)]
        states, memory = net.step(batch.take(torch.tensor(rows), torch.tensor(pieces)), memory)
        streamed[rows] = states
        done = [a + b for a, b in zip(done, pieces, strict=True)]
    assert tuple(done) == lengths
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-10)
    memory.reset([0, 2])
    again = batch.take(torch.arange(221, 230), torch.tensor([0, 0, 9]))
    torch.testing.assert_close(net.step(again, memory)[0], whole[221:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_last_states_are_those_after_the_last_events_of_users_alone(family: str) -> None:
    net, batch = network(family), events(60, 0, 3, 60, 14)
    found = net.last_states(batch)
    for index in range(5):
        alone = user(batch, index)
        expected = net.states(alone)[-1] if len(alone.items) else net.start
        torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_lies_within_reach_matters_and_nothing_else_does(family: str) -> None:
    net, batch = network(family, window=6), events(40)
    reach = net.config.reach
    whole = net.states(batch)[-1]
    if reach is not None:
        torch.testing.assert_close(net.states(user(batch, 0, 40 - reach))[-1], whole, rtol=0, atol=1e-10)
    changed = batch.items.clone()
    changed[40 - (reach or 40)] += 1 if changed[40 - (reach or 40)] < ITEMS else -1
    assert not torch.equal(net.states(batch._replace(items=changed))[-1], whole)


@pytest.mark.parametrize("family", [family for family in FAMILIES if FAMILIES[family].recurrent])
def test_memory_carries_no_gradient(family: str) -> None:
    """What only the past holds gets none; what the new events hold gets some."""
    net = network(family)
    batch = events(12)
    batch.items[:] = torch.arange(12)
    _, memory = net.step(user(batch, 0, 0, 8), net.new_memory(1))
    states, _ = net.step(user(batch, 0, 8), memory)
    states.square().sum().backward()
    gradient = net.items.weight.grad
    assert gradient is not None
    assert gradient[8:12].abs().sum(1).all()
    assert not gradient[:8].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_round_trip(family: str, tmp_path: Path) -> None:
    config = ModelConfig(num_items=7, dim=8, hidden_dim=12, family=family)
    torch.manual_seed(0)
    net = build_network(config).eval()
    save_run(tmp_path, net, config, Catalogue([f"i{n}" for n in range(7)], ["?"] * 7), {})
    read, checkpoint = load_run(tmp_path)
    assert type(read) is FAMILIES[family]
    assert checkpoint.config == config
    batch = events(9, 4)
    batch = batch._replace(items=batch.items % 7)
    with torch.no_grad():
        torch.testing.assert_close(read.states(batch), net.states(batch), rtol=0, atol=0)
    if family == "transformer":
        assert isinstance(load_network(tmp_path)[0], Transformer)
    else:
        with pytest.raises(CheckpointError, match=f"family: expected transformer, .* got {family}"):
            load_network(tmp_path)


def test_a_checkpoint_from_before_families_is_a_transformer(tmp_path: Path) -> None:
    config = ModelConfig(num_items=7, dim=8, hidden_dim=12)
    save_run(tmp_path, build_network(config), config, Catalogue([f"i{n}" for n in range(7)], ["?"] * 7), {})
    text = (tmp_path / "config.json").read_text()
    for added in ('    "family": "transformer",\n', ',\n    "horizon": 2'):
        assert added in text
        text = text.replace(added, "")
    (tmp_path / "config.json").write_text(text)
    assert load_checkpoint(tmp_path).config == config
    assert isinstance(load_network(tmp_path)[0], Transformer)


def test_an_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(ArgumentError, match=r"here: family: expected 'transformer', .* or 'seq2seq', got 'rnn'"):
        parse_config(ModelConfig, {"num_items": 9, "family": "rnn"}, "here")


@torch.no_grad()
def test_seq2seq_emits_steps_one_after_the_other() -> None:
    net, batch = network("seq2seq", horizon=3), events(20, 7)
    assert isinstance(net, Seq2Seq)
    emitted = net.emit(batch)
    assert emitted.shape == (2, 3)
    encoded = net.encode(batch)
    states = net.decode(encoded, batch.counts, emitted[:, :2])
    assert torch.equal(net.scores(states).argmax(-1), emitted)
    torch.testing.assert_close(states[:, 0], net.last_states(batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["transformer_xl", "hstu"])
def test_a_gpu_s_kernels_take_what_a_family_hands_them(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """States over a memory and their gradients, by the kernels (here in the interpreter) and by the reference."""
    net = network(family, num_layers=1, dim=32, num_heads=2, num_kv_heads=1, window=5).float()
    batch = events(9, 6)
    past, new = (
        batch.take(torch.tensor(rows), torch.tensor(counts))
        for rows, counts in (([0, 1, 2, 3, 9, 10], [4, 2]), ([4, 5, 6, 7, 8, 11, 12, 13, 14], [5, 4]))
    )
    found = []
    for operator in (kernels.segment_attention, segment_attention_with_gradient):
        monkeypatch.setattr(kernels, "segment_attention", operator)
        _, memory = net.step(past, net.new_memory(2))
        states, _ = net.step(new, memory)
        net.zero_grad()
        states.square().sum().backward()
        found.append([states.detach(), *(weight.grad for weight in net.parameters() if weight.grad is not None)])
    assert len(found[0]) == len(list(net.parameters()))  # all but the start state, and the states
    for theirs, ours in zip(*found, strict=True):
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
