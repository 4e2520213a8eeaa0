"""Many users' requests as one, and its answer cut up again. No I/O."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, TypeVar

import numpy as np

from longrec.client.codec import NO_CANDIDATES, Request, Tensor
from longrec.errors import ProtocolError
from longrec.protocol import CANDIDATE, EVENT, EVENT_COLUMNS, NO_ITEM, UNCHECKED_POSITION, USER

__all__ = ["batches", "groups", "merge", "split"]

T = TypeVar("T")
WIDTH: Final = len(EVENT_COLUMNS)
ROW: Final = 8 * WIDTH
PADDING: Final = np.array([UNCHECKED_POSITION, NO_ITEM, 0], np.int64).tobytes()


def batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last shorter."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def groups(requests: Sequence[Request], server: Callable[[str], int]) -> list[list[int]]:
    """Places of requests that one message can carry: to one server, asking for the same, with alike numbers of events.

    Args:
        server: a user's.
    """
    found: dict[object, list[int]] = {}
    for place, request in enumerate(requests):
        events = request.inputs[EVENT].shape[1]
        key = (server(request.user), request.outputs, tuple(request.parameters.items()), events.bit_length())
        found.setdefault(key, []).append(place)
    return list(found.values())


def merge(requests: Sequence[Request]) -> Request:
    """One request of B users, in the name of the first, each without candidates; shorter lists of events are padded."""
    first = requests[0]
    most = max(request.inputs[EVENT].shape[1] for request in requests)
    size = len(requests)
    users = b"".join(request.inputs[USER].data for request in requests)
    rows = [request.inputs[EVENT].data for request in requests]
    events = b"".join(data + PADDING * (most - len(data) // ROW) for data in rows)
    inputs = {
        USER: Tensor("BYTES", (size, 1), users),
        EVENT: Tensor("INT64", (size, most, WIDTH), events),
        CANDIDATE: NO_CANDIDATES._replace(shape=(size, 0)),
    }
    return first._replace(inputs=inputs)


def split(outputs: Mapping[str, Tensor], size: int) -> Sequence[Mapping[str, Tensor]]:
    """Each user's part of an answer to a request of `size` users.

    Raises:
        ProtocolError: a tensor doesn't divide by users.
    """
    parts: list[dict[str, Tensor]] = [{} for _ in range(size)]
    for name, tensor in outputs.items():
        if not tensor.shape or tensor.shape[0] != size or len(tensor.data) % size:
            raise ProtocolError(f"{name}: expected a first dimension of {size}, got {list(tensor.shape)}")
        width, shape = len(tensor.data) // size, (1, *tensor.shape[1:])
        for place, part in enumerate(parts):
            data = tensor.data[place * width : (place + 1) * width]
            part[name] = Tensor(tensor.datatype, shape, data)
    return parts
