"""What the benchmark measures with: a trained network, a dataset's histories and longer ones in its likeness, and a
server of their own in a scratch folder."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.config import EngineConfig
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.modeling import Network, build_network, load_network, load_run, save_run
from longrec.server.process import Server
from longrec.server.repository import write_repository

__all__ = ["History", "Material", "Target", "load_material", "serving"]

History = NDArray[np.int64]  # [n, 2] item, unix ms


@dataclass(frozen=True)
class Material:
    """A network and data in its catalogue.

    Args:
        network: in evaluation mode, on the CPU.
        dataset: with the network's catalogue.
        scratch: folder for repositories and logs.
    """

    network: Network
    dataset: Dataset
    scratch: Path

    def with_window(self, window: int) -> "Material":
        """The same weights, with another attention window."""
        network = build_network(self.network.config.model_copy(update={"window": window}))
        network.load_state_dict(self.network.state_dict())
        return replace(self, network=network.eval())

    def recorded(self, limit: int) -> list[History]:
        """The first users' histories, as the dataset has them; at most `limit` users."""
        return [self.dataset.events(user)[:, 1:] for user in range(min(limit, len(self.dataset.users)))]

    def drawn(self, lengths: Sequence[int], seed: int = 0) -> list[History]:
        """Histories of these lengths: items and gaps drawn from all of the dataset's."""
        rng = np.random.default_rng(seed)
        gaps = np.diff(self.dataset.times_ms)
        gaps = gaps[gaps >= 0] if (gaps >= 0).any() else np.zeros(1, np.int64)
        began = int(self.dataset.times_ms.min())
        return [
            np.stack((rng.choice(self.dataset.items, length), began + np.cumsum(rng.choice(gaps, length))), axis=1)
            for length in lengths
        ]

    @contextmanager
    def serve(self, engine: EngineConfig, extras: Collection[str] = ()) -> Iterator[Server]:
        """A server of the network on free ports, with an empty event log; gone with all its files afterwards.

        Args:
            engine: the settings.
            extras: further models, as `write_repository`.

        Raises:
            MachineError, ServerError: as `Server.start`.
        """
        with TemporaryDirectory(prefix="serve-", dir=self.scratch) as folder:
            server = self.server(Path(folder), engine, extras)
            with server:
                yield server

    def server(self, folder: Path, engine: EngineConfig, extras: Collection[str] = ()) -> Server:
        """The same, not started yet, in a folder of the caller's; its event log will be `folder/event_log`."""
        save_run(folder / "run", self.network, self.network.config, self.dataset.catalogue, {})
        write_repository(folder / "run", folder / "repository", engine=engine, extras=extras)
        return Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0)


def load_material(run: Path, dataset: Path, scratch: Path, *, any_family: bool = False) -> Material:
    """Read a run and a dataset that fit each other.

    Args:
        run, dataset: folders. scratch: of the material.
        any_family: not a transformer alone, which is what is benchmarked.

    Raises:
        CheckpointError, DataError: as `load_network` and `Dataset.load`, and where the catalogues differ.
    """
    network, checkpoint = load_run(run) if any_family else load_network(run)
    data = Dataset.load(dataset)
    if checkpoint.catalogue.ids != data.catalogue.ids:
        raise DataError(f"{dataset}: expected the catalogue of {run}, got another; train on this dataset")
    if not len(data):
        raise DataError(f"{dataset}: expected events, got none")
    return Material(network, data, scratch)


class Target(NamedTuple):
    """A running server, and data in its catalogue.

    Args:
        url: host:port of its gRPC endpoint. metrics_url: of its metrics.
        dataset: with the catalogue of what is served.
        network: what is served, in evaluation mode; None: it isn't at hand.
    """

    url: str
    metrics_url: str
    dataset: Dataset
    network: Network | None


@contextmanager
def serving(
    dataset: Path, *, url: str | None = None, metrics_url: str | None = None, run: Path | None = None
) -> Iterator[Target]:
    """A server that runs already, or one that serves a run until the block is left.

    Args:
        dataset: folder.
        url: host:port of the running server's gRPC endpoint. metrics_url: default port 8002 of the same host.
        run: folder that was trained on the dataset, instead of `url`.

    Raises:
        ArgumentError: both or neither of url and run. DataError, CheckpointError: of the folders. MachineError,
        ServerError: as `Server.start`.
    """
    if (url is None) == (run is None):
        raise ArgumentError("url, run", "one of them: a running server, or a run to serve")
    if url is not None:
        host = url.rpartition(":")[0]
        yield Target(url, metrics_url or f"http://{host}:8002/metrics", Dataset.load(dataset), None)
        return
    assert run is not None
    with TemporaryDirectory(prefix="longrec-serve-") as scratch:
        material = load_material(run, dataset, Path(scratch), any_family=True)
        with material.serve(EngineConfig()) as server:
            yield Target(server.grpc_url, server.metrics_url, material.dataset, material.network)
