"""Directory trees: what they hold, and copies of them.

```python
trees.usage(directory, seconds=1)       # Held(size=5242880, entries=12, complete=True)
trees.copy(f"{pool}/v1", f"{pool}/v2")  # "reflink" where the file system can share blocks (xfs, btrfs)
```

The trees may be in use, also by somebody hostile: no symbolic link is followed, no other mount entered.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from contextlib import suppress
from typing import Final, Literal

from attrs import frozen

from volkit.errors import AlreadyExists, FailedPrecondition
from volkit.host import files
from volkit.host._syscalls import check, encoded, function, refusal
from volkit.host._walk import DIRECTORY, PIN, Step, walk

__all__ = ["Held", "copy", "usage"]

_syncfs: Final = function("syncfs", ctypes.c_int)
_TICK: Final = 0.02
"""Seconds after which a change has another time than one before: the kernel's clock ticks a hundred times a second."""


@frozen(kw_only=True)
class Held:
    """What a tree holds: bytes in blocks, and files and directories. Less than that where it is not `complete`."""

    size: int
    entries: int
    complete: bool = True


def usage(directory: str, *, entries: int = 100_000, seconds: float = 1.0) -> Held:
    """How much is below `directory`, itself among it. It looks at no more than so many entries, for no longer than so
    many seconds. A file of several names counts once. Raises NotFound, InvalidArgument.
    """
    end = time.monotonic() + seconds
    seen: set[tuple[int, int]] = set()
    root = _opened(directory)
    try:
        size, count = os.fstat(root).st_blocks * 512, 1
        for step in walk(root):
            if step.what == "leave":
                continue
            if count >= entries or (count % 64 == 0 and time.monotonic() > end):
                return Held(size=size, entries=count, complete=False)
            found = _status(step)
            if found is None:
                continue
            if found.st_nlink > 1 and step.what == "file":
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            size += found.st_blocks * 512
            count += 1
        return Held(size=size, entries=count)
    except OSError as error:
        raise refusal(error, f"cannot read {directory}") from error
    finally:
        os.close(root)


def _opened(directory: str) -> int:
    try:
        return os.open(encoded(directory), DIRECTORY)
    except OSError as error:
        raise refusal(error, f"cannot open the directory {directory}") from error


def _status(step: Step) -> os.stat_result | None:
    """None where it is gone meanwhile."""
    if step.what != "file":
        return os.fstat(step.place)
    try:
        return os.stat(step.name, dir_fd=step.place, follow_symlinks=False)
    except FileNotFoundError:
        return None


def copy(source: str, destination: str) -> Literal["reflink", "copy"]:
    """Copies a tree to a new directory: content with its holes, owners, modes, times, extended attributes, links and
    special files. Returns when it is on the disk; says whether all blocks are shared.

    Raises FailedPrecondition where the source was changed meanwhile, since the copy is then of no one moment:
    stop what uses it, or have the file system make snapshots (btrfs). AlreadyExists, NotFound, ResourceExhausted.
    What was copied until then is left for the caller to remove.
    """
    root = _opened(source)
    try:
        try:
            os.mkdir(encoded(destination), 0o700)
        except FileExistsError:
            raise AlreadyExists(f"{destination} is there already") from None
        copying = _Copy(root, os.open(destination, DIRECTORY))
        try:
            # what is mapped into memory has its time changed by the first write after this
            check(_syncfs(root), "syncfs")
            os.utime(copying.place)
            begin = os.fstat(copying.place).st_ctime_ns
            time.sleep(_TICK)
            changed = copying.run() or _changed_since(root, begin)
            check(_syncfs(copying.place), "syncfs")
        finally:
            copying.close()
        if changed:
            raise FailedPrecondition(
                f"{source} was changed while it was copied ({changed!r}): stop what uses it, or keep it on btrfs, "
                "where a copy is of one moment"
            )
        return "reflink" if copying.shared else "copy"
    except OSError as error:
        raise refusal(error, f"cannot copy {source} to {destination}") from error
    finally:
        os.close(root)


def _changed_since(root: int, begin: int) -> str:
    """The name of something below `root` that was changed after `begin` (ns), or ""."""
    if os.fstat(root).st_ctime_ns > begin:
        return "."
    for step in walk(root):
        found = _status(step)
        if found is None or found.st_ctime_ns > begin:
            return step.name
    return ""


class _Copy:
    """A walk through the source, with a descriptor of the same place in the copy, which is nobody else's."""

    def __init__(self, source: int, destination: int) -> None:
        self.shared = True
        self.place = destination
        self._source = source
        self._root = os.dup(destination)
        self._path: list[str] = []
        self._links: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        os.close(self.place)
        os.close(self._root)

    def run(self) -> str:
        """The name of something that went, came twice or became something else while it was copied; else ""."""
        for step in walk(self._source):
            try:
                self._step(step)
            except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
                return step.name
        _copy_attributes(self._source, self.place)
        return ""

    def _step(self, step: Step) -> None:
        if step.what == "file":
            self._file(step)
        elif step.what == "enter":
            os.mkdir(step.name, 0o700, dir_fd=self.place)
            self._go(step.name)
            self._path.append(step.name)
        else:
            _copy_attributes(step.place, self.place)
            self._go("..")
            self._path.pop()

    def _go(self, name: str) -> None:
        there = os.open(name, DIRECTORY, dir_fd=self.place)
        os.close(self.place)
        self.place = there

    def _file(self, step: Step) -> None:
        # by a descriptor of the thing itself: what has its name may be another one in the next moment
        pinned = os.open(step.name, PIN, dir_fd=step.place)
        try:
            found = os.fstat(pinned)
            if stat.S_ISDIR(found.st_mode):  # it was no directory a moment ago
                raise IsADirectoryError
            if found.st_nlink > 1 and self._linked(step.name, found):
                return
            if stat.S_ISREG(found.st_mode):
                self._regular(step.name, pinned)
                return
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink("", dir_fd=pinned), step.name, dir_fd=self.place)
            else:
                os.mknod(step.name, found.st_mode, found.st_rdev, dir_fd=self.place)
            os.chown(step.name, found.st_uid, found.st_gid, dir_fd=self.place, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                os.chmod(step.name, stat.S_IMODE(found.st_mode), dir_fd=self.place)
            times = (found.st_atime_ns, found.st_mtime_ns)
            os.utime(step.name, ns=times, dir_fd=self.place, follow_symlinks=False)
        finally:
            os.close(pinned)

    def _linked(self, name: str, found: os.stat_result) -> bool:
        """Another name of what was copied already; True where it could be made."""
        own = "/".join([*self._path, name])
        first = self._links.setdefault((found.st_dev, found.st_ino), own)
        if first == own:
            return False
        try:
            os.link(first, name, src_dir_fd=self._root, dst_dir_fd=self.place, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG, errno.EMLINK):
                raise
            return False
        return True

    def _regular(self, name: str, pinned: int) -> None:
        original = os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=self.place)
            try:
                if files.copy_content(original, made) == "copy" and os.fstat(original).st_size:
                    self.shared = False
                _copy_attributes(original, made)
            finally:
                os.close(made)
        finally:
            os.close(original)


def _copy_attributes(original: int, made: int) -> None:
    found, now = os.fstat(original), os.fstat(made)
    if (found.st_uid, found.st_gid) != (now.st_uid, now.st_gid):
        os.fchown(made, found.st_uid, found.st_gid)
    os.fchmod(made, stat.S_IMODE(found.st_mode))
    names: list[str] = []
    with suppress(OSError):  # a file system without them
        names = os.listxattr(original)
    for name in names:
        try:
            os.setxattr(made, name, os.getxattr(original, name))
        except OSError as error:
            # labels, and what only the whole machine's root may set
            if error.errno != errno.EPERM or not name.startswith(("security.", "trusted.")):
                raise
    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
