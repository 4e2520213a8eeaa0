"""What operators check of their arguments before any launch: helpers that raise `ArgumentError` in one wording.

Shapes, dtypes, strides and devices are known to the host and always checked. Values lie on the device, so a look at
them makes the host wait: operators do that only with `validate=True`. Messages never hold a tensor's contents.
"""

from collections.abc import Collection, Sequence

import torch

from longrec.errors import ArgumentError

__all__ = ["check_tensor", "check_values"]


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: Sequence[tuple[str, int | None]],
    dtypes: Collection[torch.dtype],
    like: torch.Tensor | None = None,
    dense_from: int = 0,
) -> None:
    """Check what the host knows of a tensor.

    Args:
        name: the argument's.
        tensor: the argument.
        shape: for each dimension its letter and its size; None: any.
        dtypes: that are accepted.
        like: a tensor whose device is expected.
        dense_from: dimensions from this one on must be contiguous; those before may have any stride.

    Raises:
        ArgumentError: naming what was expected and what came.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(name, "a tensor", type(tensor).__name__)
    fits = tensor.ndim == len(shape) and all(
        size in (None, got) for (_, size), got in zip(shape, tensor.shape, strict=False)
    )
    if not fits:
        wanted = ", ".join(letter if size is None else f"{letter}={size}" for letter, size in shape)
        raise ArgumentError(name, f"shape [{wanted}]", str(list(tensor.shape)))
    if tensor.dtype not in dtypes:
        wanted = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ArgumentError(name, wanted, str(tensor.dtype).removeprefix("torch."))
    if like is not None and tensor.device != like.device:
        raise ArgumentError(name, f"device {like.device}", str(tensor.device))
    dense = 1
    for size, stride in zip(tensor.shape[dense_from:][::-1], tensor.stride()[dense_from:][::-1], strict=True):
        if size > 1 and stride != dense:
            raise ArgumentError(
                name,
                f"contiguous from dimension {dense_from} on",
                f"strides {tensor.stride()}",
                "call .contiguous() where the tensor is made",
            )
        dense *= size


def check_values(name: str, good: torch.Tensor, expected: str, remedy: str = "") -> None:
    """Raise unless every element of `good` is true. Makes the host wait for the device.

    Raises:
        ArgumentError: with the first bad element's place, not its value.
    """
    if not bool(good.all()):
        place = [int(i) for i in (~good).nonzero()[0]]
        raise ArgumentError(f"{name}{place}", expected, "a value outside of that", remedy)
