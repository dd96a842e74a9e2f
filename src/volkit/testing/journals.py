"""Journals that fail on purpose: at a write, for good, or by a power cut."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

from volkit.errors import Unavailable
from volkit.journal import Delete, Entry, Journal, Lease, Put, SharedJournal
from volkit.journal.memory import MemoryJournal
from volkit.testing.faults import Point, Spy


class VolatileJournal(MemoryJournal):
    """A journal in memory, with a disk of its own: what was not written durably is lost by a power cut."""

    def __init__(self) -> None:
        super().__init__()
        self._states = [dict(self._records)]  # as of the last durable write, and after each one since

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        super().write(*changes, durable=durable)
        with self._lock:
            now = dict(self._records)
            self._states = [now] if durable else [*self._states, now]

    def sync(self) -> None:
        """Have all of it on the disk."""
        with self._lock:
            self._states = [dict(self._records)]

    def power_cut(self, lost: int | None = None) -> None:
        """Lose the last `lost` writes that were not durable, or all of them."""
        with self._lock:
            at = 0 if lost is None else max(0, len(self._states) - 1 - lost)
            self._states = [dict(self._states[at])]
            self._records = dict(self._states[0])


class WatchedJournal(Journal):
    """A journal whose writes are points of a spy. Closing leaves `inner` open: it outlives its process."""

    def __init__(self, inner: Journal, spy: Spy) -> None:
        self.inner = inner
        self._spy = spy

    def get(self, key: str) -> Entry | None:
        self._refuse_if_away()
        return self.inner.get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        self._refuse_if_away()
        return self.inner.scan(prefix, after=after, limit=limit)

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        self._refuse_if_away()
        self._spy.listen("a record of the journal", repr(changes))
        number = self._spy.next("journal")
        self._spy.at(Point("journal", number))
        self.inner.write(*changes, durable=durable)
        self._spy.at(Point("journal", number, "after"))

    def fence(self) -> None:
        self.inner.fence()

    def close(self) -> None:
        """Nothing: the next process goes on with it."""

    def _refuse_if_away(self) -> None:
        if self._spy.away == "journal":
            raise Unavailable("injected: the journal is away")


class WatchedSharedJournal(WatchedJournal, SharedJournal):
    """The same, of a journal that several hosts share: its locks are leases."""

    inner: SharedJournal

    def lease(self, key: str, *, wait: float) -> Lease | None:
        self._refuse_if_away()
        return self.inner.lease(key, wait=wait)


def watched_journal(inner: Journal, spy: Spy) -> WatchedJournal:
    """`inner` with `spy` at its writes; with leases where `inner` has them."""
    return (WatchedSharedJournal if isinstance(inner, SharedJournal) else WatchedJournal)(inner, spy)


def tear(path: Path, synced: int, dice: random.Random) -> None:
    """What a power cut does to the SQLite journal at `path`, whose log was synced up to `synced` bytes: of what was
    written since, pages are there up to a random place, and the last of them is torn.
    """
    log = Path(f"{path}-wal")
    with suppress(FileNotFoundError):
        Path(f"{path}-shm").unlink()  # is no file's content: it is made anew from the log
        written = log.stat().st_size
        if written > synced:
            cut = dice.randint(synced, written)
            torn = dice.randbytes(min(512, written - cut))
            with open(log, "r+b") as file:
                file.truncate(cut)
                file.seek(cut)
                file.write(torn)
                os.fsync(file.fileno())
