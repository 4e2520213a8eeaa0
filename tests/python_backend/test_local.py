"""`Client` and `AsyncClient` on an engine in the process: what they promise over a network, without one."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.client import (
    AsyncClient,
    Client,
    DeadlineError,
    Event,
    MissingModelError,
    Prediction,
    RejectedError,
    ServerError,
    Status,
)
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, CheckpointError, MachineError
from longrec.modeling import recompute_scores, save_run
from longrec.modeling.transformer import Transformer
from longrec.python_backend.local import LocalServer, serve_locally
from longrec.server.process import Server
from longrec.server.repository import write_repository

TOLERANCE = 1e-4
CONFIG = EngineConfig(
    max_k=60,
    max_events_per_request=40,
    max_candidates=20,
    max_step_events=64,
    inline_events=8,
    chunk_events=16,
    memory_bytes=1 << 20,
    log_bytes=64 << 20,
)
History = Callable[[int, int], np.ndarray]


@pytest.fixture(scope="module")
def run(network: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    names = [str(item) for item in range(network.config.num_items)]
    save_run(folder, network, network.config, Catalogue(names, names), {})
    return folder


@pytest.fixture(scope="module")
def local(run: Path) -> Iterator[LocalServer]:
    with serve_locally(run, config=CONFIG) as local:
        yield local


@pytest.fixture
def client(local: LocalServer) -> Iterator[Client]:
    with Client(transport=local.transport, timeout_seconds=20) as client:
        yield client


def rows(history: np.ndarray, start: int, stop: int) -> np.ndarray:
    return np.column_stack((np.arange(start, stop), history[start:stop]))


def requests(histories: dict[str, np.ndarray], step: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every user's history in pieces, users in turn."""
    for start in range(0, max(map(len, histories.values())), step):
        for user, history in histories.items():
            if start < len(history):
                yield user, rows(history, start, min(start + step, len(history)))


def check(network: Transformer, history: np.ndarray, prediction: Prediction) -> None:
    """The prediction is what the network says of the history as it was."""
    (scores,) = recompute_scores(network, history[:, 0], history[:, 1], np.array([prediction.position]))
    np.testing.assert_allclose(prediction.scores, np.sort(scores)[::-1][: len(prediction.scores)], atol=TOLERANCE)
    np.testing.assert_allclose(scores[prediction.items], prediction.scores, atol=TOLERANCE)


def test_one_call_appends_and_ranks(client: Client, network: Transformer, make_history: History) -> None:
    history = make_history(1, 5)
    prediction = client.recommend(user="ü1", events=rows(history, 0, 5), k=7)
    assert (prediction.user, prediction.position, prediction.status) == ("ü1", 5, Status.OK)
    check(network, history, prediction)
    assert client.append(user="ü1", events=[Event(3, 1)]).length == 6
    assert client.history_length(user="ü1") == 6


def test_long_histories_are_deferred_and_answered_in_order(
    local: LocalServer, client: Client, network: Transformer, make_history: History
) -> None:
    histories = {f"long {seed}": make_history(seed, 90) for seed in range(6)}
    before = local.service.engine.observations.deferred_total
    found: dict[str, list[int]] = {user: [] for user in histories}
    with client.stream(k=5) as stream:
        for prediction in stream.map(requests(histories, 30)):
            check(network, histories[prediction.user], prediction)
            found[prediction.user].append(prediction.position)
    assert set(map(tuple, found.values())) == {(30, 60, 90)}
    assert local.service.engine.observations.deferred_total >= before + 18


def test_a_stream_answers_many_users_each_in_order(client: Client, network: Transformer, make_history: History) -> None:
    histories = {f"stream {seed}": make_history(seed, 12) for seed in range(20)}
    found: dict[str, list[int]] = {user: [] for user in histories}
    with client.stream(k=3, max_in_flight=16) as stream:
        for prediction in stream.map(requests(histories, 2)):
            check(network, histories[prediction.user], prediction)
            found[prediction.user].append(prediction.position)
    assert set(map(tuple, found.values())) == {(2, 4, 6, 8, 10, 12)}


def test_bulk(local: LocalServer, network: Transformer, make_history: History) -> None:
    histories = {f"bulk {seed}": make_history(seed, 1 + seed % 12) for seed in range(50)}
    with Client(transport=local.transport) as client:
        entries = [(user, [Event(int(i), int(abs(t))) for i, t in history]) for user, history in histories.items()]
        found = list(client.recommend_many(entries, k=4, batch_size=16))
    assert [prediction.user for prediction in found] == list(histories)
    for prediction in found:
        check(network, histories[prediction.user], prediction)


def test_rollouts_reasons_and_scores(client: Client, make_history: History) -> None:
    client.append(user="more", events=rows(make_history(2, 20), 0, 20))
    rollout = client.recommend(user="more", horizon=3, k=2)
    assert (rollout.items.shape, rollout.scores.shape) == ((3, 2), (3, 2))
    why = client.recommend(user="more", k=2, explain=4)
    assert why.because is not None
    assert (why.because.shape, why.because.max() < 20) == ((2, 4), True)
    scored = client.score(user="more", candidates=[3, 96, 5, 1000])
    assert [bool(score > -1e30) for score in scored.scores] == [True, True, True, False]


def test_gaps_and_conflicts_are_statuses(client: Client, make_history: History) -> None:
    history = make_history(3, 10)
    client.append(user="gap", events=rows(history, 0, 4))
    refused = client.recommend(user="gap", events=rows(history, 6, 8))
    assert (refused.status, refused.position, len(refused.items)) == (Status.GAP, 4, 0)
    other = rows(history, 2, 4)
    other[0, 1] += 1
    assert client.append(user="gap", events=other).status is Status.CONFLICT
    assert client.append(user="gap", events=rows(history, 2, 7)).length == 7


def test_what_the_engine_refuses_is_what_the_server_refuses(client: Client, make_history: History) -> None:
    with pytest.raises(RejectedError, match=r"in process.*refused the request \(INVALID_ARGUMENT: k.*1\.\.60"):
        client.recommend(user="wrong", k=61)
    with pytest.raises(RejectedError, match="max_horizon"):
        client.recommend(user="wrong", horizon=17)
    with pytest.raises(RejectedError, match="at most 20"):
        client.score(user="wrong", candidates=range(21))
    with client.stream(k=5) as stream:
        stream.send("one", rows(make_history(0, 3), 0, 3))
        assert stream.flush()[0].position == 3
    with client.stream(k=61) as stream:
        stream.send("wrong")
        with pytest.raises(RejectedError, match=r"1\.\.60") as caught:
            next(stream)
        assert caught.value.user == "wrong"
    errors: list[ServerError] = []
    assert list(client.recommend_many(["a", "b"], k=61, errors=errors)) == []
    assert [error.user for error in errors] == ["a", "b"]


def test_a_log_that_fails_is_an_error_of_the_server(
    local: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MachineError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(local.service.log, "append", fail)
        with pytest.raises(ServerError, match=r"the server failed \(INTERNAL: the disk is full\)"):
            client.recommend(user="full")
    assert client.recommend(user="full").position == 0


def test_deferred_work_that_fails_is_told_and_the_next_request_works(
    local: LocalServer, client: Client, network: Transformer, make_history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = make_history(4, 30)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(local.service.engine, "turn", fail)
        with pytest.raises(ServerError, match="deferred work failed: a bug"):
            client.recommend(user="late", events=rows(history, 0, 30))
    check(network, history, client.recommend(user="late", events=rows(history, 0, 30)))


def test_what_is_not_answered_in_time_is_not_begun(local: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    answer = local.service.engine.answer

    def slow(queries: object) -> object:
        entered.set()
        assert go.wait(20)
        return answer(queries)  # type: ignore[arg-type]

    monkeypatch.setattr(local.service.engine, "answer", slow)
    with Client(transport=local.transport, timeout_seconds=20) as other:
        first = threading.Thread(target=other.history_length, kwargs={"user": "x"})
        first.start()
        assert entered.wait(20)
        with (
            Client(transport=local.transport, timeout_seconds=0.05) as client,
            pytest.raises(DeadlineError, match="no answer in time"),
        ):
            client.append(user="waits", events=[Event(1, 1, position=0)])
        go.set()
        first.join()
        assert other.history_length(user="waits") == 0


def test_closing_the_client_ends_its_requests(local: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    answer = local.service.engine.answer

    def slow(queries: object) -> object:
        entered.set()
        assert go.wait(20)
        return answer(queries)  # type: ignore[arg-type]

    monkeypatch.setattr(local.service.engine, "answer", slow)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            client.history_length(user="x")
        except ServerError as error:
            errors.append(error)

    client = Client(transport=local.transport, timeout_seconds=20)
    thread = threading.Thread(target=ask)
    thread.start()
    assert entered.wait(20)
    client.close()
    thread.join()
    go.set()
    assert "closed" in str(errors[0])


def test_readiness_and_description(local: LocalServer, client: Client) -> None:
    assert client.is_ready()
    info = client.model_info()
    assert (info.name, info.max_users, info.settings["max_k"]) == ("recommender", 256, "60")
    with Client(transport=local.transport, model="another") as other:
        assert not other.is_ready()
        with pytest.raises(MissingModelError, match="it is called recommender"):
            other.recommend(user="u")
        with pytest.raises(MissingModelError):
            other.model_info()


def test_users_are_forgotten_unless_there_is_a_folder(run: Path, tmp_path: Path) -> None:
    for folder, expected in ((None, 0), (tmp_path, 2)):
        for length in (0, expected):
            with serve_locally(run, config=CONFIG, folder=folder) as local, Client(transport=local.transport) as client:
                assert client.history_length(user="u") == length
                client.append(user="u", events=[Event(1, 1, 0), Event(2, 2, 1)])
    assert (tmp_path / "event_log").is_dir()


def test_after_the_end(run: Path) -> None:
    with serve_locally(run, config=CONFIG) as local, Client(transport=local.transport) as client:
        assert client.is_ready()
        local.close()
        assert not client.is_ready()
        with pytest.raises(ServerError, match="the engine was closed"):
            client.recommend(user="u")
        with client.stream(k=1) as stream:
            stream.send("u")
            with pytest.raises(ServerError, match="the engine was closed"):
                next(stream)


def test_an_unusable_run_or_setting_is_named_and_nothing_stays_open(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), serve_locally(tmp_path):
        pass
    before = threading.active_count()
    small = CONFIG.model_copy(update={"memory_bytes": 1})
    for _ in range(2):  # the log could not be opened again if it were open
        with pytest.raises(ArgumentError, match="memory_bytes"), serve_locally(run, config=small, folder=tmp_path):
            pass
    assert threading.active_count() == before


def test_asyncio(local: LocalServer, network: Transformer, make_history: History) -> None:
    histories = {f"aio {seed}": make_history(seed, 24) for seed in range(8)}

    async def work() -> None:
        async with AsyncClient(transport=local.aio_transport) as client:
            assert await client.is_ready()
            assert (await client.model_info()).settings["max_k"] == "60"
            history = make_history(5, 30)
            check(network, history, await client.recommend(user="aio", events=rows(history, 0, 30), k=5))
            with pytest.raises(RejectedError, match=r"1\.\.60"):
                await client.recommend(user="aio", k=61)
            found: dict[str, list[int]] = {user: [] for user in histories}
            async with client.stream(k=5, max_in_flight=8) as stream:
                async for prediction in stream.map(requests(histories, 12)):
                    check(network, histories[prediction.user], prediction)
                    found[prediction.user].append(prediction.position)
            assert set(map(tuple, found.values())) == {(12, 24)}
            bulk = [prediction async for prediction in client.recommend_many(list(histories), k=5, batch_size=3)]
            assert [prediction.position for prediction in bulk] == [24] * 8
            stream = client.stream(k=5)
            await stream.send("aio")
            await stream.close()
        async with AsyncClient(transport=local.aio_transport, model="another") as client:
            assert not await client.is_ready()
            with pytest.raises(MissingModelError):
                await client.history_length(user="u")

    asyncio.run(work())


def test_asyncio_deadlines_and_cancelling(local: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    answer = local.service.engine.answer

    def slow(queries: object) -> object:
        entered.set()
        assert go.wait(20)
        return answer(queries)  # type: ignore[arg-type]

    async def work() -> None:
        async with AsyncClient(transport=local.aio_transport, timeout_seconds=0.05) as client:
            await client.model_info()
            monkeypatch.setattr(local.service.engine, "answer", slow)
            task = asyncio.ensure_future(client.history_length(user="x"))
            await asyncio.to_thread(entered.wait, 20)
            with pytest.raises(DeadlineError):
                await client.append(user="cut", events=[Event(1, 1, position=0)])
            with pytest.raises(DeadlineError):
                await task
        async with AsyncClient(transport=local.aio_transport) as client:
            task = asyncio.ensure_future(client.append(user="cut", events=[Event(1, 1, position=0)]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go.set()
            assert await client.history_length(user="cut") == 0

    asyncio.run(work())


@pytest.mark.server
def test_the_predictions_are_those_of_the_real_server(run: Path, tmp_path: Path, make_history: History) -> None:
    histories = {f"same {seed}": make_history(seed, 30) for seed in range(8)}
    write_repository(run, tmp_path / "repository", engine=CONFIG)

    def ask(client: Client) -> list[Prediction]:
        with client:
            answers = [client.recommend(user=u, events=own, k=10) for u, own in requests(histories, 7)]
            answers += client.recommend_many(list(histories), k=10)
            return [*answers, *(client.recommend(user=user, k=3, horizon=4) for user in histories)]

    with Server(tmp_path / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        remote = ask(Client(server.grpc_url))
    with serve_locally(run, config=CONFIG) as local:
        for here, there in zip(ask(Client(transport=local.transport)), remote, strict=True):
            assert (here.user, here.position, here.status) == (there.user, there.position, there.status)
            np.testing.assert_array_equal(here.items, there.items)
            np.testing.assert_allclose(here.scores, there.scores, atol=TOLERANCE)
