"""How well and how fast ours and RecTools' networks learn, on the same events and cores.

    python benchmarks/quality.py                                     # ours alone
    python3 -m venv ENV && ENV/bin/pip install 'rectools[torch]'
    python benchmarks/quality.py --rectools-python ENV/bin/python    # beside SASRec, eSASRec (LiGR blocks) and HSTU
    python benchmarks/quality.py --data data/NAME --json out.json    # any other data set

Protocol, for all alike: a user's last event is the test event, the one before it validates, the rest is trained on.
Each is predicted from all of the user's events before it and ranked among the whole catalogue, nothing filtered. The
validation event chooses the epoch; the test event is looked at once. Ours is the default recipe of `TrainConfig`, plain
and with the term of `modeling/repeats.py` in its scores; theirs has RecTools' defaults, full softmax, and our sizes:
width 64, 2 blocks, 2 heads, the last 200 events.

Then training speed, an epoch of each in turn at equal sizes, and the memory of a step over a million items. A run that
is finished lies in --work and isn't repeated; so a benchmark that was stopped goes on.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from qualitybench import large_catalogue
from qualitybench.rivals import RIVALS, Rival, check_rectools, write_interactions
from qualitybench.runs import Record, rows, run_ours, run_rival
from qualitybench.speed import alternate
from rich.console import Console
from rich.table import Table

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split, fetch, leave_one_out

RESULTS = Path(__file__).parent / "results"
SPEED_ROUNDS = 2
OURS: dict[str, dict[str, Any]] = {  # what differs from `ModelConfig`'s defaults
    "transformer": {},
    "transformer with repeats": {"repeats": True},
}

Json = dict[str, Any]
Job = tuple[str, Json, Callable[[], Record]]  # file, the settings that it is made under, how


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    if not options.data.is_dir():
        fetch("ml-100k").save(options.data)
    dataset = Dataset.load(options.data)
    split = leave_one_out(dataset)
    work = options.work / dataset.name
    work.mkdir(parents=True, exist_ok=True)
    console = Console()
    jobs = list(_ours(options, dataset, split))
    if options.rectools_python:
        write_interactions(dataset, split, work)
        jobs += _theirs(options, work, check_rectools(options.rectools_python))
    records = []
    for name, settings, make in jobs:
        records.append(_kept(work / name, settings, make))
        console.print(f"{name}: NDCG@10 {records[-1].test['ndcg@10']:.4f}, best epoch {records[-1].best_epoch}")
    found = rows(records)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    console.print(_quality_table(found, dataset))
    if options.rectools_python:
        with Rival(options.rectools_python, "sasrec", work, seed=0, threads=options.threads) as rival:
            speed = alternate(dataset, split, rival, SPEED_ROUNDS)
        _write(options.json, "speed", speed)
        console.print(_speed_table(speed))
    if options.large:
        step = large_catalogue.measure()
        _write(options.json, "large-catalogue", step)
        console.print(
            f"one step of {step['step_events']:,} events over {large_catalogue.NUM_ITEMS:,} items: peak "
            f"{step['peak_bytes'] / 1e9:.2f} GB, {step['step_cpu_seconds']:.0f} s of CPU time"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data/ml-100k"), help="dataset folder [data/ml-100k, fetched]"
    )
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=OURS, metavar="NETWORK", help=", ".join(OURS))
    parser.add_argument("--rectools-python", type=Path, help="Python of an environment with rectools[torch]")
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS, help="theirs")
    parser.add_argument("--epochs", type=int, default=30, help="most epochs of theirs, the best validated one counts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-large", dest="large", action="store_false", help="leave the million items out")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="where finished runs are kept")
    parser.add_argument("--json", type=Path, default=RESULTS / "quality.json", help="a row a network")
    return parser.parse_args()


def _ours(options: argparse.Namespace, dataset: Dataset, split: Split) -> Iterator[Job]:
    for name in options.ours:
        model = ModelConfig(num_items=len(dataset.catalogue), **OURS[name])
        for seed in options.seeds:
            config = TrainConfig(seed=seed)
            settings = {"model": model.model_dump(), "config": config.model_dump(), "threads": options.threads}
            file = f"longrec-{name.replace(' ', '-')}-{seed}.json"
            yield file, settings, partial(run_ours, dataset, split, name, model, config)


def _theirs(options: argparse.Namespace, work: Path, version: str) -> Iterator[Job]:
    def train(name: str, seed: int) -> Record:
        with Rival(options.rectools_python, name, work, seed=seed, threads=options.threads) as rival:
            return run_rival(rival, name, f"rectools {version}", seed, epochs=options.epochs, validate_every=2)

    for name in options.rivals:
        for seed in options.seeds:
            settings = {"version": version, "epochs": options.epochs, "threads": options.threads}
            yield f"rectools-{name}-{seed}.json", settings, partial(train, name, seed)


def _kept(file: Path, settings: Json, make: Callable[[], Record]) -> Record:
    """The run in `file`, if it was made under these settings; else it is made, and kept there."""
    if file.is_file():
        held = json.loads(file.read_text())
        if held["settings"] == settings:
            return Record(**held["record"])
    record = make()
    file.write_text(json.dumps({"settings": settings, "record": asdict(record)}, indent=1) + "\n")
    return record


def _write(beside: Path, what: str, figures: Json) -> None:
    beside.with_name(f"{beside.stem}-{what}.json").write_text(json.dumps(figures, indent=1) + "\n")


def _quality_table(found: list[Json], dataset: Dataset) -> Table:
    table = Table("network", "source", title=f"{dataset.name}: test event, means over seeds")
    for heading in ("NDCG@10", "HR@10", "MRR", "beside the best of theirs", "seeds", "training s", "events/s"):
        table.add_column(heading, justify="right")
    best = max((row["ndcg@10"] for row in found if row["source"] != "longrec"), default=None)
    for row in found:
        table.add_row(
            row["model"],
            row["source"],
            *(f"{row[name]:.4f}" for name in ("ndcg@10", "hr@10", "mrr")),
            f"{row['ndcg@10'] / best - 1:+.0%}" if best else "-",
            str(row["seeds"]),
            f"{row['train_seconds']:.0f}",
            f"{row['events_per_second']:,.0f}",
        )
    return table


def _speed_table(speed: dict[str, dict[str, float]]) -> Table:
    table = Table("training", title="an epoch each in turn: width 64, 2 blocks, 200 events at most")
    for heading in ("events/s", "events/s of CPU time"):
        table.add_column(heading, justify="right")
    for source, rates in speed.items():
        table.add_row(source, *(f"{rate:,.0f}" for rate in rates.values()))
    ours, theirs = speed["longrec"], speed["rectools"]
    table.add_row("ratio", *(f"{ours[name] / theirs[name]:.1f}" for name in ours))
    return table


if __name__ == "__main__":
    main()
