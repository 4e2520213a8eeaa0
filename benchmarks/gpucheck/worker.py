"""The child's side of `workers`: does a job a line."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import triton

from gpucheck.comparing import describe
from longrec.kernels.interpreter import correct_interpreter

__all__ = ["serve"]

Json = dict[str, Any]


def serve(device: torch.device) -> None:
    """Answer jobs from standard input until it ends. A job is `{"kind": "check", "machine" or "time", "id": …}`."""
    # what libraries print goes to the errors; answers alone to the parent
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # the same-dtype errors of PyTorch set the tolerance: they must not be made larger than they are
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if triton.knobs.runtime.interpret:
        correct_interpreter()
    doers: dict[str, dict[str, Callable[[torch.device], Json]]] = {}
    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        if job["kind"] not in doers:
            doers[job["kind"]] = _doers(job["kind"])
        try:
            answer = doers[job["kind"]][job["id"]](device)
        except Exception as error:  # whatever a case raises is its result
            answer = {"failure": describe(error)}
        answer["alive"] = _is_usable(device)
        answer["seconds"] = round(time.monotonic() - began, 2)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _doers(kind: str) -> dict[str, Callable[[torch.device], Json]]:
    if kind == "check":
        from gpucheck.checks import checks

        return {check.id: check.answer for check in checks()}
    if kind == "machine":
        return {"machine": _machine}
    from gpucheck.timings import timings

    return {timing.id: timing.answer for timing in timings()}


def _machine(device: torch.device) -> Json:
    """The device, and what a copy and a matrix product reach on it."""
    from gpucheck.clock import Clock, copy_rate, matmul_rate

    clock = Clock()
    return {"copy_bytes_per_second": copy_rate(clock), "matmul_flops_per_second": matmul_rate(clock)}


def _is_usable(device: torch.device) -> bool:
    """Whether the device still answers this process: an illegal access does not heal."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
