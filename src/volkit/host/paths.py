"""Staging and target paths: which are allowed, how they are made, and how they are taken away again.

Parents may contain symbolic links (an administrator moves /var/lib/kubelet to another disk by one); the last
component is what a volume's user could have put there, and is never followed. Nothing here deletes what it
did not make: a directory goes by rmdir, a file only when it is empty.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Final

from volkit.errors import FailedPrecondition, InUse, InvalidArgument
from volkit.host._mount_table import CORRUPTED, STATX_TYPE, is_mount_point, status
from volkit.host._syscalls import encoded, refusal

PATH_MAX: Final = 4095
"""The longest path in bytes that the kernel takes (linux/limits.h, without the final NUL)."""

NAME_MAX: Final = 255
"""The longest component in bytes."""

_SHOWN: Final = 120


def check_absolute(path: str, field: str) -> str:
    """`path` in its normal form (one `/` between components, none at its end), as every function here wants
    it.

    Raises InvalidArgument, naming `field` and the value, for a path that is empty, relative, `/` itself or
    too long, or has `..` or a control character in it.
    """
    shown = repr(path if len(path) <= _SHOWN else path[:_SHOWN] + "…")
    if not path:
        raise InvalidArgument(f"{field} is empty: give an absolute path")
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in path):
        raise InvalidArgument(f"{field} {shown} contains a control character")
    if not path.startswith("/"):
        raise InvalidArgument(f"{field} {shown} is relative: give an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"{field} {shown} contains '..': give the path without it")
    if not parts:
        raise InvalidArgument(f"{field} is '/': give a path below it")
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} {shown} cannot be a file name: it is not valid Unicode") from None
    if max(sizes) > NAME_MAX or sum(sizes) + len(sizes) > PATH_MAX:
        raise InvalidArgument(
            f"{field} {shown} is too long: {PATH_MAX} bytes at most, and {NAME_MAX} for each component"
        )
    return "/" + "/".join(parts)


def ensure_directory(path: str, mode: int = 0o750, *, empty: bool = False) -> bool:
    """Make the directory `path` and its missing parents, and return True; False where it is there already.

    `mode` is subject to the umask. `empty` asks that nothing be in it unless something is mounted there;
    otherwise FailedPrecondition names what is. InvalidArgument where a file, a device or a symbolic link is
    at `path`.
    """
    try:
        _make_parents(path, mode)
        os.mkdir(path, mode)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise refusal(error, f"cannot make the directory {path}") from None
    kind = _kind(path)
    if kind and not stat.S_ISDIR(kind):
        raise InvalidArgument(f"{path} must be a directory, but {_called(kind)} is there")
    if empty and not is_mount_point(path):
        _check_empty(path)
    return False


def ensure_file(path: str, mode: int = 0o640) -> bool:
    """Make the empty file `path` and its missing parents, and return True; False where it is there already.

    It is what a block device is bound over. A block device at `path` counts as there: it is a bind made
    before. InvalidArgument where a directory or a symbolic link is there, FailedPrecondition where the file
    has content.
    """
    try:
        _make_parents(path, 0o750)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode))
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise refusal(error, f"cannot make the file {path}") from None
    kind = _kind(path)
    if kind and not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise InvalidArgument(f"{path} must be a file, but {_called(kind)} is there")
    if stat.S_ISREG(kind) and not is_mount_point(path) and os.lstat(path).st_size:
        raise FailedPrecondition(f"{path} has content: take the file away, then repeat the call")
    return False


def require_own(directory: str, field: str, known: Iterable[str]) -> None:
    """Raises FailedPrecondition unless `directory` is a directory, no link, that only this user and root can change,
    and in which nothing is but what is `known` by its name. `field` names it. Nothing is touched.
    """
    try:
        found = os.lstat(directory)
        foreign = (
            sorted({*os.listdir(directory)} - {*known, "lost+found"}) if stat.S_ISDIR(found.st_mode) else []
        )
    except OSError as error:
        raise FailedPrecondition(
            f"{field} {directory} cannot be used ({error.strerror}): make it, or mount its file system"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise FailedPrecondition(f"{field} {directory} is {_called(found.st_mode)}: give a directory")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise FailedPrecondition(
            f"{field} {directory} can be changed by others (owner {found.st_uid}, mode {found.st_mode & 0o7777:04o}): "
            f"give a directory of user {os.geteuid()} that nobody else may write to"
        )
    if foreign:
        raise FailedPrecondition(
            f"{field} {directory} has something else in it, {foreign[0]!r}: give a directory of its own"
        )


def remove_target(path: str) -> bool:
    """Take away the empty directory or empty file at `path`, never its parents. False where nothing is there.

    Raises InUse where something is mounted at `path`, FailedPrecondition where it has content,
    InvalidArgument where it is neither a directory nor a file; nothing is deleted then. The kernel refuses
    rmdir and unlink of a mount point of this mount namespace by itself, so a mount that appears meanwhile is
    safe.
    """
    if is_mount_point(path):
        raise InUse(f"cannot remove {path}: something is still mounted there")
    try:
        here = os.lstat(path)
        if stat.S_ISDIR(here.st_mode):
            os.rmdir(path)
        elif not stat.S_ISREG(here.st_mode):
            raise InvalidArgument(
                f"cannot remove {path}: {_called(here.st_mode)} is there, not a directory or a file"
            )
        elif here.st_size:
            raise FailedPrecondition(f"cannot remove {path}: the file has {here.st_size} bytes of content")
        else:
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _check_empty(path)
        raise refusal(error, f"cannot remove {path}") from None
    return True


def _make_parents(path: str, mode: int) -> None:
    encoded(path)
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        os.makedirs(parent, mode, exist_ok=True)


def _kind(path: str) -> int:
    """The type bits of what is at `path` itself; 0 where a dead mount there keeps its type to itself."""
    try:
        return status(path, STATX_TYPE).mode
    except OSError as error:
        if error.errno in CORRUPTED:
            return 0
        raise refusal(error, f"cannot read {path}") from None


def _check_empty(path: str) -> None:
    """FailedPrecondition where the directory has an entry; one is named."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        with os.scandir(descriptor) as entries:
            first = next(entries, None)
    finally:
        os.close(descriptor)
    if first is not None:
        raise FailedPrecondition(
            f"{path} is not empty: it contains {first.name!r}; move its content away first"
        )


def _called(kind: int) -> str:
    names = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISREG, "a file"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in names if test(kind)), "something else")
