import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest

from longrec.datasets import InteractionColumns, TitleColumns, read_categories, read_interactions, read_titles
from longrec.errors import ArgumentError, DataError

ROWS = [("u1", "007", 1_000), ("u2", "b", 2_000), ("u1", "c,d", 1_500)]
EXPECTED = [(user, item, seconds * 1000) for user, item, seconds in ROWS]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def csv_file(folder: Path) -> Path:
    return write(folder / "a.csv", 'user_id,item_id,timestamp\nu1,007,1000\nu2,b,2000\nu1,"c,d",1500\n')


def tsv_file(folder: Path) -> Path:
    lines = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in ROWS)
    return write(folder / "a.tsv", "user_id\titem_id\ttimestamp\n" + lines)


def recbole_file(folder: Path) -> Path:
    lines = "".join(f"{user}\t{item}\t4\t{time}\n" for user, item, time in ROWS)
    return write(folder / "a.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + lines)


def movielens_file(folder: Path) -> Path:
    return write(folder / "ratings.dat", "".join(f"{user}::{item}::4::{time}\n" for user, item, time in ROWS))


def parquet_file(folder: Path) -> Path:
    frame = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def json_file(folder: Path) -> Path:
    rows = [{"user_id": user, "item_id": item, "timestamp": time, "more": [1]} for user, item, time in ROWS]
    return write(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("make", [csv_file, tsv_file, recbole_file, movielens_file, parquet_file, json_file])
def test_every_format_gives_the_same_rows_in_file_order(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    frame = read_interactions(make(tmp_path))
    assert frame.rows() == EXPECTED
    assert frame.schema == {"user": pl.String, "item": pl.String, "time_ms": pl.Int64}


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "price,when,sku,who\n3,7,x,anna\n")
    assert read_interactions(path, InteractionColumns("who", "sku", "when")).rows() == [("anna", "x", 7000)]


def test_the_format_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "user_id,item_id,timestamp\nu,i,1\n")
    assert read_interactions(path, kind="csv").rows() == [("u", "i", 1000)]


@pytest.mark.parametrize(
    ("cell", "unit", "milliseconds"),
    [
        ("881250949", "s", 881250949000),
        ("881250949.5", "s", 881250949500),
        ("8.5e8", "s", 850000000000),
        ("-5", "s", -5000),
        ("881250949123", "ms", 881250949123),
        ("881250949123456", "us", 881250949123),
        ("-1", "us", -1),
        ("2024-02-29T12:00:00", "s", 1709208000000),
        ("2024-02-29 12:00:00.250", "ms", 1709208000250),
    ],
)
def test_times_of_text_files_become_milliseconds(tmp_path: Path, cell: str, unit: str, milliseconds: int) -> None:
    path = write(tmp_path / "a.csv", f"user_id,item_id,timestamp\nu,i,{cell}\n")
    assert read_interactions(path, time_unit=unit)["time_ms"].to_list() == [milliseconds]


@pytest.mark.parametrize(
    ("values", "milliseconds"),
    [
        (pl.Series([datetime(2024, 2, 29, 12, tzinfo=timezone.utc)]), 1709208000000),
        (pl.Series([datetime(2024, 2, 29, 12)]).cast(pl.Datetime("ns")), 1709208000000),
        (pl.Series([datetime(2024, 2, 29)]).cast(pl.Date), 1709164800000),
        (pl.Series([12], dtype=pl.UInt32), 12000),
        (pl.Series([1.25]), 1250),
    ],
    ids=["utc", "nanoseconds", "date", "uint32", "float"],
)
def test_times_of_parquet_files_become_milliseconds(tmp_path: Path, values: pl.Series, milliseconds: int) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": values}).write_parquet(tmp_path / "a.parquet")
    assert read_interactions(tmp_path / "a.parquet").rows() == [("1", "2", milliseconds)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file is empty"),
        ("user_id,item_id,timestamp\n", "got none"),
        ("user_id,timestamp\nu,1\n", "column 'item_id', got user_id, timestamp"),
        ("user_id,item_id,timestamp\nu,i,1\nu,,2\n", "row 3, column 'item_id'"),
        ("user_id,item_id,timestamp\n,i,1\n", "row 2, column 'user_id'"),
        ("user_id,item_id,timestamp\nu,i,1\nu,i,\n", "row 3, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,1\nu,i,soon\n", "row 3, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,soon\n", "row 2, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,1.5\nu,i,nan\n", "row 3, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,1.5\nu,i,inf\n", "row 3, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,1\nu,i,1700000000000\n", "row 3, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,9223372036854775807\n", "row 2, column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,2024-01-01\nu,i,7\n", "column 'timestamp'"),
        ("user_id,item_id,timestamp\nu,i,1,9,9\n", "expected a csv file"),
    ],
)
def test_misfit_csv_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=r"a\.csv") as caught:
        read_interactions(path)
    assert message in str(caught.value)


def test_rows_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.dat", "u::i::4::1\nu::i::4\n")
    with pytest.raises(DataError, match="row 2, column 'timestamp'"):
        read_interactions(path)


def test_other_misfit_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        read_interactions(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="expected a parquet file"):
        read_interactions(write(tmp_path / "a.parquet", "no parquet"))
    with pytest.raises(DataError, match=r"file is empty|got none"):
        read_interactions(write(tmp_path / "ratings.dat", ""))
    with pytest.raises(ArgumentError, match=r"format of a\.json"):
        read_interactions(write(tmp_path / "a.json", "{}"))
    with pytest.raises(ArgumentError, match="time_unit=hours: expected s, ms or us"):
        read_interactions(csv_file(tmp_path), time_unit="hours")


def test_a_parquet_column_that_is_no_time_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [True]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, column 'timestamp'"):
        read_interactions(tmp_path / "a.parquet")


def test_titles_carry_the_year_where_one_is_known(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.item",
        'item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tToy "Story"\t1995\n2\tunknown\t\n3\t\t1990\n',
    )
    assert read_titles(path, TitleColumns(year="release_year")) == {
        "1": 'Toy "Story" (1995)',
        "2": "unknown",
        "3": "3 (1990)",
    }
    assert read_titles(path)["1"] == 'Toy "Story"'


def test_categories_are_cut_as_the_format_separates_them(tmp_path: Path) -> None:
    expected = {"1": ["Comedy", "Sci-Fi"], "2": [], "3": ["Drama"]}
    atomic = "item_id:token\tclass:token_seq\n1\tComedy  Sci-Fi Comedy\n2\t\n3\tDrama\n"
    assert read_categories(write(tmp_path / "a.item", atomic), "item_id", "class") == expected
    csv = write(tmp_path / "a.csv", "id,genres\n1,Comedy|Sci-Fi\n2,\n3, Drama \n")
    assert read_categories(csv, "id", "genres") == expected
    (tmp_path / "movies.dat").write_text("1::A::Comedy|Sci-Fi\n2::B::\n3::C::Drama\n")
    assert read_categories(tmp_path / "movies.dat", "item_id", "genres") == expected
    lists = [["Comedy", "Sci-Fi"], None, ["Drama"]]
    pl.DataFrame({"id": [1, 2, 3], "genres": lists}).write_parquet(tmp_path / "a.parquet")
    assert read_categories(tmp_path / "a.parquet", "id", "genres") == expected
    with pytest.raises(DataError, match="expected a column 'kind'"):
        read_categories(csv, "id", "kind")


def test_titles_of_movielens_are_latin_1(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Misérables, Les (1995)::Drama\n".encode("latin-1"))
    assert read_titles(tmp_path / "movies.dat") == {"1": "Misérables, Les (1995)"}


def test_an_item_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "item_id,movie_title\n1,A\n1,B\n")
    with pytest.raises(DataError, match="row 3, column 'item_id': expected an item that no earlier row has"):
        read_titles(path)
