"""Smaller checkpoints: what is left out of a trained network's weights, how that lies on disk, and back.

Weights are NumPy arrays by name, as in a checkpoint. A packed weight W is several arrays, and dense float32 again when
it is loaded, so that a server takes no less memory and time for it; `prune-hidden` alone makes a smaller network.

    W:int8, W:scale            [n, m] int8, [n] float32           W = int8 * scale, by row
    W:left, W:right            [n, r], [r, m] float32             W = left @ right
    W:kept, W:values, W:shape  bits of n * m, float32, [2] int64  the values where a bit is set, 0 elsewhere

NumPy alone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.config import ModelConfig
from longrec.errors import ArgumentError, CheckpointError

__all__ = ["METHODS", "Method", "compress", "unpack"]

Array = NDArray[Any]
Weights = Mapping[str, Array]

ITEMS: Final = "items.weight"
UNITS: Final = 8  # hidden units are kept by so many: the CPU's kernels want multiples


class Method(NamedTuple):
    """A way to make a checkpoint smaller.

    Args:
        text: what it does.
        run: (config, weights, share that is kept) -> both anew.
        shares: whether a share is chosen.
    """

    text: str
    run: Callable[[ModelConfig, Weights, float], tuple[ModelConfig, dict[str, Array]]]
    shares: bool = True


def compress(config: ModelConfig, weights: Weights, method: str, keep: float | None) -> tuple[ModelConfig, Weights]:
    """Weights as they are to be saved, and the shape of the network that they make.

    Args:
        config, weights: of a network; dense.
        method: one of `METHODS`.
        keep: share that is kept, above 0 and below 1; None: a half, or for a method without one, everything.

    Raises:
        ArgumentError: no such method; or a share where there is none, or out of range; or the family isn't for it.
    """
    if method not in METHODS:
        raise ArgumentError(f"method={method}", f"one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    if keep is not None and not (chosen.shares and 0 < keep < 1):
        expected = "a share above 0 and below 1" if chosen.shares else f"none, as {method} keeps every weight"
        raise ArgumentError(f"keep={keep}", expected)
    return chosen.run(config, weights, 0.5 if keep is None else keep)


def unpack(weights: Weights) -> dict[str, Array]:
    """Dense weights by their names. Raises `CheckpointError` where a packed one is incomplete."""
    dense: dict[str, Array] = {}
    parts: dict[str, dict[str, Array]] = {}
    for name, array in weights.items():
        own, colon, part = name.partition(":")
        if colon:
            parts.setdefault(own, {})[part] = array
        else:
            dense[name] = array
    for name, packed in parts.items():
        match packed:
            case {"int8": numbers, "scale": scale, **rest} if not rest:
                dense[name] = numbers.astype(np.float32) * scale[:, None]
            case {"left": left, "right": right, **rest} if not rest:
                dense[name] = left @ right
            case {"kept": kept, "values": values, "shape": shape, **rest} if not rest:
                dense[name] = _spread(name, kept, values, shape)
            case _:
                raise CheckpointError(
                    f"{name}: expected int8 and scale, left and right, or kept and values, got {', '.join(packed)}"
                )
    return dense


def _int8(config: ModelConfig, weights: Weights, keep: float) -> tuple[ModelConfig, dict[str, Array]]:
    return config, _pack(weights, _matrices(weights), _by_rows)


def _int8_items(config: ModelConfig, weights: Weights, keep: float) -> tuple[ModelConfig, dict[str, Array]]:
    return config, _pack(weights, [ITEMS], _by_rows)


def _low_rank(config: ModelConfig, weights: Weights, keep: float) -> tuple[ModelConfig, dict[str, Array]]:
    rank = max(1, round(keep * config.dim))

    def factors(weight: Array) -> dict[str, Array]:
        left, sizes, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
        return {"left": (left * sizes)[:, :rank].astype(np.float32), "right": right[:rank].astype(np.float32)}

    return config, _pack(weights, [ITEMS], factors)


def _prune(config: ModelConfig, weights: Weights, keep: float) -> tuple[ModelConfig, dict[str, Array]]:
    def largest(weight: Array) -> dict[str, Array]:
        flat = weight.ravel()
        kept = np.zeros(flat.size, np.bool_)
        kept[np.argsort(-np.abs(flat), kind="stable")[: max(1, round(keep * flat.size))]] = True
        shape = np.array(weight.shape, np.int64)
        return {"kept": np.packbits(kept), "values": flat[kept], "shape": shape}

    return config, _pack(weights, _matrices(weights), largest)


def _prune_hidden(config: ModelConfig, weights: Weights, keep: float) -> tuple[ModelConfig, dict[str, Array]]:
    """Of each feed-forward down(silu(gate(x)) * up(x)), the units whose weights multiply to most."""
    blocks = [name.removesuffix("down.weight") for name in weights if name.endswith("down.weight")]
    if not blocks:
        raise ArgumentError("method=prune-hidden", "a family with gated feed-forwards", got=config.family)
    hidden = UNITS * max(1, round(keep * config.hidden_dim / UNITS))
    small = dict(weights)
    for block in blocks:
        gate, up = np.split(weights[f"{block}gate_up.weight"], 2)  # [hidden_dim, dim] each
        down = weights[f"{block}down.weight"]  # [dim, hidden_dim]
        size = np.prod([np.linalg.norm(part, axis=1) for part in (gate, up, down.T)], axis=0)
        kept = np.sort(np.argsort(-size, kind="stable")[:hidden])
        small[f"{block}gate_up.weight"] = np.concatenate((gate[kept], up[kept]))
        small[f"{block}down.weight"] = np.ascontiguousarray(down[:, kept])
    return config.model_copy(update={"hidden_dim": hidden}), small


METHODS: Final[Mapping[str, Method]] = {
    "int8": Method("every matrix as int8, a scale a row", _int8, shares=False),
    "int8-items": Method("the item table as int8, a scale an item", _int8_items, shares=False),
    "low-rank": Method("the item table as a product of narrower ones", _low_rank),
    "prune": Method("of every matrix the largest weights", _prune),
    "prune-hidden": Method("of every feed-forward the largest units: a smaller network", _prune_hidden),
}


def _matrices(weights: Weights) -> list[str]:
    return [name for name, weight in weights.items() if weight.ndim == 2]


def _pack(weights: Weights, names: Iterable[str], pack: Callable[[Array], dict[str, Array]]) -> dict[str, Array]:
    packed = dict(weights)
    for name in names:
        packed |= {f"{name}:{part}": array for part, array in pack(packed.pop(name)).items()}
    return packed


def _by_rows(weight: Array) -> dict[str, Array]:
    """Symmetric: the largest of a row is 127."""
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return {"int8": np.rint(weight / scale[:, None]).astype(np.int8), "scale": scale}


def _spread(name: str, kept: Array, values: Array, shape: Array) -> Array:
    dense = np.zeros(shape.tolist(), np.float32)
    mask = np.unpackbits(kept, count=dense.size).astype(np.bool_)
    if int(mask.sum()) != len(values):
        raise CheckpointError(f"{name}: expected {int(mask.sum())} values, got {len(values)}")
    dense.ravel()[mask] = values
    return dense
