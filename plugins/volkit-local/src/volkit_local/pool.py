"""The store: a directory for each volume and snapshot, and what is known of it in a file beside its content.

```text
pool/volumes/4f/v…4f/data     a volume's content, which is all that its users see
pool/volumes/4f/v…4f/record   its size, its source, when it was made
pool/snapshots/a0/s…a0/…      a snapshot, likewise
pool/scratch, pool/trash      what is being made and removed
pool/ledger                   what is free and what is promised (see `volkit.host.ledger`)
```

Everything comes into its place complete, by one rename, and leaves it by one: see `volkit.host.scratch` and `trash`.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, evolve, frozen

from volkit import FailedPrecondition, NotFound, Usage
from volkit.host import files, paths, quotas, trees
from volkit.host.ledger import Ledger
from volkit.host.scratch import Scratch
from volkit.host.sharded import ShardedDirectory
from volkit.host.trash import Trash
from volkit_local.options import LocalSettings

VOLUMES: Final = "volumes"
SNAPSHOTS: Final = "snapshots"


@frozen(kw_only=True)
class Record:
    """Made of `parent` ("volumes/ID", "snapshots/ID") at `created` (Unix time). `size` in bytes, 0 for no end; the
    file system keeps to it where it is `enforced`.
    """

    size: int = 0
    enforced: bool = False
    parent: str = ""
    created: float = 0


@frozen(kw_only=True)
class Tree:
    """A volume or a snapshot: `path` holds its content, `data`, and its record."""

    kind: str
    id: str
    path: str
    record: Record

    @property
    def data(self) -> str:
        return f"{self.path}/data"


def find_quota(settings: LocalSettings) -> quotas.Quota | None:
    """How the pool's file system enforces sizes, if it does. Raises FailedPrecondition for what can be no pool."""
    pool = str(settings.pool)
    paths.require_own(pool, "the pool", (VOLUMES, SNAPSHOTS, "scratch", "trash", "ledger"))
    return quotas.find(pool) if settings.quota else None


class Pool:
    """The trees in one directory. Several threads and processes can use it at once."""

    def __init__(self, settings: LocalSettings) -> None:
        self.quota = find_quota(settings)
        self.root = root = str(settings.pool)
        if isinstance(self.quota, quotas.BtrfsQuota):
            self.quota.enable(root)
        self._directories = {
            kind: ShardedDirectory(f"{root}/{kind}", kind[:-1]) for kind in (VOLUMES, SNAPSHOTS)
        }
        self._trash = Trash(f"{root}/trash")
        self._scratch = Scratch(f"{root}/scratch", self._trash)
        self._ledger = Ledger(f"{root}/ledger", settings.overcommit, self._count)

    def get(self, kind: str, id_: str) -> Tree:
        """Raises NotFound, Unavailable where the pool is away, FailedPrecondition where it was tampered with."""
        path = self._directories[kind].path(id_)
        try:
            if os.path.islink(path) or not stat.S_ISDIR(os.lstat(f"{path}/data").st_mode):
                raise FailedPrecondition(f"{path} is not as volkit made it: somebody changed the pool")
            record = Record(**json.loads(Path(path, "record").read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise self._directories[kind].missing(id_) from None
        except (ValueError, TypeError) as error:
            raise FailedPrecondition(f"{path}/record cannot be read ({error}): restore it") from None
        return Tree(kind=kind, id=id_, path=path, record=record)

    def after(self, kind: str, last: str = "") -> Iterator[Tree]:
        """In the order of `volkit.host.sharded`; what was removed meanwhile or cannot be read is left out."""
        for id_ in self._directories[kind].after(last):
            with suppress(NotFound, FailedPrecondition):
                yield self.get(kind, id_)

    def create(self, kind: str, id_: str, record: Record, *, source: Tree | None, mode: int = 0o755) -> Tree:
        """A new tree: empty, or with what `source` holds. Raises AlreadyExists, ResourceExhausted,
        FailedPrecondition; nothing is left behind then.
        """
        parent = f"{source.kind}/{source.id}" if source else ""
        record = evolve(record, parent=parent, created=time.time())
        limit = record.size if record.enforced else 0
        with self._ledger.promised(limit) if limit else nullcontext(), self._scratch.directory() as place:
            made = Tree(kind=kind, id=id_, path=place, record=record)
            if source and self.quota:
                self.quota.copy(source.data, made.data, limit)
            elif source:
                trees.copy(source.data, made.data)
            elif self.quota and limit:
                self.quota.make(made.data, limit)
            else:
                os.mkdir(made.data)
            if not source:
                os.chmod(made.data, mode)
            _write(made)
            return evolve(made, path=self._directories[kind].put(place, id_))

    def grow(self, tree: Tree, size: int) -> None:
        """Raises FailedPrecondition where nothing enforces its size, ResourceExhausted."""
        if self.quota is None or not tree.record.enforced:
            raise FailedPrecondition(f"the size of {tree.id} is not enforced: there is nothing to expand")
        with self._ledger.promised(size - tree.record.size):
            self.quota.limit(tree.data, size)
            _write(evolve(tree, record=evolve(tree.record, size=size)))

    def remove(self, tree: Tree) -> None:
        """Removes it for good, at once; what is large may take space for a while longer. Raises NotFound."""
        claim = self._claim(tree)
        self._trash.take(tree.path)
        with self._ledger.opened() as balance:
            balance.claims -= claim
        self._trash.empty()

    def available(self) -> int:
        """Bytes that new volumes can still be promised, as of the last minute at most."""
        with self._ledger.opened() as balance:
            return self._ledger.available(balance, max_age=60)

    def usage(self, tree: Tree) -> Usage | None:
        """What a volume takes; None where that takes too long to find out."""
        if self.quota and tree.record.enforced:
            return self.quota.usage(tree.data)
        held, free = trees.usage(tree.data), files.free_bytes(self.root)
        if not held.complete:
            return None
        # what it can really have, since its size is only said
        return Usage(total=held.size + free, used=held.size, available=free, used_inodes=held.entries)

    def _claim(self, tree: Tree) -> int:
        """Bytes that it may still take of what is free."""
        if self.quota is None or not tree.record.enforced:
            return 0
        return max(tree.record.size - self.quota.usage(tree.data).used, 0)

    def _count(self) -> int:
        return sum(map(self._claim, self.after(VOLUMES)))


def _write(tree: Tree) -> None:
    files.write_durably(f"{tree.path}/record", json.dumps(asdict(tree.record)).encode())
