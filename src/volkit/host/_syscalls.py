"""The system calls that Python's standard library lacks, by ctypes: the interpreter lock is released while
one runs.

Numbers are those of x86-64 and arm64; calls added since Linux 5.1 have one number on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final

from volkit.errors import (
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    VolkitError,
    quoted,
)

libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_DONT_SYNC: Final = 0x4000


def encoded(path: str) -> bytes:
    """The path as the kernel takes it; InvalidArgument for a NUL, at which C would silently cut it off, and for what
    is no text.
    """
    if "\0" in path:
        raise InvalidArgument(f"path {quoted(path)} contains a NUL character")
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidArgument(f"path {quoted(path)} is not Unicode text") from None


def encoded_place(path: str) -> bytes:
    """As `encoded`, without a slash at the end, which would make the kernel follow a link that is the last
    component.
    """
    return encoded(path.rstrip("/") or path[:1])


def check(result: int, what: str, path: str = "") -> int:
    """`result` of a call that went well; raises OSError(errno, "what: reason", path) where it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path or None)
    return result


def function(name: str, *arguments: type) -> Callable[..., int]:
    """A libc function that returns an int, with its own argument types."""
    prototype = libc[name]
    prototype.argtypes = arguments
    prototype.restype = ctypes.c_int
    return prototype


def system_call(number: int, *arguments: type) -> Callable[..., int]:
    """A system call by its number, for which libc may be too old to have a function."""
    # a fresh function object each time, so that the argument types are this call's own
    prototype = libc["syscall"]
    prototype.argtypes = (ctypes.c_long, *arguments)
    prototype.restype = ctypes.c_long

    def call(*values: object) -> int:
        return int(prototype(number, *values))

    return call


def kernel_has(result: int) -> bool:
    """Whether a probing call, made to fail, reached the kernel's code: not ENOSYS, and not the EPERM of a
    seccomp filter.
    """
    return result != -1 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


_CLASSES: Final[dict[int, type[VolkitError]]] = {
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.ENOENT: NotFound,
    errno.EBUSY: InUse,
    errno.ENOTEMPTY: InUse,
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.EISDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.EINVAL: FailedPrecondition,
    errno.ENODEV: FailedPrecondition,
    errno.ENOTBLK: FailedPrecondition,
    errno.EROFS: FailedPrecondition,
    errno.EUCLEAN: FailedPrecondition,
    errno.EBADMSG: FailedPrecondition,
    errno.EOPNOTSUPP: FailedPrecondition,
    errno.ENOSYS: FailedPrecondition,
}


def refusal(error: OSError, sentence: str) -> VolkitError:
    """The error to raise for what the kernel refused: its class by errno, `sentence` and the kernel's reason
    as its text.

    What the kernel gives no settled reason for (EIO, ETIMEDOUT, ENOTCONN, ESTALE …) is Unavailable: the
    caller repeats.
    """
    number = error.errno or 0
    return _CLASSES.get(number, Unavailable)(
        f"{sentence}: {os.strerror(number)} ({errno.errorcode.get(number, number)})"
    )
