"""The guide's commands, run in its order in an empty folder: what it says must work as it says it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
PORTS = ("8000", "8001", "8002")


def write_data(folder: Path) -> None:
    """40 users who go round a circle of 30 products, in steps that vary."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        item, time = int(rng.integers(30)), 1_750_000_000 + user
        for _ in range(int(rng.integers(8, 16))):
            rows.append((f"u{user}", f"p{item}", time))
            item, time = (item + int(rng.integers(1, 3))) % 30, time + int(rng.integers(60, 9000))
    pl.DataFrame(rows, ["customer", "product", "at"], orient="row").write_csv(folder / "clicks.csv")
    products = [f"p{number}" for number in range(30)]
    pl.DataFrame({"product": products, "name": [f"Product {one}" for one in products]}).write_csv(
        folder / "products.csv"
    )


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return found


def script() -> str:
    """The guide's blocks as one bash script, on ports that are free here."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT"]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "guide.md").read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"bash", "python"}
    for language, code in blocks:
        lines.append(code if language == "bash" else f"python - << 'END'\n{code}END")
    text = "\n".join(lines)
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        assert port in text
        text = re.sub(rf"\b{port}\b", free, text)
    return text


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine with other work
def test_every_command_of_the_guide_works(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    process = subprocess.Popen(
        [shutil.which("bash") or "bash", "-c", script()],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = process.communicate(timeout=550)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the server ends with `longrec serve`
            process.wait()
    assert process.returncode == 0, told
    for said in (
        "Product p",
        '"user": "bob", "position": 2',
        "hit@5",
        "mean batch",
        "hit rate",
        "longrec_requests_total",
    ):
        assert said in told
    for name in (
        "runs/first/history.png",
        "runs/second/weights.safetensors",
        "repository/recommender/2",
        "bench-load/load.png",
    ):
        assert (tmp_path / name).exists(), told
