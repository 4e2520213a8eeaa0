"""`deploy/nginx/longrec.conf` in the real nginx: users stay with a server, and go elsewhere when it dies.

nginx is the one on PATH, or Debian's package, unpacked into a temporary folder.
"""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longrec.client import Client, Event

CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "longrec.conf"
FRAME = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temporary}
    include {folder}/longrec.conf;
}}
"""
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shutil.which("nginx")
    if found:
        return Path(found)
    if not shutil.which("apt-get"):
        pytest.skip("no nginx on PATH, and no apt-get to unpack one with: install nginx")
    folder = tmp_path_factory.mktemp("nginx")
    subprocess.run(["apt-get", "download", "nginx"], cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("nginx_*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    return folder / "usr" / "sbin" / "nginx"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def proxy(nginx: Path, tmp_path: Path, two: Any) -> Iterator[str]:
    """The committed file, with the test's ports in place of its own."""
    port = free_port()
    text = CONF.read_text().replace("127.0.0.1:9001", f"127.0.0.1:{port}")
    for example, (url, _, _) in zip(("127.0.0.1:8001", "127.0.0.1:8011"), two, strict=True):
        assert text.count(example) == 1
        text = text.replace(example, url)
    (tmp_path / "longrec.conf").write_text(text)
    temporary = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in KINDS)
    (tmp_path / "nginx.conf").write_text(FRAME.format(folder=tmp_path, temporary=temporary))
    with subprocess.Popen(
        [nginx, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                assert process.poll() is None, process.stderr and process.stderr.read()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def users_of(servicer: Any) -> set[str]:
    return {user for request in servicer.requests for user in servicer.users(request)}


def test_users_stay_with_a_server_and_move_when_it_dies(proxy: str, two: Any) -> None:
    (_, one, first), (_, other, _) = two
    names = [f"user {number} ü" for number in range(40)]
    with Client(proxy) as client:
        for step in range(3):
            for user in names:
                assert client.recommend(user=user, events=[Event(step, 1000)], k=2).position == step + 1
        assert users_of(one) | users_of(other) == set(names)
        assert not users_of(one) & users_of(other)
        assert 5 < len(users_of(one)) < 35
        moved = users_of(one)
        other.logs = one.logs = {**other.logs, **one.logs}  # the shared log
        first.stop(grace=None).wait()
        for user in names:
            assert client.recommend(user=user, events=[Event(3, 1000)], k=2).position == 4
        assert moved < users_of(other)
        with client.stream(k=2) as stream:  # a stream has no user of its own
            assert [p.position for p in stream.map((user, [Event(4, 1000)]) for user in names)] == [5] * 40


def test_the_file_says_which_header_the_client_sends() -> None:
    from longrec.client.messages import USER_HEADER

    assert re.search(rf"\$http_{USER_HEADER.replace('-', '_')}\b", CONF.read_text())
