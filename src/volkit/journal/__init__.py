"""The durable memory: a small key-value store with compare-and-swap, behind an address such as
`sqlite:///var/lib/x.db`.
"""

from __future__ import annotations

from volkit.errors import InvalidArgument
from volkit.journal.base import Conflict, Delete, Entry, Journal, Lease, Put, SharedJournal, key

__all__ = ["Conflict", "Delete", "Entry", "Journal", "Lease", "Put", "SharedJournal", "key", "open_journal"]


def open_journal(url: str, *, set_aside: bool = False) -> Journal:
    """The journal at `url`: `sqlite:///absolute/path`, `etcd://host:port,…/prefix?…` or `memory://`.

    `set_aside`: a damaged SQLite journal is renamed and a new one begun, for backends whose volumes are found
    again. Raises InvalidArgument for another address, FailedPrecondition for a file that is not a journal, is
    damaged or of a newer format, Unauthenticated and PermissionDenied of etcd.
    """
    if url.startswith("sqlite:///") and not url.endswith("/"):
        from volkit.journal.sqlite import SqliteJournal

        return SqliteJournal(url.removeprefix("sqlite://"), set_aside=set_aside)
    if url.startswith("etcd://"):
        from volkit.journal.etcd import EtcdJournal

        return EtcdJournal(url)
    if url == "memory://":
        from volkit.journal.memory import MemoryJournal

        return MemoryJournal()
    raise InvalidArgument(
        f"{url.partition('://')[0]!r} is no kind of journal: write sqlite:///PATH, etcd://HOST:PORT/PREFIX or memory://"
    )
