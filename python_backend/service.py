"""What every way to serve an engine shares: opening it, reading a request's arrays, making an answer's arrays.

`model.py` puts a tritonserver around it, `local.py` a process. Knows no server.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.checkpoint import CATALOGUE
from longrec.config import EngineConfig
from longrec.errors import LongrecError
from longrec.family_settings import fit_engine
from longrec.modeling.checkpoint_io import load_run
from longrec.protocol import BECAUSE, ITEMS, SCORES, STATE
from longrec.python_backend.engine import Engine, Ticket
from longrec.python_backend.event_log import EventLog, open_event_log
from longrec.python_backend.query import Answer, Query, parse_queries
from longrec.python_backend.rules import Rules
from longrec.python_backend.settings import SettingsParser

__all__ = ["Pending", "Service", "Work", "first_error", "output_arrays"]


class Work(NamedTuple):
    """A request: one query a user, and the outputs that it asks for."""

    queries: list[Query]
    outputs: frozenset[str]


class Pending:
    """A request some of whose answers are deferred.

    Args:
        outputs: that it asks for.
        answers: one a user, or the ticket for it.
    """

    def __init__(self, outputs: frozenset[str], answers: list[Answer | Ticket]) -> None:
        self.outputs, self.answers = outputs, answers
        self.tickets = {answer: at for at, answer in enumerate(answers) if isinstance(answer, Ticket)}

    def settle(self, ticket: Ticket, answer: Answer) -> bool:
        """Take an answer; whether it was the last."""
        self.answers[self.tickets.pop(ticket)] = answer
        return not self.tickets

    @property
    def known(self) -> list[Answer]:
        """The answers that are there."""
        return [answer for answer in self.answers if isinstance(answer, Answer)]


class Service(NamedTuple):
    """An engine with what it stands on."""

    engine: Engine
    log: EventLog
    rules: Rules
    config: EngineConfig
    parse_settings: SettingsParser
    features: Mapping[str, int]  # of events, each with its largest value

    @classmethod
    def open(
        cls, checkpoint: Path, root: Path, config: EngineConfig, device: str, engine_type: type[Engine] = Engine
    ) -> "Service":
        """Load a checkpoint and open the event log.

        Args:
            checkpoint: folder.
            root: the model repository, which the folders of `config` are relative to.
            config: of the engine.
            device: torch's name of where it runs.
            engine_type: which engine.

        Raises:
            LongrecError: the checkpoint, a setting, or the log's folder is unusable; nothing is left open.
        """
        network, _ = load_run(checkpoint)
        config = fit_engine(config, network.config)
        with contextlib.ExitStack() as undo:
            features = {name: feature.size for name, feature in network.config.features.columns.items()}
            log = open_event_log(config, root, network.config.reach, len(features))
            undo.callback(log.close)
            rules = Rules(checkpoint / CATALOGUE, root / config.rules)
            rules.watch()
            undo.callback(rules.close)
            network = network.to(device, getattr(torch, config.dtype))
            engine = engine_type(network, log, config, rules=rules)
            # the latest first, for memory is a cache: whoever asks before is served, and rebuilt, as ever
            engine.warm_up(log.recent_users(engine.most_users))
            undo.pop_all()
        return cls(engine, log, rules, config, SettingsParser(config, rules.bits), features)

    def read(
        self,
        users: NDArray[np.object_],
        events: NDArray[np.int64],
        candidates: NDArray[np.int64],
        parameters: str,
        outputs: frozenset[str],
    ) -> Work:
        """Check a request.

        Args:
            users, events, candidates: as `parse_queries`, which copies them.
            parameters: JSON, as the server hands them on.
            outputs: that it asks for.

        Raises:
            ArgumentError: the request isn't as it should be; nothing has been changed.
        """
        queries = parse_queries(
            *(users, events, candidates, self.parse_settings(parameters), self.config),
            wants_items=bool(outputs & {ITEMS, SCORES, BECAUSE}),
            wants_because=BECAUSE in outputs,
            features=self.features,
        )
        return Work(queries, outputs)

    def close(self) -> None:
        """Flush and close the event log; nobody uses the engine any more."""
        self.rules.close()
        self.log.close()


def first_error(answers: Sequence[Answer]) -> LongrecError | None:
    """Why a request can't be answered: for one of its users."""
    return next((answer.error for answer in answers if answer.error), None)


def output_arrays(answers: Sequence[Answer], outputs: frozenset[str]) -> list[tuple[str, NDArray[Any]]]:
    """The outputs of a request, by name, whose answers have no error."""
    arrays: list[tuple[str, NDArray[Any]]] = []
    if STATE in outputs:
        arrays.append((STATE, np.array([(answer.status, answer.length) for answer in answers], np.int64)))
    if ITEMS in outputs:
        arrays.append((ITEMS, _stack([answer.items for answer in answers], 2)))
    if SCORES in outputs:
        arrays.append((SCORES, _stack([answer.scores for answer in answers], 2)))
    because = [answer.because for answer in answers if answer.because is not None]
    if because:  # all have it or none; who names no outputs and asks for no reasons gets, and pays for, none
        arrays.append((BECAUSE, _stack(because, 3)))
    return arrays


def _stack(arrays: list[Any], ndim: int) -> NDArray[Any]:
    """[B, horizon, ...] of each user's [horizon, ...], whose first dimension is left out where it is 1."""
    stacked = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    return stacked if stacked.ndim == ndim + 1 else stacked[:, None]
