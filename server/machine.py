"""What this machine has and lacks for longrec, as a list of checks. Downloads nothing and starts no server."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longrec.errors import LongrecError
from longrec.server.cache import cache_folder
from longrec.server.perf_analyzer import find_perf_analyzer
from longrec.server.tritonserver import CONTAINER, find_tritonserver, stub_library

__all__ = ["Check", "examine"]

GIB = 1 << 30
SHM_NEEDED = 64 << 20  # a container's default; the server takes 16 MB an instance to begin with
CACHE_NEEDED = 1 * GIB  # both wheels and what is in them: 0.3 GB


@dataclass(frozen=True)
class Check:
    """One line of `longrec doctor`.

    Args:
        name: what was looked at.
        state: `ok`; `note`: longrec works, but see `next_step`; `missing`: something of longrec won't work.
        found: what is there.
        next_step: what to do or type; empty where nothing is to be done.
    """

    name: str
    state: Literal["ok", "note", "missing"]
    found: str
    next_step: str = ""


def examine() -> list[Check]:
    """Look at everything; a check that fails says so and ends nothing."""
    return [*_python(), *_torch(), *_server(), *_capacity()]


def _python() -> Iterator[Check]:
    version = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        "python",
        "ok" if supported else "missing",
        f"{version} at {sys.executable}",
        "" if supported else "use Python 3.10 to 3.13",
    )
    native = sys.platform == "linux" and platform.machine() == "x86_64"
    yield Check(
        "platform",
        "ok" if native else "missing",
        f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "" if native else "the server runs on Linux x86-64; train and use the client here, serve there",
    )


def _torch() -> Iterator[Check]:
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            yield Check(package, "missing", "not installed", "pip install 'longrec[server]' (or [train])")
        else:
            yield Check(package, "ok", importlib.metadata.version(package))
    yield _gpu()


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("gpu", "note", "unknown without torch")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
        return Check("gpu", "ok", ", ".join(names))
    if torch.version.cuda is None:
        step = "for a GPU install a CUDA build of torch" if Path("/dev/nvidiactl").exists() else ""
        return Check("gpu", "note", "none: torch is a CPU build, kernels run as their CPU bodies", step)
    return Check("gpu", "note", f"none that torch (CUDA {torch.version.cuda}) sees", "look at `nvidia-smi`")


def _server() -> Iterator[Check]:
    try:
        server = find_tritonserver(download=False)
        if server is None:
            yield Check("tritonserver", "note", "none yet", "`longrec serve` downloads one for development (55 MB)")
        else:
            step = f"for development only; in production use {CONTAINER}" if server.bundled else ""
            yield Check(
                "tritonserver",
                "note" if server.bundled else "ok",
                f"{server.version or 'version unknown'} at {server.binary}",
                step,
            )
            name, library = stub_library(server)
            yield Check("python stub", "ok", f"{server.stub.name} with {name} from {library.parent}")
    except LongrecError as error:
        found, _, step = str(error).rpartition("; ")
        yield Check("python stub", "missing", found, step)
    try:
        analyzer = find_perf_analyzer(download=False)
        if analyzer is None:
            yield Check("perf_analyzer", "note", "none yet", "`longrec bench serving` downloads one (14 MB)")
        else:
            yield Check("perf_analyzer", "ok", str(analyzer.binary))
    except LongrecError as error:
        found, _, step = str(error).rpartition("; ")
        yield Check("perf_analyzer", "missing", found, step)


def _capacity() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("processor", "ok", f"{cores} cores, {memory / GIB:.1f} GiB of memory")
    shm = shutil.disk_usage("/dev/shm")
    enough = shm.free >= SHM_NEEDED
    yield Check(
        "/dev/shm",
        "ok" if enough else "missing",
        f"{shm.free >> 20} of {shm.total >> 20} MiB free",
        "" if enough else "64 MiB are needed: `mount -o remount,size=1G /dev/shm`, or docker run --shm-size=1g",
    )
    try:
        folder = cache_folder()
        free = shutil.disk_usage(folder).free
        enough = free >= CACHE_NEEDED
        yield Check(
            "cache",
            "ok" if enough else "missing",
            f"{folder}, {free / GIB:.1f} GiB free",
            "" if enough else "1 GiB is needed: set XDG_CACHE_HOME to a larger disk",
        )
    except LongrecError as error:
        found, _, step = str(error).rpartition("; ")
        yield Check("cache", "missing", found, step)
