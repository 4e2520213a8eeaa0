"""What a smaller checkpoint costs: bytes on disk and in memory, CPU time, and ranking quality of each method.

    python benchmarks/compression.py runs/demo data/ml-100k

CPU time is that of ranking every user's test event, best of five rounds, on one thread. Writes compression.json into
benchmarks/results.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from longrec.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from longrec.datasets import Dataset, leave_one_out
from longrec.modeling import Network, load_run
from longrec.modeling.compression import compress, unpack
from longrec.training import evaluate, ranking_metrics

METHODS = (
    ("int8", None),
    ("int8-items", None),
    *(("low-rank", keep) for keep in (0.5, 0.25)),
    *(("prune", keep) for keep in (0.5, 0.25)),
    *(("prune-hidden", keep) for keep in (0.5, 0.25)),
)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "compression.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset, checkpoint = Dataset.load(arguments.dataset), load_checkpoint(arguments.run)
    subjects = [load(arguments.run, "none", None)]
    for method, keep in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            packed = compress(checkpoint.config, unpack(checkpoint.weights), method, keep)
            save_checkpoint(Path(folder), *packed, checkpoint.catalogue, {})
            subjects.append(load(Path(folder), method, keep))
    rows = measure(subjects, dataset)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    arguments.out.parent.mkdir(exist_ok=True)
    report = {"machine": machine, "dataset": dataset.name, "model": checkpoint.config.model_dump(), "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    Console().print(table(dataset.name, rows))


def load(run: Path, method: str, keep: float | None) -> tuple[Network, dict[str, Any]]:
    network, _ = load_run(run)
    return network, {
        "method": method,
        "keep": keep,
        "bytes_on_disk": (run / WEIGHTS).stat().st_size,
        "bytes_in_memory": sum(weight.nbytes for weight in network.state_dict().values()),
        "cpu_seconds": float("inf"),
    }


def measure(subjects: list[tuple[Network, dict[str, Any]]], dataset: Dataset) -> list[dict[str, Any]]:
    """The rows, with CPU time and quality; in rounds, so that a busy moment falls on all methods alike."""
    split = leave_one_out(dataset)
    for _ in range(ROUNDS):
        for network, row in subjects:
            began = time.process_time()
            ranks = evaluate(network, dataset, split.evaluated, split.test)
            row["cpu_seconds"] = min(row["cpu_seconds"], time.process_time() - began)
            metrics = ranking_metrics(ranks.numpy()).as_dict()
            row |= {name: metrics[name] for name in ("ndcg@10", "hr@10")}
    return [row for _, row in subjects]


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    whole = rows[0]
    found = Table(
        "method", "kept", "on disk", "", "in memory", "CPU s", "NDCG@10", "HR@10", title=f"compressed, {name}"
    )
    for row in rows:
        found.add_row(
            row["method"],
            "" if row["keep"] is None else f"{row['keep']:.2f}",
            f"{row['bytes_on_disk']:,}",
            f"{row['bytes_on_disk'] / whole['bytes_on_disk']:.2f}",
            f"{row['bytes_in_memory']:,}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['ndcg@10']:.4f}",
            f"{row['hr@10']:.4f}",
        )
    return found


if __name__ == "__main__":
    main()
