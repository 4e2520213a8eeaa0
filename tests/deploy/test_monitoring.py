"""The dashboard and the alerts, against what a real server tells when it is scraped: every metric and label that they
name is there, and the counts are those of the requests that were sent."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import promql_parser
import pytest
import torch
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from longrec.catalogue import Catalogue
from longrec.client import Client, Event, Status
from longrec.config import EngineConfig, ModelConfig
from longrec.modeling.checkpoint_io import save_run
from longrec.modeling.transformer import Transformer
from longrec.protocol import CANDIDATE, EVENT, MODEL, USER
from longrec.server.process import Server
from longrec.server.repository import write_repository

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana/longrec.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in ALERTS] + TARGETS

OF_PROMETHEUS = {"up"}
OF_A_GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
OF_THE_TARGET = {"job", "instance"}  # labels that Prometheus adds
GRAFANA = {"$__rate_interval": "5m", "$job": "longrec", "$instance": ".+"}

NUM_ITEMS = 50
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def selectors(expression: Any) -> Iterator[promql_parser.VectorSelector]:
    """The vector selectors of a parsed PromQL expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("lhs", "rhs", "expr", "vector_selector", "param", "args"):
        child = getattr(expression, name, None)
        for part in child if isinstance(child, list) else [child]:
            if part is not None:
                yield from selectors(part)


def parsed(expression: str) -> Any:
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)
    return promql_parser.parse(expression)


def scrape(server: Server) -> Series:
    series: Series = {}
    with urlopen(server.metrics_url) as page:
        for line in page.read().decode().splitlines():
            if line and not line.startswith("#"):
                name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
                series[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
    return series


def total(series: Series, name: str, **labels: str) -> float:
    return sum(value for (family, own), value in series.items() if family == name and own >= set(labels.items()))


def published(server: Server) -> Series:
    """A scrape that tells of everything up to the first event of all."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        series = scrape(server)
        # the sum of the batches is published last
        whole = total(series, "longrec_batch_queries_sum") == total(series, "longrec_queries_total")
        if whole and total(series, "longrec_events_appended_total") == 1:
            return series
        time.sleep(0.05)
    raise AssertionError("nothing was published")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    torch.manual_seed(0)
    config = ModelConfig(num_items=NUM_ITEMS, dim=32, window=16)
    catalogue = Catalogue([f"i{item}" for item in range(NUM_ITEMS)], ["title"] * NUM_ITEMS)
    folder = tmp_path_factory.mktemp("monitored")
    save_run(folder / "checkpoint", Transformer(config), config, catalogue, {})
    engine = EngineConfig(memory_bytes=8 << 20, log_bytes=64 << 20, inline_events=16)
    repository = write_repository(folder / "checkpoint", folder / "repository", engine=engine).parents[1]
    with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def scraped(server: Server) -> Series:
    return scrape(server)


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[f"{title}" for title, _ in EXPRESSIONS])
def test_an_expression_is_promql(title: str, expression: str) -> None:
    assert list(selectors(parsed(expression)))


@pytest.mark.server
def test_what_the_expressions_name_is_scraped(scraped: Series) -> None:
    names = {name for name, _ in scraped}
    for title, expression in EXPRESSIONS:
        for selector in selectors(parsed(expression)):
            if selector.name in OF_PROMETHEUS or selector.name in OF_A_GPU - names:
                continue
            assert selector.name in names, title
            for matcher in selector.matchers.matchers:
                if matcher.name not in OF_THE_TARGET:
                    values = {dict(labels).get(matcher.name, "") for name, labels in scraped if name == selector.name}
                    wanted = set(matcher.value.split("|"))
                    assert wanted <= values, f"{title}: {selector.name} has {matcher.name} {values}"


@pytest.mark.server
def test_labels_that_are_grouped_by_are_scraped(scraped: Series) -> None:
    labels = {name for _, own in scraped for name, _ in own} | OF_THE_TARGET
    for title, expression in EXPRESSIONS:
        for by in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(by.split(", ")) <= labels, title
    for title, expression in TARGETS:
        assert "job=" in expression, f"{title}: the dashboard's variables choose the server"


@pytest.mark.server
def test_every_series_of_the_engine_is_on_the_dashboard(scraped: Series) -> None:
    shown = {selector.name for _, expression in EXPRESSIONS for selector in selectors(parsed(expression))}
    for family in {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in scraped if name.startswith("longrec_")}:
        assert shown & {family, *(f"{family}_{part}" for part in ("bucket", "sum", "count"))}, family


@pytest.mark.server
def test_counts_are_those_of_the_requests(server: Server) -> None:
    with Client(server.grpc_url) as client:
        client.recommend(user="first", events=[Event(item=1, time_ms=1000)], k=3)
        before = published(server)
        for user in ("anna", "bert"):
            events = [Event(item=item, time_ms=1000 * item, position=item) for item in range(5)]
            client.recommend(user=user, events=events, k=3)
        again = [Event(item=4, time_ms=4000, position=4), Event(item=NUM_ITEMS + 7, time_ms=5000, position=5)]
        client.recommend(user="anna", events=again, k=3)
        long = [Event(item=item % NUM_ITEMS, time_ms=1000 * item, position=item) for item in range(40)]
        client.recommend(user="cold", events=long, k=3)
    with InferenceServerClient(server.grpc_url) as client:
        for user, rows, error in (
            (b"dora", [[9, 1, 1]], [Status.GAP, 0]),
            (b"anna", [[0, 1, 1]], [Status.CONFLICT, 6]),
            (b"dora", [[1, 1, 1], [5, 1, 1]], "EVENT column position"),
        ):
            inputs = [InferInput(USER, [1, 1], "BYTES"), InferInput(EVENT, [1, len(rows), 3], "INT64")]
            inputs.append(InferInput(CANDIDATE, [1, 0], "INT64"))
            values = (np.array([[user]], np.object_), np.array([rows], np.int64), np.empty((1, 0), np.int64))
            for tensor, value in zip(inputs, values, strict=True):
                tensor.set_data_from_numpy(value)
            if isinstance(error, list):
                assert client.infer(MODEL, inputs).as_numpy("STATE").tolist() == [error]
            else:
                with pytest.raises(InferenceServerException, match=error):
                    client.infer(MODEL, inputs)
    expected = {
        ("longrec_requests_total", "ok"): 4,
        ("longrec_requests_total", "gap"): 1,
        ("longrec_requests_total", "conflict"): 1,
        ("longrec_requests_total", "invalid"): 1,
        ("longrec_requests_total", "error"): 0,
        ("longrec_queries_total", ""): 6,
        ("longrec_gaps_total", ""): 1,
        ("longrec_conflicts_total", ""): 1,
        ("longrec_events_appended_total", ""): 5 + 5 + 1 + 40,
        ("longrec_events_skipped_total", ""): 1,
        ("longrec_events_unknown_total", ""): 1,
        ("longrec_events_computed_total", ""): 5 + 5 + 1 + 31,  # of the cold user's, what reaches an answer
        ("longrec_deferred_total", ""): 1,
        ("longrec_memory_users", ""): 3,
        ("longrec_request_seconds_count", ""): 7,
        ("longrec_queue_seconds_count", ""): 1,
        ("longrec_log_bytes_limit", ""): 0,
    }
    deadline = time.monotonic() + 20
    found: dict[tuple[str, str], float] = {}
    while found != expected and time.monotonic() < deadline:
        time.sleep(0.1)  # published twice a second
        after = scrape(server)
        for name, outcome in expected:
            labels = {"outcome": outcome} if outcome else {}
            found[name, outcome] = total(after, name, **labels) - total(before, name, **labels)
    assert found == expected
    assert total(after, "longrec_log_bytes_limit") == 64 << 20
    assert 0 < total(after, "longrec_log_bytes") < 64 << 20
    assert 0 < total(after, "longrec_memory_pages_free") < total(after, "longrec_memory_pages")
    for family in ("request_seconds", "step_seconds", "step_events", "batch_queries"):
        buckets = {
            float(dict(labels)["le"]): value
            for (name, labels), value in after.items()
            if name == f"longrec_{family}_bucket"
        }
        values = [value for _, value in sorted(buckets.items())]
        assert values == sorted(values)
        assert max(buckets) == float("inf")
        assert values[-1] == total(after, f"longrec_{family}_count") > 0
        assert total(after, f"longrec_{family}_sum") > 0
