"""Child processes that do jobs one after the other, and survive them: the parent's side.

A kernel that reads past its memory takes its process's whole CUDA context with it, and one that never ends can't be
interrupted. So the parent touches no device: a job's process may die or be killed, which fails that job alone, and the
next job gets a new one. Several processes at a time, since most of a check is compiling.

A job and its answer are a line of JSON each, over the child's standard input and output.
"""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["run_jobs"]

Json = dict[str, Any]
ENTRY = Path(__file__).resolve().parents[1] / "gpu_check.py"
LAST_WORDS = 600  # characters of a dead child's output that are quoted


def run_jobs(
    jobs: Iterable[Json],
    *,
    processes: int,
    limit_seconds: Callable[[], float],
    on_answer: Callable[[Json, Json], None],
    arguments: tuple[str, ...] = (),
    command: tuple[str, ...] = (sys.executable, str(ENTRY), "--worker"),
) -> None:
    """Do every job, `processes` at a time, in order of start.

    Args:
        jobs: what is sent.
        processes: children at a time.
        limit_seconds: asked before a job, how long it may take; 0 or less: it is not begun.
        on_answer: called with each job and its answer, by one thread at a time; an answer without "failure" is a good
            one. A job whose process died or took too long is answered `{"failure": why}`, one that was not begun
            `{"left_out": why}`.
        arguments: added to the command.
        command: of a child.
    """
    waiting: queue.SimpleQueue[Json] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        child: _Child | None = None
        try:
            while not stop.is_set():
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                seconds = limit_seconds()
                if seconds <= 0:
                    with lock:
                        on_answer(job, {"left_out": "no time was left"})
                    continue
                child = child or _Child((*command, *arguments))
                answer = child.ask(job, seconds)
                if not answer.pop("alive", False):
                    child.end()
                    child = None
                with lock:
                    on_answer(job, answer)
        finally:
            if child is not None:
                child.end()

    threads = [threading.Thread(target=work) for _ in range(processes)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise


class _Child:
    """One child process; its errors go to a file, the end of which is quoted if it dies."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by end()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)

    def ask(self, job: Json, seconds: float) -> Json:
        """The answer to a job; without "alive" if the child is of no more use."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(job).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return {"failure": self._why_it_died()}
        if not select.select([stdout], [], [], seconds)[0]:
            return {"failure": f"no answer within {seconds:.0f} s"}
        line = stdout.readline()  # whole: a child writes its answer at once
        answer: Json = json.loads(line) if line else {"failure": self._why_it_died()}
        return answer

    def _why_it_died(self) -> str:
        code = self.process.wait()
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - LAST_WORDS))
        words = self.errors.read().decode(errors="replace").strip()
        return f"its process ended with {code}: {words}"

    def end(self) -> None:
        """Kill it: it holds nothing but device memory."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.errors.close()
