"""Why mount(2) refused, in words a person can act on: the kernel itself gives one number for many reasons."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Sequence
from typing import Final

from volkit.errors import FailedPrecondition, InUse, InvalidArgument, VolkitError
from volkit.host._mount_options import flags_and_data, key
from volkit.host._syscalls import encoded, refusal, system_call

_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSOPEN_CLOEXEC: Final = 1
_fsopen: Final = system_call(430, ctypes.c_char_p, ctypes.c_uint)
_fsconfig: Final = system_call(
    431, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int
)

_USER_INFO: Final = re.compile(r"//[^/@\s]*@")  # user:password@ in a source that is a URL

_REASONS: Final[dict[int, tuple[type[VolkitError], str]]] = {
    errno.EACCES: (FailedPrecondition, "the device or the backing file can only be read: mount it with 'ro'"),
    errno.EROFS: (FailedPrecondition, "the device or the backing file can only be read: mount it with 'ro'"),
    errno.ENODEV: (
        FailedPrecondition,
        "the kernel does not know this file system type: load or install its module",
    ),
    errno.ENOTBLK: (FailedPrecondition, "the source is not a block device"),
    errno.EUCLEAN: (FailedPrecondition, "the file system is damaged: check it with fsck"),
    errno.EBADMSG: (FailedPrecondition, "the file system is damaged: check it with fsck"),
    errno.EINVAL: (
        FailedPrecondition,
        "wrong file system type, a bad superblock or a bad option; the kernel's log says which",
    ),
    errno.EBUSY: (InUse, "the source is mounted elsewhere with other options, or is used exclusively"),
    errno.EPERM: (FailedPrecondition, "mounting needs root with CAP_SYS_ADMIN in this mount namespace"),
}


def why_not_mounted(
    number: int, source: str, target: str, fs_type: str, options: Sequence[str]
) -> VolkitError:
    """The error for `number` (errno) of a mount with these arguments; options are named by their keys."""
    sentence = (
        f"cannot mount {fs_type or 'a file system'} from {_USER_INFO.sub('//***@', source)} at {target}"
    )
    if number == errno.EINVAL:
        option = _refused_option(fs_type, options)
        if option:
            return InvalidArgument(
                f"{sentence}: {fs_type} does not accept the mount option {option!r}, or not with this value"
            )
    if number in _REASONS:
        kind, reason = _REASONS[number]
        return kind(f"{sentence}: {reason} ({errno.errorcode[number]})")
    return refusal(OSError(number, ""), sentence)


def _refused_option(fs_type: str, options: Sequence[str]) -> str:
    """The key of the first option that the file system's own parser rejects; "" where none is found.

    Nothing is mounted by asking. Of an option with commas in its value only the part before `=` is shown.
    """
    descriptor = _fsopen(encoded(fs_type), _FSOPEN_CLOEXEC)
    if descriptor == -1:
        return ""
    try:
        for option in options:
            for word in filter(None, flags_and_data([option])[1].split(",")):
                if not _accepts(descriptor, word):
                    return key(option)
    finally:
        os.close(descriptor)
    return ""


def _accepts(descriptor: int, word: str) -> bool:
    name, equals, value = word.partition("=")
    if equals:
        return _fsconfig(descriptor, _FSCONFIG_SET_STRING, encoded(name), encoded(value), 0) == 0
    return _fsconfig(descriptor, _FSCONFIG_SET_FLAG, encoded(name), None, 0) == 0
