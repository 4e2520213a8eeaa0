"""Deferred answers that fail inside a real tritonserver: whoever waits is told, and served again afterwards."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.client import Client, Retry
from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.modeling import recompute_scores, save_run
from longrec.protocol import MODEL
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

# the model as it is, over an engine whose deferred work fails once for users of these names
FAILING_MODEL = """
from longrec.python_backend import model
from longrec.python_backend.engine import Engine


class FailingEngine(Engine):
    failed = set()

    def _fails(self, name):
        if name in self.failed or name not in self._deferred:
            return False
        self.failed.add(name)
        return True

    def turn(self):
        if self._fails(b"turn"):
            raise RuntimeError("the turn broke")
        spoil = self._fails(b"response")
        self.spoilt = getattr(self, "spoilt", False) or spoil
        done = super().turn()
        if done and self.spoilt and b"response" not in self._deferred:
            self.spoilt = False
            done = [(ticket, answer._replace(items=None)) for ticket, answer in done]
        return done


class TritonPythonModel(model.TritonPythonModel):
    engine_type = FailingEngine
"""


@pytest.fixture(scope="module")
def server(network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("late")
    ids = [str(item) for item in range(network.config.num_items)]
    save_run(folder / "run", network, network.config, Catalogue(ids, ids), {})
    config = EngineConfig(inline_events=8, chunk_events=16, memory_bytes=1 << 20, log_bytes=64 << 20)
    write_repository(folder / "run", folder / "repository", engine=config)
    (folder / "repository" / MODEL / "1" / "model.py").write_text(FAILING_MODEL)
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.mark.parametrize(("user", "reason"), [("turn", "the turn broke"), ("response", "NoneType")])
def test_a_deferred_answer_that_fails_is_told_and_the_next_is_given(server, network, make_history, user, reason):
    history = make_history(1, 42)
    events = np.column_stack((np.arange(42), history))
    with Client(server.grpc_url, retry=Retry(attempts=1)) as client:
        with pytest.raises(ServerError, match=f"deferred work failed: .*{reason}"):
            client.recommend(user=user, events=events[:40], k=5)
        for stop in (41, 42):
            answer = client.recommend(user=user, events=events[:stop], k=5)
            assert answer.position == stop
            (expected,) = recompute_scores(network, history[:, 0], history[:, 1], np.array([stop]))
            np.testing.assert_allclose(answer.scores, np.sort(expected)[::-1][:5], atol=1e-4)
