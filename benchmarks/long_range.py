"""How far back each family remembers: a user shows a value once, and is asked for it n events later.

    python benchmarks/long_range.py                                  # every case, each trained once
    python benchmarks/long_range.py --cases transformer gru          # some
    python benchmarks/long_range.py --json out.json                  # rows as JSON, and a plot beside it

The task is `datasets/synthetic/recall.py`: fillers, a value, fillers, the question, and the answer, n events after the
value; nothing else tells it, so whoever doesn't see n events back is right once in 8 times. All cases train by one
recipe on one set of histories, whose distances are spread evenly over the powers of two, most of them short: the short
ones teach what is asked, the long ones how far to look. Each distance is then tested on histories of its own.

A case that is finished lies in --work and isn't trained again; so a benchmark that was stopped goes on.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.datasets.synthetic import make_recall
from longrec.training import evaluate, train

RESULTS = Path(__file__).parent / "results"
NUM_VALUES, NUM_FILLERS = 8, 8
SHORT, LONG = 2000, 200  # training histories up to 32 events, and from there to 1,024
DISTANCES = (10, 30, 100, 200, 300, 600, 1000)
TESTED = 64  # histories of each distance
SIZES: dict[str, Any] = {"dim": 32, "hidden_dim": 64, "num_layers": 2, "window": 1024}
STACKED: dict[str, Any] = {"num_layers": 4, "window": 256}
RECIPE = TrainConfig(
    sequence_length=1100,  # every history whole, save where a case says otherwise
    batch_events=2048,
    epochs=40,
    learning_rate=1e-2,
    weight_decay=0.0,
    dropout=0.0,
    item_dropout=0.0,
    label_smoothing=0.0,
    validate_every=1000,  # the last weights are taken: nothing is chosen
)

Case = tuple[dict[str, Any], dict[str, Any]]  # what differs from SIZES, and from RECIPE
CASES: dict[str, Case] = {
    "transformer": ({}, {}),
    "transformer of 199 events": ({"window": 100}, {}),  # two layers: L (W - 1) + 1
    "transformer_xl": ({"family": "transformer_xl"}, {}),
    "hstu": ({"family": "hstu"}, {}),
    "gru": ({"family": "gru"}, {}),
    "lstm": ({"family": "lstm"}, {}),
    "bert4rec": ({"family": "bert4rec"}, {}),
    "seq2seq": ({"family": "seq2seq"}, {}),
    "transformer, window 256, 4 layers": (STACKED, {}),
    "transformer_xl, window 256, 4 layers": ({"family": "transformer_xl", **STACKED}, {"sequence_length": 256}),
}


def histories(seed: int) -> tuple[Dataset, Split, np.ndarray]:
    """The data, which of it is trained and tested, and the distance [E] of each tested history."""
    rng = np.random.default_rng(seed)
    short, long = np.exp2(rng.uniform(1, 5, SHORT)), np.exp2(rng.uniform(5, 10, LONG))
    tested = np.repeat(DISTANCES, TESTED)
    distances = np.concatenate((short, long, tested)).astype(np.int64)
    data = make_recall(distances, num_values=NUM_VALUES, num_fillers=NUM_FILLERS, seed=seed)
    users = np.arange(SHORT + LONG, len(distances))
    train_end, answers = data.indptr[1:].copy(), data.indptr[users + 1] - 1
    train_end[users] = data.indptr[users]  # nothing of them is trained on
    return data, Split(train_end, users, answers, answers), tested


def run(name: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """Train a case; a row a distance."""
    data, split, tested = histories(seed)
    sizes, recipe = CASES[name]
    model = ModelConfig(num_items=len(data.catalogue), **{**SIZES, **sizes})
    config = RECIPE.model_copy(update={"seed": seed, "epochs": epochs, **recipe})
    began = time.process_time()
    trained = train(data, split, model, config)
    right = evaluate(trained.network, data, split.evaluated, split.test).numpy() == 0
    return [
        {
            "family": name,
            "distance": int(distance),
            "accuracy": float(right[tested == distance].mean()),
            "chance": 1 / NUM_VALUES,
            "window": model.window,
            "reach": model.reach,
            "train_cpu_seconds": time.process_time() - began,
        }
        for distance in DISTANCES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/long_range"), help="where finished cases are kept")
    parser.add_argument("--json", type=Path, default=RESULTS / "long_range.json", help="a row a case and distance")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    console = Console(width=120)
    for name in options.cases:
        kept = options.work / f"{name.replace(' ', '_')}-{options.epochs}-{options.seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(run(name, options.seed, options.epochs), indent=1) + "\n")
        rows += json.loads(kept.read_text())
        console.print(_line(name, rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n")
    console.print(_table(rows))
    plot(rows, options.json.with_suffix(".png"))


def _of(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["family"] == name]


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    of = _of(name, rows)
    return (
        f"{name}: {' '.join(format(row['accuracy'], '.2f') for row in of)}, {of[0]['train_cpu_seconds']:.0f} s of CPU"
    )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("case", "window", "reach", title="share of right answers, by events since the value was shown")
    for distance in DISTANCES:
        table.add_column(f"{distance:,}", justify="right")
    for name in dict.fromkeys(row["family"] for row in rows):
        of = _of(name, rows)
        reach = "all" if of[0]["reach"] is None else f"{of[0]['reach']:,}"
        table.add_row(name, f"{of[0]['window']:,}", reach, *(f"{row['accuracy']:.2f}" for row in of))
    table.add_section()
    table.add_row("chance", "", "", *(f"{1 / NUM_VALUES:.2f}" for _ in DISTANCES))
    return table


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Accuracy against distance, a line a case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for marker, name in zip("osD^v<>ph*", dict.fromkeys(row["family"] for row in rows), strict=False):
        of = _of(name, rows)
        axes.plot([row["distance"] for row in of], [row["accuracy"] for row in of], marker=marker, label=name)
    axes.axhline(1 / NUM_VALUES, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", ylim=(0, 1.03), xlabel="events since the value was shown", ylabel="share of right answers")
    axes.set_xticks(DISTANCES, [f"{distance:,}" for distance in DISTANCES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
