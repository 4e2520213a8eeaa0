"""What narrow memory costs in ranking quality: each user's past in chunks through paged memory, then the test event.

    python benchmarks/cpu_memory.py runs/demo data/ml-100k

Prints, for each dtype of memory, its bytes and its NDCG@10, and both as ratios to float32.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from longrec.datasets import Dataset
from longrec.datasets.split import leave_one_out
from longrec.modeling import ServingMemory, Transformer, load_network, memory_layout
from longrec.training.evaluation import rank_targets, ranking_metrics
from longrec.training.inputs import history_gaps

PAGE_SIZE, CHUNK = 32, 64


def past_state(network: Transformer, items: torch.Tensor, gaps: torch.Tensor, stored: str) -> torch.Tensor:
    """[dim] after the last of a user's events [n], given in chunks."""
    layout = memory_layout(network.config, torch.float32, stored, PAGE_SIZE)
    layers, pages = network.config.num_layers, -(-len(items) // PAGE_SIZE)
    keys, values = ([torch.zeros(pages, *layout.shape, dtype=layout.dtype) for _ in range(layers)] for _ in range(2))
    scales: list[list[torch.Tensor]] | list[None] = [None, None]
    if layout.scale_shape is not None:
        scales = [[torch.zeros(pages, *layout.scale_shape) for _ in range(layers)] for _ in range(2)]
    state = network.start
    for start in range(0, len(items), CHUNK):
        places = torch.arange(start, min(start + CHUNK, len(items)))
        memory = ServingMemory(
            keys, values, torch.tensor([0, pages], dtype=torch.int32), torch.arange(pages, dtype=torch.int32),
            torch.tensor([start], dtype=torch.int32), places, k_scales=scales[0], v_scales=scales[1],
        )  # fmt: skip
        offsets = torch.tensor([0, len(places)], dtype=torch.int32)
        state = network(items[places], gaps[places], places, offsets, memory)[-1]
    return state


@torch.inference_mode()
def main() -> None:
    network, _ = load_network(Path(sys.argv[1]))
    network.eval()
    data = Dataset.load(Path(sys.argv[2]))
    split = leave_one_out(data)
    gaps = history_gaps(data, network.config)
    users, rows = split.evaluated, split.test
    first: tuple[float, int] | None = None
    for stored in ("float32", "bfloat16", "float16", "int8"):
        states = []
        for user, row in zip(users.tolist(), rows.tolist(), strict=True):
            past = slice(int(data.indptr[user]), row)
            states.append(past_state(network, torch.from_numpy(data.items[past]).long(),
                                     torch.from_numpy(gaps[past]), stored))  # fmt: skip
        targets = torch.from_numpy(np.asarray(data.items[rows])).long()
        ndcg = ranking_metrics(rank_targets(network.scores(torch.stack(states)), targets).numpy()).ndcg[10]
        size = memory_layout(network.config, torch.float32, stored, PAGE_SIZE).page_bytes(network.config.num_layers)
        first = first or (ndcg, size)
        print(f"{stored:9} NDCG@10 {ndcg:.4f} ({ndcg / first[0]:.4f})  bytes a page {size} ({size / first[1]:.3f})")


if __name__ == "__main__":
    main()
