"""What Triton is told: every model's config states the wire, and carries every setting."""

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2

from longrec.config import EngineConfig, engine_config
from longrec.protocol import INPUTS, OUTPUTS, PROTOCOL_VERSION
from longrec.server.model_configs import (
    EXTRAS,
    VARIANTS,
    Variant,
    config_text,
    model_config,
    parse_config_text,
    variant_config,
)

TYPES = {np.object_: "TYPE_STRING", np.int64: "TYPE_INT64", np.float32: "TYPE_FP32"}
KIND = model_config_pb2.ModelInstanceGroup

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


@every_variant
def test_config_states_the_wire(variant: Variant) -> None:
    config = model_config(EngineConfig(), variant=variant)
    assert config.name == variant.name
    for specs, tensors in ((INPUTS, config.input), (OUTPUTS, config.output)):
        assert [spec.name for spec in specs] == [tensor.name for tensor in tensors]
        assert [list(spec.dims) for spec in specs] == [list(tensor.dims) for tensor in tensors]
        assert [TYPES[spec.dtype] for spec in specs] == [
            model_config_pb2.DataType.Name(tensor.data_type) for tensor in tensors
        ]
    assert [tensor.name for tensor in config.input if tensor.allow_ragged_batch] == ["EVENT", "CANDIDATE"]
    assert not any(tensor.optional for tensor in config.input)
    assert config.WhichOneof("scheduling_choice") == ("sequence_batching" if variant.sequences else "dynamic_batching")


@every_variant
def test_config_carries_every_engine_setting(variant: Variant) -> None:
    engine = EngineConfig(max_k=7, durability="commit", memory_bytes=1 << 20, event_log="elsewhere")
    config = model_config(engine, variant=variant)
    assert config.parameters["protocol_version"].string_value == str(PROTOCOL_VERSION)
    carried = engine_config({name: value.string_value for name, value in config.parameters.items()}, "config")
    if variant is EXTRAS["recompute"]:
        own = {"event_log": "elsewhere_recompute", "inline_events": 2048, "max_horizon": 1, "max_explain": 0}
        engine = engine.model_copy(update=own)
    assert carried == engine


def test_recompute_never_writes_the_log_in_redis() -> None:
    engine = EngineConfig(event_log="redis://localhost:6379/0", flush_milliseconds=1000)
    config = model_config(engine, variant=EXTRAS["recompute"])
    assert config.parameters["event_log"].string_value == "../event_log_recompute"


def test_kind_instances_and_delay() -> None:
    config = model_config(EngineConfig(), "gpu", instances=2, max_queue_delay_microseconds=500)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (KIND.KIND_GPU, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    echo = variant_config(config, EXTRAS["echo"])
    assert (echo.instance_group[0].kind, echo.instance_group[0].count) == (KIND.KIND_CPU, 2)


@every_variant
def test_another_models_config_follows_from_the_first(variant: Variant) -> None:
    settings = {"kind": "gpu", "instances": 3, "max_queue_delay_microseconds": 70, "version": 4}
    engine = EngineConfig(max_k=9)
    first = parse_config_text(config_text(model_config(engine, **settings)))
    assert variant_config(first, variant) == model_config(engine, **settings, variant=variant)
