"""The harness behind `longrec bench kernels`: what it enumerates, compiles, counts and refuses."""

import json
import subprocess
import sys

import pytest
import torch
import triton
import typer
from typer.testing import CliRunner

from longrec.cli.bench_kernels import kernels
from longrec.errors import ArgumentError, MachineError
from longrec.kernels.bench.compiling import compile_all, shipped_configurations
from longrec.kernels.bench.counts import count_all, count_share
from longrec.kernels.bench.devices import DEVICES, roofline_us
from longrec.kernels.bench.problems import problems
from longrec.kernels.compile_check import CompileReport, compile_kernel, complaints
from longrec.kernels.shipped import TARGETS, Shipped, target_of

interpreted = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled here")

MATMUL = """
import json, sys
import triton, triton.language as tl
from longrec.kernels.compile_check import compile_kernel

@triton.jit
def matmul(a_ptr, b_ptr, out_ptr, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, i = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, k, K):
        a = tl.load(a_ptr + m[:, None] * k + start + i[None, :])
        b = tl.load(b_ptr + (start + i)[:, None] * N + n[None, :])
        total = tl.dot(a, b, total)
    tl.store(out_ptr + m[:, None] * N + n[None, :], total)

reports = {}
for target, n in ((80, 64), (90, 64), (100, 64), (80, 256)):
    reports[f"{target}-{n}"] = compile_kernel(
        matmul, {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32", "k": "i32"}, {"M": 128, "N": n, "K": 64},
        target, num_warps=4, num_stages=3, divisible=("k",),
    )
print(json.dumps(reports))
"""


def entry(**changes):
    return Shipped("k", "c", None, 90, {}, {}, 4, 3)._replace(**changes)


def report(**changes):
    return CompileReport(64, 0, 1024, {"HGMMA": 8, "LDGSTS.128": 4})._replace(**changes)


def test_reports_are_what_the_assembler_made_of_a_kernel(tmp_path):
    script = tmp_path / "matmul.py"
    script.write_text(MATMUL)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}  # no TRITON_INTERPRET, no cache of earlier runs
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    reports = {name: CompileReport(*values) for name, values in json.loads(done.stdout).items()}
    assert reports["80-64"].count("mma") > 0
    assert reports["90-64"].count("wgmma") > 0
    assert reports["100-64"].count("tcgen05") > 0
    for name in ("80-64", "90-64", "100-64"):
        assert reports[name].stack_bytes == 0
        assert reports[name].shared_bytes >= 2 * (128 + 64) * 64 * 2  # two of the three stages, at least
        assert reports[name].count("wide_async_copy") > 0
        assert 32 <= reports[name].registers <= 255
    spilt = reports["80-256"]  # 256 float32 sums a thread can't be held in 255 registers
    assert spilt.stack_bytes > 0
    assert spilt.count("local_memory") > 0


@interpreted
def test_a_process_that_interprets_does_not_compile():
    with pytest.raises(MachineError, match="TRITON_INTERPRET"):
        compile_kernel(shipped_configurations((90,))[0].fn, {}, {}, 90, 4, 3)


@pytest.mark.parametrize(
    ("changed_entry", "changed_report", "said"),
    [
        ({}, {}, []),
        ({"expects": ("matrix", "wgmma", "tcgen05", "wide_async_copy")}, {}, []),
        ({}, {"stack_bytes": 8}, ["8 stack bytes"]),
        ({"target": 89}, {"shared_bytes": 120_000}, ["120000 shared bytes > 101376"]),
        ({"num_warps": 16}, {"registers": 200}, ["200 registers x 512 threads > 65536"]),
        ({"expects": ("wgmma",)}, {"instructions": {"HMMA": 4}}, ["no wgmma instruction"]),
        (
            {"expects": ("matrix", "async_copy")},
            {"instructions": {}},
            ["no matrix instruction", "no async_copy instruction"],
        ),
        ({"expects": ("async_copy",)}, {"instructions": {"LDGSTS": 4}}, []),
        ({"expects": ("wide_async_copy",)}, {"instructions": {"LDGSTS": 4}}, ["no wide_async_copy instruction"]),
        ({"target": 100, "expects": ("tcgen05",)}, {}, ["no tcgen05 instruction"]),
    ],
)
def test_what_may_not_ship_is_said(changed_entry, changed_report, said):
    assert complaints(entry(**changed_entry), report(**changed_report)) == said


def test_every_kernel_ships_named_configurations_for_every_target():
    entries = shipped_configurations()
    names = [(e.kernel, e.config, e.target) for e in entries]
    assert len(set(names)) == len(names)
    for kernel in {e.kernel for e in entries}:
        own = [e for e in entries if e.kernel == kernel]
        assert {e.target for e in own} == set(TARGETS), kernel
        assert {e.target for e in own if e.subset} == set(TARGETS), kernel
    for e in entries:
        assert {*e.signature, *e.constexprs} == set(e.fn.arg_names), (e.kernel, e.config)


def test_unknown_targets_are_refused():
    with pytest.raises(ArgumentError, match="target=75: expected one of 80"):
        shipped_configurations((75,))


def test_the_interpreter_cuts_work_as_an_h100():
    assert target_of(torch.device("cpu")) == 90


def test_rooflines_are_the_longer_of_bytes_and_flops():
    assert roofline_us(3_350_000, 1)["H100"] == pytest.approx(1.0)
    assert roofline_us(1, 989_000_000)["H100"] == pytest.approx(1.0)
    assert set(roofline_us(0, 0)) == set(DEVICES) == {"A100", "L40S", "H100", "H200", "B200"}


def test_problems_are_unique_and_each_kernel_has_one_in_the_subset():
    listed = list(problems())
    assert len({(p.kernel, p.case) for p in listed}) == len(listed)
    assert {p.kernel for p in listed if p.subset} >= {"segment_attention", "append_memory", "block_decode"}


@interpreted
def test_counting_a_problem_gives_its_ratios():
    subset = [p for p in problems() if p.subset]
    place = next(i for i, p in enumerate(subset) if p.kernel == "block_decode")
    found, result = next(count_share(True, place, len(subset)))
    assert found == place
    assert result.bytes_ratio == pytest.approx(1.0, abs=0.01)  # one user: each weight and key is read once
    assert result.flops_ratio == 16  # one row where the matrix unit takes sixteen
    assert set(result.as_json()) == {"kernel", "case", "bytes_ratio", "flops_ratio", "roofline_us"}
    json.dumps(result.as_json())


@pytest.mark.slow
def test_the_subset_compiles_without_a_complaint():
    results = compile_all(subset=True)
    assert len(results) == len(shipped_configurations(subset=True))
    assert {result.kernel: result.complaints for result in results if result.complaints} == {}
    assert set(results[0].as_json()) == {
        *("kernel", "config", "target", "registers", "stack_bytes", "shared_bytes", "instructions")
    }


@pytest.mark.slow
def test_the_subset_keeps_what_it_promises_of_bytes_and_flops():
    results = count_all(subset=True)
    assert [(r.kernel, r.case) for r in results] == [(p.kernel, p.case) for p in problems() if p.subset]
    assert {result.case: result.complaints for result in results if result.complaints} == {}


def test_the_command_wants_one_of_its_two_proofs():
    app = typer.Typer()
    app.command()(kernels)
    for flags in ([], ["--compile", "--count"]):
        assert isinstance(CliRunner().invoke(app, flags).exception, ArgumentError)


@pytest.mark.slow
def test_the_command_prints_a_list_of_objects():
    app = typer.Typer()
    app.command()(kernels)
    done = CliRunner().invoke(app, ["--compile", "--target", "90", "--subset", "--json"])
    assert done.exit_code == 0
    assert {result["target"] for result in json.loads(done.stdout)} == {"sm_90"}
