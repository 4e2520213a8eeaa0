"""RecTools' networks, each in a process of its own under another Python; what they are told is in
`rectools_worker.py`."""

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.datasets import Dataset, Split
from longrec.errors import MachineError

__all__ = ["RIVALS", "WORKER", "Rival", "check_rectools", "write_interactions"]

RIVALS = ("sasrec", "esasrec", "hstu")
WORKER = Path(__file__).with_name("rectools_worker.py")
PARTS = {"validation": 1, "test": 2}


def check_rectools(python: Path) -> str:
    """RecTools' version in the environment of `python`.

    Raises:
        MachineError: it isn't there.
    """
    code = "import rectools.models; print(rectools.__version__)"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(
            f"{python}: expected a Python with rectools; python3 -m venv ENV && ENV/bin/pip install 'rectools[torch]'"
        ) from error
    return asked.stdout.strip()


def write_interactions(dataset: Dataset, split: Split, folder: Path) -> None:
    """The flat arrays that a worker reads; users without a test event are trained on as ours are."""
    part = np.zeros(len(dataset.items), dtype=np.int8)
    part[split.validation], part[split.test] = PARTS["validation"], PARTS["test"]
    user = np.repeat(np.arange(len(dataset.users)), np.diff(dataset.indptr))
    arrays = {"user": user, "item": dataset.items, "time_ms": dataset.times_ms, "part": part}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


class Rival:
    """A network in training.

    Args:
        python: with `rectools[torch]`.
        name: one of RIVALS.
        folder: where `write_interactions` has been; logs go there, too.
        seed, threads: of training.
    """

    def __init__(self, python: Path, name: str, folder: Path, *, seed: int, threads: int) -> None:
        self.folder = folder
        self._log = (folder / f"{name}-{seed}.log").open("w")
        command = [str(python), str(WORKER), name, str(folder), str(seed), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1
        )

    def epoch(self) -> dict[str, Any]:
        """Train one more epoch; seconds, cpu_seconds, and events that entered the loss."""
        return self._ask("epoch")

    def ranks(self, event: Literal["validation", "test"]) -> NDArray[np.int64]:
        """[E] ranks from 0 of the evaluated users' event among all items, given every event before it."""
        self._ask(f"rank {PARTS[event]}")
        ranks: NDArray[np.int64] = np.load(self.folder / "ranks.npy")
        return ranks

    def _ask(self, command: str) -> dict[str, Any]:
        questions, answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
        try:
            questions.write(command + "\n")
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MachineError(f"the RecTools worker ended at {command!r}; it says why in {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Rival":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()  # closes its stdin, at which it ends
        self._log.close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
