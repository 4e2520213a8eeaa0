"""`longrec data fetch` and `longrec data import`: interactions into a dataset folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from longrec.datasets import Dataset

__all__ = ["data_app"]

data_app = typer.Typer(
    help="Get interactions into a dataset folder that `longrec train` reads.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@data_app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="ml-100k: MovieLens-100k, 943 users, 1,682 films, 100,000 ratings.")],
    out: Annotated[Path | None, typer.Option(help="Dataset folder; data/NAME by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Download even if the folder holds a dataset.")] = False,
) -> None:
    """Download a public dataset.

    Example: [bold]longrec data fetch ml-100k[/bold], then [bold]longrec train data/ml-100k[/bold].
    """
    from longrec.datasets import SOURCES, Dataset, fetch

    folder = out or Path("data") / name
    console = Console()
    if not force and (folder / "dataset.json").is_file():
        dataset = Dataset.load(folder)
        console.print(f"{folder} is there already; --force downloads it anew")
    else:
        with console.status(f"downloading {name}"):
            dataset = fetch(name)
        dataset.save(folder)
    console.print(_table(dataset, folder))
    if name in SOURCES:
        console.print(SOURCES[name].terms, style="dim")


@data_app.command("import")
def import_command(
    file: Annotated[
        Path, typer.Argument(help="Interactions: .csv, .tsv, .parquet, .jsonl, .inter (RecBole), .dat (MovieLens ::).")
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    user: Annotated[str, typer.Option(help="Column of the user's key.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of the item's id, in both files.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of the time: a number, a date, or ISO 8601 text.")] = "timestamp",
    time_unit: Annotated[str, typer.Option(help="Unit of a numeric time since 1970: s, ms or us.")] = "s",
    titles: Annotated[
        Path | None, typer.Option(help="Item file (.csv, .tsv, .parquet, .item, .dat) with titles and items' features.")
    ] = None,
    title: Annotated[str, typer.Option(help="Column of the title in the item file.")] = "movie_title",
    year: Annotated[str | None, typer.Option(help="Column that is put behind the title in brackets.")] = None,
    categories: Annotated[
        str | None, typer.Option(help="Column of category names in the item file, separated by | (.item: by spaces).")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(help="Schema (.toml, .json) of further features of events and items; its files lie beside it."),
    ] = None,
) -> None:
    """Import a file of interactions, one row each.

    A user's events are ordered by time; events of the same time keep the order of the file. Repeated events stay.
    What a schema says, and how it is written: docs/data.md.

    Example: [bold]longrec data import orders.csv --user customer --item sku --time bought_at --out data/orders[/bold]
    """
    from longrec.datasets import (
        Dataset,
        InteractionColumns,
        TitleColumns,
        read_attributes,
        read_categories,
        read_event_features,
        read_interactions,
        read_titles,
    )
    from longrec.schema import NO_FEATURES, Schema

    features = NO_FEATURES if schema is None else Schema.load(schema)
    frame = read_interactions(file, InteractionColumns(user, item, time), time_unit=time_unit)
    if features.columns:
        frame = frame.hstack(read_event_features(file, features))
    names = read_titles(titles, TitleColumns(item, title, year)) if titles else None
    groups = read_categories(titles, item, categories) if titles and categories else None
    attributes = None
    if schema is not None and features.item:
        attributes = read_attributes(titles, item, features, schema.parent)
    dataset = Dataset.from_interactions(file.stem, frame, names, groups, features, attributes)
    dataset.save(out)
    Console().print(_table(dataset, out))


@data_app.command("make")
def make_command(
    kind: Annotated[str, typer.Argument(help="long-range, purchases or drift: docs/data.md.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    users: Annotated[int, typer.Option(min=1, help="Histories.")] = 1000,
    events: Annotated[int, typer.Option(min=1, help="drift: in all. purchases: of each user.")] = 100_000,
    distance: Annotated[int, typer.Option(min=1, help="long-range: how far back the event that decides.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same data.")] = 0,
) -> None:
    """Make data whose rule is known.

    Example: [bold]longrec data make drift --users 6000 --events 1000000 --out data/drift[/bold]
    """
    from longrec.datasets.synthetic import make_drift, make_long_range, make_purchases
    from longrec.errors import ArgumentError

    makers = {
        "long-range": lambda: make_long_range(users, distance, seed=seed),
        "purchases": lambda: make_purchases(users, events, seed=seed),
        "drift": lambda: make_drift(users, events, seed=seed),
    }
    if kind not in makers:
        raise ArgumentError(f"kind={kind}", f"one of {', '.join(makers)}")
    dataset = makers[kind]()
    dataset.save(out)
    Console().print(_table(dataset, out))


def _table(dataset: "Dataset", folder: Path) -> Table:
    table = Table(title=f"{dataset.name} in {folder}")
    for heading in ("users", "items", "events", "events a user, median", "longest"):
        table.add_column(heading, justify="right")
    counts = sorted((dataset.indptr[1:] - dataset.indptr[:-1]).tolist())
    numbers = (len(counts), len(dataset.catalogue), len(dataset), counts[len(counts) // 2], counts[-1])
    table.add_row(*(f"{number:,}" for number in numbers))
    return table
