"""`longrec update`: a run learns on from what the server has logged, and is served if it got no worse."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longrec.errors import ArgumentError

if TYPE_CHECKING:
    from longrec.config import EngineConfig
    from longrec.python_backend.event_log import EventLog

__all__ = ["update"]


def update(
    run: Annotated[Path, typer.Argument(help="Run folder that was exported.", exists=True, file_okay=False)],
    log: Annotated[
        str | None,
        typer.Option(help="The event log: a folder, or redis://…; it may be in use. [default: the repository's]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="What the run was trained on: replayed, and watched for forgetting.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository that gets the new version, with the served one's settings.")
    ] = None,
    load: Annotated[
        str | None, typer.Option(metavar="URL", help="host:port (gRPC) of its running server: loads the version.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the mix.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = 5e-4,
    max_seconds: Annotated[float | None, typer.Option(help="Drop epochs, so that training ends by then.")] = None,
    replay: Annotated[float, typer.Option(help="Old events learnt again for each one of the log.")] = 1.0,
    forgetting: Annotated[float, typer.Option(help="Share of NDCG@10 that the old data may lose.")] = 0.1,
    min_users: Annotated[int, typer.Option(help="With new events, to judge by; fewer are refused.")] = 100,
    seed: Annotated[int, typer.Option(help="Of dropout and order.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fine-tune RUN on what the server has logged, and serve the new weights if they are no worse.

    The newest event of each user that has new ones is held out; the served weights and the new ones are compared on it.
    What was not refused lies in RUN/updates, and is what the next update begins with: docs/update.md.

    Example: longrec update runs/first --data data/clicks --repository repository --load 127.0.0.1:8001
    """
    from longrec.config import TrainConfig, parse_config
    from longrec.datasets import Dataset
    from longrec.python_backend.event_log.newest import holds, read_new
    from longrec.server.loading import switch_version
    from longrec.server.repository import write_repository
    from longrec.server.served import read_served
    from longrec.training import ProgressBar
    from longrec.training.online import NewEvents, UpdatePlan
    from longrec.training.online import update as learn
    from longrec.training.updates import find_base, save_update

    if load and not repository:
        raise ArgumentError("--load", "a --repository that the server serves", "none")
    if not (log or repository):
        raise ArgumentError("--log", "the server's event log, or a --repository that names it", "neither")
    served = read_served(repository) if repository else None
    base = find_base(run, served.weights_hash if served else None)
    catalogue = base.checkpoint.catalogue
    if base.checkpoint.config.features.event:
        names = ", ".join(base.checkpoint.config.features.event)
        raise ArgumentError(
            str(run), "a run without features of events", got=names, remedy="train it anew: `longrec train --from`"
        )
    wanted = {"epochs": epochs, "learning_rate": learning_rate, "max_seconds": max_seconds, "seed": seed}
    recorded = base.checkpoint.training.get("config", {})
    config = parse_config(TrainConfig, {**recorded, **wanted, "validate_every": 1}, "longrec update")
    plan = UpdatePlan(replay, forgetting, min_users)
    old = Dataset.load(data) if data else None
    if old and list(old.catalogue.ids) != list(catalogue.ids):
        raise ArgumentError(f"--data {data}", f"the {len(catalogue)} items of {run}, in the same order", "others")
    reach = base.checkpoint.config.reach
    with closing(_open_log(log, repository, served.engine if served else None)) as events:
        learnt = base.learnt
        if old and not learnt:  # the first update: users' past may have been put into the log
            histories = ((key, old.events(user)) for user, key in enumerate(old.users))
            learnt = holds(events, {user.encode(): (len(row), row[-1, 1:]) for user, row in histories})
        # one more than the network's reach, for the oldest event's gap needs the one before it
        logged = read_new(events, learnt, None if reach is None else reach + 1)
    new, unknown = NewEvents.from_log(logged.users, logged.rows, logged.fresh, catalogue)
    console = Console(stderr=as_json)
    with ProgressBar(console) as bar:
        found = learn(base.network, new, old, config, plan, [bar])
    report: dict[str, Any] = {
        "base": str(base.folder),
        "log": {
            "users": len(new.fresh),
            "new_events": int(new.fresh.sum()),
            "unknown_events": unknown,
            "damaged_users": logged.damaged,
        },
        "training": {
            "config": config.model_dump(),
            "learnt_events": found.learnt,
            "replayed_events": found.replayed,
            "best_epoch": found.trained.best_epoch,
            "seconds": found.trained.seconds,
        },
        "new": found.new.as_dict(),
        "old": None if found.old is None else found.old.as_dict(),
        "refusal": found.refusal,
    }
    version = None
    out = None
    if not found.refusal:
        read = dict(zip(logged.users, logged.lengths.tolist(), strict=True))
        out = save_update(run, base.checkpoint, found.trained.network, {**learnt, **read}, report)
        if repository and served:
            settings = {name: getattr(served, name) for name in ("engine", "kind", "instances")}
            delay = served.max_queue_delay_microseconds
            folder = write_repository(
                out, repository, **settings, max_queue_delay_microseconds=delay, select=load is None
            )
            version = int(folder.name)
            if load:
                switch_version(repository, version, load)
    report |= {"run": str(out) if out else None, "version": version}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report, console)


def _open_log(log: str | None, repository: Path | None, served: "EngineConfig | None") -> "EventLog":
    """The log that was named, or that of the repository."""
    from longrec.config import EngineConfig, parse_config
    from longrec.python_backend.event_log.opening import open_written_log

    if log is None:
        assert repository is not None
        assert served is not None
        return open_written_log(served, repository)
    return open_written_log(parse_config(EngineConfig, {"event_log": log}, "--log"), Path())


def _show(report: dict[str, Any], console: Console) -> None:
    log, training = report["log"], report["training"]
    console.print(
        f"{log['new_events']:,} new events of {log['users']:,} users since {report['base']}; learnt "
        f"{training['learnt_events']:,} of the log and {training['replayed_events']:,} old ones an epoch"
    )
    table = Table("held out", "users", "NDCG@10 before", "after", "HR@10 before", "after")
    for name, shown in (("newest of the log", "new"), ("test of the old data", "old")):
        if report[shown]:
            before, after = report[shown]["before"], report[shown]["after"]
            cells = (part[metric] for metric in ("ndcg@10", "hr@10") for part in (before, after))
            table.add_row(name, f"{before['users']:,}", *(f"{cell:.4f}" for cell in cells))
    console.print(table)
    if report["refusal"]:
        console.print(f"refused, everything stays as it is: {report['refusal']}")
    else:
        console.print(f"wrote {report['run']}" + (f"; version {report['version']}" if report["version"] else ""))
