"""Finds a tritonserver and the environment in which its Python backend runs on this interpreter.

Looked for in this order: on PATH, in /opt/tritonserver (NVIDIA's container), in the wheel `nvidia-pytriton`, which
carries the whole server with stubs for several Pythons. Only its programs are used; nothing is installed.
"""

import hashlib
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from longrec.errors import MachineError
from longrec.server.cache import Wheel, entry_folder, link_folder, unpacked

__all__ = [
    "CONTAINER",
    "FIRST_SAFE_VERSION",
    "Tritonserver",
    "find_tritonserver",
    "stub_library",
    "tritonserver_environment",
    "tritonserver_wheel_folder",
    "tritonserver_wheel_libraries",
]

CONTAINER = "nvcr.io/nvidia/tritonserver:26.06-py3 or newer"
FIRST_SAFE_VERSION = (2, 59, 1)  # 25.07; earlier ones have remote-code CVEs (CVE-2025-23319 and its kin)

OPT = Path("/opt/tritonserver")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
UTILS = "triton_python_backend_utils.py"
SHIM = Path(__file__).with_name("numpy2_shim.py")
LIBRARIES = "nvidia_pytriton.libs"


@dataclass(frozen=True)
class Tritonserver:
    """An installed server.

    Args:
        binary: the program.
        backends: its `--backend-directory`; holds `python/triton_python_backend_stub`.
        libraries: folders for the server's LD_LIBRARY_PATH, first to last.
        version: "2.51.0"; None where only the running server can tell.
        bundled: whether it is the development wheel's.
    """

    binary: Path
    backends: Path
    libraries: tuple[Path, ...] = ()
    version: str | None = None
    bundled: bool = False

    @property
    def stub(self) -> Path:
        """The program that runs a model's Python."""
        return self.backends / "python" / "triton_python_backend_stub"


def _wheel() -> Wheel:
    return Wheel(
        "nvidia-pytriton==0.7.0",
        "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
        (f"{LIBRARIES}/", "pytriton/tritonserver/", "nvidia_pytriton-0.7.0.dist-info/"),
        layout=hashlib.sha256(SHIM.read_bytes()).hexdigest()[:8],
    )


def _arrange(folder: Path) -> None:
    """Give every Python a backend folder of its own, so that two of them can serve from one cache."""
    server = folder / "pytriton" / "tritonserver"
    (server / "bin" / "tritonserver").chmod(0o755)
    for stub in (server / "python_backend_stubs").iterdir():
        backend = server / f"backends-{stub.name}" / "python"
        shutil.copytree(server / "backends" / "python", backend)
        shutil.copy(stub / "triton_python_backend_stub", backend)
        (backend / "triton_python_backend_stub").chmod(0o755)
        shutil.copy(SHIM, backend / "longrec_numpy2_shim.py")
        with (backend / UTILS).open("a") as utils:
            utils.write("\nimport longrec_numpy2_shim  # noqa: E402,F401\n")


def tritonserver_wheel_folder() -> Path:
    """The unpacked wheel, downloaded on the first call.

    Raises:
        MachineError: it can't be downloaded or unpacked.
    """
    return unpacked(_wheel(), _arrange)


def tritonserver_wheel_libraries() -> Path:
    """The folder of the third-party libraries that the wheel carries, under hashed names."""
    return tritonserver_wheel_folder() / LIBRARIES


def find_tritonserver(*, download: bool = True) -> Tritonserver | None:
    """The server that `longrec serve` would use.

    Args:
        download: get the development wheel if there is no other; without it the answer is None then.

    Raises:
        MachineError: the wheel can't be downloaded, or the server has no Python backend.
    """
    on_path = shutil.which("tritonserver")
    binary = Path(on_path).resolve() if on_path else OPT / "bin" / "tritonserver"
    if binary.is_file():
        home = binary.parent.parent
        version = home / "TRITON_VERSION"
        return Tritonserver(
            binary, home / "backends", (home / "lib",), version.read_text().strip() if version.is_file() else None
        )
    if not download and not entry_folder(_wheel()).is_dir():
        return None
    server = tritonserver_wheel_folder() / "pytriton" / "tritonserver"
    return Tritonserver(
        server / "bin" / "tritonserver",
        server / f"backends-{PYTHON}",
        (tritonserver_wheel_libraries(),),
        version="2.51.0",
        bundled=True,
    )


def stub_library(server: Tritonserver) -> tuple[str, Path]:
    """Name and place of the `libpython` that the server's stub loads.

    Raises:
        MachineError: there is no stub, it is for another Python, or this Python has no shared library.
    """
    if not server.stub.is_file():
        raise MachineError(
            f"{server.stub}: expected the Python backend's stub for Python {PYTHON}, got no such file; "
            "run longrec on Python 3.10 to 3.13, or use a tritonserver with the Python backend"
        )
    found = re.search(rb"libpython3(?:-[0-9a-f]+)?\.(\d+)\.so\.1\.0", server.stub.read_bytes())
    if found is None:
        raise MachineError(f"{server.stub}: expected a stub that loads libpython, got one that names none")
    if f"3.{found[1].decode()}" != PYTHON:
        raise MachineError(
            f"{server.stub}: expected a stub for this Python, {PYTHON}, got one for 3.{found[1].decode()}; "
            f"install longrec into a Python 3.{found[1].decode()} and run it from there"
        )
    name = found[0].decode()
    libdir, multiarch = (sysconfig.get_config_var(key) or "" for key in ("LIBDIR", "MULTIARCH"))
    own = [Path(libdir), Path(libdir, multiarch), Path(sys.base_prefix, "lib")]
    for folder in (*server.libraries, *own):
        if (folder / name).is_file():
            return name, folder / name
    raise MachineError(
        f"{name}: expected the shared library of {sys.executable}, got none in "
        f"{', '.join(str(folder) for folder in dict.fromkeys(own))}; on Debian or Ubuntu type "
        f"`apt-get install libpython{PYTHON}`, with pyenv rebuild after "
        "`export PYTHON_CONFIGURE_OPTS=--enable-shared`"
    )


def tritonserver_environment(server: Tritonserver) -> dict[str, str]:
    """What the server's process needs in its environment for the stub to be this interpreter; PYTHONHOME must be unset.

    The stub is an embedded Python that takes prefix and packages from the first `python3` on PATH. Only `libpython` is
    offered from the interpreter's library folder: a conda folder, say, has a libstdc++ too that the server can't use.

    Raises:
        MachineError: as `stub_library`; or there is no `python3` beside this interpreter.
    """
    name, library = stub_library(server)
    home = Path(sys.executable).parent
    if not (home / "python3").exists():
        raise MachineError(f"{home}: expected python3 beside {Path(sys.executable).name}; make a venv and use that one")
    linked = link_folder(f"libpython-{hashlib.sha256(str(library).encode()).hexdigest()[:12]}", {name: library})
    paths = [*(str(folder) for folder in server.libraries), str(linked), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "PATH": os.pathsep.join([str(home), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path),
    }
