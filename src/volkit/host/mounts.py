"""Mount, bind, unmount, and ask what is mounted: direct system calls, no program is run.

```python
mounts.mount("/dev/loop3", staging, "ext4", ["noatime"])
mounts.bind(staging, target, read_only=True)
mounts.is_mount_point(target)  # True, at the same cost whether ten or ten thousand mounts are there
mounts.unmount(target)
```

A target is never reached through a symbolic link as its last component: what a pod's user put there cannot
lead a mount astray. Every function raises a `volkit.errors.VolkitError`; mount options are never part of its
text.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Final, Literal

from volkit.errors import FailedPrecondition, InUse, InvalidArgument, NotFound, VolkitError
from volkit.host import _mount_options as words
from volkit.host._mount_refusal import why_not_mounted
from volkit.host._mount_table import (
    CORRUPTED,
    STATX_INO,
    STATX_TYPE,
    Mount,
    is_mount_point,
    mount_at,
    mounts,
    of_process,
    parse_mountinfo,
    spelled,
    status,
)
from volkit.host._syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    encoded,
    encoded_place,
    function,
    kernel_has,
    refusal,
    system_call,
)

__all__ = [
    "Mount", "attach", "bind", "bound_at", "copy", "is_mount_point", "mount", "mount_at", "mount_program",
    "mounted_from", "mounts", "move", "of_process", "parse_mountinfo", "remount", "same_mount", "set_propagation",
    "spelled", "unmount", "unmount_top",
]  # fmt: skip

_UMOUNT_NOFOLLOW: Final = 8
_MNT_DETACH: Final = 2
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_MOUNT_ATTR: Final = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, user namespace

_text, _int, _uint = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint
_mount: Final = function("mount", _text, _text, _text, ctypes.c_ulong, _text)
_umount2: Final = function("umount2", _text, _int)
_open_tree: Final = system_call(428, _int, _text, _uint)
_move_mount: Final = system_call(429, _int, _text, _int, _text, _uint)
_mount_setattr: Final = system_call(442, _int, _text, _uint, _text, ctypes.c_size_t)

_NOT_MOUNTED: Final = frozenset({errno.EINVAL, errno.ENOENT, errno.ENOTDIR}) | CORRUPTED
_STACK_LIMIT: Final = 200_000
_BUSY_PAUSES: Final = (0.005, 0.02)
_UNSEEN_SECONDS: Final = 1.0

_PROPAGATION: Final = {
    "private": words.MS_PRIVATE,
    "shared": words.MS_SHARED,
    "slave": words.MS_SLAVE,
    "unbindable": words.MS_UNBINDABLE,
}


def mount(source: str, target: str, fs_type: str, options: Sequence[str] = ()) -> None:
    """Mount the file system `fs_type` of `source` at `target`, a directory that exists.

    `options` are mount(8) words, each one option, such as `["ro", "noatime", "data=ordered"]`; words that
    only programs read (`nofail`, `_netdev`, `x-…`) are left out. No mount helper is run: where
    `mount_program(fs_type)` names one (NFS, CIFS, FUSE), that program does what this call cannot. A refused
    option is named by its key (fsconfig(2)).
    """
    flags, data = words.flags_and_data(options)
    with _pinned(target) as place:
        if _mount(encoded(source), place, encoded(fs_type), flags, encoded(data)) == -1:
            raise why_not_mounted(ctypes.get_errno(), source, target, fs_type, options)


def mount_program(fs_type: str) -> str | None:
    """The program that mount(8) would run for this type (`/sbin/mount.TYPE`); None where there is none."""
    for directory in ("/sbin", "/usr/sbin"):
        program = f"{directory}/mount.{fs_type}"
        if "/" not in fs_type and os.access(program, os.X_OK):
            return program
    return None


def bind(source: str | int, target: str, *, read_only: bool = False, options: Sequence[str] = ()) -> None:
    """Make the directory, file or device node `source` visible at `target` too, without the mounts below it.

    `source` is a path, of which a final symbolic link is followed, or an open descriptor (O_PATH will do):
    what was checked is then what is bound. `target` is of the same sort, directory or not. `options` are
    those of one mount (`nosuid`, `nodev`, `noexec`, `noatime` …); the others are the source's. On Linux 5.12
    and later a read-only bind is read-only before it is visible; before that it is writable for the moment
    between two calls.
    """
    wanted = [*options, "ro"] if read_only else list(options)
    setting, clearing = words.attributes(wanted)
    if has_mount_setattr():
        _bind_detached(source, target, setting, clearing)
    else:
        _bind_and_remount(source, target, wanted)


def remount(target: str, *, read_only: bool) -> None:
    """Make the mount at `target` read-only or writable; its other options and other mounts stay as they are.

    Raises NotFound where nothing is mounted, InUse where a file is open for writing, FailedPrecondition where
    the file system itself is read-only and so no mount of it can be writable.
    """
    here = mount_at(target)
    if here is None:
        raise NotFound(f"nothing is mounted at {target}")
    if not read_only and "ro" in here.super_options:
        raise FailedPrecondition(f"the file system at {target} is itself read-only: mount it writable first")
    if has_mount_setattr():
        setting, clearing = words.attributes(["ro" if read_only else "rw"])
        result = _set_attributes(AT_FDCWD, encoded_place(target), AT_SYMLINK_NOFOLLOW, setting, clearing)
    else:
        flags = words.bind_flags([*here.options, "ro" if read_only else "rw"])
        with _pinned(target) as place:
            result = _mount(b"none", place, None, words.MS_REMOUNT | words.MS_BIND | flags, None)
    if result == -1:
        raise _refused(f"cannot remount {target} {'read-only' if read_only else 'writable'}")


def move(source: str, target: str) -> None:
    """Move the mount at `source`, with those below it, to `target`.

    The kernel refuses this where the mount that `source` lies in is shared, as systemd makes `/`
    (mount_namespaces(7)): bind and unmount instead, or work in a directory with private propagation
    (`set_propagation`).
    """
    if not is_mount_point(source):
        raise NotFound(f"nothing is mounted at {source}")
    origin = encoded_place(source)
    with _opened(target) as descriptor:
        if has_move_mount():
            result = _move_mount(AT_FDCWD, origin, descriptor, b"", _MOVE_MOUNT_T_EMPTY_PATH)
        else:
            result = _mount(origin, _magic_link(descriptor), None, words.MS_MOVE, None)
        if result == -1:
            hint = (
                " (the mount that it lies in is shared, or the target is below it)"
                if ctypes.get_errno() == errno.EINVAL
                else ""
            )
            raise _refused(f"cannot move the mount at {source} to {target}{hint}")


def unmount(target: str, *, lazy: bool = False) -> bool:
    """Remove every mount stacked at `target`, dead ones too; False where nothing was mounted.

    Believed only after statx or the mount table says so. Raises InUse, which names who holds it as far as
    this process can see. `lazy` (MNT_DETACH) takes the mount out of sight at once and lets its users finish.
    A final symbolic link is not followed. A network or FUSE file system may make the call wait for its
    server.
    """
    path = encoded_place(target)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    for removed in range(_STACK_LIMIT):
        number = _unmount_top(path, flags)
        if number in _NOT_MOUNTED:
            if not is_mount_point(target):
                return removed > 0
            if number in CORRUPTED:
                raise refusal(OSError(number, ""), f"cannot reach {target}, which is mounted")
            raise FailedPrecondition(f"{target} is mounted, and this mount namespace may not unmount it")
        if number:
            raise refusal(OSError(number, ""), f"cannot unmount {target}")
    raise FailedPrecondition(
        f"{target} is still mounted after {_STACK_LIMIT} unmounts: something mounts it again and again"
    )


def bound_at(directory: str) -> list[str]:
    """Where `directory`, or something in it, is mounted too: the targets of its bind mounts in this mount namespace."""
    path, table = os.path.realpath(directory), mounts()
    above = [one for one in table if f"{path}/".startswith(f"{one.mount_point.rstrip('/')}/")]
    here = max(reversed(above), key=lambda one: len(one.mount_point))  # of several at one place the last
    inside = f"{here.root.rstrip('/')}/{path[len(here.mount_point.rstrip('/')) :].strip('/')}".rstrip("/")
    return [
        one.mount_point
        for one in table
        if one.id != here.id and one.device == here.device and f"{one.root}/".startswith(f"{inside}/")
    ]


def same_mount(source: str, target: str) -> bool:
    """Whether what is mounted at `target` is `source`, the same device node or the same directory.

    Directories are compared by device and inode number. False where nothing is mounted at `target` or the
    mount there is dead. `source` may be a link to a device. Raises NotFound where `source` is missing.
    """
    try:
        wanted = status(os.path.realpath(source), STATX_TYPE | STATX_INO)
    except OSError as error:
        raise refusal(error, f"cannot read {source}") from None
    try:
        found = status(target, STATX_TYPE | STATX_INO)
    except OSError as error:
        if error.errno in CORRUPTED or error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise refusal(error, f"cannot read {target}") from None
    mounted = found.mount_root if found.mount_root is not None else is_mount_point(target)
    if stat.S_ISBLK(wanted.mode) and stat.S_ISBLK(found.mode):
        return mounted and wanted.rdev == found.rdev
    return mounted and (wanted.device, wanted.inode) == (found.device, found.inode)


def mounted_from(device: str, target: str) -> bool:
    """Whether the file system mounted at `target` is the one on the block device `device`.

    By the device number of the file system; of btrfs and the like, whose number is no device's, by the source
    of the mount.
    """
    try:
        wanted = os.stat(device)
        if not stat.S_ISBLK(wanted.st_mode):
            return False
        if is_mount_point(target) and os.lstat(target).st_dev == wanted.st_rdev:
            return True  # most file systems have their device's number: no need to read the mount
        here = mount_at(target)
        if here is None or here.device[0] or not here.source.startswith("/"):
            return here is not None and wanted.st_rdev == os.makedev(*here.device)
        return wanted.st_rdev == os.stat(here.source).st_rdev
    except OSError:
        return False


def set_propagation(
    path: str, kind: Literal["private", "shared", "slave", "unbindable"], *, recursive: bool = False
) -> None:
    """Say whether mounts made below the mount at `path` appear in its peers too (mount_namespaces(7)).

    `recursive` says it of every mount below as well.
    """
    with _pinned(path) as place:
        flags = _PROPAGATION[kind] | (words.MS_REC if recursive else 0)
        if _mount(b"none", place, None, flags, None) == -1:
            raise _refused(f"cannot make the mount at {path} {kind}")


@cache
def has_move_mount() -> bool:
    """Whether the kernel has open_tree(2) and move_mount(2) (Linux 5.2)."""
    return kernel_has(_move_mount(-1, b"", -1, b"", 0))


@cache
def has_mount_setattr() -> bool:
    """Whether the kernel has mount_setattr(2) (Linux 5.12)."""
    return kernel_has(_mount_setattr(-1, b"", 0, _MOUNT_ATTR.pack(0, 0, 0, 0), _MOUNT_ATTR.size))


@contextmanager
def _opened(target: str) -> Iterator[int]:
    """A descriptor of the target itself: what is there cannot be exchanged for a link between the check and
    the mount.
    """
    try:
        descriptor = os.open(encoded_place(target), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(error, f"cannot mount at {target}") from None
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise InvalidArgument(f"cannot mount at {target}: it is a symbolic link")
        yield descriptor
    except OSError as error:
        raise refusal(error, f"cannot mount at {target}") from None
    finally:
        os.close(descriptor)


@contextmanager
def _pinned(target: str) -> Iterator[bytes]:
    """A path for mount(2), which would follow a link, that leads to the target itself."""
    with _opened(target) as descriptor:
        yield _magic_link(descriptor)


def _magic_link(descriptor: int) -> bytes:
    return b"/proc/self/fd/%d" % descriptor


def _set_attributes(descriptor: int, path: bytes, flags: int, setting: int, clearing: int) -> int:
    return _mount_setattr(
        descriptor, path, flags, _MOUNT_ATTR.pack(setting, clearing, 0, 0), _MOUNT_ATTR.size
    )


def copy(source: str | int, attributes: tuple[int, int] = (0, 0)) -> int:
    """A detached copy of the mount at `source` (a path, or a descriptor), which `attach` puts somewhere: a descriptor,
    which the caller closes. `attributes` are to set and to clear, as mount_setattr(2) has them.
    """
    start, path = (source, b"") if isinstance(source, int) else (AT_FDCWD, encoded(source))
    tree = _open_tree(start, path, _OPEN_TREE_CLONE | os.O_CLOEXEC | (0 if path else AT_EMPTY_PATH))
    if tree == -1:
        raise _refused(f"cannot copy the mount at {source}")
    if any(attributes) and _set_attributes(tree, b"", AT_EMPTY_PATH, *attributes) == -1:
        number = ctypes.get_errno()
        os.close(tree)
        raise refusal(OSError(number, ""), f"cannot copy the mount at {source}")
    return tree


def attach(tree: int, target: str) -> None:
    """Put what `copy` made at `target`, in the mount namespace that the calling process is in by now."""
    with _opened(target) as place:
        if _move_mount(tree, b"", place, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH) == -1:
            number = ctypes.get_errno()
            sorts = {stat.S_ISDIR(os.fstat(descriptor).st_mode) for descriptor in (tree, place)}
            number = errno.ENOTDIR if len(sorts) == 2 else number  # as mount(2) says it
            raise refusal(OSError(number, ""), f"cannot bind at {target}")


def unmount_top(target: str, *, lazy: bool = False) -> None:
    """Remove the topmost mount at `target` alone; nothing where none is. Raises InUse."""
    number = _unmount_top(encoded_place(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    if number and number not in _NOT_MOUNTED:
        raise refusal(OSError(number, ""), f"cannot unmount {target}")


def _bind_detached(source: str | int, target: str, setting: int, clearing: int) -> None:
    """A detached copy of the source's mount gets its options first and its place last."""
    tree = copy(source, (setting, clearing))
    try:
        attach(tree, target)
    finally:
        os.close(tree)


def _bind_and_remount(source: str | int, target: str, wanted: list[str]) -> None:
    """The same on old kernels: mount(2) takes no options of a bind mount until it is made."""
    origin = _magic_link(source) if isinstance(source, int) else encoded(source)
    with _pinned(target) as place:
        if _mount(origin, place, None, words.MS_BIND, None) == -1:
            raise _refused(f"cannot bind {source} at {target}")
    if not wanted:
        return
    try:
        made = mount_at(target)
        flags = words.bind_flags([*(made.options if made else ()), *wanted])
        with _pinned(target) as place:  # once more, for the new mount and not what lies under it
            if _mount(b"none", place, None, words.MS_REMOUNT | words.MS_BIND | flags, None) == -1:
                raise _refused(f"cannot bind {source} at {target} with {','.join(wanted)}")
    except VolkitError:
        _umount2(encoded_place(target), _UMOUNT_NOFOLLOW)
        raise


def _unmount_top(path: bytes, flags: int) -> int:
    """One umount2: 0 or its errno. Who is just leaving, such as a process being reaped, gets a moment. A longer one
    gets who cannot be seen, since mostly he left while he was looked for, and a child of this process: until it
    executes, it has a copy of every descriptor. Raises InUse.
    """
    pauses, end = iter(_BUSY_PAUSES), time.monotonic() + _UNSEEN_SECONDS
    while _umount2(path, flags) != 0:
        number = ctypes.get_errno()
        if number != errno.EBUSY:
            return number
        pause = next(pauses, 0.0)
        if not pause:
            _refuse_held(os.fsdecode(path), patient=time.monotonic() < end)
        time.sleep(pause or _BUSY_PAUSES[-1])
    return 0


def _refuse_held(target: str, *, patient: bool) -> None:
    """Raises InUse; while it is `patient`, only for who is seen and no child of this process."""
    from volkit.host._holders import holders

    found = holders(target, children=not patient)
    if found or not patient:
        by = ", ".join(found) or "a process or a mount that cannot be seen from here"
        raise InUse(f"cannot unmount {target}: it is used by {by}")


def _refused(sentence: str) -> VolkitError:
    return refusal(OSError(ctypes.get_errno(), ""), sentence)
