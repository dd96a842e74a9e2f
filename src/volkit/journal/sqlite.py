"""The default journal: one SQLite file in WAL mode, shared by the threads and the processes of a host.

Writers queue; whoever gets the writer's turn commits everything that has queued up meanwhile in one
transaction. SQLite does not sync it (PRAGMA synchronous = NORMAL: the log is synced before it is copied into
the database, so that the file is never torn); a durable write then syncs the log itself, and one sync serves
all that have committed before it began. So nobody waits for the sync of another: neither readers nor writes
that need not be durable. The log keeps the order, hence a later durable write makes earlier ones durable too
(sqlite.org, "Write-Ahead Logging").

The file's format is the number of migrations that it has been through. A migration only adds (a table, a
column with a default), so that the version of volkit before it goes on reading and writing the file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import TypeVar

from volkit.errors import FailedPrecondition, Unavailable
from volkit.journal.base import Conflict, Delete, Entry, Journal, Put
from volkit.journal.records import read

T = TypeVar("T")

MIGRATIONS: tuple[str, ...] = (
    "CREATE TABLE record (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID",
)
"""Statement n takes a file of format n, in its user_version, to format n + 1; 0 is an empty file."""

_APPLICATION_ID = 0x766F6C6B  # "volk": tells a journal from any other SQLite file
_APPLICATION_ID_AT = 68  # bytes into the file (sqlite.org, "Database File Format")
_BUSY_SECONDS = 5.0
_CHECK_BYTES = 32 << 20  # a larger file is not checked at start, which would take longer than 0.1 s

_log = logging.getLogger("volkit.journal")

# keys and values are read as bytes, and keys given so: one that is damaged may be anything but UTF-8
_KEY = "CAST(?1 AS TEXT)"
_COLUMNS = "CAST(key AS BLOB), CAST(value AS BLOB), revision"
_PUT = f"""INSERT INTO record (key, value, revision) VALUES ({_KEY}, ?2, 1)
    ON CONFLICT (key) DO UPDATE SET value = ?2, revision = revision + 1"""


class _Write:
    """One caller's changes on their way through the queue."""

    __slots__ = ("changes", "done", "error")

    def __init__(self, changes: list[tuple[Put | Delete, str]]) -> None:
        self.changes = changes
        self.done = False
        self.error: Exception | None = None


class _Damaged(Exception):
    """The file is a journal, and SQLite finds it corrupt."""


class SqliteJournal(Journal):
    """The file at `path`, made with mode 0600 where it is missing.

    A damaged one is renamed and a new one begun if `set_aside`, else FailedPrecondition is raised and it stays.
    """

    def __init__(self, path: str, *, set_aside: bool = False) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._queue: deque[_Write] = deque()
        self._syncing = threading.Lock()
        self._commits = 0
        self._synced = 0
        self._failed = ""
        try:
            self._open_all()
        except _Damaged as damage:
            if not set_aside:
                raise FailedPrecondition(
                    f"the journal {path} is damaged ({damage}) and this backend's volumes are not found without it: "
                    "restore it from a backup, or move it aside and look in the storage for what was being made"
                ) from damage
            self._set_aside(str(damage))
            self._open_all()

    def _open_all(self) -> None:
        with ExitStack() as opened:
            self._open(opened)
            opened.pop_all()

    def _open(self, opened: ExitStack) -> None:
        """Open the file to write, to read, and to sync its log; `opened` closes what is open after a failure."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._writer = self._connect(opened)
            self._prepare(self._writer)
            self._check(self._writer)
            self._reader = self._connect(opened)
            self._log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            self._inode = os.stat(self.path).st_ino
        except (OSError, sqlite3.OperationalError) as error:  # no room, no permission, locked
            raise Unavailable(f"the journal {self.path} cannot be opened ({error})") from error
        except (
            sqlite3.DatabaseError,
            UnicodeDecodeError,
        ) as error:  # of a message that quotes what is damaged
            if self._is_ours():
                raise _Damaged(str(error)) from error
            raise FailedPrecondition(
                f"{self.path} is not a journal ({error}): give another path, or move the file away"
            ) from error

    def _is_ours(self) -> bool:
        """Does the file say that it is a journal, however little of it can be read?"""
        with open(self.path, "rb") as file:
            file.seek(_APPLICATION_ID_AT)
            return file.read(4) == _APPLICATION_ID.to_bytes(4)

    def _check(self, db: sqlite3.Connection) -> None:
        """Look for damage, as far as that takes no time that a start would notice."""
        try:
            db.execute(f"SELECT {_COLUMNS} FROM record LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_ERROR:  # no such table, no such column
                raise _Damaged(str(error)) from error
            raise
        if os.stat(self.path).st_size > _CHECK_BYTES:
            return
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise _Damaged(" ".join(found.split()))

    def _set_aside(self, damage: str) -> None:
        """Rename the damaged file, with its log, unless another process has done so meanwhile."""
        directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            try:
                SqliteJournal(self.path).close()
                return  # a new one is there
            except FailedPrecondition:
                pass
            aside = f"{self.path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            for end in ("-wal", "-shm", ""):  # the database last: without it there is nothing to set aside
                with suppress(FileNotFoundError):
                    os.rename(self.path + end, aside + end)
            os.fsync(directory)
        except OSError as error:
            raise Unavailable(
                f"the damaged journal {self.path} cannot be renamed ({error.strerror}): move it away"
            ) from error
        finally:
            os.close(directory)
        _log.error(
            "the journal %s is damaged (%s); it is set aside as %s and a new one is begun. Volumes are found again in "
            "the storage, by name, when a call asks for them; what is attached to a node is recorded again when it is "
            "published again. Keep the old file until that is done",
            self.path,
            damage,
            aside,
        )

    def _connect(self, opened: ExitStack) -> sqlite3.Connection:
        # autocommit (isolation_level None): transactions begin where this file says BEGIN and nowhere else
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        opened.enter_context(closing(connection))
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
        if version > len(MIGRATIONS) + 1:  # what the next version adds does not disturb this one
            raise FailedPrecondition(
                f"{self.path} has format {version}, this version of volkit reads up to {len(MIGRATIONS) + 1}: "
                "upgrade volkit"
            )
        if version < len(MIGRATIONS):
            self._migrate(db)
        self._log_ahead(db)
        db.execute("PRAGMA synchronous = NORMAL")

    @staticmethod
    def _log_ahead(db: sqlite3.Connection) -> None:
        """Have a write-ahead log. SQLite itself does not wait where another process begins the same file."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    def _create(self, db: sqlite3.Connection) -> None:
        versions = [db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")]
        if versions != [(0,), (0,)] or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise FailedPrecondition(
                f"{self.path} is a SQLite file of something else: give another path for the journal"
            )
        for statement in MIGRATIONS:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @staticmethod
    def _migrate(db: sqlite3.Connection) -> None:
        """Bring an older file up to date, all of it or nothing."""
        db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()  # somebody may have done it meanwhile
            for number, statement in enumerate(MIGRATIONS[version:], version + 1):
                db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def get(self, key: str) -> Entry | None:
        query = f"SELECT {_COLUMNS} FROM record WHERE key = {_KEY}"
        row = self._read(lambda db: db.execute(query, (_stored(key),)).fetchone())
        return self._entry(row) if row else None

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        # keys sort by their bytes; there is no ff in UTF-8
        first, last = _stored(max(prefix, after)), _stored(prefix) + b"\xff"
        query = (
            f"SELECT {_COLUMNS} FROM record WHERE key >= {_KEY} AND key < CAST(?2 AS TEXT) "
            "AND key != CAST(?3 AS TEXT) ORDER BY key LIMIT ?4"
        )
        words = (first, last, _stored(after), limit or -1)
        rows = self._read(lambda db: db.execute(query, words).fetchall())
        return [entry for row in rows if (entry := self._entry(row))]

    def _entry(self, row: tuple[bytes, bytes, int]) -> Entry | None:
        return read(self, row[0].decode(errors="surrogateescape"), *row[1:])

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

    def needs_restart(self) -> str:
        if self._failed:
            return f"the journal {self.path} could not be synced ({self._failed}): check the disk and restart"
        try:
            self._refuse_if_replaced()
        except OSError as error:
            return f"the journal {self.path} cannot be written: {error}"
        return ""

    def _sync(self, commits: int) -> None:
        """Return when the log is on the disk up to the commit of this number."""
        with self._syncing:
            # the kernel tells of a failed write-back once: what is on the disk is not known since
            if self._failed:
                raise Unavailable(self.needs_restart())
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
            self._refuse_if_replaced()
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

    def _refuse_if_replaced(self) -> None:
        """Another process may have set the file aside: what is written to it then would be seen by nobody."""
        try:
            same = os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise OSError("the file was removed or replaced by another one: restart")

    @staticmethod
    def _apply(db: sqlite3.Connection, write: _Write) -> None:
        for change, _ in write.changes:
            if change.revision is not None:
                query = f"SELECT revision FROM record WHERE key = {_KEY}"
                row = db.execute(query, (_stored(change.key),)).fetchone()
                if change.revision != (row[0] if row else 0):
                    write.error = Conflict(
                        f"the record {change.key!r} was changed by somebody else: repeat the call"
                    )
                    return
        for change, text in write.changes:
            if isinstance(change, Put):
                db.execute(_PUT, (_stored(change.key), text))
            else:
                db.execute(f"DELETE FROM record WHERE key = {_KEY}", (_stored(change.key),))

    def close(self) -> None:
        with self._turn, self._reading, self._syncing:
            self._writer.close()
            self._reader.close()
            if self._log >= 0:
                os.close(self._log)
            self._log = -1  # whoever still waits to sync must not sync a file that got the number meanwhile


def _stored(key: str) -> bytes:
    """A key as it is in the file."""
    return key.encode(errors="surrogateescape")
