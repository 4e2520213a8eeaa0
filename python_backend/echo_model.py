"""Model `recommender_echo`: the wire and nothing behind it, so that a benchmark knows what the server itself costs.

Reads what a request carries and makes what it asks for, in the right shapes; ranks nothing, keeps nothing.
"""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from longrec.protocol import BECAUSE, CANDIDATE, DEFAULT_K, EVENT, ITEMS, SCORES, STATE, USER

__all__ = ["TritonPythonModel"]

_INPUTS = (USER, EVENT, CANDIDATE)


class TritonPythonModel:
    """One instance of model `recommender_echo`. It checks nothing: it's a ceiling, not a service."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with items 0 to k - 1."""
        read, make, respond = pb_utils.get_input_tensor_by_name, pb_utils.Tensor, pb_utils.InferenceResponse
        responses = []
        for request in requests:
            user, _event, _candidate = [read(request, name).as_numpy() for name in _INPUTS]
            outputs = _outputs(len(user), request.parameters())
            wanted = request.requested_output_names()
            responses.append(respond([make(name, outputs[name]) for name in wanted if name in outputs]))
        return responses


@lru_cache(maxsize=256)
def _outputs(batch: int, parameters: str) -> dict[str, NDArray[Any]]:
    """The answer's arrays; the server copies them, so that they serve again."""
    settings = json.loads(parameters or "{}")
    k, horizon, explain = settings.get("k", DEFAULT_K), settings.get("horizon", 1), settings.get("explain", 0)
    items = np.tile(np.arange(k), (batch, horizon, 1))
    outputs = {ITEMS: items, SCORES: (-items).astype(np.float32), STATE: np.zeros((batch, 2), np.int64)}
    if explain:
        outputs[BECAUSE] = np.full((batch, horizon, k, explain), -1)
    return outputs
