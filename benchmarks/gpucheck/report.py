"""Results as text for people and as JSON for programs."""

import math
from typing import Any

from gpucheck.timed import Target

__all__ = ["failure_lines", "machine_line", "timing_table", "verdict"]

Json = dict[str, Any]
HOPPER = (9, 0)  # an absolute target holds from this compute capability on


def failure_lines(id: str, answer: Json) -> list[str]:
    """A line for each result of a check that isn't right; empty for a good one."""
    if "failure" in answer:
        return [f"FAILED {id}: {answer['failure']}"]
    return [
        f"FAILED {id}: {c['name']}: max error {c['error']:.3g}, allowed {c['allowed']:.3g}; "
        f"rms {c['rms_error']:.3g}, allowed {c['rms_allowed']:.3g}" + (f"; {c['wrong']}" if c["wrong"] else "")
        for c in answer.get("comparisons", [])
        if c["wrong"] or not (c["error"] <= c["allowed"] and c["rms_error"] <= c["rms_allowed"])
    ]


def verdict(target: Target | None, answer: Json, timed: dict[str, Json], machine: Json) -> Json | None:
    """What became of a target: `{"kind", "wanted", "got", "met"}`; met None: it can't be said, `why` says why."""
    if target is None or "us" not in answer:
        return None
    seconds = answer["us"] * 1e-6
    found: Json = {"kind": target.kind, "wanted": target.value if math.isfinite(target.value) else None}
    if target.kind == "bandwidth":
        if "copy_bytes_per_second" not in machine:
            return {**found, "got": None, "met": None, "why": "no copy was measured"}
        got = answer["least_bytes"] / seconds / machine["copy_bytes_per_second"]
        return {**found, "got": round(got, 3), "met": got >= target.value}
    if target.kind == "tflops":
        got = answer["least_flops"] / seconds / 1e12
        if tuple(machine["capability"]) < HOPPER:
            return {**found, "got": round(got, 1), "met": None, "why": "an H100's"}
        return {**found, "got": round(got, 1), "met": got >= target.value}
    plain = timed.get(target.of, {})
    if "us" not in plain:
        return {**found, "got": None, "met": None, "why": f"no time of {target.of}"}
    got = answer["us"] / plain["us"]
    return {**found, "got": round(got, 3), "met": None if found["wanted"] is None else got <= target.value}


def machine_line(machine: Json) -> str:
    """What the shares in the table are of."""
    if "copy_bytes_per_second" not in machine:
        return f"copy and matmul were not measured: {machine.get('failure') or machine.get('left_out')}"
    return (
        f"measured here: copy {machine['copy_bytes_per_second'] / 1e9:.0f} GB/s (read + written), "
        f"bf16 matmul {machine['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    )


def timing_table(timed: dict[str, Json], machine: Json) -> str:
    """A line for each timing: time, rates, shares of what copy and matmul reach here, target, baselines."""
    header = ("problem", "us", "GB/s", "of copy", "TFLOP/s", "of matmul", "target", "others: us (times ours)")
    rows = [header]
    for id, answer in timed.items():
        if "us" not in answer:
            rows.append((id, "-", "-", "-", "-", "-", "-", f"NO TIME: {answer.get('failure') or answer['left_out']}"))
            continue
        seconds = answer["us"] * 1e-6
        bytes_rate, flops_rate = answer["least_bytes"] / seconds, answer["least_flops"] / seconds
        others = ", ".join(
            f"{name} {b['us']:.1f} ({b['us'] / answer['us']:.2f} x)" if "us" in b else f"{name} n/a: {b['na']}"
            for name, b in answer["baselines"].items()
        )
        rows.append(
            (
                id,
                f"{answer['us']:.1f}" + ("" if answer["method"] == "graph" else "*"),
                f"{bytes_rate / 1e9:.0f}",
                _share(bytes_rate, machine.get("copy_bytes_per_second")),
                f"{flops_rate / 1e12:.1f}",
                _share(flops_rate, machine.get("matmul_flops_per_second")),
                _target(answer.get("target")),
                others,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        + "  "
        + row[-1]
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _share(rate: float, of: float | None) -> str:
    return "-" if of is None else f"{100 * rate / of:.0f} %"


def _target(target: Json | None) -> str:
    if target is None:
        return "-"
    got = "-" if target["got"] is None else f"{target['got']}"
    sign = "<=" if target["kind"] == "ratio" else ">="
    unit = {"bandwidth": "of copy", "tflops": "TFLOP/s", "ratio": "x plain"}[target["kind"]]
    if target["wanted"] is None:
        return f"{got} {unit}"
    said = {True: "met", False: "MISSED", None: f"not judged: {target.get('why', '')}"}[target["met"]]
    return f"{said} ({got} {sign} {target['wanted']} {unit})"
