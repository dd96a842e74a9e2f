"""Removing large trees: gone at once by a rename, emptied step by step, and gone on with after a crash.

```python
trash = Trash(f"{pool}/trash")
trash.take(f"{pool}/volumes/v1")  # durable, whatever happens from here on
trash.empty(seconds=5)            # what is not done by then is done by a thread of its own
```
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from contextlib import suppress
from typing import Final

from volkit.errors import InUse, NotFound, VolkitError
from volkit.host import btrfs, files
from volkit.host._syscalls import encoded, refusal
from volkit.host._walk import DIRECTORY, open_directory

log: logging.Logger = logging.getLogger(__name__)

__all__ = ["EMPTY_SECONDS", "START_SECONDS", "Trash"]

EMPTY_SECONDS: Final = 5.0
"""How long somebody waits until what was removed is really gone."""

START_SECONDS: Final = 1.0
"""How long the start of a process waits for that."""

_BATCH: Final = 64


class Trash:
    """A directory whose content is to be removed; on the file system of what it takes. Several processes can use it.

    A directory in a directory is moved up before it is emptied, so a tree of any depth takes one descriptor and can
    be cut short anywhere. No symbolic link is followed and no mount entered; subvolumes of btrfs go as a whole.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stuck: set[str] = set()
        self._thread: threading.Thread | None = None
        try:
            os.makedirs(encoded(path), 0o700, exist_ok=True)
        except OSError as error:
            raise refusal(error, f"cannot make the directory {path}") from error

    def take(self, path: str) -> None:
        """Moves a file or a directory into the trash, durably: it is gone from its place. Raises NotFound."""
        files.move_new(path, f"{self._path}/{_token()}")
        files.sync_directory(os.path.dirname(path))

    def empty(self, seconds: float = EMPTY_SECONDS) -> bool:
        """Removes what is there: True where all of it is gone after so many seconds, else a thread goes on."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        if self._empty(time.monotonic() + seconds):
            return True
        self._thread = threading.Thread(target=self._go_on, name=f"trash of {self._path}", daemon=True)
        self._thread.start()
        return False

    def _go_on(self) -> None:
        try:
            self._empty(None)
        except VolkitError as error:
            log.warning("the trash is not empty: %s", error)

    def _empty(self, end: float | None) -> bool:
        """False at the end of the time."""
        try:
            trash = os.open(encoded(self._path), DIRECTORY)
            try:
                # by its path: an open directory of btrfs shows what was in it at the last rewind
                while names := [name for name in os.listdir(self._path) if name not in self._stuck]:
                    for name in names:
                        late = end is not None and time.monotonic() > end
                        if late or not self._remove(trash, name, end):
                            return False
                return True
            finally:
                os.close(trash)
        except OSError as error:
            raise refusal(error, f"cannot empty {self._path}") from error

    def _remove(self, trash: int, name: str, end: float | None) -> bool:
        """One entry of the trash. What cannot be removed stays, and is told of once. False at the end of the time."""
        try:
            return self._take_apart(trash, name, end)
        except (FileNotFoundError, NotFound):  # somebody else was faster
            return True
        except (OSError, VolkitError) as error:
            log.warning("%s/%s cannot be removed and stays: %s", self._path, name, error)
            self._stuck.add(name)
            return True

    def _take_apart(self, trash: int, name: str, end: float | None) -> bool:
        try:
            os.unlink(name, dir_fd=trash)
            return True
        except (IsADirectoryError, PermissionError) as error:  # EPERM is POSIX's word for a directory
            if not stat.S_ISDIR(os.stat(name, dir_fd=trash, follow_symlinks=False).st_mode):
                raise
            refused = error
        place = open_directory(trash, name)
        if place is None:
            os.stat(name, dir_fd=trash, follow_symlinks=False)  # FileNotFoundError where somebody was faster
            raise InUse("something is mounted there") from refused
        try:
            if btrfs.is_subvolume(path := f"{self._path}/{name}"):
                btrfs.delete(path)
                return True
            if not _empty_directory(trash, place, end):
                return False
        finally:
            os.close(place)
        with suppress(OSError):  # not empty: somebody still writes
            os.rmdir(name, dir_fd=trash)
        return True


def _empty_directory(trash: int, place: int, end: float | None) -> bool:
    """Files and empty directories go, others move up into the trash. False at the end of the time."""
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if end is not None and number % _BATCH == 0 and time.monotonic() > end:
                return False
            try:
                if entry.is_dir(follow_symlinks=False):
                    os.rename(entry.name, _token(), src_dir_fd=place, dst_dir_fd=trash)
                else:
                    os.unlink(entry.name, dir_fd=place)
            except FileNotFoundError:
                pass
    return True


def _token() -> str:
    return f"{os.getpid()}-{os.urandom(8).hex()}"
