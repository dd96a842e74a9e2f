"""Scratch directories: where things are made before a rename puts them in their place, complete or not at all.

```python
scratch = Scratch(f"{pool}/scratch", trash)
with scratch.directory() as made:  # new and empty; what is left of it at the end is removed
    build(made)
    files.move_new(made, f"{pool}/volumes/v1")
```
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from volkit.errors import NotFound
from volkit.host._syscalls import encoded, refusal
from volkit.host._walk import DIRECTORY
from volkit.host.trash import START_SECONDS, Trash

__all__ = ["Scratch"]


class Scratch:
    """A directory with one directory of each process in it, locked by it: what is in an unlocked one was left by a
    process that was killed, and goes into the trash when the next one starts.
    """

    def __init__(self, path: str, trash: Trash) -> None:
        self._path = path
        self._trash = trash
        self._own = ""
        try:
            os.makedirs(encoded(path), 0o700, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise refusal(error, f"cannot use the directory {path}") from error
        trash.empty(START_SECONDS)

    @contextmanager
    def directory(self) -> Iterator[str]:
        """A new empty directory."""
        try:
            with self._alone():
                made = f"{self._own_directory()}/{os.urandom(8).hex()}"
                os.mkdir(made, 0o700)
        except OSError as error:
            raise refusal(error, f"cannot make a directory in {self._path}") from error
        try:
            yield made
        finally:
            with suppress(NotFound):  # put in its place
                self._trash.take(made)
                self._trash.empty()

    def close(self) -> None:
        """Give the process's own directory up."""
        if self._own:
            self._release()
            self._own = ""

    def _own_directory(self) -> str:
        """This process's directory. A new one is not locked yet, so nobody else may look meanwhile."""
        if not self._own:
            own = f"{self._path}/{os.getpid()}-{os.urandom(8).hex()}"
            os.mkdir(own, 0o700)
            descriptor = os.open(own, DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._release = weakref.finalize(self, os.close, descriptor)
            self._own = own
        return self._own

    @contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(encoded(self._path), DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        with self._alone():
            for name in os.listdir(self._path):
                with suppress(FileNotFoundError, BlockingIOError, NotFound):
                    descriptor = os.open(f"{self._path}/{name}", DIRECTORY)
                    try:
                        # refused where its process lives
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self._trash.take(f"{self._path}/{name}")
                    finally:
                        os.close(descriptor)
