"""How a client reaches servers: encryption, headers, compression, retries within a budget, several servers."""

import asyncio
import socket
import threading
from typing import Any

import grpc
import pytest
import trustme

from longrec.client import (
    ArgumentError,
    AsyncClient,
    Client,
    Connection,
    Event,
    ProtocolError,
    Retry,
    ServerError,
    Status,
    Tls,
    UnavailableError,
)
from longrec.client.fleet import Fleet
from longrec.client.retrying import Budget


def events(*items: int) -> list[Event]:
    return [Event(item, 1000) for item in items]


def failing(servicer: Any, code: grpc.StatusCode, times: int) -> list[int]:
    """User "u" fails so often, after its events were written; what counts the calls."""
    calls: list[int] = []

    def fault(request: Any, context: Any) -> Any:
        answer = servicer.answers(servicer.users(request), request)
        calls.append(1)
        return context.abort(code, "not now") if len(calls) <= times else answer

    servicer.faults["u"] = fault
    return calls


QUICK = Retry(first_seconds=0.001, most_seconds=0.01)


def test_what_may_pass_is_tried_again_and_appended_once(url: str, servicer: Any) -> None:
    failing(servicer, grpc.StatusCode.UNAVAILABLE, 5)
    with Client(url, retry=QUICK) as client:
        assert client.append(user="u", events=events(1, 2)).length == 2
    assert servicer.logs["u"] == [(1, 1000), (2, 1000)]


@pytest.mark.parametrize(("attempts", "calls"), [(1, 1), (3, 3)])
def test_a_server_that_fails_is_asked_so_often(url: str, servicer: Any, attempts: int, calls: int) -> None:
    counted = failing(servicer, grpc.StatusCode.INTERNAL, 100)
    with Client(url, retry=Retry(attempts, 0.001, 0.01)) as client, pytest.raises(ServerError, match="INTERNAL"):
        client.history_length(user="u")
    assert len(counted) == calls


def test_an_attempt_that_hangs_is_given_up_for_another(url: str, servicer: Any) -> None:
    released, calls = threading.Event(), []

    def hang_once(request: Any, context: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            released.wait(5)
        return servicer.answer("u", request)

    servicer.faults["u"] = hang_once
    with Client(url, retry=Retry(first_seconds=0.001, attempt_seconds=0.2)) as client:
        assert client.history_length(user="u") == 0
    released.set()
    assert len(calls) == 2


def test_the_budget_spreads_retries() -> None:
    now = 100.0
    budget = Budget(10.0, clock=lambda: now)
    waits = [budget.reserve() for _ in range(13)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:] == pytest.approx([0.1, 0.2, 0.3])


def test_users_spread_and_only_those_of_a_dead_server_move() -> None:
    fleet = Fleet(["a:1", "b:1", "c:1"])
    users = [f"u{number}" for number in range(3000)]
    before = {user: fleet.pick(user) for user in users}
    assert all(800 < list(before.values()).count(server) < 1200 for server in range(3))
    assert fleet.mark(1, up=False)
    assert not fleet.mark(1, up=False)
    after = {user: fleet.pick(user) for user in users}
    assert {user for user in users if before[user] != after[user]} == {user for user in users if before[user] == 1}
    assert set(after.values()) == {0, 2}
    for server in (0, 2):
        fleet.mark(server, up=False)
    assert {user: fleet.pick(user) for user in users} == before  # none is up: as if all were
    for server in range(3):
        fleet.mark(server, up=True)
    assert {user: fleet.pick(user) for user in users} == before


def test_users_of_a_dead_server_go_elsewhere_at_once_and_come_back(two: Any) -> None:
    (one_url, one, first), (other_url, other, _) = two
    other.logs = one.logs
    names = [f"u{number}" for number in range(20)]
    with Client([one_url, other_url], retry=QUICK) as client:
        assert client.is_ready()
        for user in names:
            client.append(user=user, events=events(1))
        assert 0 < len(one.requests) < 40
        first.stop(grace=None).wait()
        for user in names:
            assert client.append(user=user, events=events(2)).length == 2
        assert client.core.fleet.down == {0}
        assert client.is_ready()
        assert [p.position for p in client.recommend_many(names)] == [2] * 20
        with client.stream() as stream:
            assert {p.position for p in stream.map((user, events(3)) for user in names)} == {3}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("mutual", [False, True])
def test_encryption_with_and_without_a_certificate_of_the_clients(
    serve: Any, servicer: Any, authority: trustme.CA, mutual: bool
) -> None:
    certificate = authority.issue_cert("longrec.example")
    ca = authority.cert_pem.bytes()
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], ca if mutual else None, mutual)
    own = authority.issue_cert("client.example")
    mine = {"certificate": own.cert_chain_pems[0].bytes(), "key": own.private_key_pem.bytes()} if mutual else {}
    with serve(servicer, credentials) as (url, _):
        with Client(url, tls=Tls(ca=ca, server_name="longrec.example", **mine)) as client:
            assert client.append(user="u", events=events(1)).status is Status.OK
        with Client(url, timeout_seconds=0.5) as plain, pytest.raises(UnavailableError):
            plain.history_length(user="u")
        other = Tls(ca=trustme.CA().cert_pem.bytes(), server_name="longrec.example")
        with Client(url, tls=other, timeout_seconds=0.5) as stranger, pytest.raises(UnavailableError):
            stranger.history_length(user="u")

        async def ask() -> int:
            async with AsyncClient(url, tls=Tls(ca=ca, server_name="longrec.example", **mine)) as client:
                return await client.history_length(user="u")

        assert asyncio.run(ask()) == 1


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_headers_and_compression_travel(url: str, servicer: Any, compression: Any) -> None:
    seen: list[dict[str, Any]] = []

    def look(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()))
        return servicer.answer("ä b", request)

    servicer.faults["ä b"] = look
    with Client(url, headers={"authorization": "Bearer x"}, compression=compression) as client:
        client.recommend(user="ä b", events=events(*range(50)))
        with client.stream() as stream:
            stream.send("ä b")
    assert {entry["authorization"] for entry in seen} == {"Bearer x"}
    assert seen[0]["longrec-user"] == "%C3%A4%20b"
    assert len(servicer.logs["ä b"]) == 50


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no-url": ({"url": []}, r"^url: expected at least one address"),
    "twice": ({"url": ["a:1", "a:1"]}, r"^url: expected at least one address, and each once"),
    "one-bad": ({"url": ["a:1", "b"]}, r"^url='b': expected host:port"),
    "tls": ({"tls": True}, r"^tls: expected a Tls, or None, got bool"),
    "headers": ({"headers": ["a"]}, r"^headers"),
    "header-case": ({"headers": {"Authorization": "x"}}, r"^headers\['Authorization'\]: expected a lower-case name"),
    "header-grpc": ({"headers": {"grpc-timeout": "1"}}, r"^headers\['grpc-timeout'\]"),
    "header-value": ({"headers": {"a": "ü"}}, r"^headers\['a'\]: expected printable ASCII"),
    "compression": ({"compression": "zip"}, r"^compression='zip': expected none, gzip or deflate"),
    "retry": ({"retry": 3}, r"^retry: expected a Retry, or None, got int"),
    "history": ({"history": {}}, r"^history: expected a function"),
    "resend": ({"resend_seconds": 0}, r"^resend_seconds=0"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Client(**{"url": "a:1", **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tls(key=b"-----BEGIN"), r"^tls\.certificate: expected together with tls\.key"),
        (lambda: Tls(ca="path"), r"^tls\.ca: expected the bytes of a PEM file, got str"),
        (lambda: Retry(attempts=0), r"^retry\.attempts=0"),
        (lambda: Retry(first_seconds=-1), r"^retry\.first_seconds=-1"),
        (lambda: Retry(attempt_seconds=0), r"^retry\.attempt_seconds=0"),
    ],
    ids=range(5),
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_secrets_are_not_shown() -> None:
    assert "SECRET" not in repr(Tls(certificate=b"-----BEGIN", key=b"-----BEGIN SECRET"))
    assert "SECRET" not in repr(Connection(headers={"authorization": "SECRET"}))


def test_another_protocol_is_named(client: Client, servicer: Any) -> None:
    assert client.model_info().name == "recommender"
    del servicer.config.input[2]
    with pytest.raises(ProtocolError, match=r"expected the inputs CANDIDATE TYPE_INT64 \[-1\], .*, got EVENT"):
        client.model_info()


def test_what_is_no_grpc_server_is_named_in_time() -> None:
    with socket.socket() as deaf:  # accepts, and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with Client(f"127.0.0.1:{deaf.getsockname()[1]}", timeout_seconds=0.5) as client:
            assert not client.is_ready()
            with pytest.raises(ServerError):
                client.history_length(user="u")
            with pytest.raises(ServerError):
                client.model_info()


def test_what_failed_is_flushed_or_forgotten(url: str, servicer: Any) -> None:
    with Client(url, timeout_seconds=0.3) as client:
        client.append(user="u", events=events(1))
        servicer.faults["u"] = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        with pytest.raises(UnavailableError):
            client.append(user="u", events=events(2))
        assert client.unacknowledged(user="u") == [Event(2, 1000, 1)]
        del servicer.faults["u"]
        client.flush()
        assert client.unacknowledged(user="u") == []
        client.forget(user="u")
        assert client.append(user="u", events=events(3)).length == 3
    assert [item for item, _ in servicer.logs["u"]] == [1, 2, 3]
