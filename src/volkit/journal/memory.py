"""A journal that lives as long as its process: for tests, and for looking at a backend without leaving
anything behind.
"""

from __future__ import annotations

import json
import threading

from volkit.errors import Unavailable
from volkit.journal.base import Conflict, Delete, Entry, Journal, Put
from volkit.journal.records import read


class MemoryJournal(Journal):
    """Values are kept as JSON text, so that what could not be stored elsewhere cannot be stored here."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def get(self, key: str) -> Entry | None:
        self._refuse_if_closed()
        found = self._records.get(key)
        return read(self, key, *found) if found else None

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        self._refuse_if_closed()
        with self._lock:
            records = sorted(
                (key, *record)
                for key, record in self._records.items()
                if key.startswith(prefix) and key > after
            )
        return [entry for record in records[: limit or None] if (entry := read(self, *record))]

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        texts = [json.dumps(change.value) if isinstance(change, Put) else "" for change in changes]
        self._refuse_if_closed()
        with self._lock:
            for change in changes:
                if (
                    change.revision is not None
                    and change.revision != self._records.get(change.key, ("", 0))[1]
                ):
                    raise Conflict(f"the record {change.key!r} was changed by somebody else: repeat the call")
            for change, text in zip(changes, texts, strict=True):
                if isinstance(change, Put):
                    self._records[change.key] = (text, self._records.get(change.key, ("", 0))[1] + 1)
                else:
                    self._records.pop(change.key, None)

    def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("the journal in memory is closed")
