"""The benchmarks' own modules, importable as they are when a benchmark is started; bfloat16 as on the hardware."""

import sys
from pathlib import Path

import triton

from longrec.kernels.interpreter import correct_interpreter

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
if triton.knobs.runtime.interpret:
    correct_interpreter()
