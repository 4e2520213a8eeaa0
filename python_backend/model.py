"""The model as tritonserver's Python backend loads it: tensors to queries, answers to tensors, and nothing else.

The only file that knows `triton_python_backend_utils`, which exists inside the server's stub process alone.
"""

import contextlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from longrec.checkpoint import CATALOGUE
from longrec.config import engine_config
from longrec.errors import ArgumentError, LongrecError, MachineError, ServerError
from longrec.modeling.checkpoint_io import load_network
from longrec.protocol import BECAUSE, CANDIDATE, EVENT, ITEMS, SCORES, STATE, USER, Status
from longrec.python_backend.engine import Engine, Ticket
from longrec.python_backend.event_log import open_event_log
from longrec.python_backend.lanes import Lanes
from longrec.python_backend.metrics import EngineMetrics
from longrec.python_backend.observations import Observations
from longrec.python_backend.query import Answer, Query, parse_queries
from longrec.python_backend.rules import Rules
from longrec.python_backend.settings import SettingsParser

__all__ = ["TritonPythonModel"]

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["ok", "gap", "conflict", "invalid", "failed"]


class _Work(NamedTuple):
    queries: list[Query]
    outputs: frozenset[str]


class _Late:
    """A request some of whose answers are deferred: it is answered when the last of them is there."""

    def __init__(self, sender: Any, outputs: frozenset[str], answers: list[Answer | Ticket], began: float) -> None:
        self.sender, self.outputs, self.answers, self.began = sender, outputs, answers, began
        self.tickets = {answer: at for at, answer in enumerate(answers) if isinstance(answer, Ticket)}

    def settle(self, ticket: Ticket, answer: Answer) -> bool:
        """Take an answer; whether it was the last."""
        self.answers[self.tickets.pop(ticket)] = answer
        return not self.tickets

    @property
    def known(self) -> list[Answer]:
        """The answers that are there."""
        return [answer for answer in self.answers if isinstance(answer, Answer)]

    def send(self, response: Any) -> None:
        """Send the response. Never raises: others wait for theirs."""
        try:
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            logger.exception("a deferred answer could not be sent")


class TritonPythonModel:
    """One instance of model `recommender`."""

    engine_type: type[Engine] = Engine

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint that lies beside `model.py`, and open the event log.

        Raises:
            LongrecError: the checkpoint, a model parameter, or the log's folder is unusable; the server reports it as
                the reason why the model is not available.
        """
        parameters = {
            name: entry["string_value"] for name, entry in json.loads(args["model_config"])["parameters"].items()
        }
        self.config = engine_config(parameters, "config.pbtxt parameters")
        folder = Path(args["model_repository"])  # of this model; the repository's root is its parent
        version = folder / args["model_version"]
        network, _ = load_network(version)
        device = "cpu"
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        torch.set_num_threads(self.config.cpu_threads)
        self.log = open_event_log(self.config, folder.parent, network.config.receptive_field)
        self.rules = Rules(version / CATALOGUE, folder.parent / self.config.rules)
        self.rules.watch()
        self._parse_settings = SettingsParser(self.config, self.rules.bits)
        network = network.to(device, getattr(torch, self.config.dtype))
        self.engine = self.engine_type(network, self.log, self.config, rules=self.rules)
        # the latest first, for memory is a cache: whoever asks before is served, and rebuilt, as ever
        self.engine.warm_up(self.log.recent_users(self.engine.pool.num_pages))
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "model_instance": args["model_instance_name"],  # `instance` is Prometheus's own, for the server
        }

        self._families: dict[str, Any] = {}  # a family that is collected takes its metrics with it

        def maker(kind: Any) -> Any:
            def make(name: str, description: str, extra: dict[str, str]) -> Any:
                if name not in self._families:
                    self._families[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
                return self._families[name].Metric(labels={**labels, **extra})

            return make

        self._late: dict[Ticket, _Late] = {}  # of the lane that holds the engine
        self._lanes = Lanes(lambda: self.engine.has_work, lambda: self.engine.owes_answers)
        self._behind = threading.Thread(target=self._take_turns, name="deferred work", daemon=True)
        self._behind.start()
        kinds = pb_utils.MetricFamily
        self.metrics = EngineMetrics(self._observe, counter=maker(kinds.COUNTER), gauge=maker(kinds.GAUGE)).start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch; a malformed request gets INVALID_ARG and leaves the others, and all state, alone.

        A request whose work is deferred has None in its place, and is answered through its response sender.
        """
        began = time.monotonic()
        works = [self._parse(request) for request in requests]
        queries = [query for work in works if isinstance(work, _Work) for query in work.queries]
        with self._lanes.front():
            answers: list[Answer | Ticket] | LongrecError
            try:
                answers = self.engine.answer(queries)
            except LongrecError as error:
                answers = error
            responses, begin = [], 0
            outcomes: list[Outcome] = []
            for request, work in zip(requests, works, strict=True):
                if isinstance(work, ArgumentError):
                    responses.append(_failure(work, pb_utils.TritonError.INVALID_ARG))
                    outcomes.append("invalid")
                elif isinstance(answers, LongrecError):
                    responses.append(_failure(answers, pb_utils.TritonError.INTERNAL))
                    outcomes.append("failed")
                else:
                    mine = answers[begin : begin + len(work.queries)]
                    begin += len(mine)
                    known = [answer for answer in mine if isinstance(answer, Answer)]
                    if len(known) == len(mine):
                        responses.append(_respond(known, work.outputs))
                        outcomes.append(_outcome(known))
                    else:
                        late = _Late(request.get_response_sender(), work.outputs, mine, began)
                        self._late |= dict.fromkeys(late.tickets, late)
                        responses.append(None)
            seconds = time.monotonic() - began
            for outcome in outcomes:
                self.engine.observations.note_request(outcome, seconds)
        return responses

    def finalize(self) -> None:
        """Flush and close the event log. The server has waited for the requests in flight."""
        self.metrics.close()
        self._lanes.close()
        self._behind.join()
        for late, response in self._fail_late(ServerError("the server stops; send the request again")):
            late.send(response)
        self.engine.give_up()
        self.rules.close()
        self.log.close()

    def _observe(self) -> Observations:
        with self._lanes.front():
            with contextlib.suppress(MachineError):  # a log that can't be read has no lag or size; the rest is there
                self.engine.observe()
            return self.engine.observations

    def _take_turns(self) -> None:
        """The thread behind: a turn whenever there is deferred work and no request waits."""
        while True:
            with self._lanes.behind() as holds:
                if not holds:
                    return
                finished: list[tuple[_Late, Any]] = []
                try:
                    done = self.engine.turn()
                except Exception as error:  # whatever it is, nobody may wait for ever
                    logger.exception("deferred work failed")
                    self.engine.give_up()
                    finished = self._fail_late(ServerError(f"deferred work failed: {error}"))
                else:
                    for ticket, answer in done:
                        late = self._late.pop(ticket, None)  # None: `execute` failed after the engine's answer
                        if late is not None and late.settle(ticket, answer):
                            finished.append((late, self._response_of(late)))
            for late, response in finished:
                late.send(response)

    def _response_of(self, late: _Late) -> Any:
        """The response of a request whose answers are there."""
        seconds = time.monotonic() - late.began
        try:
            response, outcome = _respond(late.known, late.outputs), _outcome(late.known)
        except Exception as error:
            logger.exception("a deferred answer could not be made")
            failure = ServerError(f"deferred work failed: {error}")
            response, outcome = _failure(failure, pb_utils.TritonError.INTERNAL), "failed"
        self.engine.observations.note_request(outcome, seconds)
        return response

    def _fail_late(self, error: LongrecError) -> list[tuple[_Late, Any]]:
        """Forget the requests that wait; each with its response."""
        failed = list(dict.fromkeys(self._late.values()))
        self._late.clear()
        for late in failed:
            self.engine.observations.note_request("failed", time.monotonic() - late.began)
        return [(late, _failure(error, pb_utils.TritonError.INTERNAL)) for late in failed]

    def _parse(self, request: Any) -> _Work | ArgumentError:
        try:
            settings = self._parse_settings(request.parameters())
            outputs = frozenset(request.requested_output_names())
            users, events, candidates = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in (USER, EVENT, CANDIDATE)
            )
            wants_items = bool(outputs & {ITEMS, SCORES, BECAUSE})
            queries = parse_queries(
                *(users, events, candidates, settings, self.config),
                wants_items=wants_items,
                wants_because=BECAUSE in outputs,
            )
            return _Work(queries, outputs)
        except ArgumentError as error:
            return error


def _outcome(answers: list[Answer]) -> Outcome:
    if any(answer.error for answer in answers):
        return "failed"
    statuses = {answer.status for answer in answers}
    if Status.CONFLICT in statuses:
        return "conflict"
    return "gap" if Status.GAP in statuses else "ok"


def _respond(answers: list[Answer], outputs: frozenset[str]) -> Any:
    error = next((answer.error for answer in answers if answer.error), None)
    if error is not None:
        return _failure(error, pb_utils.TritonError.INTERNAL)
    tensors = []
    if STATE in outputs:
        state = np.array([(answer.status, answer.length) for answer in answers], np.int64)
        tensors.append(pb_utils.Tensor(STATE, state))
    if ITEMS in outputs:
        tensors.append(pb_utils.Tensor(ITEMS, _stack([answer.items for answer in answers], 2)))
    if SCORES in outputs:
        tensors.append(pb_utils.Tensor(SCORES, _stack([answer.scores for answer in answers], 2)))
    because = [answer.because for answer in answers if answer.because is not None]
    if because:  # all have it or none; who names no outputs and asks for no reasons gets, and pays for, none
        tensors.append(pb_utils.Tensor(BECAUSE, _stack(because, 3)))
    return pb_utils.InferenceResponse(tensors)


def _stack(arrays: list[Any], ndim: int) -> NDArray[Any]:
    """[B, horizon, ...] of each user's [horizon, ...], whose first dimension is left out where it is 1."""
    stacked = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    return stacked if stacked.ndim == ndim + 1 else stacked[:, None]


def _failure(error: LongrecError, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
