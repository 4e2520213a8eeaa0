"""The model as tritonserver's Python backend loads it: tensors to queries, answers to tensors, and nothing else.

The only file that knows `triton_python_backend_utils`, which exists inside the server's stub process alone.
"""

import contextlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import triton_python_backend_utils as pb_utils

from longrec.config import engine_config
from longrec.errors import ArgumentError, LongrecError, MachineError, ServerError
from longrec.protocol import CANDIDATE, EVENT, USER, Status
from longrec.python_backend.engine import Engine, Ticket
from longrec.python_backend.lanes import Lanes
from longrec.python_backend.metrics import EngineMetrics
from longrec.python_backend.observations import Observations
from longrec.python_backend.query import Answer
from longrec.python_backend.service import Pending, Service, Work, first_error, output_arrays

__all__ = ["TritonPythonModel"]

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["ok", "gap", "conflict", "invalid", "failed"]


class _Late(Pending):
    """A request that is answered through its sender, when the last of its answers is there."""

    def __init__(self, sender: Any, outputs: frozenset[str], answers: list[Answer | Ticket], began: float) -> None:
        super().__init__(outputs, answers)
        self.sender, self.began = sender, began

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
        device = "cpu"
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        torch.set_num_threads(self.config.cpu_threads)
        self.service = Service.open(version, folder.parent, self.config, device, self.engine_type)
        self.engine = self.service.engine
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
        queries = [query for work in works if isinstance(work, Work) for query in work.queries]
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
        self.service.close()

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

    def _parse(self, request: Any) -> Work | ArgumentError:
        try:
            users, events, candidates = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in (USER, EVENT, CANDIDATE)
            )
            outputs = frozenset(request.requested_output_names())
            return self.service.read(users, events, candidates, request.parameters(), outputs)
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
    error = first_error(answers)
    if error is not None:
        return _failure(error, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse([pb_utils.Tensor(*named) for named in output_arrays(answers, outputs)])


def _failure(error: LongrecError, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
