"""What Triton is told of each model in a repository: the four variants, and their `config.pbtxt`. Writes no file.

| model | served by | for |
| --- | --- | --- |
| `recommender` | dynamic batches | production |
| `recommender_sequence` | Triton's sequence batcher; same code, same event log | clients that speak Triton sequences |
| `recommender_echo` | dynamic batches; same wire, no work | benchmarks: the ceiling |
| `recommender_recompute` | dynamic batches; same wire and weights, no memory, own log | benchmarks: the baseline |
"""

from typing import Any, Final, Literal, NamedTuple

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from longrec.config import EngineConfig, engine_config
from longrec.protocol import ANY_EVENT, CANDIDATE, EVENT, INPUTS, MODEL, OUTPUTS, PROTOCOL_VERSION, USER
from longrec.schema import NO_FEATURES, Schema

__all__ = [
    "EXTRAS",
    "MAX_BATCH",
    "RECOMMENDER",
    "VARIANTS",
    "WARMUP_FILE",
    "WARMUP_USER",
    "Kind",
    "Variant",
    "config_text",
    "model_config",
    "parse_config_text",
    "variant_config",
]

Kind = Literal["cpu", "gpu"]

MAX_BATCH: Final = 256
WARMUP_USER: Final = b"longrec-warmup"  # asked for by the warm-up, and never written to
WARMUP_FILE: Final = "user"  # in the model's folder `warmup`: the key as the wire carries BYTES

# A sequence without END holds its slot until it has been idle so long. A client that comes back later starts anew with
# START, which costs nothing here: the user's memory isn't tied to the slot. Sequences beyond the slots wait for one.
SEQUENCE_IDLE_MICROSECONDS: Final = 10_000_000
SEQUENCE_SLOTS: Final = 4096

_DTYPES: Final = {np.object_: "TYPE_STRING", np.int64: "TYPE_INT64", np.float32: "TYPE_FP32"}


class Variant(NamedTuple):
    """One of the models that a repository may hold.

    Args:
        name: the model's, in Triton and on the wire.
        module: under `longrec.python_backend`, whose `TritonPythonModel` it is.
        has_checkpoint: whether its versions hold weights and catalogue.
        sequences: whether Triton's sequence batcher stands before it.
        own_log: suffix of its event log's folder; "" for the log of `recommender`.
    """

    name: str
    module: str
    has_checkpoint: bool = True
    sequences: bool = False
    own_log: str = ""

    @property
    def model_file(self) -> str:
        """Text of its `model.py`."""
        return (
            f'"""What Triton loads; the model itself is `longrec.python_backend.{self.module}`."""\n\n'
            f"from longrec.python_backend.{self.module} import TritonPythonModel\n\n"
            '__all__ = ["TritonPythonModel"]\n'
        )


RECOMMENDER: Final = Variant(MODEL, "model")
EXTRAS: Final = {
    "sequence": Variant(f"{MODEL}_sequence", "model", sequences=True),
    "echo": Variant(f"{MODEL}_echo", "echo_model", has_checkpoint=False),
    "recompute": Variant(f"{MODEL}_recompute", "recompute_model", own_log="_recompute"),
}
VARIANTS: Final = (RECOMMENDER, *EXTRAS.values())


def model_config(
    engine: EngineConfig,
    kind: Kind = "cpu",
    instances: int = 1,
    max_queue_delay_microseconds: int = 0,
    *,
    variant: Variant = RECOMMENDER,
    version: int = 1,
    schema: Schema = NO_FEATURES,
) -> Any:
    """The `inference.ModelConfig` message of a model.

    Inputs of free length are ragged, and none is `optional`: an optional input makes Triton's batcher split batches.

    Args:
        engine: each field becomes a model parameter, as a string; so does the wire's version.
        kind: where the instances run; `recommender_echo` has no use for a GPU.
        instances: of the model; on a machine with GPUs, so many on each of them.
        max_queue_delay_microseconds: how long a request may wait for others to join its batch. 0: a batch is what came
            while the last one ran.
        variant: which model.
        version: the one that is served. It is named, so that a rollback is the same load with another number.
        schema: of the checkpoint; its events' part becomes a model parameter, for who sends events.
    """
    config = model_config_pb2.ModelConfig(name=variant.name, backend="python", max_batch_size=MAX_BATCH)
    inputs = [ANY_EVENT if spec.name == EVENT and schema.columns else spec for spec in INPUTS]
    for spec in inputs:
        ragged = any(dim < 0 for dim in spec.dims)
        config.input.add(
            name=spec.name, data_type=_DTYPES[spec.dtype], dims=spec.dims, allow_ragged_batch=ragged or None
        )
    for spec in OUTPUTS:
        config.output.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=spec.dims)
    config.version_policy.specific.versions.append(version)
    if variant.sequences:
        # no control inputs: the user's key says whose memory it is, and each tensor of a request costs
        config.sequence_batching.max_sequence_idle_microseconds = SEQUENCE_IDLE_MICROSECONDS
        config.sequence_batching.oldest.max_candidate_sequences = SEQUENCE_SLOTS
        config.sequence_batching.oldest.max_queue_delay_microseconds = max_queue_delay_microseconds
    else:
        config.dynamic_batching.max_queue_delay_microseconds = max_queue_delay_microseconds
    runs_on = kind if variant.has_checkpoint else "cpu"
    config.instance_group.add(kind=f"KIND_{runs_on.upper()}", count=instances)
    if variant.own_log:
        engine = _without_memory(engine, variant.own_log)
    for name, value in engine.model_dump().items():
        config.parameters[name].string_value = str(value)
    config.parameters["protocol_version"].string_value = str(PROTOCOL_VERSION)  # the client compares it
    if schema.columns:
        config.parameters["schema"].string_value = schema.of_events.to_json()
    if not variant.sequences:  # a sequence would stay open
        _add_warmup(config)
    return config


def variant_config(config: Any, variant: Variant) -> Any:
    """The message of another model, for the same version and settings as `config` of model `recommender`."""
    (group,), (version,) = config.instance_group, config.version_policy.specific.versions
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    schema = Schema.from_json(parameters["schema"], config.name) if "schema" in parameters else NO_FEATURES
    return model_config(
        engine_config(parameters, config.name),
        "gpu" if group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU else "cpu",
        group.count,
        config.dynamic_batching.max_queue_delay_microseconds,
        variant=variant,
        version=version,
        schema=schema,
    )


def config_text(config: Any) -> str:
    """A message as `config.pbtxt` holds it."""
    return str(text_format.MessageToString(config))


def parse_config_text(text: str) -> Any:
    """The message that a `config.pbtxt` holds.

    Raises:
        ValueError: it's none.
    """
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from None


def _without_memory(engine: EngineConfig, own_log: str) -> EngineConfig:
    """Settings of an engine that recomputes: nothing is put off, for answers wait for each other anyway, and what goes
    through memory can't be asked for."""
    log = EngineConfig().event_log if engine.is_redis_log else engine.event_log
    return engine.model_copy(
        update={
            "event_log": log + own_log,
            "inline_events": engine.max_events_per_request,
            "max_horizon": 1,
            "max_explain": 0,
        }
    )


def _add_warmup(config: Any) -> None:
    """A query without events for a user who doesn't exist: answered like any other, and it writes nothing."""
    warmup = config.model_warmup.add(name="ask", batch_size=1)
    for spec in INPUTS:
        entry = warmup.inputs[spec.name]
        entry.data_type = model_config_pb2.DataType.Value(_DTYPES[spec.dtype])
        entry.dims.extend(max(dim, 0) for dim in spec.dims)
        entry.zero_data = True
    warmup.inputs[USER].input_data_file = WARMUP_FILE
    assert {USER, EVENT, CANDIDATE} == set(warmup.inputs)
