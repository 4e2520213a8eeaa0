"""The parent of a tritonserver: `python supervisor.py SHM_PREFIX GRACE_SECONDS COMMAND...`. Standard library only.

It ends the server when its standard input closes, so whoever holds the other end may end in any way, by SIGKILL too:
no server is left, no stub of its Python backend, none of their regions in /dev/shm. A byte on standard input (`KILL`)
ends them at once, for a server that hangs. The server's own exit ends it as well, with the server's code. It stands in
a session of its own, so that a terminal's Ctrl-C reaches the caller alone and the server is stopped in order.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["KILL", "remove_regions", "supervise"]

KILL = b"k"

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_SECONDS = 0.2
STUB_EXIT_SECONDS = 5.0


def supervise(command: list[str], shm_prefix: str, grace_seconds: float) -> int:
    """Run `command` until it ends or standard input closes; leave nothing behind.

    Args:
        command: the server and its arguments.
        shm_prefix: names in /dev/shm that start so are the server's.
        grace_seconds: from SIGTERM to SIGKILL.

    Returns:
        The server's exit code, as a shell counts it.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # stubs that outlive the server become this process's children
    signal.signal(signal.SIGTERM, _close_input)
    signal.signal(signal.SIGINT, _close_input)
    # preexec_fn is safe here: this process has one thread
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    failed = False
    try:
        while server.poll() is None and not _input_ready():
            pass
        failed = server.returncode < 0 if server.returncode is not None else os.read(0, 1) == KILL
        if server.poll() is None and not failed:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(grace_seconds)
    finally:
        # the stubs of a server that was killed have nobody to answer
        _end_group(server, stub_seconds=0.0 if failed else STUB_EXIT_SECONDS)
        remove_regions(shm_prefix)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def remove_regions(shm_prefix: str) -> None:
    """Delete the server's shared memory; a server that ended in order has deleted its own."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)


def _input_ready() -> bool:
    """Wait a little for standard input; whether it was closed, or something came in."""
    return bool(select.select([0], [], [], POLL_SECONDS)[0])


def _close_input(signum: int, frame: object) -> None:
    with open(os.devnull, "rb") as closed:  # reads as ended at once
        os.dup2(closed.fileno(), 0)


def _end_group(server: "subprocess.Popen[bytes]", stub_seconds: float) -> None:
    """Kill the server if it still runs, give its stubs time to notice, then kill the group and reap what there is."""
    server.poll()
    deadline = time.monotonic() + stub_seconds
    if server.returncode is None:
        server.kill()
        server.wait()
    while time.monotonic() < deadline:
        if not _reap():
            return
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + STUB_EXIT_SECONDS
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.01)


def _reap() -> bool:
    """Collect children that have ended; whether some still run."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[3:], sys.argv[1], float(sys.argv[2])))
