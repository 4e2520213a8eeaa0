"""`LastStates` against the network's own pass over whole histories."""

import numpy as np
import pytest
import torch

from longrec.config import ModelConfig
from longrec.modeling.last_states import LastStates
from longrec.modeling.transformer import Transformer

WINDOW = 80  # more than a tile of queries


def make_network(num_layers: int, num_kv_heads: int, window: int) -> Transformer:
    torch.manual_seed(num_layers)
    config = ModelConfig(
        num_items=50, dim=32, num_heads=4, num_kv_heads=num_kv_heads, num_layers=num_layers, window=window
    )
    network = Transformer(config).eval().double()
    with torch.no_grad():
        for weight in network.parameters():  # as initialised, attention hardly matters
            if weight.ndim > 1:
                weight.mul_(8)
    return network


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize(
    ("num_layers", "num_kv_heads", "window", "lengths"),
    [
        (1, 4, WINDOW, (1, 2, 79, 80)),
        (2, 4, WINDOW, (1, 80, 80, 81, 159)),
        (2, 2, WINDOW, (3, 3, 3, 140, 159, 159)),
        (3, 1, WINDOW, (40, 40, 81, 160, 238)),
        (3, 2, 1, (1, 1)),
        (2, 4, 200, (1, 150, 200)),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_equals_the_whole_pass(num_layers, num_kv_heads, window, lengths, pruned):
    network = make_network(num_layers, num_kv_heads, window)
    rng = np.random.default_rng(0)
    items, gaps = (torch.from_numpy(rng.integers(0, high, sum(lengths))) for high in (51, 32))
    states = LastStates(network, pruned=pruned)(items, gaps, list(lengths))
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    # positions far from 0: distance alone counts
    positions = torch.cat([torch.arange(length) + 1_000 * b for b, length in enumerate(lengths)])
    with torch.no_grad():
        whole = network(items, gaps, positions, cu_seqlens)
    torch.testing.assert_close(states, whole[cu_seqlens[1:].long() - 1], rtol=0, atol=1e-10)
