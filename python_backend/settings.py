"""Request parameters: what a request may ask for beside its tensors. Checked here, and nowhere downstream again."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from longrec import protocol
from longrec.config import EngineConfig
from longrec.errors import ArgumentError

__all__ = ["DEFAULTS", "Settings", "SettingsParser", "parse_settings"]

MAX_CACHED = 1024  # settings kept by the text they were parsed from
MAX_CACHED_CHARACTERS = 2048
MAX_INDEX = (1 << 63) - 1
BYTES_OF_INDEX = 24  # longest decimal int64, a comma and some space
BYTES_OF_CATEGORIES = 1 << 14
SHOWN = 40  # characters of a wrong value that an error repeats


class Settings(NamedTuple):
    """Checked request parameters; `longrec.protocol` says what each means.

    Args:
        k, horizon, beam, explain: as sent.
        exclude_seen: as sent.
        exclude: catalogue indices, rising, each once.
        allowed: the categories' bits, of `Rules.bits`; 0: every item.
        probability: scores are probabilities, not logits.
    """

    k: int = protocol.DEFAULT_K
    horizon: int = 1
    beam: int = 1
    exclude_seen: bool = False
    exclude: tuple[int, ...] = ()
    allowed: int = 0
    explain: int = 0
    probability: bool = False

    @property
    def has_masks(self) -> bool:
        """Whether items are left out for this request alone."""
        return self.exclude_seen or bool(self.exclude) or self.allowed != 0


DEFAULTS: Final = Settings()


class SettingsParser:
    """Turns a request's parameters, JSON as the server hands it on, into `Settings`.

    Requests repeat each other's parameters, so what was parsed is kept by its text: 0.1 us instead of 10.

    Args:
        config: the limits.
        bits: category name -> its bit. May grow later; a name's bit stays.
    """

    def __init__(self, config: EngineConfig, bits: Mapping[str, int] | None = None) -> None:
        self._config, self._bits = config, {} if bits is None else bits
        self._parsed: dict[str, Settings] = {"": DEFAULTS, "{}": DEFAULTS}
        if config.max_k < DEFAULTS.k:
            self._parsed.clear()  # the default is an error then, too

    def __call__(self, text: str) -> Settings:
        """The settings in `text`, a JSON object or nothing.

        Raises:
            ArgumentError: as `parse_settings`.
        """
        settings = self._parsed.get(text)
        if settings is None:
            settings = parse_settings(json.loads(text or "{}"), self._config, self._bits)
            if settings == DEFAULTS:
                settings = DEFAULTS  # which is known by identity downstream
            if len(text) <= MAX_CACHED_CHARACTERS:
                if len(self._parsed) >= MAX_CACHED:
                    self._parsed.clear()
                self._parsed[text] = settings
        return settings


def parse_settings(
    parameters: Mapping[str, Any], config: EngineConfig, bits: Mapping[str, int] | None = None
) -> Settings:
    """Check the request parameters.

    Raises:
        ArgumentError: an unknown name, a value of another type or outside its limits, an unknown category.
    """
    for name in parameters:
        if name not in protocol.PARAMETERS and not name.startswith("triton_"):  # the server's own
            shown = ascii(name)[1:-1][:SHOWN]
            raise ArgumentError(f"parameter {shown}", f"one of {', '.join(protocol.PARAMETERS)}", remedy="remove it")
    settings = Settings(
        k=_integer(parameters, "k", DEFAULTS.k, 1, config.max_k, "max_k"),
        horizon=_integer(parameters, "horizon", 1, 1, config.max_horizon, "max_horizon"),
        beam=_integer(parameters, "beam", 1, 1, config.max_beam, "max_beam"),
        exclude_seen=_boolean(parameters, "exclude_seen"),
        exclude=_indices(parameters, "exclude", config.max_excluded),
        allowed=_category_bits(parameters, "categories", {} if bits is None else bits),
        explain=_integer(parameters, "explain", 0, 0, config.max_explain, "max_explain"),
        probability=_choice(parameters, "scores", ("logit", "probability")) == "probability",
    )
    cells = settings.k * settings.horizon * max(1, settings.explain)
    if cells > protocol.MAX_CELLS:
        raise ArgumentError(
            f"k * horizon * explain = {cells}", f"at most {protocol.MAX_CELLS}", remedy="ask for fewer of one of them"
        )
    return settings


def _integer(parameters: Mapping[str, Any], name: str, default: int, least: int, most: int, limit: str) -> int:
    value = parameters.get(name, default)
    if not _is_int(value) or not least <= value <= most:
        raise _wrong(name, value, f"an integer in {least}..{most} (model parameter {limit})")
    return int(value)


def _boolean(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _choice(parameters: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = parameters.get(name, choices[0])
    if value not in choices:
        raise _wrong(name, value, " or ".join(choices))
    return str(value)


def _indices(parameters: Mapping[str, Any], name: str, most: int) -> tuple[int, ...]:
    if name not in parameters:
        return ()
    expected = f'a JSON array of catalogue indices >= 0, as in "[3, 17]", at most {most} (model parameter max_excluded)'
    values = _array(parameters, name, expected, BYTES_OF_INDEX * (most + 1))
    if len(values) > most:
        raise ArgumentError(name, expected, got=f"{len(values)}")
    if not all(_is_int(value) and 0 <= value <= MAX_INDEX for value in values):
        raise ArgumentError(name, expected, got="another element")
    return tuple(sorted(set(values)))


def _category_bits(parameters: Mapping[str, Any], name: str, bits: Mapping[str, int]) -> int:
    if name not in parameters:
        return 0
    expected = "a JSON array of the catalogue's category names, at least one"
    names = _array(parameters, name, expected, BYTES_OF_CATEGORIES)
    if not names:
        raise ArgumentError(name, expected, got="none", remedy="leave the parameter out to allow every item")
    allowed = 0
    for category in names:
        bit = bits.get(category) if isinstance(category, str) else None
        if bit is None:
            shown = ascii(category)[:SHOWN] if isinstance(category, str) else type(category).__name__
            raise ArgumentError(name, expected, got=shown)
        allowed |= bit
    return allowed


def _array(parameters: Mapping[str, Any], name: str, expected: str, most_characters: int) -> list[Any]:
    text = parameters[name]
    if not isinstance(text, str):
        raise _wrong(name, text, expected)
    if len(text) > most_characters:
        raise ArgumentError(name, expected, got=f"{len(text)} characters")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ArgumentError(name, expected, got="text that isn't JSON") from None
    if not isinstance(values, list):
        raise ArgumentError(name, expected, got=f"a JSON {type(values).__name__}")
    return values


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, value: object, expected: str) -> ArgumentError:
    shown = ascii(value)
    return ArgumentError(f"{name}={shown if len(shown) <= SHOWN else shown[:SHOWN] + '…'}", expected)
