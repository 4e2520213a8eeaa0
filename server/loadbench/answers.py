"""Reads the answers of a run and refuses it if one is wrong: a fast server that answers nonsense has no figures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from longrec.errors import ServerError
from longrec.modeling import Network, recompute_scores
from longrec.protocol import ITEMS, SCORES, STATE, Status
from longrec.server.loadbench.population import Population

__all__ = ["Answers", "hold_against_recompute", "read_answers"]

TOLERANCE = 1e-4  # of a score, beside one recomputed from the whole history in float32


class Answers(NamedTuple):
    """Of n requests, by the requests' numbers.

    Args:
        order: [n] int64: which request the answer that came i-th is of.
        items: [n, k] int64. scores: [n, k] float32.
    """

    order: NDArray[np.int64]
    items: NDArray[np.int64]
    scores: NDArray[np.float32]


def read_answers(answers: Sequence[bytes], positions: NDArray[np.int64], num_items: int, k: int) -> Answers:
    """Read and check all of them.

    Args:
        answers: n serialised `ModelStreamInferResponse`s, in the order in which they came.
        positions: [n] of the requests' events, by the requests' numbers: the log is that much and one longer now.
        num_items: of the catalogue. k: items wanted.

    Raises:
        ServerError: a request failed, got another's answer, one that isn't a ranking, or a log of another length.
    """
    count, width = len(answers), min(k, num_items)
    order = np.empty(count, np.int64)
    parts: dict[str, list[bytes]] = {ITEMS: [], SCORES: [], STATE: []}
    for place, data in enumerate(answers):
        message = service_pb2.ModelStreamInferResponse.FromString(data)
        if message.error_message:
            raise ServerError(f"a request of the load failed: {message.error_message}")
        answer = message.infer_response
        order[place] = int(answer.id)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            parts[output.name].append(raw)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise ServerError(f"the load: expected an answer to each of {count} requests, got some twice and some not")
    try:
        state = np.frombuffer(b"".join(parts[STATE]), np.int64).reshape(count, 2)
        items = np.frombuffer(b"".join(parts[ITEMS]), np.int64).reshape(count, k)[:, :width]
        scores = np.frombuffer(b"".join(parts[SCORES]), np.float32).reshape(count, k)[:, :width]
    except ValueError:
        raise ServerError(f"the load: expected {k} items and scores in every answer, got other shapes") from None
    wrong = {
        "status 0": state[:, 0] != Status.OK,
        "a log one event longer": state[:, 1] != positions[order] + 1,
        f"{width} items of the catalogue": (items < 0).any(1) | (items >= num_items).any(1),
        "no item twice": (np.diff(np.sort(items, 1), axis=1) == 0).any(1),
        "finite scores, falling": ~np.isfinite(scores).all(1) | (np.diff(scores, axis=1) > 0).any(1),
    }
    for expected, found in wrong.items():
        if found.any():
            raise ServerError(
                f"the load: expected {expected} in every answer, got {found.sum()} of {count} that differ"
            )
    by_number = np.argsort(order)
    return Answers(order, items[by_number], scores[by_number])


def hold_against_recompute(
    answers: Answers,
    users: NDArray[np.int64],
    positions: NDArray[np.int64],
    population: Population,
    network: Network,
    sample: NDArray[np.int64],
) -> None:
    """Compare some answers with the network run over the user's whole log.

    Args:
        users, positions: [n] of the requests.
        sample: numbers of the requests to look at.

    Raises:
        ServerError: an item's score isn't the recomputed one, or a better item was left out.
    """
    for number in sample.tolist():
        length = int(positions[number]) + 1
        history = population.history(int(users[number]), length)
        (expected,) = recompute_scores(network, history[:, 0], history[:, 1], np.array([length]))
        items, scores = answers.items[number], answers.scores[number]
        best = np.sort(expected)[::-1][: len(items)]
        off = max(float(np.abs(expected[items] - scores).max()), float(np.abs(best - scores).max()))
        if not off <= TOLERANCE:
            raise ServerError(
                f"the load: expected the scores of a recompute of {length} events within {TOLERANCE:g}, got {off:.2g}"
            )
