"""The interface of a journal. Keys are text with `/` between their parts; values are JSON objects without
secrets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from volkit.errors import Aborted

Value = Mapping[str, Any]


class Conflict(Aborted):
    """Somebody else changed a record since it was read: nothing of the write happened."""


@frozen
class Entry:
    """One record. `revision` grows with each change of the key and is never 0."""

    key: str
    value: Value
    revision: int


@frozen
class Put:
    """Set a record; only where its revision still is `revision` (0: it must not exist), if one is given."""

    key: str
    value: Value
    revision: int | None = field(default=None, kw_only=True)


@frozen
class Delete:
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
        """The record, as of the last write. Raises Unavailable where the store is away."""

    @abstractmethod
    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        """The records whose keys begin with `prefix`, in key order, those after the key `after`, at most
        `limit` (0: all).
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
