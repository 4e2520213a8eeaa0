"""Which kind of memory serves which network: the one place that chooses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from longrec.config import EngineConfig
from longrec.modeling.network import Network
from longrec.modeling.paged import PagedNetwork
from longrec.modeling.recurrent import Recurrent
from longrec.modeling.seq2seq import Seq2Seq
from longrec.python_backend.catch_up import CatchUp
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.explain import Explainer
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.paths import PoolPaths
from longrec.python_backend.ranking import Ranker
from longrec.python_backend.rollout import Rollouts
from longrec.python_backend.snapshots import Snapshots
from longrec.python_backend.state_step import StateRunner
from longrec.python_backend.step import StepRunner
from longrec.python_backend.user_memory import UserMemory
from longrec.python_backend.warm import WarmLane
from longrec.python_backend.window_paths import DecodedPaths, WindowPaths
from longrec.python_backend.windows import FieldReader, Windows

__all__ = ["Kind", "make_kind"]


class Kind(NamedTuple):
    """What of an engine depends on the network's kind of memory."""

    memory: UserMemory
    rollouts: Rollouts


def make_kind(
    network: Network, log: EventLog, config: EngineConfig, ranker: Ranker, decode_batches: Sequence[int] | None
) -> Kind:
    """Memory and rollouts of a network. What is compiled once is compiled now, not during a request.

    Args:
        network: in evaluation mode, on the device that it shall run on.
        log: the users' events. config: limits and sizes. ranker: of the catalogue.
        decode_batches: as in `StepRunner`.

    Raises:
        ArgumentError: `config.memory_bytes` is too small for the network's memory.
    """
    with torch.inference_mode():
        ranker.top(network.start[None], 1)
    if network.memory == "window":
        fields = FieldReader(log, network.config.reach)
        paths = DecodedPaths(network, fields) if isinstance(network, Seq2Seq) else WindowPaths(network, fields)
        windows = Windows(network, log, config.max_step_events)
        return Kind(windows, Rollouts(paths, ranker, None))
    pool = MemoryPool(network.config, config, network.start.device, network.start.dtype)
    if isinstance(network, PagedNetwork):
        steps = StepRunner(network, pool, decode_batches)
        steps.warm_up()
        explainer = Explainer(network, pool)
        warm = WarmLane.over(network, pool, config.max_step_events)
        memory = CatchUp(network, log, pool, steps, config.inline_events, explainer, warm=warm)
        return Kind(memory, Rollouts(PoolPaths(network, pool, steps), ranker, explainer))
    assert isinstance(network, Recurrent)
    states = StateRunner(network, pool)
    snapshots = Snapshots(network, log, pool)
    memory = CatchUp(network, log, pool, states, config.inline_events, snapshots=snapshots)
    return Kind(memory, Rollouts(PoolPaths(network, pool, states), ranker, None))
