"""A walk through a directory tree that somebody hostile may be changing meanwhile.

No symbolic link is followed, no other mount is entered, a tree of any depth takes one descriptor, and nothing
outside of the tree is reached: a directory is opened by its name in its parent, and left by `..` only where that
leads back to the very directory that it was entered from.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import Final, Literal

from attrs import frozen

from volkit.errors import FailedPrecondition
from volkit.host._syscalls import check, encoded, kernel_has, system_call
from volkit.model import Value

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PIN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_OPEN_HOW: Final = struct.Struct("=QQQ")  # linux/openat2.h
_RESOLVE_NO_XDEV: Final = 1
_openat2: Final = system_call(437, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)


@frozen(eq=False, repr=False)
class Step(Value):
    """One step: at the file `name` in the directory that is open as `place`; or in the directory `name`, open as
    `place`, before (`enter`) or after (`leave`) all that is in it. `place` is open until the next step.
    """

    what: Literal["file", "enter", "leave"]
    place: int
    name: str


def walk(root: int) -> Iterator[Step]:
    """Every step below the directory that is open as `root`, which itself is no step.

    What comes and goes meanwhile may be left out. Raises FailedPrecondition where a directory is moved while the walk
    is in it, OSError.
    """
    place = os.open(".", DIRECTORY, dir_fd=root)  # with a position of its own, which a dup would share
    # the parent's identity, the own name, the parent's other directories
    above: list[tuple[tuple[int, int], str, list[str]]] = []
    below: list[str] = []
    try:
        yield from _files(place, below)
        while True:
            while below:
                name = below.pop()
                child = open_directory(place, name)
                if child is None:
                    continue
                parent, place = place, child
                above.append((_identity(parent), name, below))
                os.close(parent)
                below = []
                yield Step("enter", place, name)
                yield from _files(place, below)
            if not above:
                return
            identity, name, below = above.pop()
            yield Step("leave", place, name)
            place = _up(place, identity, name)
    finally:
        os.close(place)


def open_directory(place: int, name: str) -> int | None:
    """A descriptor of the directory `name` in `place`; None for anything else, another mount among it."""
    try:
        if not _has_openat2():
            descriptor = os.open(name, DIRECTORY, dir_fd=place)
            if os.fstat(descriptor).st_dev == os.fstat(place).st_dev:
                return descriptor
            os.close(descriptor)
            return None
        how = _OPEN_HOW.pack(DIRECTORY, 0, _RESOLVE_NO_XDEV)
        return check(_openat2(place, encoded(name), how, len(how)), "openat2", name)
    except OSError as error:
        if error.errno in _GONE or error.errno == errno.EXDEV:
            return None
        raise


@cache
def _has_openat2() -> bool:
    """Linux 5.6."""
    return kernel_has(_openat2(-1, b"", bytes(_OPEN_HOW.size), _OPEN_HOW.size))


def _files(place: int, directories: list[str]) -> Iterator[Step]:
    """The files in `place`; its directories are put on the list."""
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                yield Step("file", place, entry.name)


def _up(place: int, identity: tuple[int, int], name: str) -> int:
    parent = os.open("..", DIRECTORY, dir_fd=place)
    if _identity(parent) != identity:
        os.close(parent)
        raise FailedPrecondition(
            f"the directory {name!r} was moved while it was walked through: repeat the call"
        )
    os.close(place)
    return parent


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
