"""Which settings of the engine have a meaning for which family of networks. Pure rules, no I/O."""

from typing import Any, NamedTuple

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError

__all__ = ["fit_engine"]


class _Limit(NamedTuple):
    """The most that a setting may be, and why."""

    most: int
    why: str


def fit_engine(engine: EngineConfig, model: ModelConfig) -> EngineConfig:
    """The settings with which a network is served: what nobody set is set to what its family can do.

    Raises:
        ArgumentError: somebody set what the family can't do.
    """
    fitted: dict[str, Any] = {}
    for name, limit in _limits(model).items():
        value = getattr(engine, name)
        if value <= limit.most:
            continue
        if name in engine.model_fields_set:
            expected = (
                f"at most {limit.most} with family {model.family}: {limit.why}"
                if limit.most
                else (f"0 with family {model.family}: {limit.why}")
            )
            raise ArgumentError(f"{name}={value}", expected, remedy="leave the setting out, or train another family")
        fitted[name] = limit.most
    if engine.memory_dtype != "same" and model.family not in PAGED:
        raise ArgumentError(
            f"memory_dtype={engine.memory_dtype}",
            f"same with family {model.family}: it has no keys and values to store",
            remedy="leave the setting out, or train another family",
        )
    return engine.model_copy(update=fitted) if fitted else engine


PAGED = ("transformer", "transformer_xl", "hstu")


def _limits(model: ModelConfig) -> dict[str, _Limit]:
    if model.family in PAGED:
        return {}
    limits = {"max_explain": _Limit(0, "it has no attention over remembered events that could explain an item")}
    if model.reach is None:
        limits["max_user_events"] = _Limit(0, "all events of a user reach the answer, and a rebuild needs them")
        return limits
    limits["host_memory_bytes"] = _Limit(0, "it has no memory: the log's newest events are run again")
    if model.family == "seq2seq":
        limits["max_horizon"] = _Limit(model.horizon, "it was trained to emit so many steps")
    return limits
