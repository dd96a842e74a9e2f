"""Sharded directories: things of a node under their ids, one file or directory each, a million of them if need be.

```python
volumes = ShardedDirectory(f"{pool}/volumes", "volume")
volumes.path("v1ab04f")         # …/volumes/4f/v1ab04f: a directory for each pair of last characters
list(volumes.after("v1ab04f"))  # the ids behind it, in an order that stays the same
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from volkit.errors import AlreadyExists, NotFound, Unavailable
from volkit.host import files
from volkit.host._syscalls import encoded, refusal

__all__ = ["ShardedDirectory"]

_ID: Final = re.compile(r"[a-z][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)


class ShardedDirectory:
    """A directory of things called `noun`, whose names are their ids (as `TakesIds` has them)."""

    def __init__(self, path: str, noun: str) -> None:
        self._path = path
        self._noun = noun
        try:
            os.makedirs(encoded(path), 0o700, exist_ok=True)
        except OSError as error:
            raise refusal(error, f"cannot make the directory {path}") from error

    def path(self, id_: str) -> str:
        """Where the thing of this id is, or would be. Raises NotFound for an id that nothing here can have."""
        if not _ID.fullmatch(id_):
            raise self.missing(id_)
        return f"{self._path}/{id_[-2:]}/{id_}"

    def missing(self, id_: str) -> NotFound | Unavailable:
        """The error for an id that is not here, to be raised: Unavailable where none is."""
        if not os.path.isdir(self._path):
            return Unavailable(f"{self._path} is away: is its file system mounted?")
        return NotFound(f"there is no {self._noun} {id_[:128]!r} in {self._path}")

    def put(self, made: str, id_: str) -> str:
        """Moves what was made into its place, durably, and returns that. Raises AlreadyExists."""
        path = self.path(id_)
        directory = os.path.dirname(path)
        try:
            os.mkdir(directory, 0o700)
            files.sync_directory(self._path)
        except FileExistsError:
            pass
        except OSError as error:
            raise refusal(error, f"cannot make the directory {directory}") from error
        try:
            files.move_new(made, path)
        except AlreadyExists:
            raise AlreadyExists(f"there is a {self._noun} {id_!r} already") from None
        files.sync_directory(directory)
        return path

    def after(self, last: str = "") -> Iterator[str]:
        """The ids behind `last`, in the order of their last two characters, then of themselves."""
        start = (last[-2:], last)
        shards = (name for name in os.listdir(self._path) if len(name) == 2 and name >= start[0])
        for shard in sorted(shards):
            for id_ in sorted(os.listdir(f"{self._path}/{shard}")):
                if (shard, id_) > start and _ID.fullmatch(id_):
                    yield id_
