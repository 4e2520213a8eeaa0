"""`gpu_check.py` from a plain checkout, in processes that can import no more than one has; its workers; its report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpucheck.checks import checks
from gpucheck.report import failure_lines, timing_table, verdict
from gpucheck.timed import Target
from gpucheck.timings import timings
from gpucheck.workers import run_jobs

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"

# read by every interpreter that is started, the workers' too; refuses packages, and longrec as it is installed
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "typer", "rich", "numba", "pytest", "hypothesis", "polars", "lmdb"}:
            raise ImportError(f"{name} is not part of a plain checkout")

sys.meta_path = [Block(), *(f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "").lower())]
"""

# a child whose jobs answer, die or never end
CHILD = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)
    if job["id"] == "die":
        sys.exit("out of luck")
    if job["id"] == "hang":
        time.sleep(60)
    print(json.dumps({"said": job["id"], "alive": job["id"] != "last"}), flush=True)
"""


def run(tmp_path, *arguments):
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)


def test_cases_run_from_a_plain_checkout(tmp_path):
    done = run(tmp_path, "--interpret", "--json", "result.json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["passed"]
    assert result["timings"] == {}
    assert len(result["checks"]) > 10
    assert all(answer["passed"] and answer["comparisons"] for answer in result["checks"].values())
    operators = {name.split()[0] for name in result["checks"]}
    assert operators == {"append", "attention", "block", "cross", "topk"}
    assert f"{len(result['checks'])} of {len(result['checks'])} cases passed" in done.stdout


def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stdout
    assert "--interpret" in done.stdout


def test_every_case_and_timing_has_a_name_of_its_own():
    for table in (checks(), timings()):
        names = [entry.id for entry in table]
        assert len(set(names)) == len(names)
        assert any(entry.quick for entry in table)
        assert not all(entry.quick for entry in table)
    for timing in timings():
        if timing.target is not None and timing.target.kind == "ratio":
            assert timing.target.of in names


def work(jobs, processes=1, seconds=30.0):
    answers = {}
    run_jobs(
        [{"id": job} for job in jobs],
        processes=processes,
        limit_seconds=lambda: seconds,
        on_answer=lambda job, answer: answers.update({job["id"]: answer}),
        command=(sys.executable, "-c", CHILD),
    )
    return answers


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_kills_its_process_fails_alone(processes):
    answers = work(["a", "die", "b", "last", "c"], processes)
    assert {job: answer.get("said") for job, answer in answers.items()} == {
        "a": "a",
        "die": None,
        "b": "b",
        "last": "last",
        "c": "c",
    }
    assert "ended with 1: out of luck" in answers["die"]["failure"]


def test_a_job_that_never_ends_is_given_up():
    answers = work(["hang", "a"], seconds=2.0)
    assert answers["hang"] == {"failure": "no answer within 2 s"}
    assert answers["a"]["said"] == "a"


def test_jobs_are_left_out_when_no_time_is_left():
    assert work(["a"], seconds=0.0) == {"a": {"left_out": "no time was left"}}


def test_failures_name_case_error_and_what_is_allowed():
    good = {"name": "out", "error": 0.1, "allowed": 0.2, "rms_error": 0.1, "rms_allowed": 0.2, "wrong": ""}
    assert failure_lines("case", {"comparisons": [good]}) == []
    bad = [good | {"error": 0.3}, good | {"error": float("nan")}, good | {"wrong": "torn"}, good | {"rms_error": 0.5}]
    assert len(failure_lines("case", {"comparisons": bad})) == len(bad)
    assert "case: out: max error 0.3, allowed 0.2" in failure_lines("case", {"comparisons": bad[:1]})[0]
    assert failure_lines("case", {"failure": "boom"}) == ["FAILED case: boom"]


MACHINE = {"copy_bytes_per_second": 1e12, "matmul_flops_per_second": 1e15, "capability": [9, 0]}
TIME = {"us": 100.0, "least_bytes": 90_000_000, "least_flops": 45_000_000_000, "method": "graph", "baselines": {}}


@pytest.mark.parametrize(
    ("target", "machine", "got", "met"),
    [
        (Target("bandwidth", 0.8), MACHINE, 0.9, True),
        (Target("bandwidth", 0.95), MACHINE, 0.9, False),
        (Target("bandwidth", 0.8), {"capability": [9, 0]}, None, None),
        (Target("tflops", 400.0), MACHINE, 450.0, True),
        (Target("tflops", 500.0), MACHINE, 450.0, False),
        (Target("tflops", 400.0), MACHINE | {"capability": [8, 0]}, 450.0, None),
        (Target("ratio", 1.3, "plain"), MACHINE, 1.25, True),
        (Target("ratio", 1.2, "plain"), MACHINE, 1.25, False),
        (Target("ratio", float("inf"), "plain"), MACHINE, 1.25, None),
        (Target("ratio", 1.3, "absent"), MACHINE, None, None),
    ],
    ids=str,
)
def test_targets_are_judged(target, machine, got, met):
    found = verdict(target, TIME, {"plain": {"us": 80.0}}, machine)
    assert found["got"] == got
    assert found["met"] is met


def test_a_wrong_result_has_no_time_and_no_target():
    wrong = {"failure": "out: max error 3"}
    assert verdict(Target("bandwidth", 0.8), wrong, {}, MACHINE) is None
    table = timing_table({"decode": wrong, "topk": TIME | {"baselines": {"sdpa": {"us": 150.0}}}}, MACHINE)
    lines = table.splitlines()
    assert "NO TIME: out: max error 3" in lines[1]
    assert "sdpa 150.0 (1.50 x)" in lines[2]


def test_a_case_that_raises_is_a_failure_and_the_next_one_runs(tmp_path):
    """The real worker, asked for what does not exist, and then for a case."""
    answers = {}
    case = next(check.id for check in checks() if check.interpreted and check.id.startswith("append"))
    run_jobs(
        [{"kind": "check", "id": "absent"}, {"kind": "check", "id": case}],
        processes=1,
        limit_seconds=lambda: 120.0,
        on_answer=lambda job, answer: answers.update({job["id"]: answer}),
        arguments=("--interpret",),
    )
    assert answers["absent"]["failure"] == "KeyError: 'absent'"
    assert answers[case]["passed"]
    assert not torch.cuda.is_available() or answers[case]["seconds"] < 120
