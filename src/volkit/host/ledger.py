"""How much of a pool on this node is free and how much of that is promised, in a small file of all processes together.

```python
ledger = Ledger(f"{pool}/ledger", overcommit=1.0, count=lambda: sum(one.size - one.used for one in volumes()))
with ledger.reserved(10 << 30):  # ResourceExhausted where it does not fit; taken back where the body fails
    make_a_volume()
```

`free` and `claims` are true when the volumes are counted; from then on both are moved by what the pool itself
makes and removes. `min(free now, free) - claims` is then never more than there really is: what volumes write is
still among the claims, and what they discard is not taken for a gain. Where it is too little, the volumes are
counted anew, so that nothing is refused that would fit, and a create costs the same among ten volumes and a
million.

The file is not synced: it is believed only in the boot that it was written in.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define

from volkit.errors import ResourceExhausted
from volkit.host import files

__all__ = ["Balance", "Ledger"]


@define
class Balance:
    """Bytes: volumes may still take `claims` of what was `free` when they were `counted` (Unix time).

    `reserved` was added to the claims since the ledger was opened, and is taken back when the rest fails.
    """

    claims: int
    free: int
    counted: float
    reserved: int = 0


class Ledger:
    """`overcommit` bytes are promised for each free one; `count` sums up what all volumes may still take.

    The file at `path` is in the pool, and may be removed at any time.
    """

    def __init__(self, path: str, overcommit: float, count: Callable[[], int]) -> None:
        self._path = path
        self._pool = os.path.dirname(path)
        self._overcommit = overcommit
        self._count = count
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self._boot = file.read().strip()

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The ledger's descriptor; every other opener, in this process or another, waits."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self) -> Iterator[Balance]:
        """The balance, to read and to change, alone."""
        with self.locked() as descriptor:
            balance = self._read(descriptor)
            try:
                yield balance
            except BaseException:
                balance.claims -= balance.reserved
                raise
            finally:
                self._write(descriptor, balance)

    def available(self, balance: Balance, max_age: float | None = None) -> int:
        """Bytes that can still be promised; counted anew where that was `max_age` seconds ago or more."""
        if max_age is not None and not 0 <= time.time() - balance.counted < max_age:
            self._recount(balance)
        free = min(files.free_bytes(self._pool), balance.free)
        return max(int(free * self._overcommit) - balance.claims, 0)

    def reserve(self, balance: Balance, size: int) -> None:
        """Adds `size` bytes to the claims. Raises ResourceExhausted where they do not fit."""
        if size > self.available(balance) and size > (left := self.available(balance, max_age=0)):
            raise ResourceExhausted(
                f"{size} bytes do not fit into the pool {self._pool}: {balance.free} bytes are free, "
                f"{balance.claims} are promised already, {left} are left"
            )
        balance.claims += size
        balance.reserved += size

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """`size` bytes are added to the claims, and taken back where the body fails; nobody else counts meanwhile.
        Raises ResourceExhausted.
        """
        with self.opened() as balance:
            self.reserve(balance, size)
            yield

    def _recount(self, balance: Balance) -> None:
        # free first: what is written during the count is then counted twice, and not left out
        balance.free = files.free_bytes(self._pool)
        balance.claims = self._count()
        balance.counted = time.time()

    def _read(self, descriptor: int) -> Balance:
        try:
            boot, claims, free, counted = json.loads(os.pread(descriptor, 4096, 0))
            if boot == self._boot:
                return Balance(claims=claims, free=free, counted=counted)
        except (ValueError, TypeError):
            pass  # new, or cut short
        balance = Balance(claims=0, free=0, counted=0)
        self._recount(balance)
        return balance

    def _write(self, descriptor: int, balance: Balance) -> None:
        text = json.dumps([self._boot, balance.claims, balance.free, balance.counted]).encode()
        try:
            os.pwrite(descriptor, text.ljust(128), 0)  # one length: nothing of a longer one is left over
        except OSError:
            os.ftruncate(descriptor, 0)  # a full file system that copies on write: the next one counts
