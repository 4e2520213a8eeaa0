"""The main job, end to end, on MovieLens-100k: data in, a trained network, a real tritonserver, events streamed over
gRPC, the next items back, every answer checked against a full recompute, perf_analyzer on the running server.

    python examples/demo.py [--out runs/demo]

writes report.json, training.png, latency.png, the checkpoint and the model repository into the folder.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from longrec.client import Client, Prediction
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, fetch, leave_one_out
from longrec.errors import ServerError
from longrec.modeling import load_network, recompute_scores, save_run
from longrec.server.bench.running import BatchCounts, bench_server
from longrec.server.perf_analyzer import PerfResult
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.training import ProgressBar, TensorBoard, evaluate, plot_history, ranking_metrics, train

STREAMED_USERS, STREAMED_EVENTS, SHOWN_USERS, K = 100, 20, 3, 10
CONCURRENCY = (1, 8, 32)
TOLERANCE = 1e-4
MAX_TRAINING_SECONDS = 240.0

console = Console()
Report = dict[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the data; fewer for a quick look.")] = TrainConfig().epochs,
) -> None:
    """Run the main job and write OUT/report.json; exits 1 if a streamed answer differs from its recompute."""
    report: Report = {"seconds": {}}
    with _step("total", report):
        with _step("fetch", report):
            dataset = _fetch(Path("data/ml-100k"), report)
        with _step("train", report):
            _train(dataset, out, epochs, report)
        with _step("evaluate", report):
            _evaluate(dataset, out, report)
        with _step("export", report):
            repository = out / "repository"
            for stale in (repository, out / "event_log"):
                shutil.rmtree(stale, ignore_errors=True)
            write_repository(out, repository, engine=EngineConfig())
        with _step("start", report):
            server = Server(repository, grpc_port=0, http_port=0, metrics_port=0).start()
        try:
            with _step("stream", report):
                predictions = _stream(dataset, server.grpc_url, report)
            with _step("verify", report):
                _verify(dataset, out, predictions, report)
            _show(dataset, predictions)
            with _step("perf_analyzer", report):
                _measure(dataset, server.grpc_url, out, report)
        finally:
            with _step("stop", report):
                server.stop()
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _summarise(report, out)
    serving = report["serving"]
    if serving["rank_mismatches"] or serving["max_score_difference"] > TOLERANCE:
        raise SystemExit("streamed answers differ from their recompute")


@contextmanager
def _step(name: str, report: Report) -> Iterator[None]:
    if name != "total":
        console.rule(name)
    began = time.perf_counter()
    yield
    report["seconds"][name] = round(time.perf_counter() - began, 2)


def _fetch(folder: Path, report: Report) -> Dataset:
    """The dataset, downloaded once."""
    if not (folder / "dataset.json").is_file():
        fetch("ml-100k").save(folder)
    dataset = Dataset.load(folder)
    report["dataset"] = {"users": len(dataset.users), "items": len(dataset.catalogue), "events": len(dataset)}
    console.print(report["dataset"])
    return dataset


def _train(dataset: Dataset, out: Path, epochs: int, report: Report) -> None:
    model = ModelConfig(num_items=len(dataset.catalogue))
    config = TrainConfig(epochs=epochs, max_seconds=MAX_TRAINING_SECONDS)
    with ProgressBar(console) as bar, TensorBoard(out / "tensorboard") as board:
        trained = train(dataset, leave_one_out(dataset), model, config, (bar, board))
    report["training"] = {
        "seconds": round(trained.seconds, 1),
        "events_per_second": round(trained.events_per_second),
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
    }
    save_run(out, trained.network, model, dataset.catalogue, {"dataset": dataset.name, **report["training"]})
    plot_history(trained.history, out / "training.png")


def _evaluate(dataset: Dataset, out: Path, report: Report) -> None:
    network, _ = load_network(out)
    split = leave_one_out(dataset)
    metrics = ranking_metrics(evaluate(network, dataset, split.evaluated, split.test).numpy())
    report["evaluation"] = metrics.as_dict()
    console.print({name: round(value, 4) for name, value in metrics.as_dict().items()})


def _stream(dataset: Dataset, url: str, report: Report) -> dict[tuple[int, int], Prediction]:
    """Stream the chosen users' last events, one a request, interleaved; (user, events so far) -> prediction.

    What came before is appended first: the server begins with users that it knows from their logs alone.
    """
    rng = np.random.default_rng(0)
    users = rng.choice(len(dataset.users), STREAMED_USERS, replace=False)
    histories = {int(user): dataset.events(user) for user in users}
    number = {dataset.users[user]: user for user in histories}
    sent = {user: len(events) - STREAMED_EVENTS for user, events in histories.items()}

    def requests() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for user in rng.permutation(np.repeat(users, STREAMED_EVENTS)).tolist():
            yield dataset.users[user], histories[user][sent[user] : sent[user] + 1]
            sent[user] += 1

    predictions = {}
    with Client(url) as client:
        for user, events in histories.items():
            if sent[user]:
                client.append(user=dataset.users[user], events=events[: sent[user]])
        batches, began = BatchCounts(url), time.perf_counter()
        with client.stream(k=K, max_in_flight=STREAMED_USERS) as stream:
            for prediction in stream.map(requests()):
                predictions[number[prediction.user], prediction.position] = prediction
        seconds = time.perf_counter() - began
    report["serving"] = {
        "users": len(users),
        "events": len(predictions),
        "seconds": round(seconds, 2),
        "events_per_second": round(len(predictions) / seconds),
        "mean_batch": round(batches.mean_batch(), 2),
    }
    if len(predictions) != STREAMED_USERS * STREAMED_EVENTS:
        raise ServerError(f"stream: expected {STREAMED_USERS * STREAMED_EVENTS} predictions, got {len(predictions)}")
    console.print(report["serving"])
    return predictions


def _verify(dataset: Dataset, out: Path, predictions: dict[tuple[int, int], Prediction], report: Report) -> None:
    """Hold every prediction against the scores of a pass over the user's whole history, without any memory."""
    network, _ = load_network(out)
    differences, mismatches = [], 0
    for user in {user for user, _ in predictions}:
        history = dataset.events(user)
        after = np.array(sorted(length for number, length in predictions if number == user))
        scores = recompute_scores(network, history[:, 1], history[:, 2], after)  # [Q, num_items]
        for length, row in zip(after.tolist(), scores, strict=True):
            streamed = predictions[user, length]
            recomputed = row[streamed.items]
            differences.append(np.abs(streamed.scores - recomputed).max())
            best = np.sort(row)[::-1][: len(recomputed)]
            mismatches += bool((np.abs(best - recomputed) > TOLERANCE).any())  # a swap of equals is none
    report["serving"] |= {"max_score_difference": float(max(differences)), "rank_mismatches": mismatches}
    console.print(
        f"{len(differences)} answers, greatest score difference {max(differences):.1e}, {mismatches} mismatches"
    )


def _show(dataset: Dataset, predictions: dict[tuple[int, int], Prediction]) -> None:
    """What three users watched last, what was predicted for them, and what they chose."""
    titles = dataset.catalogue.titles
    for user in sorted({user for user, _ in predictions})[:SHOWN_USERS]:
        history = dataset.events(user)
        prediction, chosen = predictions[user, len(history) - 1], history[-1, 1]
        table = Table("last five", "ten predicted", "chosen next", title=f"user {dataset.users[user]}")
        past = [titles[item] for item in history[-6:-1, 1]]
        for rank, item in enumerate(prediction.items):
            hit = "bold green" if item == chosen else ""
            table.add_row(
                past[rank] if rank < len(past) else "", titles[item], titles[chosen] if not rank else "", style=hit
            )
        console.print(table)


def _measure(dataset: Dataset, url: str, out: Path, report: Report) -> None:
    """perf_analyzer on the running server; its users are the dataset's, under keys of their own."""
    histories = {f"bench-{dataset.users[user]}": dataset.events(user) for user in range(STREAMED_USERS)}
    results = bench_server(url, histories, out / "requests.json", concurrency=CONCURRENCY)
    report["perf_analyzer"] = [asdict(result) for result in results]
    _plot_latency(results, out / "latency.png")


def _plot_latency(results: list[PerfResult], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="requests in flight", ylabel="latency (ms)", xscale="log")
    concurrency = [result.concurrency for result in results]
    for name, style in (("p50", "-o"), ("p99", "--s")):
        axes.plot(concurrency, [getattr(result, f"{name}_ms") for result in results], style, label=name)
    for result in results:
        label = f"{result.throughput:.0f}/s"
        axes.annotate(label, (result.concurrency, result.p50_ms), (0, 8), textcoords="offset points", ha="center")
    axes.set_xticks(concurrency, [str(number) for number in concurrency])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


def _summarise(report: Report, out: Path) -> None:
    evaluation, training, serving = report["evaluation"], report["training"], report["serving"]
    table = Table("figure", "value", title="summary")
    table.add_row("users, items, events", " ".join(str(value) for value in report["dataset"].values()))
    table.add_row("training", f"{training['seconds']:.0f} s, {training['events_per_second']} events/s")
    table.add_row(
        "test HR@10, NDCG@10, MRR", "  ".join(f"{evaluation[name]:.4f}" for name in ("hr@10", "ndcg@10", "mrr"))
    )
    table.add_row("streamed", f"{serving['events']} events, mean batch {serving['mean_batch']}")
    difference, mismatches = serving["max_score_difference"], serving["rank_mismatches"]
    table.add_row("streamed against recomputed", f"at most {difference:.1e} apart, {mismatches} rank mismatches")
    for row in report["perf_analyzer"]:
        latency = f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms"
        value = f"{row['throughput']:.0f}/s, {latency}, mean batch {row['mean_batch']:.1f}"
        table.add_row(f"perf_analyzer, {row['concurrency']} in flight", value)
    table.add_row("seconds", "  ".join(f"{name} {seconds:.0f}" for name, seconds in report["seconds"].items()))
    console.print(table)
    console.print(f"wrote {out}/report.json, training.png, latency.png")


if __name__ == "__main__":
    typer.run(main)
