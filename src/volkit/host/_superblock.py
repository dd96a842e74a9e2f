"""What a file system's own superblock says of its size and state, read from the device: no program is run.

Sources: the kernel's Documentation/filesystems/ext4 (super.rst); xfs_sb in the "XFS Algorithms & Data
Structures"; btrfs' on-disk format (btrfs-dev-docs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from attrs import frozen

from volkit.host import _block
from volkit.host._syscalls import refusal
from volkit.model import Value

_EXT_VALID: Final = 1
_EXT_ERRORS: Final = 2
_EXT_ORPHANS: Final = 4
_EXT_RECOVER: Final = 4
_EXT_64BIT: Final = 0x80
_BTRFS_AT: Final = 0x10000


@frozen(kw_only=True, eq=False, repr=False)
class Superblock(Value):
    """`size` and `block_size` in bytes. `clean` is False where its journal is to be replayed or a check is
    due.
    """

    size: int
    block_size: int
    uuid: str
    clean: bool = True


def read(device: str, fs_type: str) -> Superblock | None:
    """The device's superblock; None where it has none of this type."""
    with _block.opened(device) as descriptor:
        return read_open(descriptor, device, fs_type)


def read_open(descriptor: int, device: str, fs_type: str) -> Superblock | None:
    """`read` for a device that is open."""
    place, parse = _READERS[fs_type]
    try:
        # not what was read before: XFS and btrfs write past the page cache of the device
        os.posix_fadvise(descriptor, place, 4096, os.POSIX_FADV_DONTNEED)
        data = os.pread(descriptor, 4096, place)
    except OSError as error:
        raise refusal(error, f"{device} cannot be read at byte {place}") from error
    return parse(data) if len(data) == 4096 else None


def _ext(data: bytes) -> Superblock | None:
    data = data[1024:]
    if _little(data, 0x38, 2) != 0xEF53:
        return None
    block_size = 1024 << _little(data, 0x18, 4)
    incompatible = _little(data, 0x60, 4)
    blocks = _little(data, 0x04, 4)
    if incompatible & _EXT_64BIT:
        blocks |= _little(data, 0x150, 4) << 32
    state = _little(data, 0x3A, 2)
    clean = (
        state & (_EXT_VALID | _EXT_ERRORS | _EXT_ORPHANS)
    ) == _EXT_VALID and not incompatible & _EXT_RECOVER
    return Superblock(size=blocks * block_size, block_size=block_size, uuid=_uuid(data, 0x68), clean=clean)


def _xfs(data: bytes) -> Superblock | None:
    if data[:4] != b"XFSB":
        return None
    block_size = int.from_bytes(data[4:8], "big")
    return Superblock(
        size=int.from_bytes(data[8:16], "big") * block_size, block_size=block_size, uuid=_uuid(data, 32)
    )


def _btrfs(data: bytes) -> Superblock | None:
    if data[0x40:0x48] != b"_BHRfS_M":
        return None
    return Superblock(size=_little(data, 0x70, 8), block_size=_little(data, 0x90, 4), uuid=_uuid(data, 0x20))


def _little(data: bytes, place: int, length: int) -> int:
    return int.from_bytes(data[place : place + length], "little")


def _uuid(data: bytes, place: int) -> str:
    digits = data[place : place + 16].hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


_READERS: Final[Mapping[str, tuple[int, Callable[[bytes], Superblock | None]]]] = {
    "ext3": (0, _ext),
    "ext4": (0, _ext),
    "xfs": (0, _xfs),
    "btrfs": (_BTRFS_AT, _btrfs),
}
