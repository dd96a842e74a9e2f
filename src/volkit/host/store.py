"""A store: things of a node under their ids, each a directory with a record, a million of them if need be.

```python
store = Store(pool, {"volumes": "volume", "snapshots": "snapshot"})
with store.making("volumes", "v-4f", {"size": 1}) as path:  # new and empty; what fails leaves nothing
    fill(path)
entry = store.get("volumes", "v-4f")  # Entry(path="…/volumes/4f/v-4f", record={"size": 1}, …)
store.remove(entry)                   # gone at once, whatever happens from here on
store.empty_trash()                   # and its space
```

Everything comes into its place complete and durable, by one rename, and leaves it by one. What a killed process left is
removed when the next one starts. Several processes can use one store.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from attrs import evolve, frozen

from volkit.errors import FailedPrecondition, NotFound
from volkit.host import files, paths
from volkit.host._syscalls import refusal
from volkit.host.scratch import Scratch
from volkit.host.sharded import ShardedDirectory
from volkit.host.trash import Trash

log: logging.Logger = logging.getLogger(__name__)

__all__ = ["Entry", "Store"]

_RECORD: Final = "record"


@frozen(kw_only=True)
class Entry:
    """One thing: its directory, and what is known of it, as JSON has it."""

    kind: str
    id: str
    path: str
    record: Mapping[str, Any]


class Store:
    """The directory `root`, with nothing else in it than the directories of `kinds` (what one of each is called, by
    its directory's name), `scratch`, `trash` and what `also` names. Raises FailedPrecondition where it cannot be one.
    """

    def __init__(self, root: str, kinds: Mapping[str, str], *, also: Iterable[str] = ()) -> None:
        paths.require_own(root, "the pool", (*kinds, "scratch", "trash", *also))
        self._directories = {kind: ShardedDirectory(f"{root}/{kind}", noun) for kind, noun in kinds.items()}
        self._trash = Trash(f"{root}/trash")
        self._scratch = Scratch(f"{root}/scratch", self._trash)

    def get(self, kind: str, id_: str) -> Entry:
        """Raises NotFound, Unavailable where the whole store is away, FailedPrecondition where the record is."""
        directory = self._directories[kind]
        path = directory.path(id_)
        try:
            with open(f"{path}/{_RECORD}", "rb") as file:
                record = dict(json.load(file))
        except FileNotFoundError:
            if not os.path.lexists(path):
                raise directory.missing(id_) from None
            raise FailedPrecondition(f"{path} has no record: restore it, or remove the directory") from None
        except (ValueError, TypeError) as error:
            raise FailedPrecondition(f"{path}/{_RECORD} cannot be read ({error}): restore it") from None
        except OSError as error:
            raise refusal(error, f"cannot read {path}/{_RECORD}") from error
        return Entry(kind=kind, id=id_, path=path, record=record)

    def after(self, kind: str, last: str = "") -> Iterator[Entry]:
        """What is behind the id `last`, in an order that stays the same. What cannot be read is logged and left out."""
        for id_ in self._directories[kind].after(last):
            with suppress(NotFound):  # removed meanwhile
                try:
                    yield self.get(kind, id_)
                except FailedPrecondition as error:
                    log.warning("not listed: %s", error)

    @contextmanager
    def making(self, kind: str, id_: str, record: Mapping[str, Any]) -> Iterator[str]:
        """A new directory for the body to fill, which is put in its place at the end. Raises AlreadyExists, NotFound
        for an id that nothing here can have.
        """
        self._directories[kind].path(id_)
        with self._scratch.directory() as made:
            yield made
            _write(made, record)
            self._directories[kind].put(made, id_)

    def rewrite(self, entry: Entry, record: Mapping[str, Any]) -> Entry:
        """Another record in place of its own, durably."""
        _write(entry.path, record)
        return evolve(entry, record=record)

    def remove(self, entry: Entry) -> None:
        """Moves it into the trash, durably. Raises NotFound."""
        self._trash.take(entry.path)

    def empty_trash(self) -> None:
        """Removes what is there for good; what takes long is gone on with in the background."""
        self._trash.empty()


def _write(path: str, record: Mapping[str, Any]) -> None:
    files.write_durably(f"{path}/{_RECORD}", json.dumps(dict(record)).encode())
