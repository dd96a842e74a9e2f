"""The words of mount(8)'s `-o`: which are flags of mount(2), which attributes of one mount, which the file
system's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from volkit.errors import InvalidArgument

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_SYNCHRONOUS: Final = 0x10
MS_REMOUNT: Final = 0x20
MS_MANDLOCK: Final = 0x40
MS_DIRSYNC: Final = 0x80
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_SILENT: Final = 0x8000
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MOUNT_ATTR_RDONLY: Final = 0x1
_MOUNT_ATTR_ATIME: Final = 0x70  # a field of its own, not bits: 0 relatime, 0x10 noatime, 0x20 strictatime

_ATIME: Final = MS_NOATIME | MS_RELATIME | MS_STRICTATIME

FLAGS: Final[dict[str, tuple[int, int]]] = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "noatime": (MS_NOATIME, _ATIME),
    "relatime": (MS_RELATIME, _ATIME),
    "strictatime": (MS_STRICTATIME, _ATIME),
    "atime": (0, MS_NOATIME),
    "norelatime": (0, MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "silent": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
    "defaults": (0, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_SYNCHRONOUS),
}
"""mount(2)'s flags by word: (set, cleared), applied from left to right."""

ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (0x2, 0),
    "suid": (0, 0x2),
    "nodev": (0x4, 0),
    "dev": (0, 0x4),
    "noexec": (0x8, 0),
    "exec": (0, 0x8),
    "noatime": (0x10, _MOUNT_ATTR_ATIME),
    "relatime": (0, _MOUNT_ATTR_ATIME),
    "strictatime": (0x20, _MOUNT_ATTR_ATIME),
    "nodiratime": (0x80, 0),
    "diratime": (0, 0x80),
    "nosymfollow": (0x200000, 0),
    "symfollow": (0, 0x200000),
}
"""mount_setattr(2)'s attributes by word: (set, cleared). They belong to one mount, not to the file system."""

_FOR_PROGRAMS: Final = frozenset(
    {"auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev"}
)
_OTHER_CALLS: Final = frozenset(
    {"bind", "rbind", "move", "remount", "shared", "rshared", "private", "rprivate", "slave", "rslave"}
    | {"unbindable", "runbindable", "loop"}
)
_MAX_DATA: Final = 4095


def flags_and_data(words: Sequence[str]) -> tuple[int, str]:
    """mount(2)'s flags and the file system's data string. Words that only speak to mount(8) and systemd are
    left out.

    Raises InvalidArgument; the text names an option by its key, never its value.
    """
    flags, data = 0, []
    for word in words:
        _check_word(word)
        if word in FLAGS:
            added, cleared = FLAGS[word]
            flags = (flags & ~cleared) | added
        elif word and word not in _FOR_PROGRAMS and not word.startswith(("x-", "X-", "comment=")):
            data.append(word)
    text = ",".join(data)
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidArgument("a mount option is not Unicode text") from None
    if size > _MAX_DATA:
        raise InvalidArgument(
            f"the mount options are longer than the {_MAX_DATA} bytes that the kernel reads"
        )
    return flags, text


def attributes(words: Sequence[str]) -> tuple[int, int]:
    """The attributes to set and to clear on one mount. Raises InvalidArgument for a word that is none."""
    setting, clearing = 0, 0
    for word in words:
        if word not in ATTRIBUTES:
            raise InvalidArgument(f"{key(word)!r} is no option of a bind mount: use {', '.join(ATTRIBUTES)}")
        added, cleared = ATTRIBUTES[word]
        setting = (setting & ~cleared) | added
        clearing |= cleared
    return setting, clearing


def bind_flags(words: Sequence[str]) -> int:
    """mount(2)'s flags for the options that a mount has and those wanted besides, later words winning."""
    flags = 0
    for word in words:
        added, cleared = FLAGS.get(word, (0, 0))
        flags = (flags & ~cleared) | added
    return flags


def key(word: str) -> str:
    """The part of an option that may be shown: its value may be a credential."""
    return word.partition("=")[0]


def _check_word(word: str) -> None:
    if any(character < " " or character == "\x7f" for character in word):
        raise InvalidArgument(f"mount option {key(word)!r} contains a control character")
    if word in _OTHER_CALLS:
        raise InvalidArgument(f"mount option {word!r} asks for another operation than to mount a file system")
