"""`longrec stream` and `longrec recommend` against a real tritonserver."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.client import Client
from longrec.config import EngineConfig, ModelConfig
from longrec.modeling import save_run
from longrec.modeling.transformer import Transformer
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-c", "from longrec.cli.main import main; main()"]
NUM_ITEMS = 30


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=NUM_ITEMS, dim=16, window=8)
    folder = tmp_path_factory.mktemp("run")
    names = range(NUM_ITEMS)
    catalogue = Catalogue([f"id-{item}" for item in names], [f"Title {item}" for item in names])
    save_run(folder, Transformer(config), config, catalogue, {})
    return folder


@pytest.fixture(scope="module")
def url(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = EngineConfig(max_k=20, memory_bytes=1 << 20, log_bytes=16 << 20)
    repository = tmp_path_factory.mktemp("repository")
    write_repository(run_folder, repository, engine=engine)
    with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server.grpc_url


def longrec(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60)


def lines(events: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def test_stream_prints_a_prediction_for_each_event_in_order(url: str, tmp_path: Path) -> None:
    events = [
        {"user": f"s{user}", "item": (user + step) % NUM_ITEMS, "time": 1000 * step, "position": step}
        for step in range(12)
        for user in range(5)
    ]
    file = tmp_path / "events.jsonl"
    file.write_text(lines(events) + "\n")
    for _ in range(2):  # with positions a second run appends nothing
        done = longrec("stream", file, "--url", url, "--k", "3", "--max-in-flight", "7")
        assert (done.returncode, done.stderr) == (0, "")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(len(row["items"]) == len(row["scores"]) == 3 for row in rows)
        assert len(rows) == len(events)
    with Client(url) as client:
        assert [client.history_length(user=f"s{user}") for user in range(5)] == [12] * 5
        for user in range(5):
            expected = client.recommend(user=f"s{user}", k=3)
            last = [row for row in rows if row["user"] == f"s{user}"][-1]
            assert (last["items"], last["position"]) == (expected.items.tolist(), 12)


def test_stream_answers_before_its_input_ends(url: str) -> None:
    command = [*COMMAND, "stream", "--url", url, "--k", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for position in (1, 2):
            process.stdin.write(lines([{"user": "live", "item": 1, "time": position}]).encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["position"] == position
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_stream_names_items_by_the_catalogue(url: str, run_folder: Path) -> None:
    events = [{"user": "named", "item": item, "time": 1} for item in ("id-4", "never heard of", "id-5")]
    done = longrec("stream", "--url", url, "--k", "2", "--catalogue", run_folder, stdin=lines(events))
    assert done.returncode == 0
    assert done.stderr == "longrec: 1 events of items outside the catalogue, served as unknown\n"
    for row in map(json.loads, done.stdout.splitlines()):
        assert row["titles"] == [item.replace("id-", "Title ") for item in row["items"]]


def test_stream_prints_gaps_and_conflicts_and_goes_on(url: str) -> None:
    events = [{"user": "gap", "item": 1, "time": 1, "position": position} for position in (0, 4, 1)]
    events.append({"user": "gap", "item": 2, "time": 1, "position": 0})
    done = longrec("stream", "--url", url, "--k", "1", stdin=lines(events))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[1] == {"user": "gap", "position": 1, "status": "gap"}
    assert rows[3] == {"user": "gap", "position": 2, "status": "conflict"}
    assert [row["position"] for row in rows] == [1, 1, 2, 2]


def test_stream_prints_failed_requests_and_ends_with_status_2(url: str) -> None:
    done = longrec("stream", "--url", url, "--k", "21", stdin=lines([{"user": "k", "item": 1, "time": 1}]))
    assert done.returncode == 2
    assert "1..20 (model parameter max_k)" in json.loads(done.stdout)["error"]
    assert done.stderr == "longrec: 1 of 1 requests failed: see the lines with an error\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "-, line 2: expected a JSON object ("),
        ("[1]", "-, line 2: expected an object with user, item and time"),
        ('{"user": "u", "item": 1}', "-, line 2: expected an object with user, item and time"),
        ('{"user": null, "item": 1, "time": 1}', "-, line 2: user: expected a string, got NoneType"),
        ('{"user": "u", "item": "x", "time": 1}', "-, line 2: events[0].item: expected an integer, got str"),
        ('{"user": "u", "item": 1, "time": 1.5}', "-, line 2: events[0].time_ms: expected an integer, got float"),
    ],
)
def test_stream_names_a_bad_line_after_answering_what_came_before(url: str, line: str, message: str) -> None:
    first = lines([{"user": 7, "item": 1, "time": 1}])
    done = longrec("stream", "--url", url, stdin=first + line + "\n" + first)
    assert done.returncode == 2
    assert done.stderr.startswith(f"longrec: {message}")
    assert [json.loads(row)["user"] for row in done.stdout.splitlines()] == ["7"]


def test_stream_names_a_missing_file_and_catalogue(url: str, tmp_path: Path) -> None:
    done = longrec("stream", tmp_path / "none", "--url", url)
    assert done.stderr == f"longrec: {tmp_path / 'none'}: expected a file of JSON lines (No such file or directory)\n"
    done = longrec("recommend", "u", "--url", url, "--catalogue", tmp_path)
    assert done.stderr.startswith(f"longrec: --catalogue {tmp_path}: expected a run's folder, or its catalogue.parquet")


def test_recommend_prints_json_or_a_table(url: str, run_folder: Path) -> None:
    as_json = json.loads(longrec("recommend", "table", "--url", url, "--k", "4", "--json").stdout)
    with Client(url) as client:
        expected = client.recommend(user="table", k=4)
    assert as_json["items"] == expected.items.tolist()
    assert as_json["position"] == 0
    table = longrec("recommend", "table", "--url", url, "--k", "4", "--catalogue", run_folder).stdout
    assert all(f"Title {item} " in table for item in as_json["items"])


def test_the_catalogue_of_another_run_is_named(url: str, tmp_path: Path) -> None:
    Catalogue(["a"], ["A"]).save(tmp_path / "catalogue.parquet")
    done = longrec("recommend", "u", "--url", url, "--catalogue", tmp_path)
    assert done.returncode == 2
    assert "--catalogue: expected the catalogue of the run that is served, got one of 1 items" in done.stderr
