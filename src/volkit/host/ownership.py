"""Whom the files of a volume belong to: a group, as Kubernetes' fsGroup has it.

```python
ownership.give_to_group(staging, 2000)
```
"""

from __future__ import annotations

import ctypes
import os
import stat
from typing import Final

from volkit.errors import InvalidArgument
from volkit.host._syscalls import AT_EMPTY_PATH, check, encoded, function, refusal
from volkit.host._walk import DIRECTORY, PIN, walk

__all__ = ["MAX_ID", "give_to_group"]

MAX_ID: Final = 2**32 - 2
"""The largest uid and gid: the one after it means "as it is" (chown(2))."""

_AS_IT_IS: Final = 2**32 - 1
_fchownat: Final = function(
    "fchownat", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int
)
_DIRECTORY: Final = stat.S_ISGID | 0o770
_FILE: Final = 0o660
_EXECUTABLE: Final = 0o110


def give_to_group(directory: str, gid: int) -> bool:
    """Gives everything below `directory`, and last itself, to the group: it may read and write, go through
    directories, execute what its owner may, and what is made in a directory belongs to it too (setgid). False where
    the directory itself shows that it was done before; nothing below is looked at then.

    One pass, also through a tree that somebody hostile is changing: a symbolic link gets the group itself and is not
    followed, another mount is not entered, and what was looked at is what is changed, whatever has its name by then.
    Nothing is taken away: a mode gets bits, the owner stays. Raises InvalidArgument, FailedPrecondition.
    """
    if not 0 <= gid <= MAX_ID:
        raise InvalidArgument(f"{gid} is not a group: give 0 to {MAX_ID}")
    try:
        root = os.open(encoded(directory), DIRECTORY)
        try:
            if not _missing(os.fstat(root), gid):
                return False
            for step in walk(root):
                if step.what == "leave":
                    _give(step.place, gid)
                elif step.what == "file":
                    _give_file(step.place, step.name, gid)
            return _give(root, gid)
        finally:
            os.close(root)
    except OSError as error:
        raise refusal(error, f"cannot give {directory} to the group {gid}") from error


def _missing(found: os.stat_result, gid: int) -> int:
    """The mode bits that it lacks; all of them where it is not the group's. A device's nodes stay as they are."""
    if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
        return 0
    wanted = _DIRECTORY if stat.S_ISDIR(found.st_mode) else _FILE
    if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IXUSR:
        wanted |= _EXECUTABLE
    return wanted & ~found.st_mode if found.st_gid == gid else wanted


def _give(pinned: int, gid: int) -> bool:
    """By a descriptor of the thing itself; True where something was to do."""
    found = os.fstat(pinned)
    missing = _missing(found, gid)
    if missing and found.st_gid != gid:
        check(_fchownat(pinned, b"", _AS_IT_IS, gid, AT_EMPTY_PATH), "chown")
    if missing and not stat.S_ISLNK(found.st_mode):  # also what chown(2) has just taken away: setuid, setgid
        os.chmod(f"/proc/self/fd/{pinned}", stat.S_IMODE(found.st_mode) | missing)
    return bool(missing)


def _give_file(place: int, name: str, gid: int) -> None:
    try:
        pinned = os.open(name, PIN, dir_fd=place)
    except FileNotFoundError:
        return
    try:
        _give(pinned, gid)
    finally:
        os.close(pinned)
