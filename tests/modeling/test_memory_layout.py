"""Pages of other dtypes than the weights': their layout, and that the network writes and reads them."""

import pytest
import torch

from longrec.config import ModelConfig
from longrec.modeling import ServingMemory, Transformer, memory_layout

MODEL = ModelConfig(num_items=30, dim=64, hidden_dim=64, num_heads=2, num_kv_heads=2, window=20)
PAGES = 8


def memory(dtype: torch.dtype, stored: str) -> ServingMemory:
    layout = memory_layout(MODEL, dtype, stored, 16)
    pages = [[torch.zeros(PAGES, *layout.shape, dtype=layout.dtype) for _ in range(2)] for _ in range(2)]
    scales = None
    if layout.has_scales:
        scales = [[torch.zeros(PAGES, *layout.shape[:2]) for _ in range(2)] for _ in range(2)]
    empty = torch.zeros(0, dtype=torch.int32)
    made = ServingMemory(*pages, empty, empty, empty, empty)
    return made if scales is None else made._replace(k_scales=scales[0], v_scales=scales[1])


def states(net: Transformer, held: ServingMemory, pieces: list[int]) -> torch.Tensor:
    """Of one user's events, in pages 5, 2, 7 and 0, given in pieces."""
    total, done = sum(pieces), 0
    items, table = torch.arange(total) % 30, torch.tensor([5, 2, 7, 0], dtype=torch.int32)
    out = []
    for count in pieces:
        position = torch.arange(done, done + count)
        given = held._replace(
            page_indptr=torch.tensor([0, 4], dtype=torch.int32),
            page_indices=table,
            lengths=torch.tensor([done], dtype=torch.int32),
            slots=table[position // 16].long() * 16 + position % 16,
        )
        offsets = torch.tensor([0, count], dtype=torch.int32)
        out.append(net(items[position], position % 7, position, offsets, given))
        done += count
    return torch.cat(out)


def test_int8_takes_less_than_a_third_of_float32() -> None:
    small = memory_layout(MODEL, torch.float32, "int8", 32).page_bytes
    assert small / memory_layout(MODEL, torch.float32, "same", 32).page_bytes == (32 + 4) / (4 * 32) <= 0.30
    assert memory_layout(MODEL, torch.bfloat16, "same", 32).dtype == torch.bfloat16


@pytest.mark.parametrize("stored", ["int8", "bfloat16", "float16"])
@torch.no_grad()
def test_narrow_memory_gives_nearly_the_states_of_wide_however_events_are_cut(stored: str) -> None:
    torch.manual_seed(3)
    net = Transformer(MODEL).eval()
    for weight in net.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    wide = states(net, memory(torch.float32, "same"), [50])
    scale = wide.abs().max()
    at_once = states(net, memory(torch.float32, stored), [50])
    assert 0 < (at_once - wide).abs().mean() / scale < 0.02
    in_pieces = states(net, memory(torch.float32, stored), [1, 20, 1, 1, 27])
    assert (in_pieces - at_once).abs().mean() / scale < 1e-4
    composed = states(net.double(), memory(torch.float64, stored), [17, 33])  # the operators one by one
    assert (composed - at_once).abs().mean() / scale < 1e-3
