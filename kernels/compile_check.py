"""Compiles a kernel for a target without a GPU and reads what the assembler made of it.

Holds one compilation and its report; `longrec.kernels.bench` runs it over everything that ships. Resource usage is what
`cuobjdump` says, instructions what `nvdisasm` lists, both as shipped with triton. Nothing here runs in a process that
interprets kernels: `@triton.jit` has then made something that can't be compiled.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longrec.errors import ArgumentError, MachineError
from longrec.kernels.shipped import SHARED_BYTES_LIMIT, Shipped

__all__ = ["INSTRUCTION_CLASSES", "CompileReport", "compile_kernel", "compile_shipped", "complaints"]

# SASS opcodes by what they are for. tcgen05.mma is UTCHMMA (bf16, fp16, tf32), UTCQMMA (fp8), UTCIMMA (int8);
# wgmma is HGMMA, QGMMA, IGMMA; mma.sync is HMMA, QMMA, IMMA, DMMA. Asynchronous copies of 4 bytes (plain LDGSTS)
# may be those of a bias or a mask beside a tile that is not pipelined: only the wide ones prove that it is.
INSTRUCTION_CLASSES: Mapping[str, tuple[str, ...]] = {
    "tcgen05": ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    "wgmma": ("HGMMA", "QGMMA", "IGMMA"),
    "mma": ("HMMA", "QMMA", "IMMA", "DMMA", "OMMA"),
    "async_copy": ("LDGSTS", "LDGSTS.64", "LDGSTS.128", "UTMALDG", "UBLKCP"),
    "wide_async_copy": ("LDGSTS.64", "LDGSTS.128", "UTMALDG", "UBLKCP"),
    "local_memory": ("LDL", "STL"),
    "global_load": ("LDG", "LDG.64", "LDG.128"),
}
_OF_INTEREST = frozenset(name for names in INSTRUCTION_CLASSES.values() for name in names)

# "        /*0a30*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;" -> "LDG.E.128"
_SASS_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


class CompileReport(NamedTuple):
    """What one compiled kernel needs.

    Args:
        registers: a thread.
        stack_bytes: a thread; anything above 0 is a spill or an array in local memory.
        shared_bytes: a block, static and dynamic.
        instructions: SASS opcodes of `INSTRUCTION_CLASSES` that occur, with their count in the code (not in time).
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int]

    def count(self, kind: str) -> int:
        """Instructions of a class of `INSTRUCTION_CLASSES`, or of "matrix": any of its matrix instructions."""
        kinds = ("tcgen05", "wgmma", "mma") if kind == "matrix" else (kind,)
        return sum(self.instructions.get(name, 0) for k in kinds for name in INSTRUCTION_CLASSES[k])


def compile_kernel(
    fn: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    target: int,
    num_warps: int,
    num_stages: int,
    divisible: Iterable[str] = (),
    maxnreg: int | None = None,
) -> CompileReport:
    """Compile one kernel ahead of time.

    Args:
        fn: the `@triton.jit` function.
        signature: argument name -> type, `*bf16` or `i32`, for every argument that isn't a constexpr.
        constexprs: argument name -> value.
        target: compute capability x 10.
        num_warps, num_stages: of the launch.
        divisible: integer arguments that are multiples of 16; pointers always are.
        maxnreg: register cap of the launch.

    Raises:
        MachineError: this process interprets kernels.
        ArgumentError: the arguments are not the kernel's.
    """
    if not isinstance(fn, triton.JITFunction):
        raise MachineError(
            f"{getattr(fn, '__name__', fn)}: this process interprets kernels; compile in one without TRITON_INTERPRET"
        )
    names = list(fn.arg_names)
    if set(names) != {*signature, *constexprs}:
        missing, unknown = set(names) - {*signature, *constexprs}, {*signature, *constexprs} - set(names)
        raise ArgumentError(
            f"signature of {fn.__name__}",
            f"the arguments {names}",
            f"missing {missing or '-'}, unknown {unknown or '-'}",
        )
    types = {name: signature.get(name, "constexpr") for name in names}
    # without the hint loads shrink to the element's width and nothing is copied asynchronously
    aligned = [i for i, name in enumerate(names) if types[name].startswith("*") or name in set(divisible)]
    source = ASTSource(
        fn,
        signature=types,
        constexprs=dict(constexprs),
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages}
    if maxnreg is not None:
        options["maxnreg"] = maxnreg
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return read_cubin(compiled.asm["cubin"], dynamic_shared_bytes=compiled.metadata.shared)


def read_cubin(cubin: bytes, dynamic_shared_bytes: int = 0) -> CompileReport:
    """The report of a compiled kernel's binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path))
        sass = _run(triton.knobs.nvidia.nvdisasm.path, "-c", str(path))
    found = _USAGE.search(usage)
    if found is None:
        raise MachineError(f"cuobjdump gave no resource usage, but: {usage[:200]}")
    registers, stack, static = map(int, found.groups())
    counts = Counter(_opcode(text) for text in _SASS_LINE.findall(sass))
    return CompileReport(
        registers=registers,
        stack_bytes=stack,
        shared_bytes=static + dynamic_shared_bytes,
        instructions={name: count for name, count in sorted(counts.items()) if name in _OF_INTEREST},
    )


def compile_shipped(entry: Shipped) -> CompileReport:
    """`compile_kernel` of a configuration that ships."""
    return compile_kernel(
        entry.fn,
        entry.signature,
        entry.constexprs,
        entry.target,
        entry.num_warps,
        entry.num_stages,
        entry.divisible,
        entry.maxnreg,
    )


def complaints(entry: Shipped, report: CompileReport) -> list[str]:
    """What is wrong with a compiled configuration; empty: it may ship.

    No stack bytes, shared memory and registers within the target's limits, and every class of instructions that the
    entry expects ("wgmma" is asked of sm_90 alone, "tcgen05" of sm_100 alone).
    """
    wrong = []
    if report.stack_bytes:
        wrong.append(f"{report.stack_bytes} stack bytes")
    if report.shared_bytes > SHARED_BYTES_LIMIT[entry.target]:
        wrong.append(f"{report.shared_bytes} shared bytes > {SHARED_BYTES_LIMIT[entry.target]}")
    if report.registers * 32 * entry.num_warps > 65536:
        wrong.append(f"{report.registers} registers x {32 * entry.num_warps} threads > 65536")
    own_target = {"wgmma": 90, "tcgen05": 100}
    asked = [kind for kind in entry.expects if own_target.get(kind, entry.target) == entry.target]
    return wrong + [f"no {kind} instruction" for kind in asked if not report.count(kind)]


def _opcode(text: str) -> str:
    """`LDG.E.128.CONSTANT` -> `LDG.128`, and LDGSTS so too; other opcodes lose their modifiers."""
    name, *modifiers = text.split(".")
    if name in ("LDG", "LDGSTS"):
        return next((f"{name}.{width}" for width in ("128", "64") if width in modifiers), name)
    return name


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{Path(command[0]).name} exited with {done.returncode}: {done.stderr[:200]}")
    return done.stdout
