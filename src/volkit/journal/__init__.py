"""The durable memory: a small key-value store with compare-and-swap, behind an address such as
`sqlite:///var/lib/x.db`.
"""

from __future__ import annotations

from volkit.errors import InvalidArgument
from volkit.journal.base import Conflict, Delete, Entry, Journal, Put, key

__all__ = ["Conflict", "Delete", "Entry", "Journal", "Put", "key", "open_journal"]


def open_journal(url: str) -> Journal:
    """The journal at `url`: `sqlite:///absolute/path` or `memory://`.

    Raises InvalidArgument for another address, FailedPrecondition for a file that is not a journal or of a
    newer format.
    """
    if url.startswith("sqlite:///") and not url.endswith("/"):
        from volkit.journal.sqlite import SqliteJournal

        return SqliteJournal(url.removeprefix("sqlite://"))
    if url == "memory://":
        from volkit.journal.memory import MemoryJournal

        return MemoryJournal()
    raise InvalidArgument(
        f"{url.partition('://')[0]!r} is no kind of journal: write sqlite:///PATH or memory://"
    )
