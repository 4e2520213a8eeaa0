"""Configuration is frozen and closed, and a misfit names source, field, expected and got."""

import pytest
from pydantic import ValidationError

from longrec.config import EngineConfig, ModelConfig, TrainConfig, engine_config, parse_config
from longrec.errors import ArgumentError
from longrec.protocol import PROTOCOL_VERSION


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (EngineConfig, {"max_k": 0}, r"here: max_k: expected greater than or equal to 1, got 0"),
        (EngineConfig, {"max_k": "257"}, r"here: max_k: expected less than or equal to 256, got '257'"),
        (EngineConfig, {"page_size": 24}, r"here: page_size: expected 16, 32, 64 or 128, got 24"),
        (EngineConfig, {"durability": "maybe"}, r"here: durability: expected 'commit', 'interval' or 'none'"),
        (EngineConfig, {"pagesize": 32}, r"here: pagesize: expected one of max_k, .*page_size"),
        (ModelConfig, {}, r"here: num_items: expected .*required"),
        (
            ModelConfig,
            {"num_items": 9, "dim": 65},
            r"here: ModelConfig: expected dim: expected a multiple of 2 \* num_heads",
        ),
        (
            ModelConfig,
            {"num_items": 9, "num_heads": 4, "num_kv_heads": 3},
            r"num_kv_heads: expected a divisor of num_heads",
        ),
        (TrainConfig, {"dropout": 1.0}, r"here: dropout: expected less than 1, got 1.0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_misfit_is_named(kind, values, message):
    with pytest.raises(ArgumentError, match=message):
        parse_config(kind, values, "here")


def test_strings_of_a_config_file_are_read():
    engine = EngineConfig(max_k=7, page_size=64, durability="commit")
    assert (
        parse_config(EngineConfig, {name: str(value) for name, value in engine.model_dump().items()}, "file") == engine
    )


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig(num_items=9).dim = 3


def test_receptive_field():
    assert ModelConfig(num_items=1, num_layers=3, window=10).receptive_field == 28


def test_a_served_models_parameters_state_the_wires_version() -> None:
    assert engine_config({"max_k": "7"}, "config.pbtxt") == EngineConfig(max_k=7)
    assert engine_config({"max_k": "7", "protocol_version": str(PROTOCOL_VERSION)}, "config.pbtxt").max_k == 7
    with pytest.raises(ArgumentError, match=r"^config\.pbtxt: protocol_version=9: expected 1; longrec export"):
        engine_config({"protocol_version": "9"}, "config.pbtxt")
