"""Which bytes of a file share their blocks with other files (FIEMAP, linux/fiemap.h)."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FS_IOC_FIEMAP: Final = 0xC020660B
_HEADER: Final = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT: Final = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_LAST: Final = 0x1
_SHARED: Final = 0x2000
_ROOM: Final = 512


def shared_bytes(path: str) -> int:
    """The bytes in blocks that another file has too, until one of the two is written to."""
    shared: int = 0
    start = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            buffer = bytearray(_HEADER.size + _ROOM * _EXTENT.size)
            _HEADER.pack_into(buffer, 0, start, 2**63 - 1 - start, 0, 0, _ROOM, 0)
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
            mapped = _HEADER.unpack_from(buffer)[3]
            extents = [_EXTENT.unpack_from(buffer, _HEADER.size + i * _EXTENT.size) for i in range(mapped)]
            shared += sum(length for _, _, length, flags in extents if flags & _SHARED)
            if not extents or extents[-1][3] & _LAST:
                return shared
            start = extents[-1][0] + extents[-1][2]
    finally:
        os.close(descriptor)
