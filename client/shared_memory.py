"""Bulk requests to a server on the same machine, by system shared memory: tensors stay out of gRPC's messages.

    with Client("127.0.0.1:8001", transport=SharedMemoryTransport) as client:
        client.recommend_many(...)

Requests of one user go as ever. A region serves one request at a time, and the next; there are as many as were in
flight at once. Each is registered with the server when it is made, again where the server knows it no more, and
unregistered at the end.
"""

import contextlib
import math
import os
import secrets
import threading
from collections.abc import Mapping
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final, NamedTuple

import grpc
from tritonclient.grpc import service_pb2

from longrec.client import messages
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection
from longrec.client.transport import GrpcTransport
from longrec.errors import ArgumentError, MissingModelError, ProtocolError, RejectedError
from longrec.protocol import BECAUSE, ITEMS, SCORES, STATE, USER

__all__ = ["SharedMemoryTransport"]

LOOPBACK: Final = ("127.", "localhost:", "[::1]:")
SMALLEST: Final = 1 << 16  # bytes of a region; the next one is twice as large as what it lacked room for
CONTROL_SECONDS: Final = 5.0  # for the server to unregister a region at the end
UNKNOWN_REGION: Final = (RejectedError, MissingModelError)  # by release; what else they mean, the regions' list tells
ITEM_BYTES: Final = {"INT64": 8, "FP32": 4}


class _Place(NamedTuple):
    """Where an output goes in a region."""

    start: int
    size: int


class SharedMemoryTransport(GrpcTransport):
    """`GrpcTransport` whose bulk requests go through shared memory; arguments as there.

    Raises:
        ArgumentError: the address isn't on this machine.
    """

    def __init__(self, url: str, model: str, connection: Connection) -> None:
        if not url.startswith(LOOPBACK):
            raise ArgumentError(f"url={url!r}", "an address on this machine, such as 127.0.0.1:8001, for shared memory")
        super().__init__(url, model, connection)
        self._lock = threading.Lock()
        self._free: list[SharedMemory] = []
        self._names: list[str] = []  # registered, those whose memory is gone included
        self._closed = False

    def infer(self, request: Request, seconds: float) -> Mapping[str, Tensor]:
        """As `GrpcTransport.infer`."""
        if request.inputs[USER].shape[0] == 1:
            return super().infer(request, seconds)
        places, size = _places(request)
        region = self._take(size, seconds)
        answered = False
        try:
            message = _message(self.model, request, region, places)
            metadata = (*self._headers, *request.headers, messages.user_header(request.user))
            try:
                answer = self._stub.ModelInfer(message, timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                if not isinstance(self._mapped(error), UNKNOWN_REGION):
                    raise
                if self._is_registered(region, seconds):
                    answered = True  # it was refused for what it says
                    raise
                self._register(region, seconds)
                answer = self._stub.ModelInfer(message, timeout=seconds, metadata=metadata)
            answered = True
            return _outputs(answer, region, places)
        except grpc.RpcError as error:
            raise self._mapped(error) from error
        finally:
            self._give(region, reusable=answered)

    def close(self) -> None:
        """Close the channel and remove the regions; what is in flight is cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            regions, self._free = self._free, []
        for name in self._names:
            request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
            with contextlib.suppress(grpc.RpcError):  # a server that is gone holds nothing
                self._stub.SystemSharedMemoryUnregister(request, timeout=CONTROL_SECONDS, metadata=self._headers)
        super().close()
        for region in regions:
            _remove(region)

    def _take(self, size: int, seconds: float) -> SharedMemory:
        """A region of at least so many bytes that nobody uses."""
        with self._lock:
            region = self._free.pop() if self._free else None
        if region is not None and region.size >= size:
            return region
        if region is not None:
            self._unregister(region, seconds)
            _remove(region)
        region = SharedMemory(
            f"longrec-{os.getpid()}-{secrets.token_hex(6)}", create=True, size=max(SMALLEST, 2 * size)
        )
        try:
            self._register(region, seconds)
        except grpc.RpcError as error:
            _remove(region)
            raise self._mapped(error) from error
        self._names.append(region.name)
        return region

    def _give(self, region: SharedMemory, *, reusable: bool) -> None:
        """Take a region back. One whose request got no answer is removed: the server may write to it yet, and keeps its
        own view of it until it is unregistered at the end."""
        with self._lock:
            if reusable and not self._closed:
                self._free.append(region)
                return
        _remove(region)

    def _register(self, region: SharedMemory, seconds: float) -> None:
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", byte_size=region.size
        )
        self._stub.SystemSharedMemoryRegister(request, timeout=seconds, metadata=self._headers)

    def _unregister(self, region: SharedMemory, seconds: float) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
        with contextlib.suppress(grpc.RpcError):
            self._stub.SystemSharedMemoryUnregister(request, timeout=seconds, metadata=self._headers)
        self._names.remove(region.name)

    def _is_registered(self, region: SharedMemory, seconds: float) -> bool:
        request = service_pb2.SystemSharedMemoryStatusRequest()
        answer = self._stub.SystemSharedMemoryStatus(request, timeout=seconds, metadata=self._headers)
        return region.name in answer.regions


def _places(request: Request) -> tuple[dict[str, _Place], int]:
    """Where each output goes, behind the inputs; and the bytes of it all."""
    users, options = request.inputs[USER].shape[0], request.options
    cells = users * options.horizon * (request.k or 0)
    sizes = {ITEMS: 8 * cells, SCORES: 4 * cells, STATE: 16 * users, BECAUSE: 8 * cells * options.explain}
    start = sum(_padded(len(tensor.data)) for tensor in request.inputs.values())
    places = {}
    for name in request.outputs:
        places[name] = _Place(start, sizes[name])
        start += _padded(sizes[name])
    return places, start


def _message(model: str, request: Request, region: SharedMemory, places: Mapping[str, _Place]) -> object:
    """The request's message; its inputs are put into the region, but for empty ones, which travel as they are."""
    whole = messages.infer_message(model, "", request)
    del whole.raw_input_contents[:]
    start = 0
    for entry, tensor in zip(whole.inputs, request.inputs.values(), strict=True):
        size = len(tensor.data)
        if not size:
            whole.raw_input_contents.append(b"")
            continue
        _view(region)[start : start + size] = tensor.data
        _refer(entry, region, start, size)
        start += _padded(size)
    for entry in whole.outputs:
        _refer(entry, region, *places[entry.name])
    return whole


def _refer(entry: Any, region: SharedMemory, start: int, size: int) -> None:
    parameters = entry.parameters
    parameters["shared_memory_region"].string_param = region.name
    parameters["shared_memory_offset"].int64_param = start
    parameters["shared_memory_byte_size"].int64_param = size


def _outputs(answer: Any, region: SharedMemory, places: Mapping[str, _Place]) -> Mapping[str, Tensor]:
    """Copies: the region's next request writes over it.

    Raises:
        ProtocolError: an output is larger than it can be, or of no known type.
    """
    outputs = {}
    for output in answer.outputs:
        shape, place = tuple(output.shape), places.get(output.name)
        size = math.prod(shape) * ITEM_BYTES.get(output.datatype, 0)
        if place is None or not 0 < size <= place.size:
            raise ProtocolError(f"{output.name}: expected another output, got {output.datatype} {list(shape)}")
        outputs[output.name] = Tensor(output.datatype, shape, bytes(_view(region)[place.start : place.start + size]))
    return outputs


def _view(region: SharedMemory) -> memoryview:
    assert region.buf is not None  # nobody closes what is in use
    return region.buf


def _padded(size: int) -> int:
    """Up to where the next tensor may start."""
    return -(-size // 64) * 64


def _remove(region: SharedMemory) -> None:
    region.close()
    with contextlib.suppress(FileNotFoundError):
        region.unlink()
