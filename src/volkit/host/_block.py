"""An open block device: its size, its place in sysfs, and the attributes that say which device it is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from volkit.errors import InUse, InvalidArgument, NotFound
from volkit.host._syscalls import encoded, refusal

T = TypeVar("T")

SYSFS: Final = "/sys"

BLKROSET: Final = 0x125D
BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
BLKGETSIZE64: Final = 0x80081272
LOOP_GET_STATUS64: Final = 0x4C05
LOOP_MAJOR: Final = 7
LOOP_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")  # struct loop_info64, linux/loop.h

GONE: Final = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV})
"""What opening a device says when there is nothing behind its path any more."""

# The attribute's name here, and where sysfs has it, below the directory of the whole disk.
_ATTRIBUTES: Final = {
    "serial": ("serial", "device/serial", "device/vpd_pg80"),
    "wwid": ("wwid", "device/wwid"),
    "vendor": ("device/vendor",),
    "model": ("device/model",),
    "dm_uuid": ("dm/uuid",),
    "diskseq": ("diskseq",),
}


@contextmanager
def opened(device: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of the block device behind `device`, which may be a symbolic link: see `open_device`."""
    descriptor = open_device(device, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_device(device: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor, for the caller to close.

    Raises NotFound where nothing is there or no device is behind the node, InvalidArgument for what is no
    block device, and what the kernel's reason amounts to (InUse with O_EXCL on a device in use, Unavailable
    on an I/O error). Without O_EXCL another opener is not disturbed, save that a loop device under detachment
    goes only when this descriptor is closed.
    """
    encoded(device)
    try:
        # looked at first: to open a FIFO would block
        mode = os.stat(device).st_mode
        if not stat.S_ISBLK(mode):
            raise InvalidArgument(f"{device} is not a block device but {kind_of_file(mode)}")
        descriptor = os.open(device, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in GONE:
            raise NotFound(f"no device is behind {device}: {os.strerror(error.errno or 0)}") from error
        raise refusal(error, f"cannot open device {device}") from error
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"{device} was replaced by something that is not a block device")
    return descriptor


def when_unused(
    device: str, device_number: tuple[int, int], act: Callable[[int], T], *, wait: float, refused: str
) -> T:
    """Calls `act` with flags that open the device exclusively, until that is not refused with InUse.

    A moment, `wait` seconds at most, is given to who holds it and has no mount of it here: a killed process' mount
    that the kernel still takes down, or the copies of all mounts of a container that just starts. Raises InUse with who
    it is, and the words `refused`.
    """
    end = time.monotonic() + wait
    while True:
        try:
            return act(os.O_RDONLY | os.O_EXCL)
        except InUse as busy:
            if users(device_number) or time.monotonic() > end:
                raise InUse(f"{device} is in use{users(device_number, everywhere=True)}{refused}") from busy
            time.sleep(0.02)


def kind_of_file(mode: int) -> str:
    """A stat mode's file type in words, for an error."""
    kinds = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFCHR: "a character device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def is_block_device(path: str) -> bool:
    """Whether a block device's node is at the path, links followed; nothing is opened."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def number(descriptor: int) -> tuple[int, int]:
    """The device's (major, minor)."""
    rdev = os.fstat(descriptor).st_rdev
    return os.major(rdev), os.minor(rdev)


def sysfs(device_number: tuple[int, int]) -> str:
    """The device's directory in sysfs; for a partition, the partition's own."""
    return f"{SYSFS}/dev/block/{device_number[0]}:{device_number[1]}"


def size(descriptor: int) -> int:
    """The device's size in bytes; 0 for a loop device without a file."""
    return int.from_bytes(_read_ioctl(descriptor, BLKGETSIZE64, 8), "little")


def sector_size(descriptor: int) -> int:
    """The device's logical sector size in bytes."""
    return int.from_bytes(_read_ioctl(descriptor, BLKSSZGET, 4), "little")


def read_only(descriptor: int) -> bool:
    """Whether the device refuses to be written."""
    return any(_read_ioctl(descriptor, BLKROGET, 4))


def set_read_only(descriptor: int, device: str, read_only: bool) -> None:
    """Makes the device refuse writes, or take them again."""
    try:
        fcntl.ioctl(descriptor, BLKROSET, struct.pack("=i", read_only))
    except OSError as error:
        raise refusal(error, f"cannot make {device} {'read-only' if read_only else 'writable'}") from error


def _read_ioctl(descriptor: int, request: int, length: int) -> bytes:
    return fcntl.ioctl(descriptor, request, bytes(length))


def sync(descriptor: int, device: str) -> None:
    """Returns when the storage durably has what was written; raises Unavailable where a write failed."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise refusal(error, f"{device} could not be written") from error


def loop_info(descriptor: int) -> tuple[Any, ...] | None:
    """The fields of struct loop_info64 in their order, or None for a loop device that has no file."""
    try:
        return LOOP_INFO.unpack(fcntl.ioctl(descriptor, LOOP_GET_STATUS64, bytes(LOOP_INFO.size)))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def identity(descriptor: int, wanted: Collection[str] | None = None) -> dict[str, str]:
    """What tells this device from another: see `devices.read_identity`. `wanted` names the attributes to look at."""
    device_number = number(descriptor)
    place = sysfs(device_number)
    found = {"size": str(size(descriptor))}
    partition = read_attribute(f"{place}/partition")
    if partition:
        found["partition"] = partition
        place = os.path.dirname(os.path.realpath(place))
    for name, paths in _ATTRIBUTES.items():
        if wanted is not None and name not in wanted:
            continue
        value = next(filter(None, (read_attribute(f"{place}/{path}") for path in paths)), "")
        if value:
            found[name] = value
    info = loop_info(descriptor) if device_number[0] == LOOP_MAJOR else None
    if info:
        found["backing_inode"] = f"{info[0]}:{info[1]}"
    return found


def read_attribute(path: str) -> str:
    """A sysfs attribute's text, trimmed; "" where the device has none."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return ""
    if path.endswith("/vpd_pg80"):  # SCSI: the unit serial number page; its header ends with the length
        data = data[4 : 4 + int.from_bytes(data[2:4], "big")]
    return data.strip(b" \t\r\n\0").decode("utf-8", "replace")


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """The attributes that are not as expected, in words; "" where every one is."""
    return ", ".join(
        f"{name} is {found[name]!r} instead of {value!r}"
        if name in found
        else f"it has no {name}, expected {value!r}"
        for name, value in expected.items()
        if found.get(name) != value
    )


def users(device_number: tuple[int, int], *, everywhere: bool = False) -> str:
    """Who claims the device, as far as can be seen from here: "" or " by a mount at /x, dm-0". `everywhere`: where
    there is nobody, the mounts of all other namespaces are looked through, which takes a while.
    """
    from volkit.host import mounts, namespaces

    found = [f"a mount at {mount.mount_point}" for mount in mounts.mounts(device=device_number)]
    found += holders(device_number)
    if everywhere and not found:
        found = namespaces.users_elsewhere(device_number)
    return f" by {', '.join(found[:3])}" if found else ""


def holders(device_number: tuple[int, int]) -> list[str]:
    """The names of the block devices made of this one, such as "dm-0"."""
    try:
        return sorted(os.listdir(f"{sysfs(device_number)}/holders"))
    except OSError:
        return []
