"""The answer without any memory: a whole history in one pass. What streamed answers are held against."""

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.modeling.events import Events
from longrec.modeling.features import gap_buckets, in_context, seconds
from longrec.modeling.network import Network

__all__ = ["recompute_scores"]


@torch.inference_mode()
def recompute_scores(
    network: Network,
    items: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    after: NDArray[np.int64],
    columns: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Scores of the whole catalogue after the first `after[q]` events of one user's history.

    Args:
        network: in evaluation mode.
        items, times_ms: [n] the history; an item outside the catalogue is the unknown item.
        after: [Q] in 0..n.
        columns: [n, C] the events' features; None: unknown.

    Returns:
        [Q, num_items].
    """
    config, device = network.config, network.item_table.device
    hidden = network.start[None]  # [1 + n, dim]: row n is the state after n events
    if columns is None:
        columns = np.zeros((len(items), len(config.features.columns)), np.int64)
    if len(items):
        inputs = (
            np.minimum(items, config.num_items),
            in_context(config, gap_buckets(times_ms, None, config.num_gap_buckets), times_ms, columns),
            seconds(times_ms),
            np.arange(len(items)),
            np.array([0, len(items)], np.int32),
        )
        events = Events(*(torch.from_numpy(array).to(device) for array in inputs))
        hidden = torch.cat((hidden, network.states(events)))
    wanted = hidden[torch.from_numpy(after).to(device)]
    if network.repeats is None or not len(items):
        return network.scores(wanted).cpu().numpy()
    rows = np.concatenate([np.arange(end) for end in after])
    past = events.take(torch.from_numpy(rows).to(device), torch.from_numpy(after).to(device))
    return network.scores_after(wanted, past).cpu().numpy()
