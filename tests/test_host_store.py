"""Stores: things come into their place whole, leave it at once, and what a killed process left goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from volkit.host import files, mounts
from volkit.host._walk import open_directory
from volkit.host.ledger import Ledger
from volkit.host.sharded import ShardedDirectory
from volkit.host.store import Store
from volkit.host.trash import Trash

KINDS = {"volumes": "volume", "snapshots": "snapshot"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    root.mkdir(mode=0o700)
    return root


def make(store: Store, id_: str, **record: Any) -> None:
    with store.making("volumes", id_, record) as path:
        Path(path, "content").write_text(id_)


def ids(store: Store, last: str = "") -> list[str]:
    return [entry.id for entry in store.after("volumes", last)]


# -- the store


def test_a_thing_is_there_with_its_record_until_it_is_removed(root: Path) -> None:
    store = Store(str(root), KINDS)
    make(store, "v-1a", size=1)
    entry = store.get("volumes", "v-1a")
    assert (entry.id, dict(entry.record)) == ("v-1a", {"size": 1})
    assert Path(entry.path) == root / "volumes" / "1a" / "v-1a"
    assert Path(entry.path, "content").read_text() == "v-1a"
    store.rewrite(entry, {"size": 2})
    assert Store(str(root), KINDS).get("volumes", "v-1a").record == {"size": 2}
    with pytest.raises(AlreadyExists):
        make(store, "v-1a")
    store.remove(entry)
    with pytest.raises(NotFound, match="no volume 'v-1a'"):
        store.get("volumes", "v-1a")
    with pytest.raises(NotFound):
        store.remove(entry)
    store.empty_trash()
    assert not any((root / "trash").iterdir())
    assert not any((root / "scratch").glob("*/*"))


def test_what_fails_leaves_nothing(root: Path) -> None:
    store = Store(str(root), KINDS)

    def fail() -> None:
        with store.making("volumes", "v-1a", {}) as path:
            Path(path, "content").touch()
            raise ResourceExhausted("full")

    with pytest.raises(ResourceExhausted):
        fail()
    assert not any((root / "trash").iterdir())
    assert not any((root / "scratch").glob("*/*"))
    assert ids(store) == []


@pytest.mark.parametrize("id_", ["../../etc", "v/1a", "", "x", "V-1A", "v-1a\n", "v" * 64, "v\0aa", ".."])
def test_an_id_never_becomes_another_path(root: Path, id_: str) -> None:
    store = Store(str(root), KINDS)
    with pytest.raises(NotFound):
        store.get("volumes", id_)
    with pytest.raises(NotFound):
        make(store, id_)


def test_everything_is_listed_once_in_an_order_that_stays(root: Path) -> None:
    store = Store(str(root), KINDS)
    made = [f"v-{number:x}{shard}" for number in range(5) for shard in ("0a", "ff", "zz")]
    for id_ in made:
        make(store, id_)
    (root / "volumes" / "0a" / "somebody's").mkdir()
    (root / "volumes" / "a file").touch()
    whole = ids(store)
    assert sorted(whole) == sorted(made)
    for number, last in enumerate(whole):
        assert ids(store, last) == whole[number + 1 :]
    store.remove(store.get("volumes", whole[3]))
    assert ids(store, whole[3]) == whole[4:]


def test_what_cannot_be_read_is_said_and_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(root), KINDS)
    for id_, torn in (("v-1a", b""), ("v-2a", b'{"size": '), ("v-3a", b"[1]"), ("v-4a", None)):
        make(store, id_)
        record = root / "volumes" / id_[-2:] / id_ / "record"
        record.unlink() if torn is None else record.write_bytes(torn)
        with pytest.raises(FailedPrecondition, match="restore it"):
            store.get("volumes", id_)
    make(store, "v-5a")
    assert ids(store) == ["v-5a"]
    assert caplog.text.count("not listed") == 4


def test_a_store_that_is_away_is_not_an_empty_one(root: Path) -> None:
    store = Store(str(root), KINDS)
    (root / "volumes").rmdir()
    with pytest.raises(Unavailable):
        store.get("volumes", "v-1a")


@pytest.mark.parametrize(
    "what", ["away", "a file", "a link", "somebody else's", "open to all", "not its own"]
)
def test_what_can_be_no_store_is_refused(root: Path, what: str) -> None:
    if what in ("away", "a file", "a link"):
        root.rmdir()
    if what == "a file":
        root.touch()
    elif what == "a link":
        root.symlink_to("/")
    elif what == "somebody else's":
        if os.geteuid():
            return
        os.chown(root, 1000, 1000)
    elif what == "open to all":
        root.chmod(0o777)
    elif what == "not its own":
        (root / "precious").touch()
    with pytest.raises(FailedPrecondition, match="the pool"):
        Store(str(root), KINDS)
    assert not (root / "volumes").exists()


def test_what_a_killed_process_left_goes_when_the_next_one_starts(root: Path) -> None:
    script = f"""if True:
        import os, signal
        from volkit.host.store import Store
        store = Store({str(root)!r}, {KINDS!r})
        with store.making("volumes", "v-1a", {{}}) as path:
            open(path + "/half", "w").close()
            print(path, flush=True)
            os.kill(os.getpid(), {signal.SIGSTOP.value})
    """
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    half = Path(child.stdout.readline().strip())
    Store(str(root), KINDS)
    assert (half / "half").exists()  # its process lives
    child.kill()
    child.wait()
    child.stdout.close()
    store = Store(str(root), KINDS)
    assert not half.exists()
    assert not any((root / "trash").iterdir())
    assert ids(store) == []


# -- the trash


def test_a_deep_and_a_wide_tree_go(tmp_path: Path) -> None:
    trash = Trash(str(tmp_path / "trash"))
    place = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("tree", dir_fd=place)
    place = os.open("tree", os.O_RDONLY, dir_fd=place)
    for number in range(2000):
        os.mkdir("d", dir_fd=place)
        with suppress(FileExistsError):
            os.mknod(f"f{number}", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    trash.take(str(tmp_path / "tree"))
    assert trash.empty(60)
    assert os.listdir(tmp_path) == ["trash"]
    assert os.listdir(tmp_path / "trash") == []


def test_what_takes_long_is_gone_on_with(tmp_path: Path) -> None:
    trash = Trash(str(tmp_path / "trash"))
    for number in range(300):
        (tmp_path / "tree" / str(number)).mkdir(parents=True)
    trash.take(str(tmp_path / "tree"))
    assert not trash.empty(0)
    assert not (tmp_path / "tree").exists()
    assert trash.empty(60)
    assert os.listdir(tmp_path / "trash") == []


def test_no_link_in_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "precious")
    os.link(tmp_path / "precious" / "file", tmp_path / "tree" / "file")
    trash = Trash(str(tmp_path / "trash"))
    trash.take(str(tmp_path / "tree"))
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    trash.take(str(tmp_path / "link"))
    assert trash.empty(60)
    assert sorted(os.listdir(tmp_path)) == ["precious", "trash"]
    assert os.listdir(tmp_path / "precious") == ["file"]


def test_nobody_leads_it_out_by_swapping(tmp_path: Path) -> None:
    """Somebody still has a directory of what is removed open, and changes it all the time."""
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "file").touch()
    trash = Trash(str(tmp_path / "trash"))
    for number in range(30):
        tree = tmp_path / f"tree-{number}"
        (tree / "a" / "below").mkdir(parents=True)
        (tree / "a" / "file").touch()
        held = os.open(tree, os.O_RDONLY)
        over = threading.Event()

        def swap(held: int = held, over: threading.Event = over) -> None:
            while not over.is_set():
                with suppress(OSError):
                    os.rename("a", "b", src_dir_fd=held, dst_dir_fd=held)
                    os.symlink(outside, "a", dir_fd=held)
                    os.unlink("a", dir_fd=held)
                    os.rename("b", "a", src_dir_fd=held, dst_dir_fd=held)
                with suppress(OSError):
                    os.mkdir("new", dir_fd=held)

        thread = threading.Thread(target=swap)
        thread.start()
        trash.take(str(tree))
        trash.empty(0.05)
        over.set()
        thread.join()
        os.close(held)
        assert trash.empty(60)
    assert sorted(os.listdir(outside)) == ["below", "file"]


@pytest.mark.root
def test_what_something_is_mounted_in_stays_and_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tree" / "mount").mkdir(parents=True)
    mounts.mount("tmpfs", str(tmp_path / "tree" / "mount"), "tmpfs", ["size=1M"])
    trash = Trash(str(tmp_path / "trash"))
    trash.take(str(tmp_path / "tree"))
    (point,) = (one.mount_point for one in mounts.mounts(under=str(tmp_path)))
    try:
        Path(point, "precious").touch()
        assert trash.empty(60)
        assert "cannot be removed and stays" in caplog.text
        (point,) = (one.mount_point for one in mounts.mounts(under=str(tmp_path)))
        assert Path(point, "precious").exists()
    finally:
        for one in mounts.mounts(under=str(tmp_path)):
            mounts.unmount(one.mount_point)
    assert Trash(str(tmp_path / "trash")).empty(60)
    assert os.listdir(tmp_path / "trash") == []


def test_what_somebody_else_removes_meanwhile_is_not_called_mounted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    trash = Trash(str(tmp_path / "trash"))
    trash.take(str(tmp_path / "tree"))

    def too_late(place: int, name: str) -> int | None:
        os.rmdir(name, dir_fd=place)
        return open_directory(place, name)

    monkeypatch.setattr("volkit.host.trash.open_directory", too_late)
    assert trash.empty(60)
    assert caplog.text == ""


# -- the parts


def test_ids_are_put_into_their_place_once(tmp_path: Path) -> None:
    directory = ShardedDirectory(str(tmp_path / "volumes"), "volume")
    (tmp_path / "made").mkdir()
    path = directory.put(str(tmp_path / "made"), "v-1a")
    assert path == directory.path("v-1a") == str(tmp_path / "volumes" / "1a" / "v-1a")
    (tmp_path / "made").mkdir()
    with pytest.raises(AlreadyExists, match="a volume 'v-1a'"):
        directory.put(str(tmp_path / "made"), "v-1a")
    assert (tmp_path / "made").exists()


def test_a_reservation_is_taken_back_where_the_rest_fails(tmp_path: Path) -> None:
    free = files.free_bytes(str(tmp_path))
    ledger = Ledger(str(tmp_path / "ledger"), 1.0, lambda: free // 2)

    def claims() -> int:
        with ledger.opened() as balance:
            return balance.claims

    before = claims()
    with ledger.reserved(100):
        pass
    assert claims() == before + 100

    def fail() -> None:
        with ledger.reserved(100):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert claims() == before + 100
    with pytest.raises(ResourceExhausted, match="do not fit"), ledger.reserved(free):
        pass
    assert claims() in (before, before + 100)  # it was counted anew


def test_a_name_that_is_taken_is_never_replaced(tmp_path: Path) -> None:
    for name in ("new", "empty"):
        (tmp_path / name).mkdir()
    with pytest.raises(AlreadyExists):
        files.move_new(str(tmp_path / "new"), str(tmp_path / "empty"))
    files.move_new(str(tmp_path / "new"), str(tmp_path / "there"))
    with pytest.raises(NotFound):
        files.move_new(str(tmp_path / "new"), str(tmp_path / "again"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "there"]
