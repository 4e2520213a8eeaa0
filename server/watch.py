"""Keeps a `Server` answering: sees it die, lose a stub or hang, and starts it anew on the same ports.

Deaths are seen at once, through the kernel: a stub that dies is not restarted by Triton, which may even go on to call
itself ready, so the whole server is ended the moment one is missing. Hanging is seen by a real inference every second.
"""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass

from longrec.errors import ArgumentError, LongrecError, ServerError
from longrec.server.probe import instances
from longrec.server.process import Server
from longrec.server.processes import Stub, children, end_of, stubs

__all__ = ["WatchConfig", "WatchedServer"]

logger = logging.getLogger(__name__)

SCAN_SECONDS = 1.0  # a stub that was started since is watched after so long at most
ASK_SECONDS = 2.0  # for the server to say whether a stub that has ended should have
END_SECONDS = 10.0  # for killed processes to be gone


@dataclass(frozen=True)
class WatchConfig:
    """When a server counts as failed, and how often it may.

    Args:
        probe_seconds: from the answer of an inference to the next.
        deadline_seconds: of an inference.
        failed_probes: so many in a row that fail, or have no answer by their deadline, and the server is restarted.
        max_restarts: within `within_seconds`; one more and the server is given up.
        backoff_seconds: pause before the second restart within `within_seconds`, doubled for each further one; there is
            none before the first.
    """

    probe_seconds: float = 1.0
    deadline_seconds: float = 5.0
    failed_probes: int = 2
    max_restarts: int = 5
    within_seconds: float = 120.0
    backoff_seconds: float = 0.5

    def __post_init__(self) -> None:
        for name in ("probe_seconds", "deadline_seconds", "failed_probes", "within_seconds"):
            if getattr(self, name) <= 0:
                raise ArgumentError(f"{name}={getattr(self, name):g}", "more than 0")
        for name in ("max_restarts", "backoff_seconds"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name}={getattr(self, name):g}", "at least 0")


class WatchedServer:
    """A server that is restarted when it fails.

        with Server(repository) as server:
            WatchedServer(server).run(threading.Event())

    Args:
        server: started.
        config: when it counts as failed.

    Attributes:
        restarts: so far. reason: of the last one, empty if there was none.
    """

    def __init__(self, server: Server, config: WatchConfig | None = None) -> None:
        self.server, self.config = server, config or WatchConfig()
        self.restarts, self.reason = 0, ""
        self._lately: deque[float] = deque()  # when the restarts of the last `within_seconds` were

    def run(self, stop: threading.Event) -> None:
        """Return once `stop` is set, up to a second later; until then restart the server whenever it fails.

        Raises:
            LongrecError: it failed too often; it has been stopped.
        """
        while not stop.is_set():
            reason = self._failure(stop)
            if reason:
                self._restart(reason, stop)

    def _restart(self, reason: str, stop: threading.Event) -> None:
        """Restart until the server answers."""
        while not stop.is_set():
            began = time.monotonic()
            self.server.stop(at_once=True)
            pause = self._pause(reason)
            logger.error("%s; restarting%s", reason, f" in {pause:g} s" if pause else "")
            if stop.wait(pause):
                return
            self._keep_log()
            try:
                self.server.start()
            except LongrecError as error:
                reason = str(error)
                continue
            self.restarts, self.reason = self.restarts + 1, reason
            logger.warning("serving again after %.1f s", time.monotonic() - began)
            return

    def _pause(self, reason: str) -> float:
        """Seconds to wait before the next restart."""
        config, now = self.config, time.monotonic()
        while self._lately and self._lately[0] < now - config.within_seconds:
            self._lately.popleft()
        if len(self._lately) >= config.max_restarts:
            raise ServerError(
                f"tritonserver: expected at most {config.max_restarts} restarts within {config.within_seconds:g} s, "
                f"got one more; the last reason: {reason}"
            )
        pause = config.backoff_seconds * 2 ** (len(self._lately) - 1) if self._lately else 0.0
        self._lately.append(now + pause)
        return pause

    def _keep_log(self) -> None:
        """The log of the server that failed stays, beside the new one's, until the next failure."""
        log = self.server.log
        with contextlib.suppress(OSError):
            log.replace(log.with_name(f"{log.name}.1"))

    def _failure(self, stop: threading.Event) -> str:
        """Wait until the server fails; why. Empty once `stop` is set."""
        with _Probes(self.server, self.config) as probes, _Processes(self.server, probes.wake) as processes:
            while not stop.is_set():
                reason = processes.failure(SCAN_SECONDS) or probes.failure
                if reason:
                    processes.end()
                    return reason
        return ""


class _Probes:
    """A thread that asks the server for one answer after another, until it has failed.

    Attributes:
        failure: why it has failed; empty as long as it hasn't.
        wake: a descriptor that can be read once it has.
    """

    def __init__(self, server: Server, config: WatchConfig) -> None:
        self._server, self._config = server, config
        self.failure, self.wake = "", os.eventfd(0)
        self._stop, self._closing = threading.Event(), threading.Lock()
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def __enter__(self) -> "_Probes":
        return self

    def __exit__(self, *_: object) -> None:
        with self._closing:
            self._stop.set()
            os.close(self.wake)

    def _run(self) -> None:
        failed = 0
        while failed < self._config.failed_probes:
            if self._stop.wait(self._config.probe_seconds):
                return
            try:
                self._server.check(self._config.deadline_seconds)
                failed = 0
            except ServerError as error:
                failed += 1
                reason = str(error)
        with self._closing:
            if not self._stop.is_set():
                self.failure = f"{failed} probes in a row failed; the last: {reason}"
                os.eventfd_write(self.wake, 1)


class _Processes:
    """The server's processes, each watched from when it is first seen.

    Args:
        server: started.
        wake: a descriptor; `failure` returns when it can be read.
    """

    def __init__(self, server: Server, wake: int) -> None:
        self._server, self._wake = server, wake
        self._ends: dict[int, int | Stub] = {}  # descriptor to whose end it tells
        self._seen: set[Stub] = set()
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        self._supervisor_id = server.supervisor_id or 0
        self._server_id = next(iter(children(self._supervisor_id)), 0)
        self._watch(self._supervisor_id, self._supervisor_id)
        self._watch(self._server_id, self._server_id)
        self._scan()

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._ends:
            os.close(descriptor)

    def failure(self, seconds: float) -> str:
        """Wait until a process ends that should have gone on, and say which; empty if none did for so long."""
        ready = [descriptor for descriptor, _ in self._poll.poll(1000 * seconds) if descriptor != self._wake]
        ended = [self._ends.pop(descriptor) for descriptor in ready]
        for descriptor in ready:
            self._poll.unregister(descriptor)
            os.close(descriptor)
        if any(not isinstance(process, Stub) for process in ended):
            return "tritonserver has ended"
        reasons = [self._missing(stub) for stub in ended if isinstance(stub, Stub)]
        self._scan()
        return next(filter(None, reasons), "")

    def end(self) -> None:
        """Kill what is left, and wait until it has let go of its ports. The supervisor, if it lives, clears up."""
        left = select.poll()
        waiting = {descriptor for descriptor, process in self._ends.items() if process != self._supervisor_id}
        for descriptor in waiting:
            left.register(descriptor, select.POLLIN)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + END_SECONDS
        while waiting and time.monotonic() < deadline:
            for descriptor, _ in left.poll(1000 * END_SECONDS):
                left.unregister(descriptor)
                waiting.remove(descriptor)

    def _missing(self, ended: Stub) -> str:
        """Why the stub should have gone on; empty if its model was unloaded, or failed to load."""
        name = f"a process of model {ended.model}, version {ended.version}, has ended"
        try:
            wanted = instances(self._server.grpc_url, ended.model, ended.version, ASK_SECONDS)
        except ServerError as error:
            return f"{name}, and the server doesn't say whether it should have: {error}"
        left = sum(stub[1:] == ended[1:] for stub in stubs(self._server_id))
        return f"{name}: {left} of {wanted} are left" if left < wanted else ""

    def _scan(self) -> None:
        """Watch the stubs that were started since the last time."""
        now = set(stubs(self._server_id))
        for stub in now - self._seen:
            self._watch(stub.process_id, stub)
        self._seen = now

    def _watch(self, process_id: int, process: int | Stub) -> None:
        descriptor = end_of(process_id) if process_id else None
        if descriptor is not None:
            self._ends[descriptor] = process
            self._poll.register(descriptor, select.POLLIN)
