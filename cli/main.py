"""The `longrec` command: which subcommands there are, and how an error of longrec's ends it. Each subcommand is a file
of its own, imported when it runs and not for `longrec --help`: torch, polars and pydantic take seconds to load."""

import sys
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import longrec
from longrec.errors import LongrecError

__all__ = ["app", "main"]


class _Entry(NamedTuple):
    target: str  # module:attribute, a function or a typer.Typer
    help: str  # the first sentence of the subcommand's own help


COMMANDS: Final = {
    "data": _Entry("longrec.cli.data:data_app", "Get interactions into a dataset folder that `longrec train` reads."),
    "train": _Entry(
        "longrec.cli.train:train",
        "Train a network on a dataset's histories, and keep the weights that rank the validation events best.",
    ),
    "tune": _Entry(
        "longrec.cli.tune:tune",
        "Search for settings by validation NDCG@10, hopeless trials stopped early; needs the extra `tune`.",
    ),
    "items": _Entry(
        "longrec.cli.new_items:items_app", "Change the catalogue of a run, or of a server's model repository."
    ),
    "evaluate": _Entry(
        "longrec.cli.evaluate:evaluate",
        "Rank each user's last event (test) and the one before it (validation) among the whole catalogue.",
    ),
    "compress": _Entry(
        "longrec.cli.compress:compress",
        "Write a run's checkpoint smaller; it is evaluated, exported and served as any other.",
    ),
    "export": _Entry(
        "longrec.cli.export:export",
        "Write a Triton model repository from a run: config, model.py, and the checkpoint, its hashes verified.",
    ),
    "rollback": _Entry(
        "longrec.cli.rollback:rollback", "Go back to an earlier version of the weights, or on to a later one."
    ),
    "update": _Entry(
        "longrec.cli.update:update",
        "Fine-tune RUN on what the server has logged, and serve the new weights if they are no worse.",
    ),
    "serve": _Entry("longrec.cli.serve:serve", "Serve REPOSITORY until Ctrl-C or SIGTERM."),
    "probe": _Entry(
        "longrec.cli.probe:probe",
        "Ask a running server for one answer: exit status 0 if it comes, 2 and the reason if not.",
    ),
    "stream": _Entry("longrec.cli.stream:stream", "Send events as they happen, print predictions as they come."),
    "recommend": _Entry("longrec.cli.recommend:recommend", "Ask a running server what a user will choose next."),
    "score": _Entry(
        "longrec.cli.score:score",
        "Rank the whole catalogue for every user of a table; a server with the same histories answers the same.",
    ),
    "replay": _Entry(
        "longrec.cli.replay:replay",
        "Replay a data set against a server: its events in time order, each predicted before it is sent.",
    ),
    "bench": _Entry("longrec.cli.bench:bench_app", "Measure: ratios and medians in one run."),
    "doctor": _Entry("longrec.cli.doctor:doctor", "Look at this machine: Python, torch, GPU, server, memory."),
}


class _LazyGroup(TyperGroup):
    """Lists subcommands from `COMMANDS`, imports the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What `--help` shows of a subcommand."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name].help) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest


def _load(name: str) -> Any:
    module, attribute = COMMANDS[name].target.split(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(name)(target)
        target = single
    command = typer.main.get_command(target)
    command.name = name
    return command


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Long-memory sequential recommendation on NVIDIA Triton Inference Server.",
    epilog="From nothing to recommendations: longrec data fetch ml-100k, then train, export, serve, stream.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longrec {longrec.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script: an error of longrec's is one red line on stderr and exit status 2."""
    try:
        app()
    except LongrecError as error:
        typer.secho(f"longrec: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
