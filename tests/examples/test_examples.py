"""Each example is run as its first lines say, against real servers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec.server.clientbench.rig import Rig, make_rig

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with make_rig(2) as rig:
        yield rig


def command(name: str, *urls: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *urls]


def run(name: str, *urls: str) -> str:
    done = subprocess.run(command(name, *urls), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "users"), [("streaming.py", "ada bob eve"), ("streaming_async.py", "ann ben eva")])
def test_streams_answer_every_event_in_each_users_order(rig: Rig, name: str, users: str) -> None:
    rows = [line.split(maxsplit=2) for line in run(name, rig.urls[0]).splitlines()]
    assert len(rows) == 15
    for user in users.split():
        assert [int(position) for found, position, _ in rows if found == user] == [1, 2, 3, 4, 5]


def test_a_frame_of_users_gives_a_frame_of_items(rig: Rig) -> None:
    printed = run("recommend_many.py", rig.urls[0])
    assert "shape: (6, 6)" in printed
    assert all(printed.count(user) == 2 for user in ("ida", "max", "leo"))


def test_a_server_gets_what_it_lacks_from_the_history(rig: Rig) -> None:
    assert run("history.py", rig.urls[0]) == "OK 6\n"


def test_users_go_on_elsewhere_when_a_server_dies(rig: Rig) -> None:
    """The last: it leaves one server dead."""
    with subprocess.Popen(command("failover.py", *rig.urls), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step 0 done\n"
        rig.servers[0].stop(at_once=True)
        rest = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert rest[-1] == "[10]"  # every log has all ten events, once
