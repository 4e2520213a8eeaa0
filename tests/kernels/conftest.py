"""bfloat16 and float8 in the interpreter as on the hardware."""

import triton

from longrec.kernels.interpreter import correct_interpreter

if triton.knobs.runtime.interpret:
    correct_interpreter()
