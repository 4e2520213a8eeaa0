"""Part `bulk`: requests of 256 users with one event each, through the server; and attention alone, in process, against
the speed at which this machine reads memory."""

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from longrec.config import EngineConfig
from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.bench.attention_bandwidth import AttentionTime, measure_attention
from longrec.protocol import UNCHECKED_POSITION
from longrec.server.bench.load import answered_a_second, bulk_request, fill
from longrec.server.bench.material import Material
from longrec.server.bench.threads import one_thread

__all__ = ["BulkPlan", "BulkResult", "measure_bulk"]


@dataclass(frozen=True)
class BulkPlan:
    """How much to measure.

    Args:
        users: in memory; each request asks for the next `batch` of them.
        batch: users of a request, one event each.
        memory: events in memory when measuring begins, on average; lengths lie evenly in 0.5 to 1.5 times this. It
            grows: by an event whenever a user's turn comes.
        in_flight: requests.
        windows, window_seconds: the figure is the median of so many windows.
        attention: users and events of memory of the attention that is measured alone.
        attention_repeats: the best counts.
    """

    users: int = 4096
    batch: int = 256
    memory: int = 120
    in_flight: int = 3
    windows: int = 5
    window_seconds: float = 1.0
    attention: tuple[int, int] = (256, 512)
    attention_repeats: int = 15


@dataclass(frozen=True)
class BulkResult:
    """What came of it.

    Args:
        windows: users answered a second, in each window.
        mean_memory: events of a mean user's memory, halfway through.
        attention: measured alone.
    """

    windows: tuple[float, ...]
    mean_memory: float
    attention: AttentionTime

    @property
    def users_per_second(self) -> float:
        """The median window's."""
        return median(self.windows)


def measure_bulk(material: Material, plan: BulkPlan) -> BulkResult:
    """Both halves of the part.

    Raises:
        MachineError, ServerError: as `Server.start`, and where a request failed.
        ArithmeticError: attention differs from its reference.
    """
    with one_thread():
        attention = _attention(material, plan)
    lengths = np.linspace(0.5 * plan.memory, 1.5 * plan.memory, plan.users).astype(int)
    np.random.default_rng(0).shuffle(lengths)
    histories = material.drawn(lengths.tolist())
    users = [f"user-{number}" for number in range(plan.users)]
    events = [np.array([[UNCHECKED_POSITION, *history[-1]]]) for history in histories]
    messages = [
        bulk_request(users[begin : begin + plan.batch], events[begin : begin + plan.batch])
        for begin in range(0, plan.users, plan.batch)
    ]
    with material.serve(EngineConfig(memory_bytes=2 << 30)) as server:
        fill(server.grpc_url, users, histories)
        windows = answered_a_second(
            server.grpc_url,
            messages,
            in_flight=plan.in_flight,
            windows=plan.windows,
            window_seconds=plan.window_seconds,
        )
    answered = plan.batch * sum(windows) * plan.window_seconds
    return BulkResult(
        tuple(plan.batch * window for window in windows), float(lengths.mean() + answered / plan.users / 2), attention
    )


def _attention(material: Material, plan: BulkPlan) -> AttentionTime:
    model, (users, memory) = material.network.config, plan.attention
    case = AttentionCase(
        new=(1,) * users,
        past=(memory,) * users,
        heads=(model.num_heads, model.num_kv_heads),
        head_dim=model.head_dim,
        page_size=EngineConfig().page_size,
    )
    return measure_attention(case, case.make(torch.float32), repeats=plan.attention_repeats, reference_repeats=1)
