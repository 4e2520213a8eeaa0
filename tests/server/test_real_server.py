"""A real tritonserver: answers, right bytes through the stub, perf_analyzer on it, and nothing left when it stops."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput

from longrec.catalogue import Catalogue
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ServerError
from longrec.modeling.checkpoint_io import save_run
from longrec.modeling.transformer import Transformer
from longrec.protocol import CANDIDATE, EVENT, ITEMS, MODEL, SCORES, STATE, USER
from longrec.server.perf_analyzer import run_perf_analyzer
from longrec.server.probe import probe_recommender
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

ITEMS_OF_CATALOGUE = 50
PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}

ECHO = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            user, event, candidate = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("USER", "EVENT", "CANDIDATE")
            )
            frozen = event.copy()
            frozen.setflags(write=False)
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("ITEMS", frozen),
                pb_utils.Tensor("SCORES", candidate[:, None, ::-1].astype(np.float32)),
                pb_utils.Tensor("STATE", np.array([[len(key), key[-1] if key else 0] for (key,) in user])),
            ]))
        return responses
"""


def running(text: str) -> list[str]:
    """Command lines of processes with `text` in them, ended ones aside."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and entry.parent.name != str(os.getpid()):
            lines.append(line)
    return lines


def regions(prefix: str) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"{prefix}*")}


def shm_prefix(repository: Path) -> str:
    """How the names of a running server's shared memory begin; other servers may come and go meanwhile."""
    found = re.search(r"shm-region-prefix-name=(longrec_\w+)", " ".join(running(str(repository))))
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=ITEMS_OF_CATALOGUE, dim=32, window=16)
    catalogue = Catalogue([f"i{item}" for item in range(ITEMS_OF_CATALOGUE)], ["title"] * ITEMS_OF_CATALOGUE)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_run(folder, Transformer(config), config, catalogue, {})
    return folder


@pytest.fixture
def repository(checkpoint: Path, tmp_path: Path) -> Path:
    engine = EngineConfig(memory_bytes=8 << 20, log_bytes=64 << 20)
    return write_repository(checkpoint, tmp_path / "repository", engine=engine).parents[1]


@pytest.fixture(scope="module")
def echo_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Answers each request with its own inputs. One for all tests of the stub; the one that kills it comes last."""
    version = write_repository(checkpoint, tmp_path_factory.mktemp("echo") / "repository", engine=EngineConfig())
    (version / "model.py").write_text(ECHO)
    with Server(version.parents[1], **PORTS, stop_seconds=3.0) as server:
        yield server


def infer(url: str, user: bytes, event: np.ndarray, candidate: np.ndarray) -> dict[str, np.ndarray]:
    inputs = []
    for name, dtype, array in (
        (USER, "BYTES", np.array([[user]], np.object_)),
        (EVENT, "INT64", event),
        (CANDIDATE, "INT64", candidate),
    ):
        inputs.append(InferInput(name, array.shape, dtype))
        inputs[-1].set_data_from_numpy(array)
    with InferenceServerClient(url) as client:
        answer = client.infer(MODEL, inputs)
    return {name: answer.as_numpy(name) for name in (ITEMS, SCORES, STATE)}


def test_recommender_serves_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    data = [
        {
            USER: {"content": [f"user-{user}"], "shape": [1]},
            EVENT: {"content": [-1, user, 1_000], "shape": [1, 3]},
            CANDIDATE: {"content": [], "shape": [0]},
        }
        for user in range(8)
    ]
    (tmp_path / "requests.json").write_text(json.dumps({"data": data}))
    with Server(repository, **PORTS) as server:
        server.check()
        prefix = shm_prefix(repository)
        event = np.array([[[0, 3, 1_000]]], np.int64)
        answer = infer(server.grpc_url, b"alice", event, np.empty((1, 0), np.int64))
        assert answer[STATE].tolist() == [[0, 1]]
        assert answer[ITEMS].shape == answer[SCORES].shape == (1, 1, 10)
        (result,) = run_perf_analyzer(
            server.grpc_url, MODEL, tmp_path / "requests.json", [4], window_ms=300, parameters={"k": 5}
        )
        assert result.concurrency == 4
        assert result.throughput > 0
        assert 0 < result.p50_ms <= result.p90_ms <= result.p95_ms <= result.p99_ms
        assert 1 <= result.mean_batch <= 4
        assert regions(prefix)
    assert running(str(repository)) == []
    assert not regions(prefix)
    with pytest.raises(ServerError, match="expected it to run"):
        server.check()


@pytest.mark.parametrize(
    ("user", "num_events", "num_candidates"),
    [(b"u", 1, 1), (b"long-recommender" * 16, 3, 5), ("gän".encode(), 0, 0), (b"probe", 0, 4), (b"probe", 700, 0)],
    ids=["one", "several", "empty", "candidates", "many-events"],
)
def test_tensors_pass_the_stub_unchanged(
    echo_server: Server, user: bytes, num_events: int, num_candidates: int
) -> None:
    event = np.arange(num_events * 3, dtype=np.int64).reshape(1, num_events, 3) - 2**40
    candidate = np.arange(num_candidates, dtype=np.int64)[None] + 7
    answer = infer(echo_server.grpc_url, user, event, candidate)
    assert np.array_equal(answer[ITEMS], event)
    assert np.array_equal(answer[SCORES], candidate[:, None, ::-1].astype(np.float32))
    assert answer[STATE].tolist() == [[len(user), user[-1]]]


def test_stub_that_died_fails_the_check(echo_server: Server) -> None:
    stubs = [
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"triton_python_backend_stub\0" in (line := entry.read_bytes())
        and str(echo_server.repository).encode() in line
    ]
    (stub,) = stubs
    os.kill(stub, signal.SIGKILL)
    with pytest.raises(ServerError, match=r"log: .*tritonserver\.log"):
        echo_server.check(timeout_seconds=20.0)


def test_model_that_cannot_load_is_quoted(repository: Path) -> None:
    (repository / MODEL / "1" / "model.py").write_text("raise RuntimeError('no such device: warp drive')")
    with pytest.raises(ServerError, match="no such device: warp drive"):
        Server(repository, **PORTS).start()
    assert running(str(repository)) == []


def test_killed_owner_leaves_nothing(repository: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from longrec.server.process import Server\n"
        f"Server(Path({str(repository)!r}), grpc_port=0, http_port=0, metrics_port=0).start()\n"
        "print('started', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == b"started\n"
    supervisor_gone = [line for line in running(str(repository)) if "supervisor.py" in line]
    assert supervisor_gone
    prefix = shm_prefix(repository)
    assert regions(prefix)
    owner.kill()
    owner.wait()
    deadline = 300
    while running(str(repository)) and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.1"], check=True)
    assert running(str(repository)) == []
    assert not regions(prefix)


def test_probe_of_nothing() -> None:
    with pytest.raises(ServerError, match=r"recommender at 127\.0\.0\.1:9: expected an answer"):
        probe_recommender("127.0.0.1:9", 1.0)


def test_serve_command_stops_cleanly_on_sigterm(repository: Path) -> None:
    command = "import typer; from longrec.cli.serve import serve; typer.run(serve)"
    ports = [f"--{name.replace('_', '-')}=0" for name in PORTS]
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(repository), *ports],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "log" in line:
            break
    grpc_url = next(line.split()[1] for line in said if line.startswith("gRPC"))
    probe_recommender(grpc_url, 10.0)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in rest
    assert running(str(repository)) == []
