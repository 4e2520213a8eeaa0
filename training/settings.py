"""Settings of a training run from a JSON file and from `NAME=VALUE` texts. Which fields there are, the configs say."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longrec.config import ModelConfig, TrainConfig
from longrec.errors import ArgumentError

__all__ = ["Settings", "read_settings", "sort_settings"]


class Settings(NamedTuple):
    """Fields of the two configs that are set; the others have their defaults.

    Args:
        model: of `ModelConfig`. train: of `TrainConfig`.
    """

    model: dict[str, Any]
    train: dict[str, Any]

    def over(self, other: "Settings") -> "Settings":
        """These, and those of `other` that these don't set."""
        return Settings({**other.model, **self.model}, {**other.train, **self.train})


def read_settings(path: Path) -> Settings:
    """Read `{"model": {…}, "train": {…}}`, as `longrec tune` writes it; either may be absent.

    Raises:
        ArgumentError: no such file, or something else is in it.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}", "a JSON file", str(error)) from None
    tables = isinstance(found, dict) and all(isinstance(table, dict) for table in found.values())
    if not tables or found.keys() - {"model", "train"}:
        raise ArgumentError(f"{path}", 'objects "model" and "train", and nothing else')
    return Settings(found.get("model", {}), found.get("train", {}))


def sort_settings(values: Mapping[str, Any], texts: Iterable[str] = ()) -> Settings:
    """Values by field, and texts such as `loss=gbce`, to the config that has the field.

    Args:
        values: None: not set. texts: JSON behind the =, or text; they go before `values`.

    Raises:
        ArgumentError: neither config has the field, or there is no =.
    """
    settings = Settings({}, {})
    given = {name: value for name, value in values.items() if value is not None}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError(f"--set {text}", "NAME=VALUE")
        given[name] = _value(value)
    for name, value in given.items():
        if name in TrainConfig.model_fields:
            settings.train[name] = value
        elif name in ModelConfig.model_fields:
            settings.model[name] = value
        else:
            known = sorted([*TrainConfig.model_fields, *ModelConfig.model_fields])
            raise ArgumentError(f"--set {name}", f"one of {', '.join(known)}")
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
