"""All journals through one suite, and what only the one on disk promises (test_journal_etcd.py: the shared one)."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volkit.errors import FailedPrecondition, InvalidArgument, Unavailable
from volkit.host import mounts
from volkit.journal import Conflict, Delete, Journal, Put, key, open_journal
from volkit.journal import sqlite as module
from volkit.journal.memory import MemoryJournal
from volkit.journal.sqlite import MIGRATIONS, SqliteJournal

ETCD = pytest.mark.needs("etcd", "etcdctl")


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=ETCD)])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    url = {"memory": "memory://", "sqlite": f"sqlite://{tmp_path}/journal.db"}.get(request.param)
    made = open_journal(url or request.getfixturevalue("etcd").url())
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteJournal]:
    made = SqliteJournal(f"{tmp_path}/journal.db")
    yield made
    made.close()


def keys(journal: Journal, prefix: str = "", **words: Any) -> list[str]:
    return [entry.key for entry in journal.scan(prefix, **words)]


# -- all ---------------------------------------------------------------------------------------------------------------


def test_what_was_put_is_got_until_it_is_deleted(journal: Journal) -> None:
    value = {"text": "ü\n\0\U0010ffff", "number": 2**63, "none": None, "list": [1, {"a": True}]}
    assert journal.get("a") is None
    journal.write(Put("a", value))
    entry = journal.get("a")
    assert entry is not None
    assert (entry.key, entry.value) == ("a", value)
    assert entry.revision > 0
    journal.write(Delete("a"))
    assert journal.get("a") is None
    journal.write(Delete("a"))


def test_a_value_got_is_a_copy(journal: Journal) -> None:
    value = {"list": [1]}
    journal.write(Put("a", value))
    value["list"].append(2)
    first = journal.get("a")
    assert first is not None
    first.value["list"].append(3)
    second = journal.get("a")
    assert second is not None
    assert second.value == {"list": [1]}


def test_a_revision_grows_with_each_change(journal: Journal) -> None:
    revisions = [0]
    for number in range(1, 5):
        journal.write(Put("a", {"n": number}), durable=number % 2 == 0)
        revisions.append(revision_of(journal, "a"))
    assert revisions == sorted(set(revisions))


def revision_of(journal: Journal, key: str) -> int:
    entry = journal.get(key)
    assert entry is not None
    return entry.revision


@pytest.mark.parametrize(
    "change", [partial(Put, "a", {"by": "me"}), partial(Delete, "a")], ids=["Put", "Delete"]
)
def test_a_change_of_an_old_revision_is_refused(
    journal: Journal, change: Callable[..., Put | Delete]
) -> None:
    journal.write(Put("a", {"by": "nobody"}))
    old = revision_of(journal, "a")
    journal.write(Put("a", {"by": "other"}))
    with pytest.raises(Conflict, match="'a'"):
        journal.write(change(revision=old))
    entry = journal.get("a")
    assert entry is not None
    assert entry.value == {"by": "other"}


def test_revision_0_means_that_it_must_not_exist(journal: Journal) -> None:
    journal.write(Put("a", {"by": "first"}, revision=0))
    with pytest.raises(Conflict):
        journal.write(Put("a", {"by": "second"}, revision=0))
    with pytest.raises(Conflict):
        journal.write(Put("b", {}, revision=7))
    journal.write(Delete("a", revision=revision_of(journal, "a")))
    journal.write(Put("a", {"by": "third"}, revision=0))


def test_a_key_may_be_named_twice(journal: Journal) -> None:
    journal.write(Put("a", {"n": 1}), Delete("b"), Put("a", {"n": 2}, revision=0), Put("b", {}))
    assert [(entry.key, entry.value) for entry in journal.scan("")] == [("a", {"n": 2}), ("b", {})]


def test_of_several_changes_all_happen_or_none(journal: Journal) -> None:
    journal.write(Put("a", {"n": 1}), Put("b", {"n": 1}), Delete("c"))
    with pytest.raises(Conflict):
        journal.write(Put("a", {"n": 2}), Delete("b"), Put("new", {}), Put("c", {}, revision=9))
    assert [(entry.key, entry.value) for entry in journal.scan("")] == [("a", {"n": 1}), ("b", {"n": 1})]


def test_what_cannot_be_stored_changes_nothing(journal: Journal) -> None:
    with pytest.raises(TypeError):
        journal.write(Put("a", {}), Put("b", {"secret": object()}))
    assert keys(journal) == []


NAMES = [
    "",
    "%",
    "/",
    "%2F",
    "a",
    "a%",
    "a/",
    "a/b",
    "ab",
    "A",
    "é",
    "\uffff",
    "\U0010ffff",
    "a\U0010ffffb",
    "_",
    "a_c",
]


def test_scan_takes_a_prefix_literally(journal: Journal) -> None:
    journal.write(*(Put(key("v", name), {"name": name}) for name in NAMES), Put("v", {}), Put("w/", {}))
    found = journal.scan(key("v", ""))
    assert sorted(entry.value["name"] for entry in found) == sorted(NAMES)
    assert [entry.key for entry in found] == sorted(entry.key for entry in found)
    assert keys(journal, key("v", "a/")) == [key("v", "a/"), key("v", "a/b")]
    assert keys(journal, key("v", "\U0010ffff")) == [key("v", "\U0010ffff")]
    assert keys(journal, key("v", "%")) == ["v/%25", "v/%252F"]
    assert keys(journal, "v/a_") == ["v/a_c"]
    assert keys(journal, "x") == []


def test_the_parts_of_a_key_never_run_together() -> None:
    assert key("target", "a/b", "c") != key("target", "a", "b/c") != key("target", "a%2Fb", "c")
    assert key("attach", "v", "").startswith("attach/v/")
    assert not key("attach", "v/w", "n").startswith(key("attach", "v", ""))


ODD = st.sampled_from("a%/é\uffff\U0010ffff\0")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteJournal]:
    with closing(SqliteJournal(f"{tmp_path_factory.mktemp('shared')}/journal.db")) as made:
        yield made


@settings(max_examples=80, deadline=None)
@given(
    names=st.sets(st.text(ODD, min_size=1, max_size=4), max_size=12),
    prefix=st.text(ODD, max_size=2),
    after=st.text(ODD, max_size=2),
    limit=st.integers(0, 4),
)
def test_both_scan_alike(shared: SqliteJournal, names: set[str], prefix: str, after: str, limit: int) -> None:
    shared.write(*(Delete(name) for name in keys(shared)), durable=False)
    wanted = sorted(name for name in names if name.startswith(prefix) and name > after)
    for each in (MemoryJournal(), shared):
        each.write(*(Put(name, {}) for name in names), durable=False)
        assert keys(each, prefix, after=after, limit=limit) == wanted[: limit or None]


def test_a_scan_walked_in_steps_sees_everything_once(journal: Journal) -> None:
    journal.write(*(Put(f"v/{number:03}", {}) for number in range(50)), durable=False)
    seen: list[str] = []
    while page := keys(journal, "v/", after=seen[-1] if seen else "", limit=7):
        seen += page
    assert seen == [f"v/{number:03}" for number in range(50)]


def test_threads_lose_no_update(journal: Journal) -> None:
    def count() -> None:
        for _ in range(10):
            while True:
                entry = journal.get("n")
                value, revision = (entry.value["n"], entry.revision) if entry else (0, 0)
                with suppress(Conflict):
                    journal.write(Put("n", {"n": value + 1}, revision=revision), durable=False)
                    break

    run_all(count, 8)
    entry = journal.get("n")
    assert entry is not None
    assert entry.value == {"n": 80}


def run_all(function: Any, threads: int) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join(30)
    assert not failed
    assert not any(one.is_alive() for one in running)


def test_a_closed_journal_is_unavailable(journal: Journal) -> None:
    journal.write(Put("a", {}))
    journal.close()
    journal.close()
    for use in (lambda: journal.get("a"), lambda: journal.scan(""), lambda: journal.write(Put("b", {}))):
        with pytest.raises(Unavailable, match="closed"):
            use()


@pytest.mark.parametrize(
    "url",
    ["", "etcd://host", "etcd://host:1", "sqlite://relative.db", "sqlite:///", "memory", "/path/journal.db"],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        open_journal(url)


# -- the one on disk ---------------------------------------------------------------------------------------------------


def test_a_new_file_is_the_owners_alone(tmp_path: Path) -> None:
    with closing(SqliteJournal(f"{tmp_path}/new/deep/journal.db")) as journal:
        journal.write(Put("a", {}))
        for name in os.listdir(tmp_path / "new/deep"):
            assert stat.S_IMODE(os.stat(tmp_path / "new/deep" / name).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "new/deep").st_mode) == 0o700


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        with closing(SqliteJournal(f"{tmp_path}/journal.db")) as journal:
            assert keys(journal) == [f"{n}" for n in range(number)]
            journal.write(Put(f"{number}", {}), durable=number == 1)


def test_two_of_one_file_see_each_other_at_once(tmp_path: Path) -> None:
    path = f"{tmp_path}/journal.db"
    with closing(SqliteJournal(path)) as one, closing(SqliteJournal(path)) as other:
        for number in range(20):
            one.write(Put("a", {"n": number}), durable=False)
            entry = other.get("a")
            assert entry is not None
            assert entry.value == {"n": number}
        with pytest.raises(Conflict):
            other.write(Put("a", {}, revision=1))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were synced, in order."""
    files: list[str] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        files.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return files


def test_only_a_durable_write_syncs(sqlite: SqliteJournal, synced: list[str]) -> None:
    assert sqlite._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite._writer.execute("PRAGMA synchronous").fetchone() == (1,)  # the log before the database
    for durable, syncs in ((True, 1), (False, 1), (False, 1), (True, 2)):
        sqlite.write(Put("a", {}), durable=durable)
        assert synced == ["journal.db-wal"] * syncs


def test_a_failed_sync_is_never_forgotten(sqlite: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it once and calls the pages clean: a second sync that succeeds would prove nothing."""

    def fdatasync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fdatasync)
        with pytest.raises(Unavailable, match="Input/output error"):
            sqlite.write(Put("a", {}))
    with pytest.raises(Unavailable, match="restart"):
        sqlite.write(Put("b", {}))
    assert "Input/output error" in sqlite.needs_restart()


def together(journal: SqliteJournal, *changes: tuple[Put, bool]) -> list[BaseException | None]:
    """Has several threads queue one write each, and only then lets them be committed: in one group."""
    ends: list[BaseException | None] = [None] * len(changes)

    def write(place: int) -> None:
        try:
            journal.write(changes[place][0], durable=changes[place][1])
        except BaseException as error:
            ends[place] = error

    threads = [threading.Thread(target=write, args=(place,)) for place in range(len(changes))]
    with journal._turn:
        for number, one in enumerate(threads, 1):
            one.start()
            while len(journal._queue) < number:
                time.sleep(0.001)
    for one in threads:
        one.join(10)
    return ends


def test_what_queues_up_is_committed_at_once(sqlite: SqliteJournal, synced: list[str]) -> None:
    said: list[str] = []
    sqlite._writer.set_trace_callback(said.append)
    assert together(sqlite, *((Put(f"{n}", {}), n == 5) for n in range(10))) == [None] * 10
    assert [line for line in said if line in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"]
    assert synced == ["journal.db-wal"]  # one of them was durable
    assert keys(sqlite) == [f"{n}" for n in range(10)]


def test_a_conflict_is_its_own_writers_alone(sqlite: SqliteJournal) -> None:
    ends = together(sqlite, (Put("a", {}), True), (Put("b", {}, revision=3), True), (Put("c", {}), False))
    assert [type(one) for one in ends] == [type(None), Conflict, type(None)]
    assert keys(sqlite) == ["a", "c"]


def test_a_write_that_cannot_be_made_takes_no_other_with_it(sqlite: SqliteJournal) -> None:
    """Nobody is told that his write happened when it did not: neither the culprit, nor who was in its group."""
    for order in ("\ud800xyz", "xyz\ud800"):
        ends = together(sqlite, *((Put(f"{name}", {}), True) for name in order))
        written = keys(sqlite)
        for name, end in zip(order, ends, strict=True):
            assert (end is None) == (name in written)
        assert ends[order.index("\ud800")] is not None
        sqlite.write(Put("after", {}))
        assert "after" in keys(sqlite)
        sqlite.write(*(Delete(name) for name in keys(sqlite)))


CHILD = """
import sys, threading
from volkit.journal import Put, Conflict, open_journal
journal = open_journal("sqlite://" + sys.argv[1])
"""


def child(code: str, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD + code, path], stdout=subprocess.PIPE)


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = f"{tmp_path}/journal.db"
    writing = child(
        """
for n in range(1 << 30):
    journal.write(Put(f"n/{n:09}", {"n": n}), Put("last", {"n": n}), durable=n % 7 == 0)
    print(n, flush=True)
""",
        path,
    )
    assert writing.stdout is not None
    acknowledged = b"-1"
    with writing.stdout:
        for acknowledged in writing.stdout:
            if int(acknowledged) == 300:
                writing.kill()
        assert writing.wait(10) == -9
    with closing(SqliteJournal(path)) as journal:
        found = keys(journal, "n/")
        last = journal.get("last")
    assert len(found) > int(acknowledged)
    assert found == [
        f"n/{n:09}" for n in range(len(found))
    ]  # in order: nothing before the last one is missing
    assert last is not None
    assert last.value == {"n": len(found) - 1}


def test_processes_and_threads_lose_no_update(tmp_path: Path) -> None:
    path = f"{tmp_path}/journal.db"
    code = """
def work(name):
    for n in range(10):
        journal.write(Put(f"own/{sys.argv[0]}{id(journal)}/{name}/{n}", {}), durable=n % 2 == 0)
        while True:
            entry = journal.get(f"shared/{n % 4}")
            value, revision = (entry.value["n"], entry.revision) if entry else (0, 0)
            try:
                journal.write(Put(f"shared/{n % 4}", {"n": value + 1}, revision=revision), durable=False)
                break
            except Conflict:
                pass
threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
    both = [child(code, path) for _ in range(2)]
    for one in both:
        assert one.communicate(timeout=60)[0] == b""
        assert one.returncode == 0
    with closing(SqliteJournal(path)) as journal:
        assert sum(entry.value["n"] for entry in journal.scan("shared/")) == 2 * 16 * 10


def test_many_processes_may_begin_at_once(tmp_path: Path) -> None:
    """A node's Flex calls and its daemon start on a fresh directory together: each makes the file, or finds it made."""
    path = f"{tmp_path}/journal.db"
    go = tmp_path / "go"
    script = """
import os, sys, time
from volkit.journal import Put, open_journal
print(flush=True)
while not os.path.exists(sys.argv[2]): time.sleep(0.001)
for n in range(20):
    journal = open_journal(f"sqlite://{sys.argv[1]}.{n}")
    journal.write(Put(str(os.getpid()), {}), durable=False)
    journal.close()
"""
    many = [
        subprocess.Popen([sys.executable, "-c", script, path, str(go)], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for one in many:
        assert one.stdout is not None
        assert one.stdout.readline() == b"\n"
    go.touch()
    assert [one.wait(60) for one in many] == [0] * 4
    for one in many:
        assert one.stdout is not None
        one.stdout.close()
    for n in range(20):
        with closing(SqliteJournal(f"{path}.{n}")) as journal:
            assert keys(journal) == sorted(str(one.pid) for one in many)


@pytest.mark.root
def test_a_full_disk_is_unavailable_and_recovers(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounts.mount("none", str(place), "tmpfs", ["size=512k"])
    try:
        with closing(SqliteJournal(f"{place}/journal.db")) as journal:
            journal.write(Put("before", {}))
            (place / "filler").write_bytes(b"x" * 200_000)
            written: list[str] = []

            def write_until_full() -> None:
                for number in range(1000):
                    journal.write(Put(f"n/{number:03}", {"text": "x" * 4000}), durable=number % 2 == 0)
                    written.append(f"n/{number:03}")

            with pytest.raises(Unavailable, match="cannot be written"):
                write_until_full()
            assert keys(journal, "n/") == written
            assert keys(journal, "b") == ["before"]
            (place / "filler").unlink()
            journal.write(Put("n/after", {}))
            assert keys(journal, "n/") == [*written, "n/after"]
        with closing(SqliteJournal(f"{place}/journal.db")) as journal:
            assert keys(journal, "n/") == [*written, "n/after"]
    finally:
        mounts.unmount(str(place), lazy=True)


@pytest.mark.root
def test_no_room_for_a_new_journal_is_unavailable(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounts.mount("none", str(place), "tmpfs", ["size=4k"])
    try:
        with pytest.raises(Unavailable):
            SqliteJournal(f"{place}/journal.db")
    finally:
        mounts.unmount(str(place), lazy=True)


def test_somebody_elses_lock_is_unavailable(sqlite: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
        with closing(SqliteJournal(sqlite.path)) as journal:
            with pytest.raises(Unavailable, match="locked"):
                journal.write(Put("a", {}))
            assert journal.get("a") is None
            other.execute("ROLLBACK")
            journal.write(Put("a", {}))


def foreign(path: str, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in ("CREATE TABLE customer (name TEXT)", *statements):
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize("statement", ["SELECT 1", "PRAGMA user_version = 1", "PRAGMA application_id = 7"])
def test_another_programs_file_is_left_alone(tmp_path: Path, statement: str) -> None:
    path = f"{tmp_path}/customers.db"
    foreign(path, statement)
    before = Path(path).read_bytes()
    with pytest.raises(FailedPrecondition, match="something else"):
        SqliteJournal(path)
    assert Path(path).read_bytes() == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = f"{tmp_path}/journal.db"
    with closing(SqliteJournal(path)) as journal:
        journal._writer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 2}")
    with pytest.raises(FailedPrecondition, match=f"format {len(MIGRATIONS) + 2}.*upgrade"):
        SqliteJournal(path)


NEXT = ("ALTER TABLE record ADD COLUMN note TEXT NOT NULL DEFAULT ''", "CREATE TABLE remark (text TEXT)")


def test_migrations_keep_the_records_and_one_version_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/journal.db"
    with closing(SqliteJournal(path)) as old:
        old.write(Put("a", {"by": "old"}))
        with monkeypatch.context() as patch:
            patch.setattr(module, "MIGRATIONS", MIGRATIONS + NEXT[:1])
            with closing(SqliteJournal(path)) as new:
                assert keys(new) == ["a"]
                assert new._writer.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
                new.write(Put("b", {"by": "new"}))
        old.write(Put("c", {"by": "old"}))  # a process of the version before, that was not restarted yet
    with closing(SqliteJournal(path)) as old:  # and one that was rolled back
        assert keys(old) == ["a", "b", "c"]
        old.write(Put("a", {"by": "old again"}))
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS + NEXT)
    with closing(SqliteJournal(path)) as newest:
        assert keys(newest) == ["a", "b", "c"]
    monkeypatch.undo()
    with pytest.raises(FailedPrecondition, match="upgrade"):
        SqliteJournal(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/journal.db"
    with closing(SqliteJournal(path)) as journal:
        journal.write(Put("a", {}))
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*MIGRATIONS, NEXT[0], "CREATE TABLE record (again TEXT)"))
        with pytest.raises((FailedPrecondition, Unavailable)):
            SqliteJournal(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert len(db.execute("PRAGMA table_info(record)").fetchall()) == 3
    with closing(SqliteJournal(path)) as journal:
        assert keys(journal) == ["a"]


@pytest.mark.parametrize(
    "content", [b"not a database, but a text that somebody wrote " * 20, b"\0" * 4096 + b"x"]
)
def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"journal\.db"):
        SqliteJournal(str(path))
    assert path.read_bytes() == content


def test_a_damaged_journal_is_refused_or_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(str(path))) as journal:
        journal.write(*(Put(f"{n:03}", {"text": "x" * 500}) for n in range(100)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match="damaged"):
        SqliteJournal(str(path))
    assert path.read_bytes() == content


def damage(path: Path) -> bytes:
    """Break a journal of a hundred records, all but its first page."""
    with closing(SqliteJournal(str(path))) as journal:
        journal.write(*(Put(f"{n:03}", {"text": "x" * 500}) for n in range(100)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    return bytes(content)


def test_a_damaged_journal_is_set_aside_where_that_is_harmless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.db"
    content = damage(path)
    with closing(open_journal(f"sqlite://{path}", set_aside=True)) as journal:
        assert keys(journal) == []
        journal.write(Put("a", {}))
    (aside,) = tmp_path.glob("journal.db.damaged-*Z")
    assert aside.read_bytes() == content
    assert str(aside) in caplog.text
    assert "Volumes are found again" in caplog.text
    with closing(open_journal(f"sqlite://{path}", set_aside=True)) as journal:
        assert keys(journal) == ["a"]
    assert list(tmp_path.glob("journal.db.damaged-*Z")) == [aside]


@pytest.mark.parametrize(
    "flipped", [b"CREATE TABLE redord", b"CREATE TABLE r\xe9cord", b"CR\xe5ATE TABLE record"]
)
def test_a_damaged_schema_is_damage_like_any_other(tmp_path: Path, flipped: bytes) -> None:
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(str(path))) as journal:
        journal.write(Put("a", {}))
    content = path.read_bytes()
    assert content.count(b"CREATE TABLE record") == 1
    path.write_bytes(content.replace(b"CREATE TABLE record", flipped))
    with pytest.raises(FailedPrecondition, match="is damaged"):
        SqliteJournal(str(path))
    with closing(open_journal(f"sqlite://{path}", set_aside=True)) as journal:
        assert keys(journal) == []


def test_a_record_that_is_out_of_its_order_is_damage(tmp_path: Path) -> None:
    """A look-up would miss it, and others: a flipped bit in a key, which `PRAGMA quick_check` does not see."""
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(str(path))) as journal:
        journal.write(*(Put(f"volume/v{n}", {}) for n in range(9)))
    path.write_bytes(path.read_bytes().replace(b"volume/v4", b"zolume/v4"))
    with pytest.raises(FailedPrecondition, match=r"is damaged .*order"):
        SqliteJournal(str(path))


def test_who_has_a_journal_open_that_is_set_aside_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(str(path))) as old:
        old.write(Put("a", {}))
        for end in ("-wal", "-shm", ""):
            os.rename(f"{path}{end}", f"{path}.damaged{end}")
        with closing(SqliteJournal(str(path))) as new:
            new.write(Put("b", {}))
            with pytest.raises(Unavailable, match="restart"):
                old.write(Put("c", {}))
            assert keys(new) == ["b"]


def test_a_large_journal_is_not_checked_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(str(path))) as journal:
        journal.write(*(Put(f"{n:03}", {"text": "x" * 500}) for n in range(100)))
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match="damaged"):
        SqliteJournal(str(path))
    monkeypatch.setattr(module, "_CHECK_BYTES", 4096)
    SqliteJournal(str(path)).close()


@pytest.mark.parametrize("how", ["get", "scan"])
def test_a_damaged_record_is_quarantined_and_the_others_are_not(sqlite: SqliteJournal, how: str) -> None:
    sqlite.write(Put("a/bad", {}), Put("a/good", {}))
    sqlite._writer.execute("UPDATE record SET value = '{' WHERE key = 'a/bad'")
    if how == "get":
        assert sqlite.get("a/bad") is None
    assert keys(sqlite, "a/") == ["a/good"]
    assert keys(sqlite) == ["a/good", "quarantine/a%2Fbad"]
    kept = sqlite.get("quarantine/a%2Fbad")
    assert kept is not None
    assert kept.value["text"] == "{"
    assert "not JSON" in kept.value["why"]
    sqlite.write(Put("a/bad", {"mended": True}))
    assert keys(sqlite, "a/") == ["a/bad", "a/good"]


@pytest.mark.parametrize("how", ["get", "scan"])
@pytest.mark.parametrize("damaged", ["value", "key"])
def test_what_is_not_utf8_is_quarantined_like_any_other(
    sqlite: SqliteJournal, damaged: str, how: str
) -> None:
    """A bit that flipped in a record, where SQLite's own check sees nothing wrong."""
    sqlite.write(Put("volume/bad", {"name": "x"}), Put("volume/good", {"name": "y"}))
    flipped = {"key": b"volume/b\xe1d", "value": b'{"name": "\xf8"}'}[damaged]
    change = f"UPDATE record SET {damaged} = CAST(? AS TEXT) WHERE key = 'volume/bad'"
    sqlite._writer.execute(change, (flipped,))
    if how == "get":
        assert sqlite.get("volume/bad") is None
    assert keys(sqlite, "volume/") == ["volume/good"]
    (aside,) = keys(sqlite, "quarantine/")
    kept = sqlite.get(aside)
    assert kept is not None
    assert kept.value["why"] == "not UTF-8"
    assert keys(sqlite) == [aside, "volume/good"]


def test_a_file_that_was_removed_under_a_journal_is_told(sqlite: SqliteJournal) -> None:
    sqlite.write(Put("a", {}))
    assert sqlite.needs_restart() == ""
    os.unlink(sqlite.path)
    with pytest.raises(Unavailable, match="restart"):
        sqlite.write(Put("b", {}))
    assert "restart" in sqlite.needs_restart()
    assert keys(sqlite) == ["a"]


@pytest.mark.parametrize("make", ["directory", "below a file"])
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, make: str) -> None:
    if make == "directory":
        (tmp_path / "journal.db").mkdir()
        path = tmp_path / "journal.db"
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file/journal.db"
    with pytest.raises((FailedPrecondition, Unavailable), match=r"journal\.db"):
        SqliteJournal(str(path))
