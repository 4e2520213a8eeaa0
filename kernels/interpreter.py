"""Corrections to triton's interpreter, so that it computes what the hardware does in bfloat16 and float8.

As of triton 3.7.1 the interpreter keeps bfloat16 as its bit pattern in uint16 and (a) multiplies those patterns as
integers in `tl.dot`, (b) truncates float32 to bfloat16 where the hardware rounds to nearest even, (c) loses the carry
from mantissa to exponent when it does round. Without this file a bfloat16 kernel could not be tested on a CPU at all.
Other arithmetic directly on bfloat16 stays wrong there: kernels convert to float32 first, as they should anyway.

It also leaves out two things that cost nearly half of the interpreter's time and change nothing: `tl` is patched again
at every call of a device function, and every integer operation is repeated in int64 for an overflow check whose
assertion is off.
"""

import dataclasses
import inspect
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["correct_interpreter"]

_TORCH = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_AS_BITS = {tl.bfloat16: torch.uint16, tl.float8e4nv: torch.uint8, tl.float8e5: torch.uint8}


def correct_interpreter() -> None:
    """Make the interpreter of this process convert and multiply bfloat16 and float8 as the hardware does.

    Rounds to nearest even; float8 conversions saturate. Calling it again changes nothing.
    """
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "corrected", False):
        return
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar in _AS_BITS or kind.scalar in _AS_BITS:
            return interpreter.TensorHandle(_convert(source.data, source.dtype.scalar, kind.scalar), kind.scalar)
        return cast(self, source, kind)

    def create_fp_to_fp(self: Any, source: Any, kind: Any, rounding_mode: Any) -> Any:
        return interpreter.TensorHandle(_convert(source.data, source.dtype.scalar, kind.scalar), kind.scalar)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(_convert(x.data, x.dtype.scalar, tl.float32), tl.float32)
            if x.dtype.scalar in _AS_BITS
            else x
            for x in (a, b)
        )
        return dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    patched: set[Any] = set()  # by a device function's call, which never restores

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        # tl itself is patched while any kernel runs; tl.standard's functions see tl.core, patched by their first call
        seen = {value for value in self.fn.__globals__.values() if inspect.ismodule(value) and value is tl.core}
        if not seen <= patched:
            interpreter._patch_lang(self.fn)
            patched.update(seen)
        try:
            return self.rewrite()(*arguments, **named)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.create_dot = create_dot
    builder.corrected = True


def _convert(data: np.ndarray[Any, Any], source: Any, kind: Any) -> np.ndarray[Any, Any]:
    """`data`, an array of triton type `source`, in triton type `kind`; types without a numpy dtype are bit patterns."""
    if source not in _TORCH or kind not in _TORCH:  # to or from an integer: by way of float32, as the hardware does
        if source in _TORCH:
            return _convert(data, source, tl.float32).astype(interpreter._get_np_dtype(kind))
        return _convert(data.astype(np.float32), tl.float32, kind)
    values = torch.from_numpy(np.ascontiguousarray(data))
    if source in _AS_BITS:
        values = values.view(_TORCH[source])
    if kind in (tl.float8e4nv, tl.float8e5):
        values = values.float().clamp(*(sign * torch.finfo(_TORCH[kind]).max for sign in (-1.0, 1.0)))
    values = values.to(_TORCH[kind])
    if kind in _AS_BITS:
        values = values.view(_AS_BITS[kind])
    return values.numpy().reshape(data.shape)
