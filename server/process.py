"""A running tritonserver as a context manager: checked before it starts, probed until it answers, stopped whole.

The server's parent is `longrec.server.supervisor`, which ends it when this process ends, however it ends.
"""

import contextlib
import logging
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from longrec.errors import ArgumentError, MachineError, ServerError
from longrec.server import supervisor
from longrec.server.probe import probe_recommender, server_version
from longrec.server.repository import check_repository
from longrec.server.tritonserver import (
    CONTAINER,
    FIRST_SAFE_VERSION,
    Tritonserver,
    find_tritonserver,
    tritonserver_environment,
)

__all__ = ["Server"]

logger = logging.getLogger(__name__)

SAID_WITHOUT_GPU = ("CudaDriverHelper", "Failed to initialize NVML")  # errors in every log of a machine without one

# Starts at 1 MB by default, and a batch that doesn't fit grows it 1 MB at a time under the batch's requests. 16 MB hold
# 256 users with a page each of events and leave room in a container's usual /dev/shm of 64 MB.
SHM_BYTES = 16 << 20

# With its default of 8, tritonserver 24.10 frees the state of a streamed request that another thread still uses: 256 in
# flight on one stream end it with a signal 6 or 11 within 20,000 to 200,000 requests. A state that fits the pool is
# reused, never freed (no crash in 600,000 requests, 512 in flight). A state keeps about 50 KB: 8,000 in flight at once
# take 490 MB, which stay; a pool of 1024 would keep 380 MB of them all the same, as the allocator keeps its peak.
GRPC_POOL_SIZE = 8192

STUB_TIMEOUT_SECONDS = 120  # the stub imports torch before it says hello: 30, the default, is short on a cold disk


class Server:
    """A tritonserver on this machine.

        with Server(Path("model_repository")) as server:
            ...  # server.grpc_url answers

    Args:
        repository: Triton's model repository, as `write_repository` makes it.
        host: address to listen on; anything but a loopback address opens the server to that network without a password.
        grpc_port, http_port, metrics_port: where to listen; 0 takes a free port.
        log: file for the server's output, overwritten; default `tritonserver.log` beside the repository.
        start_seconds: longest wait for the first answer.
        stop_seconds: from the request to stop to SIGKILL; requests in flight may end and the model closes its log.
        probe: an inference that must succeed before the server counts as started: `(grpc_url, timeout_seconds)`, raises
            `ServerError`.
        tritonserver: which installation; default `find_tritonserver()`.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        log: Path | None = None,
        start_seconds: float = 180.0,
        stop_seconds: float = 20.0,
        probe: Callable[[str, float], None] = probe_recommender,
        tritonserver: Tritonserver | None = None,
    ) -> None:
        self.repository = repository.resolve()
        self.host = host
        self.ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
        self.log = log or self.repository.parent / "tritonserver.log"
        self.start_seconds = start_seconds
        self.stop_seconds = stop_seconds
        self.version = ""
        self._probe = probe
        self._tritonserver = tritonserver
        self._process: subprocess.Popen[bytes] | None = None
        self.shm_prefix = f"longrec_{uuid.uuid4().hex[:12]}_"  # of its regions in /dev/shm

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint, for clients."""
        return f"{self._reachable_host}:{self.ports['grpc_port']}"

    @property
    def http_url(self) -> str:
        """URL of the HTTP endpoint."""
        return f"http://{self._reachable_host}:{self.ports['http_port']}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._reachable_host}:{self.ports['metrics_port']}/metrics"

    def start(self) -> "Server":
        """Start the server and wait for its first answer; on any failure nothing is left running.

        Raises:
            CheckpointError: the repository lacks something.
            MachineError: a port is taken, or the machine lacks a library, a stub or the server itself.
            ServerError: the server ended while it started, or gave no answer in `start_seconds`.
        """
        check_repository(self.repository)
        self._choose_ports()
        installed = self._tritonserver or find_tritonserver()
        assert installed is not None  # find_tritonserver gives None only where it may not download
        command = self._command(installed)
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise MachineError(f"{error.filename}: expected to start the server, got {error.strerror}") from None
        try:
            self._await_answer()
            self.version = server_version(self.grpc_url)
        except BaseException:
            self.stop()
            raise
        if tuple(int(part) for part in self.version.split(".")[:3]) < FIRST_SAFE_VERSION:
            logger.warning(
                "tritonserver %s is for development: releases before 25.07 have remote-code vulnerabilities; "
                "in production use %s",
                self.version,
                CONTAINER,
            )
        return self

    @property
    def supervisor_id(self) -> int | None:
        """Process id of the server's parent; None if the server wasn't started."""
        return None if self._process is None else self._process.pid

    def stop(self, *, at_once: bool = False) -> None:
        """Stop the server, its stubs and their shared memory; does nothing if it isn't running.

        Args:
            at_once: by SIGKILL, without waiting for requests in flight: for a server that has failed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            if at_once:
                process.stdin.write(supervisor.KILL)
            process.stdin.close()  # the supervisor reads this as "stop"
        try:
            process.wait(self.stop_seconds + 4 * supervisor.STUB_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel kills the server with it; its stubs see that and end
            process.wait()
        supervisor.remove_regions(self.shm_prefix)

    def check(self, timeout_seconds: float = 30.0) -> None:
        """Ask for one real answer.

        Raises:
            ServerError: the server has ended, or doesn't answer; with the last errors of its log.
        """
        process = self._process  # another thread may stop the server meanwhile
        if process is None or process.poll() is not None:
            code = None if process is None else process.returncode
            raise ServerError(f"tritonserver: expected it to run, got its end (exit code {code}){self._log_errors()}")
        try:
            self._probe(self.grpc_url, timeout_seconds)
        except ServerError as error:
            raise ServerError(f"{error}{self._log_errors()}") from None

    def wait(self, timeout_seconds: float) -> bool:
        """Wait at most so long for the server to end by itself; whether it has."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
        return self._process.returncode is not None

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    def _choose_ports(self) -> None:
        taken: dict[int, str] = {}
        for name, port in self.ports.items():
            if not 0 <= port <= 65535:
                raise ArgumentError(f"{name}={port}", "0..65535")
            if port in taken:
                raise ArgumentError(f"{name}={port}", f"another port than {taken[port]}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports in TIME_WAIT are free
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise MachineError(
                        f"{name}={port}: expected a free port on {self.host}, got: {error.strerror}; stop what listens "
                        f"there or choose another with --{name.replace('_', '-')}"
                    ) from None
                self.ports[name] = probe.getsockname()[1]
            taken[self.ports[name]] = name

    def _command(self, installed: Tritonserver) -> list[str]:
        backend = {
            "shm-default-byte-size": SHM_BYTES,
            "shm-growth-byte-size": SHM_BYTES,
            "shm-region-prefix-name": self.shm_prefix,
            "stub-timeout-seconds": STUB_TIMEOUT_SECONDS,
        }
        return [
            *(sys.executable, supervisor.__file__, self.shm_prefix, str(self.stop_seconds)),
            # by env(1), for the server alone: the supervisor is a Python that may not bear these libraries
            *("env", "--unset=PYTHONHOME"),
            *(f"{name}={value}" for name, value in tritonserver_environment(installed).items()),
            str(installed.binary),
            f"--model-repository={self.repository}",
            f"--backend-directory={installed.backends}",
            # explicit: a model is reloaded when it is asked for, once its files are whole, and who asks learns how it
            # went; polling would do it some time and tell the log alone
            *("--model-control-mode=explicit", "--load-model=*"),
            "--disable-auto-complete-config",  # config.pbtxt is complete; saves the start of one more stub
            f"--exit-timeout-secs={max(1, int(self.stop_seconds * 0.8))}",
            f"--grpc-infer-allocation-pool-size={GRPC_POOL_SIZE}",
            *(f"--{kind}-address={self.host}" for kind in ("grpc", "http", "metrics")),
            *(f"--{name.replace('_', '-')}={port}" for name, port in self.ports.items()),
            *(f"--backend-config=python,{key}={value}" for key, value in backend.items()),
        ]

    def _await_answer(self) -> None:
        """Ports open only when every model is loaded, so whatever fails after that is final; metrics' is the last."""
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self.wait(0.1):
                self.check()
            with contextlib.suppress(OSError):
                for port in self.ports.values():
                    socket.create_connection((self._reachable_host, port), timeout=1.0).close()
                break
        else:
            raise ServerError(
                f"tritonserver: expected an answer within {self.start_seconds:g} s, got none{self._log_errors()}"
            )
        self.check(max(1.0, deadline - time.monotonic()))

    def _log_errors(self) -> str:
        """The end of an error message: what the log says, on one line, and where it is."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        # "E1124 05:05:15.37 6622 model_lifecycle.cc:642] ..." or an exception's last line, as Python prints it
        telling = [
            re.sub(r"^E\d{4} [\d:.]+ \d+ ", "", line.strip()).partition(r"\n\nAt:")[0][:300]
            for line in text.splitlines()
            if re.match(r"E\d{4} |(\w+\.)*\w*(Error|Exception): |error: |.*error while loading shared libraries", line)
            and not any(noise in line for noise in SAID_WITHOUT_GPU)
        ]
        said = "; ".join(dict.fromkeys(telling[-3:]))
        return f"; {said} (log: {self.log})" if said else f" (log: {self.log})"
