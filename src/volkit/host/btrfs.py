"""btrfs: subvolumes, their snapshots, and how large they may become (qgroups).

```python
btrfs.enable_quota(pool)
btrfs.create(f"{pool}/v1")
btrfs.limit(f"{pool}/v1", 10 << 30)         # more is EDQUOT
btrfs.snapshot(f"{pool}/v1", f"{pool}/s1")  # of one moment, also where v1 is written to
```

By ioctl(2), linux/btrfs.h, and by sysfs: each is some microseconds, where the program `btrfs` takes 15 ms, and the
numbers need no parsing. All but `create`, `snapshot` and `is_subvolume` take CAP_SYS_ADMIN.

A qgroup counts what its own subvolume refers to, as of the last commit, some 30 seconds ago at most. A subvolume that
a user makes inside of another one has a qgroup of its own without a limit: `children` tells of those.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from attrs import frozen

from volkit.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from volkit.host._syscalls import encoded, refusal
from volkit.host._walk import DIRECTORY

__all__ = [
    "Quota", "Used", "children", "create", "delete", "enable_quota", "is_on", "is_subvolume", "limit", "quota",
    "rescan", "snapshot", "used",
]  # fmt: skip

_READ, _WRITE = 2, 1
_SYSFS: Final = "/sys/fs/btrfs"
_ROOT_INODE: Final = 256  # BTRFS_FIRST_FREE_OBJECTID, of every subvolume's own directory
_ROOT_TREE: Final = 1
_ROOT_REF: Final = 156
_BY_ID: Final = 1 << 4  # BTRFS_SUBVOL_SPEC_BY_ID
_MAX_REFERENCED: Final = 1  # BTRFS_QGROUP_LIMIT_MAX_RFER
_NO_LIMIT: Final = 2**64 - 1
_ENABLE: Final = 1  # BTRFS_QUOTA_CTL_ENABLE

_VOLUME: Final = struct.Struct("=qQQ32x")  # btrfs_ioctl_vol_args_v2: fd, transid, flags; then a name or an id
_SEARCH: Final = struct.Struct("=QQQQQQQIIII32x")  # btrfs_ioctl_search_key
_FOUND: Final = struct.Struct("=QQQII")  # btrfs_ioctl_search_header: transid, object, offset, type, length
_LIMIT: Final = struct.Struct("=QQQQQQ")  # btrfs_ioctl_qgroup_limit_args
_NAME_MAX: Final = 255


def _number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_CREATE: Final = _number(_WRITE, 24, 4096)
_SNAPSHOT: Final = _number(_WRITE, 23, 4096)
_DESTROY: Final = _number(_WRITE, 63, 4096)
_TREE_SEARCH: Final = _number(_READ | _WRITE, 17, 4096)
_INO_LOOKUP: Final = _number(_READ | _WRITE, 18, 4096)
_FS_INFO: Final = _number(_READ, 31, 1024)
_QUOTA_CTL: Final = _number(_READ | _WRITE, 40, 16)
_QGROUP_CREATE: Final = _number(_WRITE, 42, 16)
_QGROUP_LIMIT: Final = _number(_READ, 43, _LIMIT.size)
_RESCAN: Final = _number(_WRITE, 44, 64)
_RESCAN_STATUS: Final = _number(_READ, 45, 64)


@frozen
class Quota:
    """How a file system counts: by `qgroup` (what a subvolume refers to) or `squota` (what was first written through
    it). What `inconsistent` qgroups say is wrong until they are counted anew, as is going on while `rescanning`.
    """

    mode: str
    inconsistent: bool
    rescanning: bool = False


@frozen(kw_only=True)
class Used:
    """Bytes that a subvolume refers to, how many of them no other one does, and how many it may (0: no limit)."""

    referenced: int
    exclusive: int
    limit: int


def is_on(path: str) -> bool:
    """Whether the directory `path` is on btrfs."""
    with _opened(path) as descriptor:
        return _is_btrfs(descriptor)


def is_subvolume(path: str) -> bool:
    """Whether a subvolume is at `path` itself."""
    try:
        descriptor = os.open(encoded(path), DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return False
        raise refusal(error, f"cannot read {path}") from error
    try:
        return os.fstat(descriptor).st_ino == _ROOT_INODE and _is_btrfs(descriptor)
    finally:
        os.close(descriptor)


def _is_btrfs(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _FS_INFO, bytearray(1024))
    except OSError:
        return False
    return True


def create(path: str) -> None:
    """Makes an empty subvolume, a directory of mode 0755. Raises AlreadyExists, NotFound."""
    with _parent(path) as (parent, name), _errors(f"cannot make the subvolume {path}", path):
        fcntl.ioctl(parent, _CREATE, _arguments(name=name))


def snapshot(source: str, destination: str) -> None:
    """Makes a subvolume that has what `source` has at one moment of the call, and its limit. What is only in memory
    yet is written first; subvolumes inside of it are empty directories in the snapshot. Raises AlreadyExists, NotFound,
    InvalidArgument where `source` is no subvolume.
    """
    with _opened(source) as descriptor, _parent(destination) as (parent, name):
        _subvolume_id(descriptor, source)
        with _errors(f"cannot make a snapshot of {source} at {destination}", destination):
            fcntl.ioctl(parent, _SNAPSHOT, _arguments(descriptor, name=name))


def delete(path: str) -> None:
    """Removes the subvolume with all that are inside of it. Its space becomes free in the background.

    No path in it is walked, so no user can lead this astray. Raises NotFound, InvalidArgument where no subvolume is
    there, InUse where something is mounted in it.
    """
    with _parent(path) as (parent, name), _opened(path) as descriptor:
        id_ = _subvolume_id(descriptor, path)
        with _errors(f"cannot remove the subvolumes in {path}"):
            _delete_children(descriptor, id_)
        with _errors(f"cannot remove the subvolume {path}"):
            fcntl.ioctl(parent, _DESTROY, _arguments(name=name))
        with suppress(OSError):  # its qgroup; since Linux 6.11 the kernel does it when the space is free
            fcntl.ioctl(parent, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 0, id_)))


def _delete_children(descriptor: int, id_: int) -> None:
    """Of any depth, the innermost first."""
    found = [id_]
    for one in found:
        found += _children(descriptor, one)
    for one in reversed(found[1:]):
        try:
            fcntl.ioctl(descriptor, _DESTROY, _arguments(flags=_BY_ID, id_=one))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def children(path: str) -> int:
    """How many subvolumes were made right in the subvolume `path`, at any depth of directories."""
    with _opened(path) as descriptor, _errors(f"cannot look for subvolumes in {path}"):
        return len(_children(descriptor, _subvolume_id(descriptor, path)))


def _children(descriptor: int, id_: int) -> list[int]:
    """The ids of the subvolumes whose directory entry is in the subvolume `id_` (BTRFS_ROOT_REF items)."""
    found: list[int] = []
    while True:
        after = found[-1] + 1 if found else 0
        buffer = bytearray(4096)
        _SEARCH.pack_into(
            buffer, 0, _ROOT_TREE, id_, id_, after, 2**64 - 1, 0, 2**64 - 1, _ROOT_REF, _ROOT_REF, 4096, 0
        )
        fcntl.ioctl(descriptor, _TREE_SEARCH, buffer)
        items = _SEARCH.unpack_from(buffer)[9]
        place = _SEARCH.size
        for _ in range(items):
            _, _, child, _, length = _FOUND.unpack_from(buffer, place)
            found.append(child)
            place += _FOUND.size + length
        if not items:
            return found


# -- quota


def enable_quota(path: str) -> None:
    """Has the file system that holds `path` count what its subvolumes take. Nothing happens where it does already."""
    with _opened(path) as descriptor, _errors(f"cannot enable quotas on the btrfs at {path}"):
        fcntl.ioctl(descriptor, _QUOTA_CTL, bytearray(struct.pack("=QQ", _ENABLE, 0)))


def quota(path: str) -> Quota | None:
    """How the file system that holds `path` counts; None where it does not. Raises FailedPrecondition where the kernel
    does not tell (sysfs, Linux 5.9).
    """
    with _opened(path) as descriptor, _errors(f"cannot read the quotas of the btrfs at {path}"):
        directory = _qgroups(descriptor)
        if not os.path.isdir(directory):
            if not os.path.isdir(os.path.dirname(directory)):
                raise FailedPrecondition(
                    f"{directory} is not there: mount /sys, where the kernel tells of quotas"
                )
            return None
        mode = _read(f"{directory}/mode", "qgroup")
        state = bytearray(64)
        fcntl.ioctl(descriptor, _RESCAN_STATUS, state)
        lost = _read(f"{directory}/inconsistent", "0") == "1"
        return Quota(mode=mode, inconsistent=lost, rescanning=any(state[:8]))


def rescan(path: str) -> None:
    """Has everything counted anew, in the background; nothing happens where that is being done already."""
    with _opened(path) as descriptor, _errors(f"cannot count the quotas of the btrfs at {path} anew"):
        try:
            fcntl.ioctl(descriptor, _RESCAN, bytearray(64))
        except OSError as error:
            if error.errno not in (errno.EINPROGRESS, errno.EBUSY):
                raise


def limit(path: str, size: int) -> None:
    """The subvolume may refer to `size` bytes at most (0: to any number); more is EDQUOT for who writes. It may have
    more already.
    """
    with _opened(path) as descriptor, _errors(f"cannot limit {path} to {size} bytes"):
        id_ = _subvolume_id(descriptor, path)
        fcntl.ioctl(
            descriptor,
            _QGROUP_LIMIT,
            bytearray(_LIMIT.pack(id_, _MAX_REFERENCED, size or _NO_LIMIT, 0, 0, 0)),
        )


def used(path: str) -> Used:
    """What the subvolume takes, and its limit. Raises FailedPrecondition where its file system does not count."""
    with _opened(path) as descriptor, _errors(f"cannot read the quota of {path}"):
        directory = f"{_qgroups(descriptor)}/0_{_subvolume_id(descriptor, path)}"
        referenced = _read(f"{directory}/referenced", "")
        if not referenced:
            raise FailedPrecondition(f"{path} has no quota: enable quotas on its btrfs (btrfs quota enable)")
        limited = int(_read(f"{directory}/limit_flags", "0"), 0) & _MAX_REFERENCED
        return Used(
            referenced=int(referenced),
            exclusive=int(_read(f"{directory}/exclusive", "0")),
            limit=int(_read(f"{directory}/max_referenced", "0")) if limited else 0,
        )


def _qgroups(descriptor: int) -> str:
    buffer = bytearray(1024)
    fcntl.ioctl(descriptor, _FS_INFO, buffer)
    raw = buffer[16:32].hex()
    fsid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
    return f"{_SYSFS}/{fsid}/qgroups"


def _read(path: str, otherwise: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return otherwise


# -- the arguments


def _subvolume_id(descriptor: int, path: str) -> int:
    buffer = bytearray(4096)
    struct.pack_into("=QQ", buffer, 0, 0, _ROOT_INODE)
    if os.fstat(descriptor).st_ino == _ROOT_INODE and _is_btrfs(descriptor):
        fcntl.ioctl(descriptor, _INO_LOOKUP, buffer)
        return int(struct.unpack_from("=Q", buffer)[0])
    raise InvalidArgument(f"{path} is no subvolume of btrfs")


def _arguments(descriptor: int = 0, *, name: bytes = b"", flags: int = 0, id_: int = 0) -> bytearray:
    if len(name) > _NAME_MAX:
        raise InvalidArgument(f"a subvolume's name has {len(name)} bytes: give {_NAME_MAX} at most")
    buffer = bytearray(4096)
    _VOLUME.pack_into(buffer, 0, descriptor, 0, flags)
    rest = struct.pack("=Q", id_) if id_ else name
    buffer[_VOLUME.size : _VOLUME.size + len(rest)] = rest
    return buffer


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(encoded(path), DIRECTORY)
    except OSError as error:
        raise refusal(error, f"cannot open {path}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _parent(path: str) -> Iterator[tuple[int, bytes]]:
    directory, name = os.path.split(path.rstrip("/"))
    with _opened(directory or ".") as descriptor:
        yield descriptor, encoded(name)


@contextmanager
def _errors(sentence: str, made: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise AlreadyExists(f"{made} is there already") from None
        if error.errno == errno.ENOTTY:
            raise FailedPrecondition(f"{sentence}: the file system is not btrfs") from None
        raise refusal(error, sentence) from error
