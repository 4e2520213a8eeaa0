"""`doctor`: every lack comes with a next step, on whatever machine this is."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from longrec.cli.doctor import doctor
from longrec.server.machine import examine

NAMES = {
    "python",
    "platform",
    "torch",
    "triton",
    "gpu",
    "tritonserver",
    "perf_analyzer",
    "processor",
    "/dev/shm",
    "cache",
}


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


def test_everything_is_looked_at() -> None:
    checks = {check.name: check for check in examine()}
    assert checks.keys() - {"python stub"} == NAMES
    assert all(check.found for check in checks.values())
    assert all(check.next_step for check in checks.values() if check.state == "missing")
    assert checks["python"].state == "ok"
    assert checks["torch"].state == "ok"


def test_server_for_another_python_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bin", "backends/python"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin/tritonserver").touch(mode=0o755)
    (tmp_path / "backends/python/triton_python_backend_stub").write_bytes(b"libpython3.8.so.1.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (check,) = (check for check in examine() if check.name == "python stub")
    assert check.state == "missing"
    assert "one for 3.8" in check.found
    assert "install longrec into a Python 3.8" in check.next_step


def test_cache_that_cannot_be_made_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: typer.Typer
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 1
    (cache,) = (check for check in json.loads(result.stdout) if check["name"] == "cache")
    assert cache["state"] == "missing"
    assert "XDG_CACHE_HOME" in cache["next_step"]


def test_table_and_json_say_the_same(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    as_json, table = CliRunner().invoke(app, ["--json"]), CliRunner().invoke(app, [])
    checks = json.loads(as_json.stdout)
    assert as_json.exit_code == table.exit_code == any(check["state"] == "missing" for check in checks)
    for check in checks:
        assert check["name"] in table.stdout
        assert check["state"] in table.stdout
