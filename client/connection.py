"""How a server is reached: addresses, encryption, credentials, compression, patience. Frozen and checked; no I/O."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from longrec.errors import ArgumentError

__all__ = ["Connection", "Retry", "Tls", "check_model", "check_seconds", "check_urls"]

URL = r"([^\s/:]+|\[[0-9a-fA-F:]+\]):\d{1,5}"
HEADER = r"[a-z0-9_.-]+"


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption.

    Args:
        ca: certificates, PEM, of those who may sign the server's; None: the system's.
        certificate, key: the client's own, PEM, both or neither: for servers that ask for one (mutual TLS).
        server_name: the name in the server's certificate, where that isn't the host's.

    Raises:
        ArgumentError: one of certificate and key without the other, or not PEM.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ArgumentError("tls.certificate", "together with tls.key, or neither of them")
        for name in ("ca", "certificate", "key"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, bytes) or b"-----BEGIN" not in value):
                raise ArgumentError(f"tls.{name}", "the bytes of a PEM file", got=type(value).__name__)


@dataclass(frozen=True, slots=True)
class Retry:
    """What is done about a server that can't be reached or answers late. Only what may be sent twice is.

    Args:
        attempts: most attempts of one request where the server itself says that it failed; one that can't be reached is
            tried until the call's deadline.
        first_seconds, most_seconds: backoff: random between 0 and twice as much each time, from the first to the most.
        per_second: budget of all the client's retries, so that a server that comes back isn't buried; a retry beyond it
            waits.
        attempt_seconds: longest wait for an answer before another attempt is made; None: until the call's deadline.

    Raises:
        ArgumentError: naming the field.
    """

    attempts: int = 3
    first_seconds: float = 0.05
    most_seconds: float = 1.0
    per_second: float = 200.0
    attempt_seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise ArgumentError(f"retry.attempts={self.attempts!r}", "an integer of at least 1")
        for name in ("first_seconds", "most_seconds", "per_second"):
            check_seconds(f"retry.{name}", getattr(self, name))
        if self.attempt_seconds is not None:
            check_seconds("retry.attempt_seconds", self.attempt_seconds)


@dataclass(frozen=True, slots=True)
class Connection:
    """What a transport needs to know.

    Args:
        tls: None: no encryption.
        headers: sent with every call, such as `{"authorization": "Bearer …"}`; lower-case names.
        compression: of requests; answers are compressed as the server likes.
    """

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # they hold secrets
    compression: Literal["none", "gzip", "deflate"] = "none"

    def __post_init__(self) -> None:
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise ArgumentError("tls", "a Tls, or None", got=type(self.tls).__name__)
        if not isinstance(self.headers, Mapping):
            raise ArgumentError("headers", "a mapping of names to values", got=type(self.headers).__name__)
        for name, value in self.headers.items():
            if not isinstance(name, str) or not re.fullmatch(HEADER, name) or name.startswith("grpc-"):
                raise ArgumentError(f"headers[{name!r}]", f"a lower-case name ({HEADER}), none of gRPC's own")
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise ArgumentError(f"headers[{name!r}]", "printable ASCII")
        if self.compression not in ("none", "gzip", "deflate"):
            raise ArgumentError(f"compression={self.compression!r}", "none, gzip or deflate")


def check_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """One address, or several, as a tuple.

    Raises:
        ArgumentError: one of them isn't host:port, there is none, or one comes twice.
    """
    urls = (url,) if isinstance(url, str) or not isinstance(url, Sequence) else tuple(url)
    for one in urls:
        if not isinstance(one, str) or not re.fullmatch(URL, one):
            raise ArgumentError(f"url={one!r}", "host:port of the server's gRPC service, such as 127.0.0.1:8001")
    if not urls or len(set(urls)) < len(urls):
        raise ArgumentError("url", "at least one address, and each once", got=str(len(urls)))
    return urls


def check_model(model: str) -> str:
    """A model's name.

    Raises:
        ArgumentError: it is empty, or no string.
    """
    if not isinstance(model, str) or not model:
        raise ArgumentError(f"model={model!r}", "the name of a model")
    return model


def check_seconds(name: str, seconds: float) -> float:
    """A positive number.

    Raises:
        ArgumentError: it isn't one.
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise ArgumentError(f"{name}={seconds!r}", "a number of seconds > 0")
    return float(seconds)
