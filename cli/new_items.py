"""`longrec items add`: new items into a trained catalogue, by what they are."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["items_app"]

items_app = typer.Typer(
    help="Change the catalogue of a run, or of a server's model repository.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@items_app.callback()
def _items() -> None:
    pass


@items_app.command("add")
def add_command(
    target: Annotated[Path, typer.Argument(help="Run folder, or model repository.", exists=True, file_okay=False)],
    file: Annotated[
        Path, typer.Argument(help="Item file (.csv, .tsv, .parquet, .jsonl, .item), with the columns of the schema.")
    ],
    item: Annotated[str, typer.Option(help="Column of the item's id.")] = "item_id",
    title: Annotated[str | None, typer.Option(help="Column of the title. [default: none]")] = None,
    year: Annotated[str | None, typer.Option(help="Column that is put behind the title in brackets.")] = None,
    categories: Annotated[
        str | None, typer.Option(help="Column of category names, separated by | (.item: by spaces).")
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(help="Folder of the schema's own files (vectors, triples). [default: the item file's]"),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="host:port (gRPC) of a running server of this repository, which takes them and goes on answering.",
        ),
    ] = None,
) -> None:
    """Put new items behind those of the catalogue, with vectors made from their features.

    The weights stay as they are. A repository's new items belong to the version that is served; it has them from the
    next start on, or at once with --load.

    Example: [bold]longrec items add repository new_films.csv --title name --load 127.0.0.1:8001[/bold]
    """
    from longrec.catalogue import Catalogue
    from longrec.checkpoint import load_checkpoint
    from longrec.datasets import TitleColumns, read_attributes, read_categories, read_titles
    from longrec.errors import ArgumentError
    from longrec.modeling.new_items import add_items
    from longrec.server.loading import switch_version
    from longrec.server.repository import served_folder

    folder = served_folder(target) or target
    if load is not None and folder == target:
        raise ArgumentError(f"--load {load}", "a model repository to add to", got=f"{target}, which is none")
    schema = load_checkpoint(folder).config.features
    attributes = read_attributes(file, item, schema, tables or file.parent)
    names = read_titles(file, TitleColumns(item, title, year)) if title else {}
    groups = read_categories(file, item, categories) if categories else {}
    ids = attributes["item"].to_list()
    new = Catalogue(ids, [names.get(one, one) for one in ids], [groups.get(one, ()) for one in ids] if groups else ())
    whole = add_items(folder, new, attributes.drop("item"))
    if load is not None:
        switch_version(target, int(folder.name), load)
    Console().print(f"added {len(ids):,} items to {folder}: {len(whole):,} since its training")
