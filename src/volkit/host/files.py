"""Files that must survive a crash, and image files: written durably, cloned, allocated.

```python
files.write_durably(f"{state}/v1.json", b"{}")
files.clone(f"{pool}/v1.img", f"{pool}/.v2.img.new")  # "reflink", or "copy" with its holes kept
os.rename(...); files.sync_directory(pool)
```
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal

from volkit.errors import AlreadyExists
from volkit.host._syscalls import AT_FDCWD, check, encoded, function, refusal

__all__ = [
    "allocate",
    "clone",
    "copy_content",
    "free_bytes",
    "has_reflinks",
    "is_open",
    "move_new",
    "reads_as_zeros",
    "shared_bytes",
    "sync_directory",
    "write_durably",
]

_FICLONE: Final = 0x40049409  # linux/fs.h
_FIEMAP: Final = 0xC020660B  # linux/fiemap.h
_FIEMAP_HEADER: Final = struct.Struct(
    "=QQIIII"
)  # start, length, flags, mapped extents, room for extents, reserved
_FIEMAP_EXTENT: Final = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_FIEMAP_LAST: Final = 0x1
_FIEMAP_SHARED: Final = 0x2000
_FIEMAP_ROOM: Final = 512
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_F_SETSIG: Final = 10  # asm-generic/fcntl.h
_renameat2: Final = function(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_CHUNK: Final = 64 << 20
_BUFFER: Final = 1 << 20
_CANNOT: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)


def write_durably(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replaces the file as a whole: after a crash at any moment it has the old content or the new one, on the
    disk when this returns. A link at `path` is replaced, not followed. `mode` is the file's, whatever the
    umask.

    Raises ResourceExhausted where the disk is full, NotFound where the directory is not there; the old file
    then stays.
    """
    encoded(path)
    # two writers of one path, also of two processes, get two names
    temporary = f"{path}.{os.getpid():x}-{os.urandom(4).hex()}.new"
    try:
        with _created(temporary, mode) as descriptor:
            _write(descriptor, data)
            os.fsync(descriptor)
            os.rename(temporary, path)
    except OSError as error:
        raise refusal(error, f"cannot write {path}") from error
    sync_directory(os.path.dirname(path) or ".")


@contextmanager
def _created(path: str, mode: int) -> Iterator[int]:
    """A new file, open for reading and writing; taken away again when the body fails."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, mode)
        yield descriptor
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_directory(path: str) -> None:
    """Returns when the directory's entries are on the disk: what was created, renamed or removed in it stays
    so.
    """
    try:
        descriptor = os.open(encoded(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refusal(error, f"cannot sync the directory {path}") from error


def clone(source: str, destination: str, *, mode: int = 0o600) -> Literal["reflink", "copy"]:
    """Copies a file to a new one and returns when the content is on the disk; says whether the blocks are
    shared.

    `destination` must not be there: give a temporary name in the final directory, rename it and sync the
    directory. Shared blocks (FICLONE: btrfs, xfs) take no time and no space; elsewhere the data is copied and
    holes stay holes. A source that is written meanwhile gives a mixture: freeze it first.

    Raises AlreadyExists, NotFound, or ResourceExhausted where there is no room; the half-made destination is
    removed.
    """
    encoded(source)
    encoded(destination)
    try:
        original = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(error, f"cannot read {source}") from error
    try:
        with _created(destination, mode) as copy:
            way = copy_content(original, copy)
            os.fsync(copy)
            return way
    except FileExistsError as error:
        raise AlreadyExists(f"{destination} is there already: remove it or choose another name") from error
    except OSError as error:
        raise refusal(error, f"cannot copy {source} to {destination}") from error
    finally:
        os.close(original)


def copy_content(original: int, copy: int) -> Literal["reflink", "copy"]:
    """As `clone`, from one open file to another, a new one; not synced. Raises OSError."""
    if _reflink(original, copy):
        return "reflink"
    _copy_sparse(original, copy)
    return "copy"


def has_reflinks(directory: str) -> bool:
    """Whether files below `directory` can share blocks; found out by trying, on two files without a name."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        original = os.open(encoded(directory), flags, 0o600)
        try:
            copy = os.open(directory, flags, 0o600)
            try:
                os.write(original, b"volkit")
                return _reflink(original, copy)
            finally:
                os.close(copy)
        finally:
            os.close(original)
    except OSError as error:
        if error.errno in {*_CANNOT, errno.EISDIR}:  # no files without a name: FUSE, an old overlay
            return False
        raise refusal(error, f"cannot write to {directory}") from error


def move_new(source: str, destination: str) -> None:
    """Renames a file or a directory to a name that is not taken, also not by an empty directory (renameat2(2),
    RENAME_NOREPLACE). Raises AlreadyExists, NotFound.
    """
    places = (AT_FDCWD, encoded(source), AT_FDCWD, encoded(destination))
    try:
        check(_renameat2(*places, _RENAME_NOREPLACE), "rename")
    except FileExistsError:
        raise AlreadyExists(f"{destination} is there already") from None
    except OSError as error:
        raise refusal(error, f"cannot rename {source} to {destination}") from error


def _reflink(original: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_sparse(original: int, copy: int) -> None:
    """Copies the data between the holes (lseek(2), SEEK_DATA), inside the kernel where it can."""
    size = os.fstat(original).st_size
    os.ftruncate(copy, size)
    in_kernel = True
    for start, end in _data(original, size):
        place = start
        while place < end:
            length = min(_CHUNK if in_kernel else _BUFFER, end - place)
            try:
                done = os.copy_file_range(original, copy, length, place, place) if in_kernel else 0
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                in_kernel, done = False, 0
            # 0 also at an end that came early, and on file systems that claim to copy and do not
            place += done or _copy_piece(original, copy, place, min(length, _BUFFER))


def _copy_piece(original: int, copy: int, place: int, length: int) -> int:
    data = os.pread(original, length, place)
    if not data:
        raise OSError(errno.EIO, "the source became shorter while it was copied")
    return os.pwrite(copy, data, place)


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The file's stretches that are not holes, as (start, end)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, end


def allocate(file: int | str, size: int) -> None:
    """Makes the file at least `size` bytes long with blocks for all of them, so that writing within can meet
    no full disk.

    `file` is a descriptor open for writing, or the path of a file. Content stays. Raises ResourceExhausted
    where the disk is too full, with the file as long as before.
    """
    try:
        descriptor = file if isinstance(file, int) else os.open(encoded(file), os.O_RDWR | os.O_CLOEXEC)
        try:
            _allocate(descriptor, size)
        finally:
            if not isinstance(file, int):
                os.close(descriptor)
    except OSError as error:
        name = f"descriptor {file}" if isinstance(file, int) else file
        raise refusal(error, f"cannot allocate {size} bytes for {name}") from error


def _allocate(descriptor: int, size: int) -> None:
    found, room = os.fstat(descriptor), os.fstatvfs(descriptor)
    before = found.st_size
    if size - found.st_blocks * 512 > room.f_bfree * room.f_frsize:
        # or it would take the whole rest of the disk from everybody else before it failed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.ftruncate(descriptor, before)  # gives back what it got beyond the old end
        raise


def free_bytes(path: str) -> int:
    """The bytes that an unprivileged user may still write to the file system that holds `path` (statvfs(3),
    f_bavail).
    """
    try:
        found = os.statvfs(encoded(path))
    except OSError as error:
        raise refusal(error, f"cannot read the free space at {path}") from error
    return found.f_bavail * found.f_frsize


def is_open(path: str) -> bool:
    """Whether anybody on this host has the file open or mapped, a loop device among them; also True where the
    file system cannot tell (NFS). Costs the same whatever the number of files and devices.

    Asked by a write lease, which the kernel gives only to a file's sole opener (fcntl(2), F_SETLEASE).
    Raises NotFound.
    """
    try:
        descriptor = os.open(encoded(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise refusal(error, f"cannot open {path}") from error
    try:
        # who opens the file in this moment breaks the lease: a signal that is ignored, not SIGIO, which kills
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def reads_as_zeros(path: str) -> bool:
    """Whether the file has nothing but holes and blocks never written to: certain when True. A file with data
    that happens to be zeros is False, as is one whose file system does not tell (lseek(2), SEEK_DATA).
    """
    try:
        descriptor = os.open(encoded(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(error, f"cannot open {path}") from error
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    finally:
        os.close(descriptor)
    return False


def shared_bytes(path: str) -> int:
    """The bytes of the file in blocks that another file has too, until one of the two is written to (FIEMAP)."""
    shared: int = 0
    start = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            buffer = bytearray(_FIEMAP_HEADER.size + _FIEMAP_ROOM * _FIEMAP_EXTENT.size)
            _FIEMAP_HEADER.pack_into(buffer, 0, start, 2**63 - 1 - start, 0, 0, _FIEMAP_ROOM, 0)
            fcntl.ioctl(descriptor, _FIEMAP, buffer)
            mapped = _FIEMAP_HEADER.unpack_from(buffer)[3]
            extents = [
                _FIEMAP_EXTENT.unpack_from(buffer, _FIEMAP_HEADER.size + i * _FIEMAP_EXTENT.size)
                for i in range(mapped)
            ]
            shared += sum(length for _, _, length, flags in extents if flags & _FIEMAP_SHARED)
            if not extents or extents[-1][3] & _FIEMAP_LAST:
                return shared
            start = extents[-1][0] + extents[-1][2]
    finally:
        os.close(descriptor)
