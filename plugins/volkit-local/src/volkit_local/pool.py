"""The volumes and snapshots in the pool's directory, and how much of it is promised to them.

```text
pool/volumes/4f/v…4f/data     a volume's content, which is all that its users see
pool/volumes/4f/v…4f/record   its size, its source, when it was made
pool/snapshots/a0/s…a0/…      a snapshot, likewise
pool/scratch, pool/trash      what is being made and removed
pool/ledger                   what is free and what is promised (see `volkit.host.ledger`)
```
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from volkit import ResourceExhausted, Usage
from volkit.host import quotas
from volkit.host.ledger import Ledger
from volkit.host.store import Entry, Store
from volkit_local.options import LocalSettings

VOLUMES: Final = "volumes"
SNAPSHOTS: Final = "snapshots"


class Tree:
    """A volume or a snapshot, made of `parent` ("volumes/ID", "snapshots/ID") at `created` (Unix time); its content is
    below the directory `data`. `size` in bytes, 0 for no end; the file system keeps to it where it is `enforced`.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry: Entry = entry
        self.kind: str = entry.kind
        self.id: str = entry.id
        self.data: str = f"{entry.path}/data"
        record = {"size": 0, "enforced": False, "parent": "", "created": 0, **entry.record}
        self.size: int = int(record["size"])
        self.enforced: bool = bool(record["enforced"])
        self.parent: str = str(record["parent"])
        self.created: float = float(record["created"])


class Pool:
    """The trees in one directory. Several threads and processes can use it at once."""

    def __init__(self, settings: LocalSettings) -> None:
        self.root: str = str(settings.pool)
        self._store = Store(self.root, {VOLUMES: "volume", SNAPSHOTS: "snapshot"}, also=("ledger",))
        self._quota = quotas.enable(self.root) if settings.quota else quotas.NoQuota()
        self._ledger = Ledger(f"{self.root}/ledger", settings.overcommit, self._count)

    def get(self, kind: str, id_: str) -> Tree:
        """Raises NotFound, Unavailable where the pool is away, FailedPrecondition where it was tampered with."""
        return Tree(self._store.get(kind, id_))

    def after(self, kind: str, last: str = "") -> Iterator[Tree]:
        """Those behind the id `last`, in the order of the store."""
        return map(Tree, self._store.after(kind, last))

    def enforces(self, source: Tree | None = None) -> bool:
        """Whether a new tree, made of `source`, can have a size that is kept to."""
        return self._quota.enforced and (source is None or source.enforced)

    def create(
        self, kind: str, id_: str, size: int, *, source: Tree | None = None, mode: int = 0o755
    ) -> Tree:
        """A new tree: empty, or with what `source` holds. Raises AlreadyExists, ResourceExhausted,
        FailedPrecondition; nothing is left behind then.
        """
        enforced, parent = self.enforces(source), f"{source.kind}/{source.id}" if source else ""
        record = {"size": size, "enforced": enforced, "parent": parent, "created": time.time()}
        quota = self._quota if enforced else quotas.NoQuota()
        limit = size if kind == VOLUMES else 0
        more = quota.copy_claim(source.data) if source and source.kind == VOLUMES else 0
        claim = (limit if enforced else 0) + more
        with self._ledger.reserved(claim), self._store.making(kind, id_, record) as path:
            if source:
                quota.copy(source.data, f"{path}/data", limit)
            else:
                quota.make(f"{path}/data", limit)
                os.chmod(f"{path}/data", mode)
        return self.get(kind, id_)

    def grow(self, tree: Tree, size: int) -> None:
        """Raises ResourceExhausted; FailedPrecondition where its size was enforced and cannot be any more."""
        enforced, more = tree.enforced, size - tree.size
        if not enforced:
            self.require_room(more)
        with self._ledger.reserved(more if enforced else 0):
            if enforced:
                self._quota.limit(tree.data, size)
            self._store.rewrite(tree.entry, {**tree.entry.record, "size": size})

    def remove(self, tree: Tree) -> None:
        """Removes it for good, at once; what is large may take space for a while longer. Raises NotFound."""
        with self._ledger.opened() as balance:
            claim = self._claim(tree)
            self._store.remove(tree.entry)
            balance.claims -= claim
        self._store.empty_trash()

    def available(self) -> int:
        """Bytes that new volumes can still be promised, as of the last minute at most."""
        with self._ledger.opened() as balance:
            return self._ledger.available(balance, max_age=60)

    def require_room(self, size: int) -> None:
        """Raises ResourceExhausted where a size that nothing enforces could not be had now."""
        if size > (free := self.available()):
            raise ResourceExhausted(f"the pool {self.root} has {free} bytes left, not {size}")

    def usage(self, tree: Tree) -> Usage | None:
        """None where it takes too long to find out."""
        return self._quota_of(tree).usage(tree.data)

    def trouble(self, tree: Tree) -> str:
        """Why the size of this volume cannot be relied on, though it was to be enforced; "" where it can."""
        if tree.enforced and not self._quota.enforced:
            return "its size is not enforced any more: its file system has no quotas, or this process may not use them"
        return self._quota_of(tree).trouble(tree.data)

    def _quota_of(self, tree: Tree) -> quotas.Quota:
        return self._quota if tree.enforced else quotas.NoQuota()

    def _claim(self, tree: Tree) -> int:
        """Bytes that it may still take of what is free."""
        return self._quota_of(tree).claim(tree.data) if tree.kind == VOLUMES else 0

    def _count(self) -> int:
        return sum(map(self._claim, self.after(VOLUMES)))
