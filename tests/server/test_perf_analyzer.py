"""Running perf_analyzer: what is asked of it and how its report is read. A script with its output stands in for it."""

from pathlib import Path

import pytest

from longrec.errors import ArgumentError, ServerError
from longrec.server.perf_analyzer import PerfAnalyzer, PerfResult, find_perf_analyzer, run_perf_analyzer

# As perf_analyzer 2.50.0 wrote them.
REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "32,3917.58,4,1518,2004,380,2195,1706,1,7132,11360,13355,18614\n"
)
PRINTED = """  Server:
    Inference count: 30598
    Execution count: 2022
    Successful request count: 30598
"""


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    (tmp_path / "requests.json").write_text('{"data": []}')
    return tmp_path / "requests.json"


def program(folder: Path, script: str) -> PerfAnalyzer:
    (folder / "perf_analyzer").write_text(f"#!/bin/sh\n{script}")
    (folder / "perf_analyzer").chmod(0o755)
    return PerfAnalyzer(folder / "perf_analyzer")


def test_report_is_read_and_arguments_are_passed(tmp_path: Path, requests: Path) -> None:
    (tmp_path / "report").write_text(REPORT)
    (tmp_path / "printed").write_text(PRINTED)
    script = f"""
echo "$@" >> {tmp_path}/asked
while [ "$1" != -f ]; do shift; done
cp {tmp_path}/report "$2"
cat {tmp_path}/printed
"""
    results = run_perf_analyzer(
        "127.0.0.1:8001",
        "recommender",
        requests,
        [8, 32],
        window_ms=700,
        requests=5000,
        parameters={"k": 20},
        analyzer=program(tmp_path, script),
    )
    expected = PerfResult(
        concurrency=32,
        throughput=3917.58,
        p50_ms=7.132,
        p90_ms=11.36,
        p95_ms=13.355,
        p99_ms=18.614,
        queue_ms=2.004,
        compute_ms=4.281,
        mean_batch=30598 / 2022,
    )
    assert results == [expected, expected]
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert "--concurrency-range=8 " in first
    assert "--concurrency-range=32 " in second
    for part in ("-m recommender", "-u 127.0.0.1:8001", "-i grpc", "--async", f"--input-data={requests}"):
        assert part in first
    assert "--measurement-interval=700" in first
    assert "--request-count=5000" in first
    assert "--request-parameter=k:20:int" in first


def test_unstable_measurement_is_an_error(tmp_path: Path, requests: Path) -> None:
    analyzer = program(tmp_path, "echo 'Failed to obtain stable measurement.'")
    with pytest.raises(ServerError, match=r"perf_analyzer at concurrency 4: .*Failed to obtain stable measurement"):
        run_perf_analyzer("127.0.0.1:8001", "recommender", requests, [4], analyzer=analyzer)


def test_bad_arguments(tmp_path: Path, requests: Path) -> None:
    with pytest.raises(ArgumentError, match=r"concurrency=\[0\]: expected at least 1"):
        run_perf_analyzer("127.0.0.1:8001", "recommender", requests, [0])
    with pytest.raises(ArgumentError, match="expected a JSON file of requests, got no such file"):
        run_perf_analyzer("127.0.0.1:8001", "recommender", tmp_path / "absent.json", [1])


def test_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_perf_analyzer() == expected


def test_nothing_is_downloaded_when_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_perf_analyzer(download=False) is None


def test_a_run_that_does_not_end_is_an_error(tmp_path: Path, requests: Path) -> None:
    options = {"window_ms": 1, "max_windows": 1, "timeout_seconds": 0.2}
    with pytest.raises(ServerError, match=r"at concurrency 4: expected its end within 0.201 s; does 127.0.0.1:8001"):
        run_perf_analyzer(
            "127.0.0.1:8001", "recommender", requests, [4], analyzer=program(tmp_path, "exec sleep 60"), **options
        )
