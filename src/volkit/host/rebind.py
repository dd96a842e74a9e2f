"""Mounts that nobody serves any more, replaced in every mount namespace by binds of the one that is served again.

A bind mount of a FUSE file system stays dead after its program was started again: it is of the old file system. In a
container's namespace nothing that happens on the host changes that, unless its volume was mounted with propagation.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from volkit.errors import VolkitError
from volkit.host import _mount_options as words
from volkit.host import apart, mounts
from volkit.host._mount_table import Mount, parse_mountinfo
from volkit.host._syscalls import check, function

Device = tuple[int, int]

_CLONE_NEWNS: Final = 0x00020000
_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE})
_SECONDS: Final = 30.0
_setns: Final = function("setns", ctypes.c_int, ctypes.c_int)


def replace_dead(source: str, devices: Collection[Device]) -> int:
    """Replace every dead mount of the file systems `devices` ((major, minor) each) by a bind of `source`, a directory
    that is mounted anew; returns how many were replaced.

    Mounts of a directory inside keep it, and all keep their options. Those of other mount namespaces are found through
    their processes, which takes the host's pid namespace. What cannot be replaced stays as it is.
    """
    replaced = 0
    here = os.readlink("/proc/self/ns/mnt")
    for pid in one_process_of_each_namespace(here):
        with suppress(VolkitError):
            replaced += apart.once(_replace_there, pid, source, tuple(devices), timeout=_SECONDS)
    return replaced


def one_process_of_each_namespace(first: str) -> Iterator[int]:
    """This process, and one of each mount namespace but `first`, this process's own (the link /proc/PID/ns/mnt)."""
    yield os.getpid()
    seen = {first}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                yield int(name)


def _replace_there(pid: int, source: str, devices: Collection[Device]) -> int:
    """In a process of its own: it enters the mount namespace of `pid`, and stays there."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        table = [one for one in parse_mountinfo(file.read()) if one.device in devices]
    copies = [(one, mounts.copy(source + one.root.rstrip("/"), _attributes(one))) for one in table]
    if not copies:
        return 0
    descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    check(_setns(descriptor, _CLONE_NEWNS), "setns")
    replaced = 0
    for one, copy in copies:
        with suppress(VolkitError, OSError):
            if _is_dead(one.mount_point):
                mounts.unmount_top(one.mount_point, lazy=True)
                mounts.attach(copy, one.mount_point)
                replaced += 1
    return replaced


def _attributes(mount: Mount) -> tuple[int, int]:
    return words.attributes([word for word in mount.options if word in ("ro", "nosuid", "nodev", "noexec")])


def _is_dead(path: str) -> bool:
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in _DEAD
    return False
