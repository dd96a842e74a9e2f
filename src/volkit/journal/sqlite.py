"""The default journal: one SQLite file in WAL mode, shared by the threads and the processes of a host.

Writers queue; whoever gets the writer's turn commits everything that has queued up meanwhile in one
transaction. SQLite does not sync it (PRAGMA synchronous = NORMAL: the log is synced before it is copied into
the database, so that the file is never torn); a durable write then syncs the log itself, and one sync serves
all that have committed before it began. So nobody waits for the sync of another: neither readers nor writes
that need not be durable. The log keeps the order, hence a later durable write makes earlier ones durable too
(sqlite.org, "Write-Ahead Logging").
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
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

    __slots__ = ("changes", "done", "error")

    def __init__(self, changes: list[tuple[Put | Delete, str]]) -> None:
        self.changes = changes
        self.done = False
        self.error: Exception | None = None


class SqliteJournal(Journal):
    """The file at `path`, made with mode 0600 where it is missing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._queue: deque[_Write] = deque()
        self._syncing = threading.Lock()
        self._commits = 0
        self._synced = 0
        self._failed = ""
        with ExitStack() as opened:
            self._open(opened)
            opened.pop_all()

    def _open(self, opened: ExitStack) -> None:
        """Open the file to write, to read, and to sync its log; `opened` closes what is open after a failure."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._writer = opened.enter_context(closing(self._connect()))
            self._prepare(self._writer)
            self._reader = opened.enter_context(closing(self._connect()))
            self._log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, sqlite3.OperationalError) as error:  # no room, no permission, locked
            raise Unavailable(f"the journal {self.path} cannot be opened ({error})") from error
        except sqlite3.DatabaseError as error:
            raise FailedPrecondition(
                f"the journal {self.path} cannot be opened ({error}): move it aside; volumes are found again"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        # autocommit (isolation_level None): transactions begin where this file says BEGIN and nowhere else
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA cache_size = -512")
        return connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the table in a new file; refuse a file that is not ours before anything in it is changed."""
        if db.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            db.execute("BEGIN IMMEDIATE")
            # once more: somebody may have made it meanwhile
            if db.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
                self._create(db)
            db.execute("COMMIT")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise FailedPrecondition(
                f"{self.path} has format {version}, this version of volkit reads up to {FORMAT}: upgrade volkit"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")

    def _create(self, db: sqlite3.Connection) -> None:
        versions = [db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")]
        if versions != [(0,), (0,)] or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise FailedPrecondition(
                f"{self.path} is a SQLite file of something else: give another path for the journal"
            )
        db.execute(
            "CREATE TABLE record (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {FORMAT}")

    def get(self, key: str) -> Entry | None:
        row = self._read(
            lambda db: db.execute("SELECT value, revision FROM record WHERE key = ?", (key,)).fetchone()
        )
        return self._entry(key, *row) if row else None

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        # keys sort by their UTF-8, in which there is no ff
        first, last = max(prefix, after), prefix.encode() + b"\xff"
        query = (
            "SELECT key, value, revision FROM record "
            "WHERE key >= ? AND key < CAST(? AS TEXT) AND key != ? ORDER BY key LIMIT ?"
        )
        rows = self._read(lambda db: db.execute(query, (first, last, after, limit or -1)).fetchall())
        return [self._entry(*row) for row in rows]

    def _entry(self, key: str, value: str, revision: int) -> Entry:
        try:
            return Entry(key, json.loads(value), revision)
        except ValueError as error:
            raise Unavailable(f"the journal {self.path} has a damaged record {key!r} ({error})") from error

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._reading:
                return query(self._reader)
        except sqlite3.Error as error:
            raise Unavailable(f"the journal {self.path} cannot be read ({error})") from error

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        mine = _Write([(one, json.dumps(one.value) if isinstance(one, Put) else "") for one in changes])
        self._queue.append(mine)
        with self._turn:
            if not mine.done:
                batch = []
                while self._queue:
                    batch.append(self._queue.popleft())
                self._commit(batch)
            commits = self._commits
        if mine.error is not None:
            raise mine.error
        if durable:
            self._sync(commits)

    def _sync(self, commits: int) -> None:
        """Return when the log is on the disk up to the commit of this number."""
        with self._syncing:
            # the kernel tells of a failed write-back once: what is on the disk is not known since
            if self._failed:
                raise Unavailable(
                    f"the journal {self.path} could not be synced ({self._failed}): check the disk and restart"
                )
            if self._synced < commits:
                upto = self._commits
                try:
                    os.fdatasync(self._log)
                    if not self._synced:
                        self._sync_directory()
                except OSError as error:
                    self._failed = error.strerror or "EIO"
                    raise Unavailable(f"the journal {self.path} cannot be synced ({self._failed})") from error
                self._synced = upto

    def _sync_directory(self) -> None:
        """The log is a new file, made by the first who opened the database: its name has to be on the disk too."""
        directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _commit(self, batch: list[_Write]) -> None:
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for one in batch:
                self._apply(db, one)
            db.execute("COMMIT")
        except BaseException as error:
            # whatever it is, nobody in the batch may believe that his write happened
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for one in batch:
                one.error = Unavailable(
                    f"the journal {self.path} cannot be written ({error}): nothing of this write happened"
                )
            if not isinstance(error, Exception):
                raise
        finally:
            self._commits += 1
            for one in batch:
                one.done = True

    @staticmethod
    def _apply(db: sqlite3.Connection, write: _Write) -> None:
        for change, _ in write.changes:
            if change.revision is not None:
                row = db.execute("SELECT revision FROM record WHERE key = ?", (change.key,)).fetchone()
                if change.revision != (row[0] if row else 0):
                    write.error = Conflict(
                        f"the record {change.key!r} was changed by somebody else: repeat the call"
                    )
                    return
        for change, text in write.changes:
            if isinstance(change, Put):
                db.execute(_PUT, (change.key, text))
            else:
                db.execute("DELETE FROM record WHERE key = ?", (change.key,))

    def close(self) -> None:
        with self._turn, self._reading, self._syncing:
            self._writer.close()
            self._reader.close()
            if self._log >= 0:
                os.close(self._log)
            self._log = -1  # whoever still waits to sync must not sync a file that got the number meanwhile
