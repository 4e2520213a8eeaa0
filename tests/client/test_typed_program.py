"""A user's program that uses the client passes mypy strict: longrec ships its types."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from longrec.client import AsyncClient, Client, Event, GapError, Options, Prediction, Retry, ServerError, Tls


def history(user: str) -> list[Event]:
    return [Event(item=1, time_ms=2, position=0)]


def program() -> list[int]:
    with Client(["a:8001", "b:8001"], history=history, retry=Retry(attempts=2), tls=Tls()) as client:
        prediction: Prediction = client.recommend(user="u", events=history("u"), k=3, horizon=2, exclude=[4])
        items: NDArray[np.int64] = prediction.items
        scores: NDArray[np.float32] = client.score(user="u", candidates=[1, 2]).scores
        length: int = client.append(user="u", events=np.zeros((1, 3), np.int64)).length
        names: list[str] = [p.user for p in client.recommend_many(["a", ("b", history("b"))], progress=True)]
        with client.stream(k=5, options=Options(exclude_seen=True)) as stream:
            for one in stream.map([("u", history("u"))]):
                assert one.because is None
        try:
            client.flush()
        except GapError as gap:
            length += gap.length
        except ServerError:
            raise
        return [*items.ravel().tolist(), len(scores), length, len(names), client.model_info().max_users]


async def users() -> AsyncIterator[tuple[str, list[Event]]]:
    yield "u", history("u")


async def main() -> None:
    async with AsyncClient("a:8001") as client, client.stream() as stream:
        async for prediction in stream.map(users()):
            length: int = prediction.position
        found: Prediction = await client.recommend(user="u")
        print(found.items, length, client.unacknowledged(user="u"))


asyncio.run(main())
program()
"""
MISUSE = 'from longrec.client import Client\nlength: str = Client("a:1").history_length(user="u")\n'


def check(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    package = tmp_path / "longrec"  # the installed layout
    if not package.exists():
        package.mkdir()
        for file in (*(ROOT / "longrec").glob("*.py"), ROOT / "longrec" / "py.typed", ROOT / "client"):
            (package / file.name).symlink_to(file)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-tritonclient.*,grpc.*,google.*,pandas.*]\nignore_missing_imports = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", f"--cache-dir={ROOT}/.mypy_cache/user"]
    return subprocess.run([*command, "program.py"], cwd=tmp_path, capture_output=True, text=True)


def test_a_users_program_passes_mypy_strict_and_misuse_does_not(tmp_path: Path) -> None:
    passed = check(tmp_path, PROGRAM)
    assert passed.returncode == 0, passed.stdout
    refused = check(tmp_path, MISUSE)
    assert 'expression has type "int", variable has type "str"' in refused.stdout
