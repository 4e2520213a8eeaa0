"""A replay on a real server has the figures of an offline evaluation of the same events."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longrec.client import Client
from longrec.errors import ArgumentError, ServerError
from longrec.server.replay.replay import Replay, ReplayPlan
from longrec.training import evaluate

K = 5


def ranks_offline(material: Any, replay: Replay) -> np.ndarray:
    return evaluate(material.network, material.dataset, replay.users, replay.rows).numpy()


@pytest.mark.server
@pytest.mark.parametrize("plan", [ReplayPlan(k=K), ReplayPlan(users=7, last=4, k=K, max_in_flight=3)])
def test_hits_are_those_of_an_offline_evaluation(server, material, plan):
    replay = Replay(material.dataset, plan)
    done = replay.run(server.grpc_url)
    ranks = ranks_offline(material, replay)
    assert 0 < (ranks < K).sum() < len(ranks)
    assert (done.predicted, done.hits) == (len(ranks), (ranks < K).sum())
    assert done.ndcg == pytest.approx(np.where(ranks < K, 1 / np.log2(ranks + 2), 0).mean())
    assert (done.events, done.total, done.failed, done.incomparable) == (len(ranks), len(ranks), 0, 0)
    assert done.users == (plan.users or len(material.dataset.users))
    assert 0 < done.latencies_ms[0] <= done.latencies_ms[1]


@pytest.mark.server
def test_the_server_has_each_history_once_and_in_order_and_refuses_a_second_run(server, material):
    plan = ReplayPlan(users=3, k=K, prefix="once-")
    replay = Replay(material.dataset, plan)
    replay.run(server.grpc_url)
    with Client(server.grpc_url) as client:
        for user in set(replay.users.tolist()):
            key, events = "once-" + material.dataset.users[user], material.dataset.events(user)
            again = client.append(user=key, events=events)  # the same events at the same positions: a harmless retry
            assert again.length == len(events)
    with pytest.raises(ServerError, match=r"expected a log of 0 events of user once-.* replay under another prefix"):
        Replay(material.dataset, plan).run(server.grpc_url)


@pytest.mark.server
def test_speed_keeps_the_recorded_time(server, material):
    data = replace(material.dataset, times_ms=material.dataset.times_ms // 10**6)  # 30 users within a second
    span = int(data.times_ms.max() - data.times_ms.min()) / 1000
    done = Replay(data, ReplayPlan(k=K, speed=2.0)).run(server.grpc_url)
    assert done.seconds >= span / 2
    assert done.events == len(data)


def test_events_are_sent_by_time(material):
    replay = Replay(material.dataset, ReplayPlan(users=9, last=3))
    assert (np.diff(material.dataset.times_ms[replay.rows]) >= 0).all()
    assert np.bincount(replay.users)[np.unique(replay.users)].tolist() == [3] * 9
    assert (replay.progress().events, replay.progress().total) == (0, 27)


@pytest.mark.parametrize(
    ("options", "message"), [({"users": 0}, "users=0"), ({"speed": 0.0}, r"speed=0\.0"), ({"last": -1}, "last=-1")]
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        ReplayPlan(**options)


@pytest.mark.server
def test_the_command_prints_the_summary(server, dataset_folder, material):
    from longrec.cli.main import app

    arguments = ["replay", dataset_folder, "--url", server.grpc_url, "--users", 5, "--k", K]
    told = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    summary = json.loads(told.stdout)
    ranks = ranks_offline(material, Replay(material.dataset, ReplayPlan(users=5)))
    assert (summary["hits"], summary["predicted"], summary["k"]) == ((ranks < K).sum(), len(ranks), K)
    shown = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False).stdout
    assert f"hit@{K}" in shown
    assert f"{summary['hit_rate']:.4f}" in shown
