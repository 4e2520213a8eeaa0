"""Shards of an offline job on Ray: the local cores, or a cluster. The only file that knows Ray."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from longrec.errors import ArgumentError, MachineError
from longrec.training.offline import Job, Scorer

__all__ = ["run_on_ray"]


def run_on_ray(
    job: Job, numbers: Sequence[int], note: Callable[[int], None], *, address: str | None = None, workers: int = 2
) -> None:
    """Compute shards by Ray Data, a pool of workers of one core each.

    Args:
        job: its paths are the same on every node.
        numbers: of the shards.
        note: told the users of each.
        address: of a cluster, as `ray.init` takes it; None: this machine's cores, for as long as it takes.
        workers: of the pool, at least 1.

    Raises:
        ArgumentError: `workers` is below 1.
        MachineError: Ray isn't installed, can't be reached, or a shard failed; those before it are there.
    """
    if workers < 1:
        raise ArgumentError(f"workers={workers}", "at least 1")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MachineError("engine ray: Ray isn't installed; pip install 'longrec[ray]'") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MachineError(f"address={address}: expected a Ray cluster, got {error}") from None
    try:
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=workers)
        done = shards.map_batches(_Worker, fn_constructor_args=(job,), batch_size=1, compute=pool, num_cpus=1)
        for row in done.iter_rows():
            note(int(row["users"]))
    except ray.exceptions.RayError as error:
        raise MachineError(f"engine ray: a shard failed: {error}; run it again for those that are missing") from None
    finally:
        ray.shutdown()


class _Worker:
    """A process of the pool: it loads the network once."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)  # it was given a core
        self.scorer = Scorer(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        return {"users": [self.scorer.score(int(number)) for number in batch["shard"]]}
