"""Walks through trees that somebody hostile changes: what they hold, copies, and whom they are given to."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from volkit.host import files, mounts, ownership, trees
from volkit.host._walk import DIRECTORY, Step, walk


def steps(path: Path) -> list[tuple[str, str]]:
    root = os.open(path, DIRECTORY)
    try:
        return [(step.what, step.name) for step in walk(root)]
    finally:
        os.close(root)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one of everything a user can make."""
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_text("content")
    (root / "a" / "b" / "script").write_text("#!")
    (root / "a" / "b" / "script").chmod(0o750)
    os.link(root / "a" / "file", root / "second name")
    (root / "link").symlink_to("/etc/passwd")
    (root / "directory link").symlink_to("/etc")
    os.mkfifo(root / "fifo")
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    return root


# -- the walk


def test_every_step_once_and_no_link_followed(tree: Path) -> None:
    found = steps(tree)
    assert len(set(found)) == len(found)
    assert {name for what, name in found if what == "file"} == {
        *("second name", "link", "directory link", "fifo", "sparse", "file", "script")
    }
    assert [one for one in found if one[0] != "file"] == [
        *[("enter", "a"), ("enter", "b"), ("leave", "b"), ("leave", "a")]
    ]


def test_a_tree_of_any_depth_takes_few_descriptors(tmp_path: Path) -> None:
    place = os.open(tmp_path, DIRECTORY)
    for _ in range(3000):  # far deeper than a path can say
        os.mkdir("d", dir_fd=place)
        below = os.open("d", DIRECTORY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    before, most = descriptors(), 0
    root = os.open(tmp_path, DIRECTORY)
    for number, step in enumerate(walk(root)):
        assert step.name == "d"
        if number % 500 == 0:
            most = max(most, descriptors())
    os.close(root)
    assert most <= before + 5
    assert descriptors() <= before  # those of other tests may go meanwhile
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # Python's own takes a stack frame for each


@pytest.mark.root
def test_another_mount_is_not_entered(tree: Path) -> None:
    (tree / "a" / "b" / "mount").mkdir()
    mounts.mount("tmpfs", str(tree / "a" / "b" / "mount"), "tmpfs", ["size=1M"])
    try:
        (tree / "a" / "b" / "mount" / "inside").touch()
        names = {name for _, name in steps(tree)}
        assert "script" in names
        assert "inside" not in names
        assert trees.usage(str(tree)).entries == 9  # as without it
    finally:
        mounts.unmount(str(tree / "a" / "b" / "mount"))


def test_a_directory_that_is_moved_away_ends_the_walk(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = os.open(tree, DIRECTORY)
    found: list[Step] = []

    def go() -> None:
        for step in walk(root):
            found.append(step)
            if (step.what, step.name) == ("enter", "b"):
                (tree / "a" / "b").rename(tmp_path / "elsewhere" / "b")

    with pytest.raises(FailedPrecondition, match="moved"):
        go()
    os.close(root)
    assert ("leave", "a") not in [(step.what, step.name) for step in found]  # nothing of "elsewhere" was seen


def test_a_directory_that_becomes_a_link_is_left_out(tree: Path) -> None:
    root = os.open(tree, DIRECTORY)
    walking = walk(root)
    first = next(walking)  # the names in the root are read
    (tree / "a").rename(tree / "z")
    (tree / "a").symlink_to("/etc")
    rest = list(walking)
    os.close(root)
    assert first.what == "file"
    assert {step.what for step in rest} == {"file"}


# -- what it holds


def test_usage_counts_blocks_and_each_file_once(tree: Path) -> None:
    held = trees.usage(str(tree))
    assert held.entries == 9  # nine entries and the root, of which two are one file
    said = subprocess.run(["du", "-s", "--block-size=1", tree], capture_output=True, check=True, text=True)
    assert held.size == int(said.stdout.split()[0])
    assert held.complete


def test_usage_is_bounded(tree: Path) -> None:
    held = trees.usage(str(tree), entries=3)
    assert (held.entries, held.complete) == (3, False)
    with pytest.raises(NotFound):
        trees.usage(f"{tree}/no")
    with pytest.raises(InvalidArgument):
        trees.usage(f"{tree}/directory link")  # a link is no directory


# -- copies


def listing(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that is to be alike of what is below `root`."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        found[str(path.relative_to(root))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns),
            *(status.st_rdev, content, attributes),
        )
    return found


def test_a_copy_is_alike_in_everything(tree: Path, tmp_path: Path) -> None:
    with suppress(OSError):  # a tmpfs before Linux 6.6
        os.setxattr(tree / "a" / "file", "user.x", b"y")
    os.utime(tree / "a" / "file", ns=(1, 2))
    if os.geteuid() == 0:
        os.chown(tree / "link", 12, 13, follow_symlinks=False)
        os.chown(tree / "a" / "b" / "script", 12, 13)
        (tree / "a" / "b" / "script").chmod(0o4750)
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.utime(tree, ns=(3, 4))
    trees.copy(str(tree), str(tmp_path / "copy"))
    assert listing(tmp_path / "copy") == listing(tree)
    assert os.path.samefile(tmp_path / "copy" / "second name", tmp_path / "copy" / "a" / "file")
    kept = (tmp_path / "copy" / "sparse").stat().st_blocks
    assert kept <= (tree / "sparse").stat().st_blocks + 8
    with pytest.raises(AlreadyExists):
        trees.copy(str(tree), str(tmp_path / "copy"))


@pytest.mark.parametrize("how", ["content", "new", "gone", "swapped", "mapped"])
def test_a_copy_of_what_is_changed_meanwhile_is_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    import mmap

    with open(tree / "sparse", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    memory[0] = 1  # dirty already: only the time of the next write tells
    real = files.copy_content
    done: list[bool] = []

    def copy_content(original: int, copy: int) -> Any:
        if not done:
            done.append(True)
            if how == "content":
                (tree / "a" / "file").write_text("changed")
            elif how == "new":
                (tree / "a" / "b" / "new").touch()
            elif how == "gone":
                (tree / "fifo").unlink()
            elif how == "swapped":
                (tree / "a").rename(tree / "z")
                (tree / "a").symlink_to("/etc")
            else:
                memory[0] = 2
        return real(original, copy)

    monkeypatch.setattr(files, "copy_content", copy_content)
    with pytest.raises(FailedPrecondition, match=r"changed while it was copied|moved while"):
        trees.copy(str(tree), str(tmp_path / "copy"))
    memory.close()
    assert "passwd" not in {path.name for path in (tmp_path / "copy").rglob("*")}


# -- ownership


@pytest.mark.root
def test_a_group_gets_everything_and_no_link_is_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    (tree / "to outside").symlink_to(outside)
    (tree / "to secret").symlink_to(outside / "secret")
    (tree / "a" / "b" / "script").chmod(0o4700)
    assert ownership.give_to_group(str(tree), 2000)
    for path in [tree, *tree.rglob("*")]:
        assert path.lstat().st_gid == 2000, path
        assert path.lstat().st_uid == 0
    for path in (outside, outside / "secret", Path("/etc/passwd")):
        assert path.stat().st_gid == 0
    assert stat.S_IMODE((outside / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o2775
    assert stat.S_IMODE((tree / "a" / "file").stat().st_mode) == 0o664
    assert stat.S_IMODE((tree / "a" / "b" / "script").stat().st_mode) == 0o4770
    (tree / "a" / "later").touch()
    assert (tree / "a" / "later").stat().st_gid == 2000  # setgid
    os.chown(tree / "a" / "file", 0, 0)
    assert not ownership.give_to_group(str(tree), 2000)  # the root shows that it was done
    assert (tree / "a" / "file").stat().st_gid == 0
    assert ownership.give_to_group(str(tree), 2001)
    assert (tree / "a" / "file").stat().st_gid == 2001


@pytest.mark.root
def test_giving_that_was_cut_short_is_done_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(place: int, name: str, gid: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_give_file", cut)
        with pytest.raises(KeyboardInterrupt):
            ownership.give_to_group(str(tree), 2000)
    assert tree.stat().st_gid == 0  # the root is the last
    assert ownership.give_to_group(str(tree), 2000)
    assert {path.lstat().st_gid for path in tree.rglob("*")} == {2000}


def test_a_group_that_cannot_be_is_refused(tree: Path) -> None:
    for gid in (-1, 2**32 - 1):
        with pytest.raises(InvalidArgument):
            ownership.give_to_group(str(tree), gid)


@contextmanager
def swapping(tree: Path, outside: Path) -> Iterator[None]:
    """Somebody who all the time puts a link to `outside` in the place of a directory and of a file, and back."""
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for name in ("directory", "file"):
                with suppress(OSError):
                    (tree / name).rename(tree / f"{name}.away")
                    (tree / name).symlink_to(outside if name == "directory" else outside / "secret")
                    (tree / name).unlink()
                    (tree / f"{name}.away").rename(tree / name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.root
def test_nobody_leads_it_out_of_the_tree_by_swapping(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for directory in (tree / "directory" / "below", outside / "below"):
        directory.mkdir(parents=True)
        (directory / "inside").write_text("inside")
    (tree / "file").touch()
    (outside / "secret").touch(mode=0o600)
    before = listing(outside)
    with swapping(tree, outside):
        for gid in range(3000, 3080):
            with suppress(FailedPrecondition):
                ownership.give_to_group(str(tree), gid)
            with suppress(FailedPrecondition):
                trees.copy(str(tree), str(tmp_path / f"copy-{gid}"))
            trees.usage(str(tree), seconds=0.01)
    assert listing(outside) == before
