"""File systems on block devices: make, check, grow, measure. One row per type in SUPPORTED.

```python
filesystems.probe("/dev/loop3").state                # State.BLANK
filesystems.make("/dev/loop3", "ext4", timeout=60)   # NotBlank unless there is proof that nothing is on it
filesystems.check("/dev/loop3", "ext4", timeout=60)  # before a mount; no program is run where it is clean
filesystems.grow("/dev/loop3", "ext4", "/mnt", timeout=60)
```

Only a caller who recorded that this device may be formatted calls `make`: a blank device is necessary, not
sufficient.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Final

from attrs import frozen

from volkit.errors import (
    FailedPrecondition,
    NotBlank,
    OutOfRange,
    Unavailable,
    UnsupportedVolume,
)
from volkit.host import _block, _superblock, process
from volkit.host._syscalls import encoded, refusal
from volkit.host.probe import Probe, State, Unreadable, probe, probe_open
from volkit.model import Usage, Value

__all__ = [
    "SUPPORTED", "FileSystem", "Probe", "State", "Unreadable", "check", "grow", "make", "mount_options",
    "needs_growth", "probe", "remove_lost_found", "size", "supported", "usage",
]  # fmt: skip

MIB: Final = 1 << 20
_XFS_GEOMETRY_V1: Final = 0x80705864  # XFS_IOC_FSGEOMETRY_V1, xfs_fs.h
_XFS_GEOMETRY: Final = struct.Struct("=8I4Q")
_LET_GO_SECONDS: Final = 2.0
_BTRFS_SYSFS: Final = "/sys/fs/btrfs"


@frozen(kw_only=True, eq=False, repr=False)
class FileSystem(Value):
    """One type: how it is made, what it needs, and how it grows.

    `make` are the words before the device, `force` those that make mkfs write over a former attempt, `fresh`
    those for a device known to read as zeros. `smallest` is the least size in bytes, `package` the Debian
    package of its programs. `check`, with device and seconds, makes it fit for a mount and tells whether it
    repaired something; None where mounting does that. `grow_mounted` takes device, mount point and seconds,
    `grow_unmounted` device and seconds; None where the type cannot. Below `grows_from` bytes it cannot either.
    """

    make: tuple[str, ...]
    force: tuple[str, ...] = ()
    fresh: Callable[[], tuple[str, ...]] = tuple
    smallest: int
    package: str
    check: Callable[[str, float], bool] | None = None
    grow_mounted: Callable[[str, str, float], None]
    grow_unmounted: Callable[[str, float], None] | None = None
    grows_from: int = 0
    mount_options: tuple[str, ...] = ()


def supported(fs_type: str) -> FileSystem:
    """The row of the type. Raises UnsupportedVolume that lists the types there are."""
    try:
        return SUPPORTED[fs_type]
    except KeyError:
        raise UnsupportedVolume(
            f"file system type {fs_type!r} is not one of {', '.join(SUPPORTED)}"
        ) from None


def make(
    device: str,
    fs_type: str,
    *,
    zeroed: bool = False,
    options: Sequence[str] = (),
    over_partial: bool = False,
    found: Probe | None = None,
    intend: Callable[[], object] | None = None,
    timeout: float,
) -> None:
    """Makes a file system on a blank device, and returns when it is durably there.

    `zeroed` says that the whole device reads as zeros (a new sparse file), which spares writing zeros once
    more. `options` are more words for mkfs. `over_partial` is for who finds his own record of having begun:
    what a killed mkfs of the same type left is then written over, nothing else is. `found` is what a probe
    said just now, where the caller holds the volume since then; without it the device is probed here. `intend` is
    called right before mkfs: nothing was written yet, and nothing but mkfs itself refuses any more.

    Raises NotBlank where anything else is on the device, Unreadable where that cannot be told, OutOfRange
    below the type's least size, InUse, FailedPrecondition for a read-only device or with mkfs' words,
    DeadlineExceeded after `timeout` seconds, with the file system half made.
    """
    kind = supported(fs_type)
    # kept open to the end, by mkfs too, which may outlive this process: the number cannot go to another file meanwhile
    with _block.opened(device) as descriptor:
        _require_room(descriptor, device, fs_type)
        partial = _require_blank(found or probe_open(descriptor, device), device, fs_type, over_partial)
        if _block.read_only(descriptor):
            raise FailedPrecondition(f"{device} is read-only: no file system can be made on it")
        _require_unused(descriptor, device, "no file system is made on it")
        argv = [
            *kind.make,
            *(kind.fresh() if zeroed and not partial else ()),
            *(kind.force if partial else ()),
        ]
        if intend is not None:
            intend()
        process.run([*argv, *options, device], timeout=timeout, pass_fds=[descriptor])
        _block.sync(descriptor, device)
        if _superblock.read_open(descriptor, device, fs_type) is None:
            raise Unavailable(
                f"{kind.make[0]} ended well, and {device} has no {fs_type} on it; check the storage"
            )


def _require_room(descriptor: int, device: str, fs_type: str) -> None:
    found, least = _block.size(descriptor), SUPPORTED[fs_type].smallest
    if found and found < least:
        raise OutOfRange(
            f"{device} has {found} bytes, too few for {fs_type}: make the volume at least {least} bytes "
            f"({least // MIB} MiB) or choose another file system"
        )


def _require_blank(found: Probe, device: str, fs_type: str, over_partial: bool) -> bool:
    """Whether a former attempt of the same type is on the device; raises NotBlank for anything else."""
    if found.state is State.BLANK:
        return False
    if over_partial and found.state is State.FILESYSTEM and found.type == fs_type:
        return True
    what = f"{found.type} {found.uuid}".rstrip()
    raise NotBlank(
        f"{device} is not blank: it carries {what}, and no {fs_type} is made over it. "
        "If the content is not needed, erase it by hand (wipefs -a)"
    )


def _require_unused(descriptor: int, device: str, refused: str) -> None:
    """Raises InUse."""

    def look(flags: int) -> None:
        with process.starting:
            os.close(_block.open_device(device, flags))

    number = _block.number(descriptor)
    _block.when_unused(device, number, look, wait=_LET_GO_SECONDS, refused=f", {refused}")


@cache
def _ext4_on_zeros() -> tuple[str, ...]:
    """e2fsprogs 1.47 can be told that the device reads as zeros; older ones end with "Bad option(s)"."""
    found = process.run(["mke2fs", "-V"], timeout=10).stderr.split()
    version = found[1].decode("ascii", "replace").split(".") if len(found) > 1 else []
    numbers = tuple(int(part) for part in version[:2] if part.isdecimal())
    words = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    return ("-E", f"{words},assume_storage_prezeroed=1" if numbers >= (1, 47) else words)


def check(device: str, fs_type: str, *, timeout: float = 300) -> bool:
    """Makes an unmounted file system fit for a mount: True where something was to repair, and it was
    repaired.

    ext3 and ext4 are checked (e2fsck -p) where the superblock asks for it; a clean one costs one read. xfs
    and btrfs replay their log when they are mounted; xfs_repair is never run by itself, since it may drop
    what the log holds. A read-only device is left alone: a dirty one cannot be mounted without "noload"
    (ext4) or "norecovery" (xfs). Nothing is done for types that volkit does not make.

    Raises FailedPrecondition with the output for what only a person should repair, and for a btrfs whose twin
    of the same fsid is mounted on a kernel that takes both for one; InUse for a mounted ext file system that
    is not clean; FailedPrecondition also where an ext or btrfs is expected and not there.
    """
    kind = SUPPORTED.get(fs_type)
    return kind.check(device, timeout) if kind and kind.check else False


def _check_ext(device: str, timeout: float) -> bool:
    with _block.opened(device) as descriptor:
        found = _superblock.read_open(descriptor, device, "ext4")
        if found is None:
            raise FailedPrecondition(f"{device} has no ext file system")
        if found.clean or _block.read_only(descriptor):
            return False
        _require_unused(descriptor, device, "it is not checked")
        return _e2fsck(descriptor, device, "-p", timeout=timeout)


def _e2fsck(descriptor: int, device: str, *words: str, timeout: float) -> bool:
    """Whether it repaired something. The exit status is a sum of bits (man 8 e2fsck)."""
    argv = ["e2fsck", *words, device]
    result = process.run(argv, timeout=timeout, ok=range(256), pass_fds=[descriptor])
    output = (result.text + result.stderr.decode("utf-8", "replace")).strip()[-2000:]
    if result.returncode & 4:
        raise FailedPrecondition(
            f"{device} has errors that are not safe to repair unattended: {output}. "
            f"Copy the device, then run e2fsck -f {device} by hand"
        )
    if result.returncode & ~3:
        raise FailedPrecondition(f"e2fsck of {device} failed (status {result.returncode}): {output}")
    return bool(result.returncode & 3)


def _check_btrfs(device: str, timeout: float) -> bool:
    del timeout  # nothing is run
    with _block.opened(device) as descriptor:
        found = _superblock.read_open(descriptor, device, "btrfs")
        if found is None:
            raise FailedPrecondition(f"{device} has no btrfs")
        _require_no_twin(_block.sysfs(_block.number(descriptor)), device, found.uuid)
    return False


def _require_no_twin(place: str, device: str, fsid: str) -> None:
    """Linux 6.7 gives a cloned btrfs an fsid of its own while it is mounted; before, the twin's data would be
    shown.
    """
    if os.path.exists(f"{_BTRFS_SYSFS}/features/temp_fsid"):
        return
    try:
        mounted = os.listdir(f"{_BTRFS_SYSFS}/{fsid}/devices")
    except OSError:
        return
    name = os.path.basename(os.path.realpath(place))
    if name not in mounted:
        raise FailedPrecondition(
            f"{device} is a copy of the btrfs {fsid}, mounted from /dev/{', /dev/'.join(sorted(mounted))}: "
            "before Linux 6.7 a node cannot mount two of one fsid; use them on two nodes, or use ext4 or xfs"
        )


def grow(device: str, fs_type: str, mount_point: str | None = None, *, timeout: float = 300) -> bool:
    """Grows the file system to its device's size: True where there was something to grow. No program is run
    otherwise.

    With a mount point it grows while mounted, without one it must not be mounted, which only ext3 and ext4
    can do.

    Raises FailedPrecondition with what to do where the file system or the kernel refuses: to grow a mounted
    ext4 takes CAP_SYS_RESOURCE, an unmounted one does not.
    """
    kind = supported(fs_type)
    if not needs_growth(device, fs_type, mount_point):
        return False
    if mount_point is not None:
        kind.grow_mounted(device, mount_point, timeout)
    elif kind.grow_unmounted is not None:
        kind.grow_unmounted(device, timeout)
    else:
        raise FailedPrecondition(
            f"{fs_type} on {device} grows only while it is mounted: mount it, then grow it"
        )
    return True


def needs_growth(device: str, fs_type: str, mount_point: str | None = None) -> bool:
    """Whether the device has room for at least one block more than its file system uses, and is large enough
    for its type to grow at all.
    """
    with _block.opened(device) as descriptor:
        room = _block.size(descriptor)
    found, block_size = _measure(device, fs_type, mount_point)
    return room - found >= block_size and room >= SUPPORTED[fs_type].grows_from


def size(device: str, fs_type: str, mount_point: str | None = None) -> int:
    """The file system's size in bytes, from its superblock. A mounted xfs or btrfs is asked itself, so give
    the mount point: what it has on the device may be older.
    """
    return _measure(device, fs_type, mount_point)[0]


def _measure(device: str, fs_type: str, mount_point: str | None) -> tuple[int, int]:
    """Size and block size in bytes."""
    supported(fs_type)
    if mount_point is not None and fs_type == "xfs":
        return _xfs_mounted(mount_point)
    if mount_point is not None and fs_type == "btrfs":
        found = _statvfs(mount_point)
        return found.f_blocks * found.f_frsize, found.f_frsize
    superblock = _superblock.read(device, fs_type)
    if superblock is None:
        raise FailedPrecondition(f"{device} has no {fs_type}")
    return superblock.size, superblock.block_size


def _xfs_mounted(mount_point: str) -> tuple[int, int]:
    try:
        descriptor = os.open(encoded(mount_point), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            data = fcntl.ioctl(descriptor, _XFS_GEOMETRY_V1, bytes(112))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refusal(error, f"cannot ask the xfs at {mount_point} for its size") from error
    block_size, *_, blocks, _, _, _ = _XFS_GEOMETRY.unpack_from(data)
    return blocks * block_size, block_size


def _grow_ext_mounted(device: str, mount_point: str, timeout: float) -> None:
    try:
        process.run(["resize2fs", device], timeout=timeout)
    except process.ProcessFailed as error:
        if "Permission denied" not in error.stderr:
            raise
        raise FailedPrecondition(
            f"the kernel refuses to grow the ext file system on {device}: to resize it while it is mounted "
            f"(at {mount_point}) takes CAP_SYS_RESOURCE, which this process does not have. Give the driver "
            "that capability, or stop what uses the volume: an offline expansion, unmounted, works without it"
        ) from error


def _grow_ext_unmounted(device: str, timeout: float) -> None:
    with _block.opened(device) as descriptor:
        _require_unused(descriptor, device, "it is not grown")
        _e2fsck(
            descriptor, device, "-f", "-p", timeout=timeout
        )  # resize2fs insists on a check since the last mount
        process.run(["resize2fs", device], timeout=timeout, pass_fds=[descriptor])
        _block.sync(descriptor, device)


def _grow_xfs(_: str, mount_point: str, timeout: float) -> None:
    process.run(["xfs_growfs", "-d", mount_point], timeout=timeout)


def _grow_btrfs(_: str, mount_point: str, timeout: float) -> None:
    process.run(["btrfs", "filesystem", "resize", "max", mount_point], timeout=timeout)


def usage(path: str) -> Usage:
    """How much of the file system that holds `path` is used (statvfs(3)). A hung network file system hangs
    the call.
    """
    found = _statvfs(path)
    return Usage(
        total=found.f_blocks * found.f_frsize,
        used=(found.f_blocks - found.f_bfree) * found.f_frsize,
        available=found.f_bavail * found.f_frsize,
        total_inodes=found.f_files,
        used_inodes=found.f_files - found.f_ffree,
        available_inodes=found.f_favail,
    )


def _statvfs(path: str) -> os.statvfs_result:
    try:
        return os.statvfs(encoded(path))
    except OSError as error:
        raise refusal(error, f"cannot read the usage of {path}") from error


def remove_lost_found(mount_point: str) -> None:
    """Takes away the lost+found of an ext file system that has nothing else in it: only in an empty directory does a
    database begin, and only into one does Docker copy what an image has there. e2fsck makes it again where it needs it
    (e2fsck/pass3.c).
    """
    with suppress(OSError):  # it may stay
        if os.listdir(mount_point) == ["lost+found"]:
            os.rmdir(f"{mount_point}/lost+found")


def mount_options(fs_type: str, *, read_only: bool = False) -> tuple[str, ...]:
    """The mount options that the type needs with volumes that may be copies of each other.

    xfs refuses a second file system of the same UUID on a node, so it gets `nouuid`. A read-only mount on a
    writable device still replays a dirty log; on a read-only device (a snapshot taken while in use) that
    fails, and it takes an explicit "norecovery" (xfs) or "noload" (ext4), which shows the last state that was
    on the device.
    """
    kind = SUPPORTED.get(fs_type)
    return (*(("ro",) if read_only else ()), *(kind.mount_options if kind else ()))


# 4 KiB blocks also where mke2fs would take 1 KiB: no sector is read, changed and written back by direct I/O
_EXT: Final = ("-F", "-q", "-m0", "-b", "4096", "-E", "lazy_itable_init=1,nodiscard")

SUPPORTED: Final[Mapping[str, FileSystem]] = {
    "ext4": FileSystem(
        make=("mkfs.ext4", *_EXT),
        fresh=_ext4_on_zeros,
        smallest=8 * MIB,  # below, mke2fs leaves the journal out
        package="e2fsprogs",
        check=_check_ext,
        grow_mounted=_grow_ext_mounted,
        grow_unmounted=_grow_ext_unmounted,
    ),
    "ext3": FileSystem(
        make=("mkfs.ext3", *_EXT),
        smallest=8 * MIB,  # below, mke2fs leaves the journal out
        package="e2fsprogs",
        check=_check_ext,
        grow_mounted=_grow_ext_mounted,
        grow_unmounted=_grow_ext_unmounted,
    ),
    "xfs": FileSystem(
        make=("mkfs.xfs", "-q", "-K"),
        force=("-f",),
        smallest=300 * MIB,
        package="xfsprogs",
        grow_mounted=_grow_xfs,
        mount_options=("nouuid",),
    ),
    "btrfs": FileSystem(
        make=("mkfs.btrfs", "-q", "-K"),
        force=("-f",),
        smallest=109 * MIB,
        package="btrfs-progs",
        check=_check_btrfs,
        grow_mounted=_grow_btrfs,
        grows_from=256 * MIB,  # the kernel resizes no smaller one (fs/btrfs/ioctl.c)
    ),
}
"""The file systems that volkit makes, checks and grows."""
