"""Which server is found, and whether its stub can be this interpreter."""

import sys
from pathlib import Path

import pytest

from longrec.errors import MachineError
from longrec.server.tritonserver import Tritonserver, find_tritonserver, stub_library, tritonserver_environment

MINOR = sys.version_info.minor


def installation(home: Path, stub: bytes | None, *, libraries: tuple[str, ...] = ()) -> Tritonserver:
    """Files where a server has them; nothing in them runs."""
    for folder in ("bin", "lib", "backends/python"):
        (home / folder).mkdir(parents=True)
    (home / "bin/tritonserver").touch(mode=0o755)
    for name in libraries:
        (home / "lib" / name).touch()
    server = Tritonserver(home / "bin/tritonserver", home / "backends", (home / "lib",))
    if stub is not None:
        server.stub.write_bytes(stub)
    return server


def test_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = installation(tmp_path / "server", None)
    (tmp_path / "server/TRITON_VERSION").write_text("2.70.0\n")
    monkeypatch.setenv("PATH", str(tmp_path / "server/bin"))
    found = find_tritonserver()
    assert found is not None
    assert (found.binary, found.backends, found.version) == (expected.binary, expected.backends, "2.70.0")
    assert not found.bundled


def test_nothing_is_downloaded_when_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if Path("/opt/tritonserver/bin/tritonserver").exists():
        pytest.skip("this machine has a server in /opt/tritonserver")
    assert find_tritonserver(download=False) is None


def test_library_of_the_interpreter_or_of_the_server(tmp_path: Path) -> None:
    name = f"libpython3-0a1b2c3d.{MINOR}.so.1.0"  # as auditwheel renames it
    server = installation(tmp_path, b"\0...\0" + name.encode() + b"\0", libraries=(name,))
    assert stub_library(server) == (name, tmp_path / "lib" / name)


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        (None, r"expected the Python backend's stub for Python 3\.\d+, got no such file"),
        (f"libpython3.{MINOR + 1}.so.1.0".encode(), rf"got one for 3\.{MINOR + 1}; install longrec into"),
        (b"libc.so.6", "got one that names none"),
        (f"libpython3-00000000.{MINOR}.so.1.0".encode(), "expected the shared library of .*apt-get install libpython"),
    ],
    ids=["no-stub", "other-python", "no-library-named", "library-missing"],
)
def test_stub_that_cannot_run(tmp_path: Path, stub: bytes | None, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        stub_library(installation(tmp_path, stub))


def test_environment_leads_the_stub_to_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"libpython3.{MINOR}.so.1.0"
    server = installation(tmp_path / "server", name.encode(), libraries=(name,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/lib64")
    environment = tritonserver_environment(server)
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    first, linked, last = environment["LD_LIBRARY_PATH"].split(":")
    assert (first, last) == (str(tmp_path / "server/lib"), "/usr/local/cuda/lib64")
    assert [file.name for file in Path(linked).iterdir()] == [name]
