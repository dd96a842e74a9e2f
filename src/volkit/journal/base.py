"""The interface of a journal. Keys are text with `/` between their parts; values are JSON objects without
secrets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from volkit import model
from volkit.errors import Aborted

Value = Mapping[str, Any]


class Conflict(Aborted):
    """Somebody else changed a record since it was read: nothing of the write happened."""


@frozen(eq=False, repr=False)
class Entry(model.Value):
    """One record. `revision` grows with each change of the key and is never 0."""

    key: str
    value: Value
    revision: int


@frozen(eq=False, repr=False)
class Put(model.Value):
    """Set a record; only where its revision still is `revision` (0: it must not exist), if one is given."""

    key: str
    value: Value
    revision: int | None = field(default=None, kw_only=True)


@frozen(eq=False, repr=False)
class Delete(model.Value):
    """Remove a record, present or not; only where its revision still is `revision`, if one is given."""

    key: str
    revision: int | None = field(default=None, kw_only=True)


def key(*parts: str) -> str:
    """A record's key: the parts joined by `/`, which is escaped inside them, as is `%`. End it with "" for a
    prefix to scan.
    """
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


class Journal(ABC):
    """A key-value store that several threads, and several processes of one host, use at once."""

    @abstractmethod
    def get(self, key: str) -> Entry | None:
        """The record, as of the last write; one that cannot be read is moved to the quarantine and is none
        (`volkit.journal.records`). Raises Unavailable where the store is away.
        """

    @abstractmethod
    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        """The records whose keys begin with `prefix`, in key order, those after the key `after`, at most
        `limit` (0: all). One that cannot be read is moved to the quarantine and left out.
        """

    @abstractmethod
    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        """All changes or none. When it returns they are seen by every reader; if `durable`, they also survive
        a power cut.

        A write that is not durable still survives the death of the process, and is never reordered before an
        earlier one. Raises Conflict, or Unavailable where the store is away or full.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the store. A closed journal raises Unavailable."""

    def needs_restart(self) -> str:
        """Why this process cannot write any more and a new one could, in words; "" where that is not so. Waits for
        nothing.
        """
        return ""

    def fence(self) -> None:  # noqa: B027 (most have nothing to do)
        """Raise Aborted where a lease that the caller holds was lost to somebody else. A journal without leases
        has none to lose: its locks are files.
        """


class Lease(ABC):
    """A lock that the store keeps, as long as its holder renews it; the journal renews it by itself.

    `revision` grows from one holder of the key to the next. Until `release`, every write from where the lease
    was taken (the thread, or a copy of its context) carries it: the store refuses the write where the lease
    is lost, so that a holder that slept through its end changes nothing (a fencing token).
    """

    key: str
    revision: int

    @property
    @abstractmethod
    def lost(self) -> bool:
        """Is it known to be over, or may it be? True also after a pause of the process that was too long."""

    @abstractmethod
    def release(self) -> None:
        """Give it back, once. Never raises: where the store is away it is given back later, or runs out."""


class SharedJournal(Journal):
    """A journal of several hosts. Files lock nothing there: it has leases."""

    @abstractmethod
    def lease(self, key: str, *, wait: float) -> Lease | None:
        """The lease of `key`, or None where somebody else holds it for `wait` seconds more. Raises
        Unavailable.
        """
