"""The processes of a running server, as Linux tells of them: who is whose child, and the end of one as something to
wait for."""

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["Stub", "children", "end_of", "stubs"]

STUB = b"triton_python_backend_stub"


class Stub(NamedTuple):
    """A process that runs one instance of a Python model: `<repository>/<model>/<version>/model.py`."""

    process_id: int
    model: str
    version: str


def children(process_id: int) -> list[int]:
    """The process's children, in no order; zombies are none."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                state, parent = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == process_id and state not in b"ZX":
                found.append(int(entry.name))
    return found


def stubs(server_id: int) -> list[Stub]:
    """The stubs among the children of a tritonserver."""
    found = []
    for child in children(server_id):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(STUB) and len(command) > 1:
            folder = Path(os.fsdecode(command[1])).parent
            found.append(Stub(child, folder.parent.name, folder.name))
    return found


def end_of(process_id: int) -> int | None:
    """A descriptor that can be read once the process has ended; the caller closes it.

    None if it has ended already, or where Linux is older than 5.3.
    """
    try:
        return os.pidfd_open(process_id)
    except OSError:
        return None
