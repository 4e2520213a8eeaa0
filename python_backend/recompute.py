"""The engine without a memory: each answer is computed from the user's newest events in the log, all that can reach it.
The baseline against which the memory must be worth its pages; everything else is the engine's own."""

import sys
from collections.abc import Sequence

import torch

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.modeling.events import Events
from longrec.modeling.last_states import LastStates
from longrec.modeling.network import Network
from longrec.modeling.transformer import Transformer
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.kinds import Kind
from longrec.python_backend.ranking import Ranker
from longrec.python_backend.rollout import Rollouts
from longrec.python_backend.rules import Rules
from longrec.python_backend.user_memory import Caught
from longrec.python_backend.window_paths import WindowPaths
from longrec.python_backend.windows import FieldReader, LastStatesOf, Windows
from longrec.python_backend.work import Work

__all__ = ["RecomputeEngine"]


class RecomputeEngine(Engine):
    """Answers as `Engine` does, and takes longer; but neither rollouts nor explanations.

    Args:
        As `Engine`; `config` must allow horizon 1 and explain 0 alone.
        pruned: as `LastStates`, of family transformer; what is served is the whole pass.
    """

    def __init__(
        self,
        network: Network,
        log: EventLog,
        config: EngineConfig,
        decode_batches: Sequence[int] | None = (),
        rules: Rules | None = None,
        *,
        pruned: bool = False,
    ) -> None:
        if config.max_horizon > 1 or config.max_explain:
            got = f"max_horizon={config.max_horizon}, max_explain={config.max_explain}"
            raise ArgumentError("config", "max_horizon=1 and max_explain=0: there is no memory", got)
        self._pruned = pruned
        super().__init__(network, log, config, decode_batches, rules)

    def _make_kind(self, ranker: Ranker, decode_batches: Sequence[int] | None) -> Kind:
        network, log = self.network, self.log
        paths = WindowPaths(network, FieldReader(log, network.config.reach))
        return Kind(Recompute(network, log, self._pruned), Rollouts(paths, ranker, None))


class Recompute(Windows):
    """Runs all that reaches an answer through the network, at once and whatever that takes.

    Args:
        network: in evaluation mode.
        log: where the events are read.
        pruned: as `LastStates`.
    """

    def __init__(self, network: Network, log: EventLog, pruned: bool) -> None:
        super().__init__(network, log, 0, _last_states_of(network, pruned))

    def num_missing(self, work: Work) -> int:
        """0: nothing is put off."""
        return 0

    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """Answer all entries of the works, whatever `each` and `room` are. Raises as `Windows.run`."""
        return super().run(works, each=each, room=sys.maxsize)


def _last_states_of(network: Network, pruned: bool) -> LastStatesOf:
    """What computes a network's last states in a pass over whole histories."""
    if not isinstance(network, Transformer):
        return network.last_states
    states = LastStates(network, pruned=pruned)

    def last_states(events: Events) -> torch.Tensor:
        """Of users, the one with fewest events first."""
        lengths = events.counts.tolist()
        none = lengths.count(0)
        hidden = network.start.detach().expand(none, -1)
        return torch.cat((hidden, states(events.items, events.gaps, lengths[none:]))) if none < len(lengths) else hidden

    return last_states
