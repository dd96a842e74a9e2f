"""The default journal: one SQLite file in WAL mode, shared by the threads and the processes of a host.

Writers queue; whoever gets the writer's turn commits everything that has queued up meanwhile, with one sync for all of it
(a group commit). Readers never wait for a sync. A write that need not be durable is committed without one: SQLite keeps
the order, so that a later durable write makes it durable too (sqlite.org, "Write-Ahead Logging" and PRAGMA synchronous).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from volkit.errors import FailedPrecondition, Unavailable
from volkit.journal.base import Conflict, Delete, Entry, Journal, Put

T = TypeVar("T")

FORMAT = 1
"""The format of the file, in its user_version."""

_APPLICATION_ID = 0x766F6C6B  # "volk": tells a journal from any other SQLite file
_BUSY_SECONDS = 5.0

_PUT = """INSERT INTO record (key, value, revision) VALUES (?1, ?2, 1)
    ON CONFLICT (key) DO UPDATE SET value = ?2, revision = revision + 1"""


class _Write:
    """One caller's changes on their way through the queue."""

    __slots__ = ("changes", "done", "durable", "error")

    def __init__(self, changes: list[tuple[Put | Delete, str]], durable: bool) -> None:
        self.changes = changes
        self.durable = durable
        self.done = False
        self.error: Exception | None = None


class SqliteJournal(Journal):
    """The file at `path`, made with mode 0600 where it is missing."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._writer = self._connect()
        self._prepare()
        self._reader = self._connect()
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._queue: deque[_Write] = deque()
        self._durable = True

    def _connect(self) -> sqlite3.Connection:
        # autocommit (isolation_level None): transactions begin where this file says BEGIN and nowhere else
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA cache_size = -512")
        return connection

    def _prepare(self) -> None:
        try:
            with self._writer as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                (version,) = db.execute("PRAGMA user_version").fetchone()
                (application,) = db.execute("PRAGMA application_id").fetchone()
                if version == 0 and application == 0:
                    self._create(db)
                elif application != _APPLICATION_ID:
                    raise FailedPrecondition(f"{self.path} is a SQLite file of something else: give another path for the journal")
                elif version > FORMAT:
                    raise FailedPrecondition(
                        f"{self.path} has format {version}, this version of volkit reads up to {FORMAT}: upgrade volkit"
                    )
        except sqlite3.DatabaseError as error:
            raise FailedPrecondition(
                f"the journal {self.path} cannot be opened ({error}): move it aside; volumes are found again from the backend"
            ) from error

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "CREATE TABLE IF NOT EXISTS record (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("COMMIT")

    def get(self, key: str) -> Entry | None:
        row = self._read(lambda db: db.execute("SELECT value, revision FROM record WHERE key = ?", (key,)).fetchone())
        return Entry(key, json.loads(row[0]), row[1]) if row else None

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        first, last = max(prefix, after), prefix + "\U0010ffff"
        query = "SELECT key, value, revision FROM record WHERE key >= ? AND key < ? AND key != ? ORDER BY key LIMIT ?"
        rows = self._read(lambda db: db.execute(query, (first, last, after, limit or -1)).fetchall())
        return [Entry(key, json.loads(value), revision) for key, value, revision in rows]

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._reading:
                return query(self._reader)
        except sqlite3.Error as error:
            raise Unavailable(f"the journal {self.path} cannot be read ({error})") from error

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        mine = _Write([(one, json.dumps(one.value) if isinstance(one, Put) else "") for one in changes], durable)
        self._queue.append(mine)
        with self._turn:
            if not mine.done:
                batch = []
                while self._queue:
                    batch.append(self._queue.popleft())
                self._commit(batch)
        if mine.error is not None:
            raise mine.error

    def _commit(self, batch: list[_Write]) -> None:
        db = self._writer
        try:
            self._set_durable(any(one.durable for one in batch))
            db.execute("BEGIN IMMEDIATE")
            for one in batch:
                self._apply(db, one)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for one in batch:
                one.error = Unavailable(f"the journal {self.path} cannot be written ({error}): nothing of this write happened")
        for one in batch:
            one.done = True

    def _set_durable(self, durable: bool) -> None:
        if durable != self._durable:
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    @staticmethod
    def _apply(db: sqlite3.Connection, write: _Write) -> None:
        for change, _ in write.changes:
            if change.revision is not None:
                row = db.execute("SELECT revision FROM record WHERE key = ?", (change.key,)).fetchone()
                if change.revision != (row[0] if row else 0):
                    write.error = Conflict(f"the record {change.key!r} was changed by somebody else: repeat the call")
                    return
        for change, text in write.changes:
            if isinstance(change, Put):
                db.execute(_PUT, (change.key, text))
            else:
                db.execute("DELETE FROM record WHERE key = ?", (change.key,))

    def close(self) -> None:
        with self._turn, self._reading:
            self._writer.close()
            self._reader.close()
