"""What is on a block device: nothing, a file system, or something else; never a guess.

```python
probe.probe("/dev/loop3")   # Probe(state=<State.BLANK>, type='', uuid='', label='')
```

"Nothing" is said only after the device's head and tail were read without an error and libblkid, which knows
the signatures of a hundred formats, found none: a file system made over a disk that could not be read
destroys data (kubernetes/kubernetes #95183, hetznercloud/csi-driver #1346).
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from attrs import frozen

from volkit.errors import FailedPrecondition, Unavailable
from volkit.host import _block
from volkit.model import Value

__all__ = ["Probe", "State", "Unreadable", "is_half_made", "probe"]

_EDGE: Final = 256 << 10
"""How many bytes of the head and of the tail are read, as the proof that the device can be read; an eighth of it
where the storage says that all of it is zeros.
"""

# blkid_probe_set_superblocks_flags(3) and blkid_do_safeprobe(3), libblkid's <blkid/blkid.h>
_LABEL: Final = 1 << 1
_UUID: Final = 1 << 3
_TYPE: Final = 1 << 5
_USAGE: Final = 1 << 7
_BAD_CHECKSUMS: Final = 1 << 10
_FOUND: Final = 0
_NOTHING: Final = 1
_AMBIVALENT: Final = -2
_XFS_IN_PROGRESS: Final = 126  # the place of sb_inprogress in struct xfs_dsb


class Unreadable(Unavailable):
    """The device, or a part of it, cannot be read: what is on it is not known, and it must not be written."""


class State(enum.Enum):
    """What kind of thing a device carries."""

    BLANK = "blank"
    FILESYSTEM = "filesystem"
    OTHER = "other"


@frozen(kw_only=True, eq=False, repr=False)
class Probe(Value):
    """What a device carries.

    `type` is libblkid's word: "ext4", "xfs", "btrfs"; for OTHER "crypto_LUKS", "LVM2_member", "gpt" and the
    like, or "several signatures". `uuid` and `label` are "" where there is none.

    FILESYSTEM says that its signature is there, not that it is whole: a killed mkfs.xfs leaves something that
    has the type xfs and cannot be mounted, a damaged superblock counts as well. Who recorded that he was
    making a file system decides what to do with it.
    """

    state: State
    type: str = ""
    uuid: str = ""
    label: str = ""


def probe(device: str, *, zeroed: bool = False) -> Probe:
    """Looks at the device, which may be in use; nothing is written and no program is run.

    `zeroed` is what its storage says: all of it reads as zeros still. Where head and tail do, no more is read.

    Raises Unreadable where any of it cannot be read or it has no size, NotFound and InvalidArgument as
    opening it does, and FailedPrecondition where libblkid is not installed.
    """
    with _block.opened(device) as descriptor:
        return probe_open(descriptor, device, zeroed=zeroed)


def probe_open(descriptor: int, device: str, *, zeroed: bool = False) -> Probe:
    """`probe` for a device that is open."""
    if _edges_are_zeros(descriptor, device, _EDGE // 8 if zeroed else _EDGE) and zeroed:
        return Probe(state=State.BLANK)
    with _blkid_probe(descriptor, device) as handle:
        answer = _blkid().blkid_do_safeprobe(handle)
        if answer == _NOTHING:
            return Probe(state=State.BLANK)
        if answer == _AMBIVALENT:
            return Probe(state=State.OTHER, type="several signatures")
        if answer != _FOUND:
            raise Unreadable(f"{device} could not be probed: reading it failed on the way; check the device")
        return _found(handle)


def is_half_made(device: str, fs_type: str) -> bool:
    """Whether a killed mkfs left this signature: xfs has its superblock first, with sb_inprogress set until all
    is written (xfs_sb, "XFS Algorithms & Data Structures"). The others write theirs last, so it is of a whole one.
    """
    if fs_type != "xfs":
        return False
    try:
        with open(device, "rb", buffering=0) as file:
            return file.read(512)[_XFS_IN_PROGRESS] != 0
    except (OSError, IndexError) as error:
        raise Unreadable(f"{device} cannot be read ({error}): check the storage") from error


def _edges_are_zeros(descriptor: int, device: str, length: int) -> bool:
    zeros = True
    size = _block.size(descriptor)
    if not size:
        raise Unreadable(f"{device} has no size: nothing is attached to it, or its medium is gone")
    length = min(length, size)
    for place in dict.fromkeys((0, size - length)):
        try:
            # from the storage, not from what was read of it some time ago
            os.posix_fadvise(descriptor, place, length, os.POSIX_FADV_DONTNEED)
            data = os.pread(descriptor, length, place)
        except OSError as error:
            raise Unreadable(
                f"{device} cannot be read at byte {place}: {os.strerror(error.errno or 0)}; check the storage"
            ) from error
        if len(data) != length:
            raise Unreadable(
                f"{device} gave {len(data)} of {length} bytes at byte {place}; check the storage"
            )
        zeros = zeros and data == bytes(length)
    return zeros


@contextmanager
def _blkid_probe(descriptor: int, device: str) -> Iterator[int]:
    library = _blkid()
    handle = library.blkid_new_probe()
    if not handle:
        raise MemoryError("blkid_new_probe")
    try:
        if library.blkid_probe_set_device(handle, descriptor, 0, 0):
            raise Unreadable(f"{device} could not be probed: libblkid cannot use it")
        # a superblock with a bad checksum is somebody's damaged file system, not a blank device
        library.blkid_probe_set_superblocks_flags(handle, _LABEL | _UUID | _TYPE | _USAGE | _BAD_CHECKSUMS)
        library.blkid_probe_enable_partitions(handle, 1)
        yield handle
    finally:
        library.blkid_free_probe(handle)


def _found(handle: int) -> Probe:
    kind = _value(handle, b"TYPE")
    return Probe(
        state=State.FILESYSTEM if kind and _value(handle, b"USAGE") == "filesystem" else State.OTHER,
        type=kind or _value(handle, b"PTTYPE") or "an unknown signature",
        uuid=_value(handle, b"UUID"),
        label=_value(handle, b"LABEL"),
    )


def _value(handle: int, name: bytes) -> str:
    text, length = ctypes.c_char_p(), ctypes.c_size_t()
    if _blkid().blkid_probe_lookup_value(handle, name, ctypes.byref(text), ctypes.byref(length)):
        return ""
    return (text.value or b"").decode("utf-8", "replace")


@cache
def _blkid() -> ctypes.CDLL:
    """libblkid, loaded at its first use. CDLL gives the interpreter lock away while a slow device is read."""
    try:
        library = ctypes.CDLL("libblkid.so.1")
    except OSError as error:
        raise FailedPrecondition(
            f"libblkid.so.1 cannot be loaded (apt-get install libblkid1), no device can be probed: {error}"
        ) from error
    pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    library.blkid_new_probe.restype = pointer
    for name, arguments in {
        "blkid_free_probe": (pointer,),
        "blkid_probe_set_device": (pointer, integer, ctypes.c_int64, ctypes.c_int64),
        "blkid_probe_set_superblocks_flags": (pointer, integer),
        "blkid_probe_enable_partitions": (pointer, integer),
        "blkid_do_safeprobe": (pointer,),
        "blkid_probe_lookup_value": (pointer, text, ctypes.POINTER(text), ctypes.POINTER(ctypes.c_size_t)),
    }.items():
        getattr(library, name).argtypes = arguments
    return library
