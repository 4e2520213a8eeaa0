"""What `Server` says when it can't start, and that nothing is left then. Programs stand in for tritonserver."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.checkpoint import WEIGHTS, save_checkpoint
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, CheckpointError, MachineError, ServerError
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.server.tritonserver import Tritonserver

Launch = Callable[..., Server]

DIES = """
echo 'I1124 05:05:15.372107 1 model_lifecycle.cc:472] "loading: recommender:1"'
echo 'E1124 05:05:15.372766 1 server.cc:241] "CudaDriverHelper has not been initialized."'
echo 'E1124 05:05:15.372766 1 model_lifecycle.cc:642] "failed to load recommender: the disk is full"'
exit 1
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    config = ModelConfig(num_items=2)
    weights = {"table": np.ones((2, config.dim), np.float32)}
    save_checkpoint(tmp_path / "checkpoint", config, weights, Catalogue(["a", "b"], ["A", "B"]), {})
    return write_repository(tmp_path / "checkpoint", tmp_path / "repository", engine=EngineConfig()).parents[1]


@pytest.fixture
def launch(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A `Server` whose tritonserver is a shell script."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(script: str, **arguments: object) -> Server:
        home, library = tmp_path / "server", f"libpython3.{sys.version_info.minor}.so.1.0"
        (home / "backends/python").mkdir(parents=True)
        (home / "backends/python/triton_python_backend_stub").write_text(library)
        (home / library).touch()
        (home / "tritonserver").write_text(f"#!/bin/sh\n{script}")
        (home / "tritonserver").chmod(0o755)
        installed = Tritonserver(home / "tritonserver", home / "backends", (home,))
        ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
        return Server(repository, **{**ports, "tritonserver": installed, **arguments})  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
def test_port_taken(launch: Launch, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(MachineError, match=f"{name}={port}: expected a free port.*already in use.*{option}"):
            launch("sleep 60", **{name: port}).start()


def test_ports_that_do_not_fit(launch: Launch) -> None:
    with pytest.raises(ArgumentError, match=r"metrics_port=18099: expected another port than http_port"):
        launch("sleep 60", http_port=18099, metrics_port=18099).start()


def test_port_out_of_range(launch: Launch) -> None:
    with pytest.raises(ArgumentError, match=r"grpc_port=70000: expected 0\.\.65535"):
        launch("sleep 60", grpc_port=70000).start()


def test_no_weights(launch: Launch, repository: Path) -> None:
    (repository / "recommender/1" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"expected {WEIGHTS}, got no such file"):
        launch("sleep 60").start()


def test_server_that_dies_is_quoted(launch: Launch) -> None:
    server = launch(DIES)
    with pytest.raises(ServerError, match="exit code 1") as error:
        server.start()
    message = str(error.value)
    assert "failed to load recommender: the disk is full" in message
    assert str(server.log) in message
    assert "CudaDriverHelper" not in message
    assert "\n" not in message


def test_missing_library_is_named(launch: Launch) -> None:
    said = "tritonserver: error while loading shared libraries: libz.so.1: cannot open shared object file"
    with pytest.raises(ServerError, match=r"exit code 127.*libz\.so\.1"):
        launch(f"echo '{said}'; exit 127").start()


def test_server_that_never_answers_is_ended(launch: Launch, tmp_path: Path) -> None:
    script = f"trap '' TERM\necho $$ > {tmp_path}/pid\nexec sleep 60"
    with pytest.raises(ServerError, match=r"expected an answer within 1 s, got none"):
        launch(script, start_seconds=1.0, stop_seconds=0.2).start()
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_log_that_cannot_be_written(launch: Launch, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No such file or directory"):
        launch("sleep 60", log=tmp_path / "nowhere" / "log").start()


def test_stop_without_start(launch: Launch) -> None:
    launch("sleep 60").stop()
