"""Values that somebody wrote as a frozen model of pydantic's, or one error that says what is wrong with them."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longrec.errors import ArgumentError

__all__ = ["parse_config"]

C = TypeVar("C", bound=BaseModel)


def parse_config(kind: type[C], values: dict[str, Any], source: str | Path) -> C:
    """Values as `kind`; a misfit becomes one `ArgumentError` that names source, field, expected and got."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or kind.__name__
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            raise ArgumentError(f"{source}: {field}", f"one of {', '.join(kind.model_fields)}") from None
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        got = "" if isinstance(first["input"], dict) else repr(first["input"])  # a dict: the fields don't fit together
        raise ArgumentError(f"{source}: {field}", expected, got) from None
