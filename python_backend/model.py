"""The model as tritonserver's Python backend loads it: tensors to queries, answers to tensors, and nothing else.

The only file that knows `triton_python_backend_utils`, which exists inside the server's stub process alone.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from longrec.config import EngineConfig, parse_config
from longrec.errors import ArgumentError, LongrecError
from longrec.modeling.checkpoint_io import load_network
from longrec.protocol import CANDIDATE, EVENT, ITEMS, SCORES, STATE, USER
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import open_event_log
from longrec.python_backend.metrics import EngineMetrics
from longrec.python_backend.query import Answer, Query, parse_queries
from longrec.python_backend.settings import SettingsParser

__all__ = ["TritonPythonModel"]


class _Work(NamedTuple):
    queries: list[Query]
    outputs: frozenset[str]


class TritonPythonModel:
    """One instance of model `recommender`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint that lies beside `model.py`, and open the event log.

        Raises:
            LongrecError: the checkpoint, a model parameter, or the log's folder is unusable; the server reports it as
                the reason why the model is not available.
        """
        parameters = {
            name: entry["string_value"] for name, entry in json.loads(args["model_config"])["parameters"].items()
        }
        self.config = parse_config(EngineConfig, parameters, "config.pbtxt parameters")
        self._parse_settings = SettingsParser(self.config)
        folder = Path(args["model_repository"])  # of this model; the repository's root is its parent
        network, _ = load_network(folder / args["model_version"])
        device = "cpu"
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        torch.set_num_threads(self.config.cpu_threads)
        self.log = open_event_log(self.config, folder.parent, network.config.receptive_field)
        self.engine = Engine(network.to(device, getattr(torch, self.config.dtype)), self.log, self.config)
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }

        def series(kind: Any) -> Any:
            def make(name: str, description: str) -> Any:
                family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
                self._families.append(family)  # a family that is collected takes its metrics with it
                return family.Metric(labels=labels)

            return make

        self._families: list[Any] = []
        kinds = pb_utils.MetricFamily
        self.metrics = EngineMetrics(self.engine, counter=series(kinds.COUNTER), gauge=series(kinds.GAUGE))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch; a malformed request gets INVALID_ARG and leaves the others, and all state, alone."""
        works = [self._parse(request) for request in requests]
        queries = [query for work in works if isinstance(work, _Work) for query in work.queries]
        answers: list[Answer] | LongrecError
        try:
            answers = self.engine.answer(queries)
        except LongrecError as error:
            answers = error
        self.metrics.publish()
        responses, begin = [], 0
        for work in works:
            if isinstance(work, ArgumentError):
                responses.append(_failure(work, pb_utils.TritonError.INVALID_ARG))
            elif isinstance(answers, LongrecError):
                responses.append(_failure(answers, pb_utils.TritonError.INTERNAL))
            else:
                mine = answers[begin : begin + len(work.queries)]
                begin += len(mine)
                damage = next((answer.error for answer in mine if answer.error), None)
                responses.append(
                    _failure(damage, pb_utils.TritonError.INTERNAL) if damage else _response(mine, work.outputs)
                )
        return responses

    def finalize(self) -> None:
        """Flush and close the event log."""
        self.log.close()

    def _parse(self, request: Any) -> _Work | ArgumentError:
        try:
            settings = self._parse_settings(request.parameters())
            outputs = frozenset(request.requested_output_names())
            users, events, candidates = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in (USER, EVENT, CANDIDATE)
            )
            wants_items = ITEMS in outputs or SCORES in outputs
            return _Work(
                parse_queries(users, events, candidates, settings, self.config, wants_items=wants_items), outputs
            )
        except ArgumentError as error:
            return error


def _response(answers: list[Answer], outputs: frozenset[str]) -> Any:
    tensors = []  # [B, 2], and [B, horizon = 1, k]
    if STATE in outputs:
        state = np.array([(answer.status, answer.length) for answer in answers], np.int64)
        tensors.append(pb_utils.Tensor(STATE, state))
    if ITEMS in outputs:
        tensors.append(pb_utils.Tensor(ITEMS, np.stack([answer.items for answer in answers])[:, None]))
    if SCORES in outputs:
        tensors.append(pb_utils.Tensor(SCORES, np.stack([answer.scores for answer in answers])[:, None]))
    return pb_utils.InferenceResponse(tensors)


def _failure(error: LongrecError, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
