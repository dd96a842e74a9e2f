"""What is mounted where: statx(2) and statmount(2) for one path, the text of /proc/self/mountinfo for all of
them.

One path is answered in the same time whether ten or ten thousand mounts are there. All of them are read from
mountinfo: one text costs less than one statmount call each. Public names are reached through
`volkit.host.mounts`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

from attrs import frozen

from volkit.host._syscalls import (
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_STATX_DONT_SYNC,
    AT_SYMLINK_NOFOLLOW,
    encoded_place,
    kernel_has,
    refusal,
    system_call,
)
from volkit.model import Value

CORRUPTED: Final = frozenset({errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EHOSTDOWN, errno.EACCES})
"""What stat(2) says of a mount whose server or FUSE process is gone (EACCES: a FUSE mount of another user).
"""

STATX_TYPE: Final = 0x1
STATX_INO: Final = 0x100
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_STATX_NUMBERS: Final = {"x86_64": 332, "s390x": 379, "ppc64le": 383}  # 291 on arm64 and all later ports

# struct statx (linux/stat.h): mask, attributes, mode, ino, attributes_mask, rdev, dev, mnt_id
_STATX: Final = struct.Struct("=I4xQ12xH2xQ16xQ64xIIIIQ")
_statx: Final = system_call(
    _STATX_NUMBERS.get(os.uname().machine, 291),
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p,
)  # fmt: skip

_STATMOUNT_MASK: Final = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x80 | 0x100 | 0x200
_STATMOUNT_SB_SOURCE: Final = 0x200
# struct statmount (linux/mount.h): size, mnt_opts, mask, sb_dev, sb_flags, fs_type, ids of reuse, mnt_attr,
# mnt_propagation, mnt_root, mnt_point, fs_subtype, sb_source
_STATMOUNT: Final = struct.Struct("=IIQII8xII16xIIQQ24xII8xII")
_STATMOUNT_STRINGS: Final = 512
_MNT_ID_REQ: Final = struct.Struct("=IIQQ")
_statmount: Final = system_call(457, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint)

_MOUNT_ATTR_WORDS: Final = (
    (0x2, "nosuid"),
    (0x4, "nodev"),
    (0x8, "noexec"),
    (0x10, "noatime"),
    (0x80, "nodiratime"),
)
_SB_WORDS: Final = ((16, "sync"), (128, "dirsync"), (1 << 25, "lazytime"))
_MS_UNBINDABLE, _MS_SLAVE, _MS_SHARED = 1 << 17, 1 << 19, 1 << 20

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_DELETED: Final = "//deleted"


@frozen(kw_only=True, eq=False, repr=False)
class Mount(Value):
    """One mount of this process's mount namespace, as proc(5) describes a line of mountinfo.

    `id` and `parent_id` are mountinfo's, which the kernel reuses after an unmount. `device` is (major, minor)
    of the file system; `root` the path inside it that is mounted, and `deleted` says that this path was
    removed since. `options` are the mount's own (`ro`, `nosuid` …), `super_options` those of the file system
    behind it, shared with its other mounts. `propagation` is "private", "shared", "slave", "shared,slave" or
    "unbindable".
    """

    id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    mount_point: str
    fs_type: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...] = ()
    propagation: str = "private"
    deleted: bool = False

    @property
    def read_only(self) -> bool:
        """Nothing can be written through this mount."""
        return "ro" in self.options or "ro" in self.super_options


@frozen(eq=False, repr=False)
class PathStatus(Value):
    """What statx says of a path; `device` is of its file system, `rdev` of a device node: (major, minor)."""

    mode: int
    inode: int
    device: tuple[int, int]
    rdev: tuple[int, int]
    mount_root: bool | None
    mount_id: int
    unique_mount_id: int


def status(path: str, mask: int = 0) -> PathStatus:
    """statx of `path` itself: a final symbolic link is not followed, nothing is mounted. Raises OSError.

    `mask` names the fields the file system shall know (`STATX_TYPE`, `STATX_INO`); without it even the root
    of a dead FUSE mount answers. `mount_root` is None where the kernel (before 5.8) cannot tell.
    """
    buffer = ctypes.create_string_buffer(256)
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
    if (
        _statx(AT_FDCWD, encoded_place(path), flags, mask | _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, buffer)
        == -1
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    got, attributes, mode, inode, known, *devices, mount_id = _STATX.unpack_from(buffer)
    return PathStatus(
        mode=mode,
        inode=inode,
        device=(devices[2], devices[3]),
        rdev=(devices[0], devices[1]),
        mount_root=bool(attributes & _STATX_ATTR_MOUNT_ROOT) if known & _STATX_ATTR_MOUNT_ROOT else None,
        mount_id=mount_id if got & _STATX_MNT_ID and not got & _STATX_MNT_ID_UNIQUE else 0,
        unique_mount_id=mount_id if got & _STATX_MNT_ID_UNIQUE else 0,
    )


def is_mount_point(path: str) -> bool:
    """Whether something is mounted at `path`, a directory, a file or a device node.

    A final symbolic link is not followed. False where the path does not exist; True for a mount whose server
    or FUSE process is gone. The cost does not depend on the number of mounts (statx, Linux 5.8; the mount
    table before that). No attribute is fetched from a remote server, yet the path is walked by the kernel,
    which may wait for a server that hangs (NFS). Raises a VolkitError where the path cannot be walked.
    """
    try:
        mount_root = status(path).mount_root
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        if error.errno not in CORRUPTED:
            raise refusal(error, f"cannot tell whether {path} is a mount point") from None
        mount_root = None
    return mount_root if mount_root is not None else _find_in_table(path) is not None


def mount_at(path: str) -> Mount | None:
    """The mount whose root is at `path`, the topmost of a stack; None where nothing is mounted there.

    A final symbolic link is not followed. Raises a VolkitError where the path cannot be walked.
    """
    try:
        here = status(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno not in CORRUPTED:
            raise refusal(error, f"cannot tell what is mounted at {path}") from None
        return _find_in_table(path)
    if here.mount_root is False:
        return None
    if here.unique_mount_id and has_statmount():
        return _describe(here.unique_mount_id)
    return _find_in_table(path)


def mounts(*, under: str | None = None, device: tuple[int, int] | None = None) -> list[Mount]:
    """Every mount this process sees, or those at and below `under`, or of the file system on `device`.

    `device` is (major, minor). The cost is one reading of the table, 0.5 ms for each thousand mounts.
    In the kernel's order, which says nothing about what is mounted on what: see `parent_id`.
    """
    top = _resolved(under).rstrip("/") if under is not None else ""
    needle = b" %d:%d " % device if device is not None else b" " + escape(top)
    return [
        mount
        for mount in _matching(_read_table(), needle)
        if (device is None or mount.device == device)
        and (not top or mount.mount_point == top or mount.mount_point.startswith(top + "/"))
    ]


def of_process(pid: int) -> list[Mount]:
    """Every mount that another process sees, in its mount namespace; none where it is gone or may not be looked at."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
            return parse_mountinfo(file.read())
    except OSError:
        return []


def parse_mountinfo(data: bytes) -> list[Mount]:
    """The mounts in the text of a /proc/PID/mountinfo.

    A line cut short, such as a last one without its newline, is left out.
    """
    return list(_matching(data, b" - "))


def escape(path: str) -> bytes:
    """The path as mountinfo writes it: blank, tab, newline and backslash in octal."""
    raw = os.fsencode(path)
    for character in b"\\ \t\n":
        raw = raw.replace(bytes([character]), b"\\%03o" % character)
    return raw


def unescape(field: bytes) -> str:
    """A field of mountinfo as it was before `escape`."""
    if b"\\" in field:
        field = _ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field)
    return os.fsdecode(field)


def _read_table() -> bytes:
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        return file.read()


def _matching(data: bytes, needle: bytes) -> Iterator[Mount]:
    """The mounts of the whole lines that contain `needle` somewhere; the caller checks the field."""
    whole = data.rfind(b"\n") + 1
    at = data.find(needle, 0, whole)
    while at != -1:
        start, stop = data.rfind(b"\n", 0, at) + 1, data.index(b"\n", at)
        mount = _parse(data[start:stop])
        if mount is not None:
            yield mount
        at = data.find(needle, stop, whole)


def _parse(line: bytes) -> Mount | None:
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)  # after the tags, of which there are any number
        fs_type, source, super_options = fields[dash + 1 : dash + 4]
        major, minor = fields[2].split(b":")
        root = unescape(fields[3])
        deleted = root.endswith(_DELETED)
        return Mount(
            id=int(fields[0]),
            parent_id=int(fields[1]),
            device=(int(major), int(minor)),
            root=root.removesuffix(_DELETED),
            mount_point=unescape(fields[4]),
            fs_type=unescape(fs_type),
            source=unescape(source),
            options=_words(fields[5]),
            super_options=_words(super_options),
            propagation=_propagation(fields[6:dash]) if dash > 6 else "private",
            deleted=deleted,
        )
    except ValueError:
        return None


def _words(field: bytes) -> tuple[str, ...]:
    return tuple(map(unescape, field.split(b","))) if b"\\" in field else tuple(os.fsdecode(field).split(","))


def _propagation(tags: list[bytes]) -> str:
    names = {tag.partition(b":")[0] for tag in tags}
    words = [
        word
        for tag, word in ((b"shared", "shared"), (b"master", "slave"), (b"unbindable", "unbindable"))
        if tag in names
    ]
    return ",".join(words) or "private"


def spelled(paths: Sequence[str]) -> list[str]:
    """The paths as the mount table has them: links in their parents resolved. It walks them, and waits for a server
    that hangs above one.
    """
    return [_resolved(path) for path in paths]


def _resolved(path: str) -> str:
    """The path as the mount table spells it: links in its parents resolved, its last component as it is."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name) if name else parent


def _find_in_table(path: str) -> Mount | None:
    """The topmost mount at `path` by the mount table alone."""
    point = _resolved(path)
    candidates = _matching(_read_table(), b" " + escape(point) + b" ")
    here = [mount for mount in candidates if mount.mount_point == point]
    below = {mount.parent_id for mount in here}
    return next((mount for mount in here if mount.id not in below), None)


@cache
def has_statmount() -> bool:
    """Whether the kernel describes one mount by its id (statmount, Linux 6.8) and names its source (6.13)."""
    buffer = ctypes.create_string_buffer(4096)
    root = status("/").unique_mount_id
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, root, _STATMOUNT_MASK)
    if not root or not kernel_has(result := _statmount(request, buffer, len(buffer), 0)) or result == -1:
        return False
    return bool(_STATMOUNT.unpack_from(buffer)[2] & _STATMOUNT_SB_SOURCE)


def _describe(unique_id: int) -> Mount | None:
    """The mount of this id by statmount; None where it went away meanwhile."""
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, unique_id, _STATMOUNT_MASK)
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        if _statmount(request, buffer, size, 0) != -1:
            return _decode(buffer)
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return None
        if number != errno.EOVERFLOW:
            raise refusal(OSError(number, ""), f"cannot read mount {unique_id}")
        size *= 4


def _decode(buffer: ctypes.Array[ctypes.c_char]) -> Mount:
    raw = buffer.raw
    (
        _,
        opts,
        mask,
        major,
        minor,
        sb_flags,
        fs_type,
        own,
        parent,
        attributes,
        spread,
        root,
        point,
        subtype,
        source,
    ) = _STATMOUNT.unpack_from(raw)

    def text(bit: int, offset: int) -> str:
        start = _STATMOUNT_STRINGS + offset
        return os.fsdecode(raw[start : raw.index(0, start)]) if mask & bit else ""

    inner = text(0x8, root)
    kind, kind_suffix = text(0x20, fs_type), text(0x100, subtype)
    return Mount(
        id=own,
        parent_id=parent,
        device=(major, minor),
        root=inner.removesuffix(_DELETED),
        mount_point=text(0x10, point),
        fs_type=f"{kind}.{kind_suffix}" if kind_suffix else kind,
        source=text(_STATMOUNT_SB_SOURCE, source) or "none",
        options=_attribute_words(attributes),
        super_options=_super_words(sb_flags, text(0x80, opts)),
        propagation=_propagation_of(spread),
        deleted=inner.endswith(_DELETED),
    )


def _attribute_words(attributes: int) -> tuple[str, ...]:
    """The words of mountinfo's option field, in its order."""
    words = ["ro" if attributes & 0x1 else "rw"]
    words += [word for bit, word in _MOUNT_ATTR_WORDS if attributes & bit]
    if not attributes & 0x70:
        words.append("relatime")
    words += [word for bit, word in ((0x200000, "nosymfollow"), (0x100000, "idmapped")) if attributes & bit]
    return tuple(words)


def _super_words(flags: int, options: str) -> tuple[str, ...]:
    # unlike statmount's other strings, the file system's options come with mountinfo's escapes
    words = ["ro" if flags & 0x1 else "rw", *(word for bit, word in _SB_WORDS if flags & bit)]
    return (*words, *_words(os.fsencode(options))) if options else tuple(words)


def _propagation_of(flags: int) -> str:
    words = [
        word
        for bit, word in ((_MS_SHARED, "shared"), (_MS_SLAVE, "slave"), (_MS_UNBINDABLE, "unbindable"))
        if flags & bit
    ]
    return ",".join(words) or "private"
