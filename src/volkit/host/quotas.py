"""Directories that cannot become larger than they are said to be, where the file system enforces it.

```python
quota = quotas.enable(pool)             # BtrfsQuota, ProjectQuota, or NoQuota: no size can be enforced there
quota.make(f"{pool}/v1", 10 << 30)      # more is refused to whoever writes: EDQUOT, on xfs ENOSPC
quota.copy(f"{pool}/v1", f"{pool}/v2", 10 << 30)
quota.limit(f"{pool}/v1", 20 << 30)     # while it is in use
quota.usage(f"{pool}/v1")
```

btrfs counts by subvolume (qgroups); ext4 and xfs by project, where the kernel and the mount have it (`prjquota`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from volkit.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from volkit.host import btrfs, files, trees
from volkit.host._syscalls import check, encoded, refusal, system_call
from volkit.host._walk import DIRECTORY, Step, walk
from volkit.model import Usage

__all__ = ["BtrfsQuota", "NoQuota", "ProjectQuota", "Quota", "enable"]

log: logging.Logger = logging.getLogger(__name__)

_KIB: Final = 1024
_CAP_SYS_ADMIN: Final = 21

# linux/quota.h, linux/dqblk_xfs.h, linux/fs.h
_Q_GETQUOTA: Final = 0x800007
_Q_SETQUOTA: Final = 0x800008
_Q_XGETQSTAT: Final = 0x5805
_PROJECT: Final = 2
_ENFORCED: Final = 1 << 5  # FS_QUOTA_PDQ_ENFD
_QIF_BLIMITS: Final = 1
# hard and soft limit in KiB, bytes; three of inodes, two times, what is valid
_DQBLK: Final = struct.Struct("=8QI4x")
_STATE: Final = struct.Struct("=bxH76x")  # fs_quota_stat: version, flags
_FSXATTR: Final = struct.Struct("=5I8x")  # flags, extent size, extents, project, cow extent size
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_INHERITED: Final = 0x200  # FS_XFLAG_PROJINHERIT
_OWN_PROJECTS: Final = 1 << 31  # far from those that a person chooses
_TRIES: Final = 64
_HAS_NONE: Final = frozenset(
    getattr(errno, name)
    for name in ["ENOSYS", "EPERM", "ESRCH", "EINVAL", "ENODEV", "ENOTTY", "EOPNOTSUPP", "ENOTBLK"]
)

_quotactl_fd: Final = system_call(443, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p)


class Quota(ABC):
    """How directories of one file system are limited. Sizes in bytes, 0 for no limit."""

    enforced = True

    @abstractmethod
    def make(self, directory: str, size: int) -> None:
        """A new empty directory of mode 0755 that can take `size` bytes. Raises AlreadyExists."""

    @abstractmethod
    def copy(self, source: str, directory: str, size: int) -> None:
        """A new directory with the content of `source`, limited too. Raises AlreadyExists; FailedPrecondition where
        the copy would not be of one moment.
        """

    @abstractmethod
    def limit(self, directory: str, size: int) -> None:
        """Change the size, while it is in use. It may have more in it already."""

    @abstractmethod
    def usage(self, directory: str) -> Usage | None:
        """`total` is the limit, `used` as the file system counts it; None where it takes too long to find out."""

    @abstractmethod
    def claim(self, directory: str) -> int:
        """Bytes that it may still take of what is free."""

    def copy_claim(self, directory: str) -> int:
        """Bytes by which a copy adds to that, since they are then shared, and written anew where they change."""
        return 0

    def trouble(self, directory: str) -> str:
        """Why the limit of this directory cannot be relied on, in one sentence; "" where it can."""
        return ""


def enable(directory: str) -> Quota:
    """How sizes are enforced on the file system that holds `directory`, or that they cannot be.

    A btrfs is told to count, and to count anew what it has lost count of. ext4 and xfs have to be mounted with
    `prjquota` for it. It takes root of the whole machine, with CAP_SYS_ADMIN.
    """
    if not _is_administrator():  # who else may set no limit
        return NoQuota()
    if not btrfs.is_on(directory):
        return ProjectQuota() if _enforces_projects(directory) else NoQuota()
    found = btrfs.quota(directory)
    if found is None:
        btrfs.enable_quota(directory)
    elif found.inconsistent:
        btrfs.rescan(directory)
    return BtrfsQuota()


def _is_administrator() -> bool:
    """Root of the whole machine, with CAP_SYS_ADMIN: in a user namespace of its own it does not count."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    with open("/proc/self/uid_map", encoding="ascii") as file:
        whole = file.read().split()[:3] == ["0", "0", "4294967295"]
    return whole and bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


class NoQuota(Quota):
    """Plain directories, which take what they get."""

    enforced = False

    def make(self, directory: str, size: int) -> None:
        with _errors(f"cannot make {directory}", directory):
            os.mkdir(encoded(directory), 0o755)

    def copy(self, source: str, directory: str, size: int) -> None:
        if trees.copy(source, directory) == "copy":
            log.info("%s was copied byte by byte: its file system has no reflinks", source)

    def limit(self, directory: str, size: int) -> None:
        raise FailedPrecondition(f"cannot limit {directory}: its file system enforces no size")

    def usage(self, directory: str) -> Usage | None:
        held, free = trees.usage(directory), files.free_bytes(directory)
        if not held.complete:
            return None
        return Usage(total=held.size + free, used=held.size, available=free, used_inodes=held.entries)

    def claim(self, directory: str) -> int:
        return 0


class BtrfsQuota(Quota):
    """Each directory is a subvolume with a qgroup; a copy is a snapshot, of one moment."""

    def make(self, directory: str, size: int) -> None:
        btrfs.create(directory)
        btrfs.limit(directory, size)

    def copy(self, source: str, directory: str, size: int) -> None:
        btrfs.snapshot(source, directory)
        btrfs.limit(directory, size)

    def limit(self, directory: str, size: int) -> None:
        btrfs.limit(directory, size)

    def usage(self, directory: str) -> Usage:
        found, free = btrfs.used(directory), files.free_bytes(directory)
        room = max(found.limit - found.referenced, 0) if found.limit else free
        return Usage(total=found.limit, used=found.referenced, available=min(room, free))

    def claim(self, directory: str) -> int:
        with suppress(FailedPrecondition):  # disabled behind our back: see `trouble`
            found = btrfs.used(directory)
            return max(found.limit - found.exclusive, 0)
        return 0

    def copy_claim(self, directory: str) -> int:
        return btrfs.used(directory).exclusive

    def trouble(self, directory: str) -> str:
        found = btrfs.quota(directory)
        if found is None:
            return "quotas of its btrfs were disabled, its size is not enforced: enable them (btrfs quota enable)"
        if found.inconsistent and not found.rescanning:
            return "its btrfs has lost count of its quotas: have it count anew (btrfs quota rescan)"
        if not btrfs.used(directory).limit:
            return "its quota has no limit any more: expand the volume, or limit it (btrfs qgroup limit)"
        if inside := btrfs.children(directory):
            return f"its users made {inside} subvolumes in it, which its quota does not count: remove them"
        return ""


class ProjectQuota(Quota):
    """Each directory is a project of its own (xfs; ext4 with the feature `project`), Linux 5.14.

    The owner of a file may take it out of its project (FS_IOC_FSSETXATTR), and so out of the limit; on ext4 a process
    with CAP_SYS_RESOURCE is not limited at all.
    """

    def make(self, directory: str, size: int) -> None:
        with _errors(f"cannot make {directory} with a quota of {size} bytes", directory):
            os.mkdir(encoded(directory), 0o700)
            with _opened(directory) as place:
                _set_limit(place, _new_project(place, directory), size)
                os.fchmod(place, 0o755)

    def copy(self, source: str, directory: str, size: int) -> None:
        trees.copy(source, directory)  # into no project: it is no attribute that is copied
        with _errors(f"cannot copy {source} to {directory}"), _opened(directory) as place:
            project = _new_project(place, directory)
            for step in walk(place):
                if step.what == "enter":
                    _set_project(step.place, project)
                elif step.what == "file":
                    _set_file_project(step, project)
            if size:
                _set_limit(place, project, size)

    def limit(self, directory: str, size: int) -> None:
        with _errors(f"cannot limit {directory} to {size} bytes"), _opened(directory) as place:
            _set_limit(place, _project(place), size)

    def usage(self, directory: str) -> Usage:
        with _errors(f"cannot read the quota of {directory}"), _opened(directory) as place:
            hard, _, used, *_ = _DQBLK.unpack(_quotactl(place, _Q_GETQUOTA, _project(place)))
        total, free = hard * _KIB, files.free_bytes(directory)
        return Usage(total=total, used=used, available=min(max(total - used, 0) if total else free, free))

    def claim(self, directory: str) -> int:
        found = self.usage(directory)
        return max(found.total - found.used, 0)


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    place = os.open(encoded(directory), DIRECTORY)
    try:
        yield place
    finally:
        os.close(place)


@contextmanager
def _errors(sentence: str, made: str = "") -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExists(f"{made} is there already") if made else refusal(error, sentence) from None
    except OSError as error:
        raise refusal(error, sentence) from error


def _enforces_projects(directory: str) -> bool:
    buffer = ctypes.create_string_buffer(_STATE.size)
    with _errors(f"cannot read the quotas at {directory}"), _opened(directory) as place:
        try:
            check(_quotactl_fd(place, _Q_XGETQSTAT << 8 | _PROJECT, 0, buffer), "quotactl_fd")
        except OSError as error:
            if error.errno in _HAS_NONE:
                return False
            raise
    return bool(_STATE.unpack(buffer.raw)[1] & _ENFORCED)


def _quotactl(place: int, command: int, project: int, data: bytes = bytes(_DQBLK.size)) -> bytes:
    buffer = ctypes.create_string_buffer(data, _DQBLK.size)
    check(_quotactl_fd(place, command << 8 | _PROJECT, project, buffer), "quotactl_fd")
    return buffer.raw


def _set_limit(place: int, project: int, size: int) -> None:
    if not project:
        raise FailedPrecondition(
            "the directory belongs to no project of its own: it was not made with a quota"
        )
    blocks = -(-size // _KIB)
    _quotactl(place, _Q_SETQUOTA, project, _DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS))


def _project(place: int) -> int:
    return int(_FSXATTR.unpack(_attributes(place))[3])


def _attributes(place: int) -> bytearray:
    buffer = bytearray(_FSXATTR.size)
    fcntl.ioctl(place, _FS_IOC_FSGETXATTR, buffer)
    return buffer


def _set_project(place: int, project: int, inherited: int = _INHERITED) -> None:
    flags, extent, extents, _, cow = _FSXATTR.unpack(_attributes(place))
    wanted = _FSXATTR.pack(flags | inherited, extent, extents, project, cow)
    fcntl.ioctl(place, _FS_IOC_FSSETXATTR, bytearray(wanted))


def _set_file_project(step: Step, project: int) -> None:
    """Of a regular file of a copy, which is nobody else's: others take no space, and to open them may do something."""
    if not stat.S_ISREG(os.stat(step.name, dir_fd=step.place, follow_symlinks=False).st_mode):
        return
    file = os.open(step.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=step.place)
    try:
        _set_project(file, project, 0)
    finally:
        os.close(file)


def _new_project(place: int, directory: str) -> int:
    """A project without files and without a limit, which the directory is given, and all that is made in it."""
    for number in range(_TRIES):
        text = f"{number} {directory}".encode("utf-8", "surrogateescape")
        project = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") | _OWN_PROJECTS
        try:
            hard, soft, used, *_ = _DQBLK.unpack(_quotactl(place, _Q_GETQUOTA, project))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):  # nothing is known of it
                raise
            hard = soft = used = 0
        if not (hard or soft or used) and project < 2**32 - 1:
            _set_project(place, project)
            return project
    raise ResourceExhausted(f"no free project for {directory} in {_TRIES} tries")
