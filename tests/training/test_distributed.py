"""Two processes that learn a part of each batch each, beside one that learns all of it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from longrec.datasets import Dataset
from longrec.training.packing import Batch, pack, share
from longrec.training.recurrence import pack_lanes

PROGRAM = Path(__file__).parent / "ranks.py"


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", str(rng.integers(9)), 1000 * n) for u in range(15) for n in range(rng.integers(3, 14))]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    Dataset.from_interactions("test", frame).save(tmp_path / "data")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, command in (("one", (sys.executable,)), ("two", torchrun)):
        subprocess.run([*command, str(PROGRAM), str(tmp_path / "data"), str(tmp_path / name)], check=True)
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, expected in one.items():
        assert torch.allclose(two[name], expected, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("make", [pack, pack_lanes])
def test_the_ranks_parts_are_the_batch(make: Callable[..., list[Batch]]) -> None:
    ends = np.cumsum([9, 4, 30, 2, 17]).astype(np.int64)
    starts = np.concatenate(([0], ends[:-1]))
    for batch in make(starts, ends, sequence_length=6, batch_events=20, rng=np.random.default_rng(0)):
        parts = [share(batch, rank, 3) for rank in range(3)]
        assert sorted(np.concatenate([part.rows for part in parts])) == sorted(batch.rows)
        assert sorted(np.concatenate([part.first for part in parts])) == sorted(batch.first)
        fresh = sorted(3 * lane + rank for rank, part in enumerate(parts) for lane in part.fresh)
        assert fresh == sorted(batch.fresh)
        places = dict(zip(batch.rows.tolist(), batch.positions.tolist(), strict=True))
        for rank, part in enumerate(parts):
            assert np.diff(part.cu_seqlens).tolist() == np.diff(batch.cu_seqlens)[rank::3].tolist()
            assert part.positions.tolist() == [places[row] for row in part.rows.tolist()]
