"""Durable files, clones and allocation, on the file systems that behave differently."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volkit.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted, VolkitError
from volkit.host import files, filesystems, loop, mounts

MIB = 1 << 20
Place = Callable[[str, int], Path]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Makes and mounts a file system of this type and size in MiB."""
    made: list[tuple[Path, str]] = []

    def make(fs_type: str, size: int) -> Path:
        image, point = tmp_path / f"{fs_type}.img", tmp_path / fs_type
        image.touch()
        os.truncate(image, size * MIB)
        point.mkdir()
        device = loop.attach(str(image))
        made.append((point, device))
        filesystems.make(device, fs_type, zeroed=True, timeout=60)
        mounts.mount(device, str(point), fs_type, [])
        return point

    yield make
    for point, device in made:
        mounts.unmount(str(point))
        loop.detach(device)


def kept(path: Path) -> int:
    """The bytes that the file takes on the disk."""
    return path.stat().st_blocks * 512


# write_durably


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        files.write_durably(str(tmp_path / "f"), b"content", 0o644)
    finally:
        os.umask(old)
    assert (tmp_path / "f").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
    files.write_durably(str(tmp_path / "g"), b"")
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a longer former content")
    with path.open("rb") as reader:
        files.write_durably(str(path), b"new")
        assert reader.read() == b"a longer former content"
    assert path.read_bytes() == b"new"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "f").symlink_to(tmp_path / "precious")
    files.write_durably(str(tmp_path / "f"), b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "f").is_symlink()


def test_content_name_and_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.rename

    def note_sync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def note_rename(source: str, target: str) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    files.write_durably(str(tmp_path / "f"), b"x")
    assert steps == ["file", "rename", "directory"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(ResourceExhausted, match=str(path)):
            files.write_durably(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        files.write_durably(str(tmp_path / "absent/f"), b"x")
    with pytest.raises(InvalidArgument, match="NUL"):
        files.write_durably(f"{tmp_path}/a\0b", b"x")
    with pytest.raises(VolkitError):
        files.write_durably(str(tmp_path), b"x")  # a directory
    with pytest.raises(NotFound):
        files.sync_directory(str(tmp_path / "absent"))
    with pytest.raises(NotFound):
        files.free_bytes(str(tmp_path / "absent"))


# clone


def sparse_file(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        file.truncate(size)
    return path


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize(
    ("fs_type", "size", "way"), [("ext4", 64, "copy"), ("xfs", 300, "reflink"), ("btrfs", 128, "reflink")]
)
def test_a_clone_has_the_content_and_the_holes(place: Place, fs_type: str, size: int, way: str) -> None:
    there = place(fs_type, size)
    data = os.urandom(MIB)
    source = sparse_file(there / "a", 4096 * MIB, (3 * MIB, data), (2048 * MIB, data))

    assert files.clone(str(source), str(there / "b")) == way

    clone = there / "b"
    assert clone.stat().st_size == 4096 * MIB
    assert kept(clone) <= 3 * MIB
    with clone.open("rb") as file:
        assert file.read(3 * MIB) == bytes(3 * MIB)
        assert file.read(MIB) == data
        file.seek(2048 * MIB)
        assert file.read(MIB) == data
    with clone.open("r+b") as file:  # they are two files from now on
        file.seek(3 * MIB)
        file.write(b"changed")
    with source.open("rb") as file:
        file.seek(3 * MIB)
        assert file.read(MIB) == data


@pytest.mark.root
@pytest.mark.needs("mkfs.xfs")
def test_a_reflink_takes_no_space(place: Place) -> None:
    there = place("xfs", 300)
    source = sparse_file(there / "a", 64 * MIB, (0, os.urandom(64 * MIB)))
    os.sync()
    before = files.free_bytes(str(there))
    files.clone(str(source), str(there / "b"))
    assert before - files.free_bytes(str(there)) < 4 * MIB


def test_a_clone_to_another_file_system_is_a_copy(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "a", 8 * MIB, (MIB, b"x" * 5000))
    destination = Path(f"/dev/shm/volkit-clone-{os.getpid()}")
    try:
        assert files.clone(str(source), str(destination)) == "copy"
        assert destination.read_bytes() == source.read_bytes()
        assert kept(destination) < MIB
    finally:
        destination.unlink(missing_ok=True)


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, 0])
def test_the_copy_goes_on_where_the_kernel_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    def refuse(*_: object) -> int:
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0  # some file systems claim to have reached the end

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = sparse_file(tmp_path / "a", 9 * MIB, (0, os.urandom(3 * MIB + 17)), (5 * MIB, b"end"))
    files.clone(str(source), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert kept(tmp_path / "b") < 5 * MIB


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    size=st.integers(0, 600_000),
    pieces=st.lists(st.tuples(st.integers(0, 600_000), st.binary(min_size=1, max_size=9000)), max_size=6),
)
def test_any_clone_equals_its_source(tmp_path: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    source = sparse_file(tmp_path / "a", size, *pieces)
    clone = tmp_path / "b"
    clone.unlink(missing_ok=True)
    files.clone(str(source), str(clone))
    assert clone.read_bytes() == source.read_bytes()
    assert kept(clone) <= kept(source)


def test_a_clone_never_writes_over_anything(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "a", 10, (0, b"new"))
    (tmp_path / "b").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("b", "link"):
        with pytest.raises(AlreadyExists, match=name):
            files.clone(str(source), str(tmp_path / name))
    assert (tmp_path / "b").read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(NotFound, match="absent"):
        files.clone(str(tmp_path / "absent"), str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_a_clone_without_room_leaves_nothing(place: Place) -> None:
    there = place("ext4", 64)
    source = sparse_file(there / "a", 40 * MIB, (0, os.urandom(40 * MIB)))
    with pytest.raises(ResourceExhausted):
        files.clone(str(source), str(there / "b"))
    assert sorted(os.listdir(there)) == ["a", "lost+found"]


def test_a_failing_reflink_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    source = sparse_file(tmp_path / "a", 10, (0, b"new"))
    monkeypatch.setattr(fcntl, "ioctl", full)
    with pytest.raises(ResourceExhausted):
        files.clone(str(source), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_clone_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source = sparse_file(tmp_path / "a", 10, (0, b"new"))
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.clone(str(source), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["a"]


# allocate


def test_allocated_is_allocated_and_content_stays(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "a", MIB, (0, b"content"))
    files.allocate(str(path), 4 * MIB)
    assert path.stat().st_size == 4 * MIB
    assert kept(path) >= 4 * MIB
    assert path.read_bytes()[:7] == b"content"
    with path.open("r+b") as file:
        files.allocate(file.fileno(), 5 * MIB)
        assert file.read(7) == b"content"  # the descriptor is still open
    assert path.stat().st_size == 5 * MIB


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("asked_first", [True, False])
def test_allocating_too_much_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, asked_first: bool
) -> None:
    there = place("ext4", 64)
    path = sparse_file(there / "a", MIB, (0, b"content"))
    os.sync()
    before = files.free_bytes(str(there))
    if not asked_first:  # as when somebody else takes the space meanwhile
        real = os.fstatvfs

        class Plenty:
            f_bfree, f_frsize = 1 << 40, 4096

        monkeypatch.setattr(os, "fstatvfs", lambda descriptor: (real(descriptor), Plenty)[1])
    with pytest.raises(ResourceExhausted, match=str(1 << 30)):
        files.allocate(str(path), 1 << 30)
    assert path.stat().st_size == MIB
    os.sync()
    assert before - files.free_bytes(str(there)) <= MIB


def test_allocating_in_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        files.allocate(str(tmp_path / "absent"), MIB)
    assert not (tmp_path / "absent").exists()


def test_free_bytes_are_what_statvfs_leaves_to_users(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert abs(files.free_bytes(str(tmp_path)) - found.f_bavail * found.f_frsize) < 1 << 30


# is_open, reads_as_zeros


def test_an_open_file_is_seen_whoever_has_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, MIB)
    assert not files.is_open(str(image))
    with image.open("rb"):
        assert files.is_open(str(image))
    for read_only in (True, False):
        device = loop.attach(str(image), read_only=read_only)
        try:
            assert files.is_open(str(image))
        finally:
            loop.detach(device)
    assert not files.is_open(str(image))
    with pytest.raises(NotFound):
        files.is_open(str(tmp_path / "missing"))


def test_who_opens_a_file_while_it_is_asked_for_is_not_disturbed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x")
    ended = threading.Event()

    def opening() -> None:
        while not ended.is_set():
            image.read_bytes()

    reader = threading.Thread(target=opening)
    reader.start()
    try:
        assert {files.is_open(str(image)) for _ in range(2000)} <= {True, False}
    finally:
        ended.set()
        reader.join()


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_only_what_was_never_written_reads_as_zeros(place: Place, fs_type: str) -> None:
    image = place(fs_type, 300) / "image"
    image.touch()
    os.truncate(image, 64 * MIB)
    assert files.reads_as_zeros(str(image))
    files.allocate(str(image), 64 * MIB)
    assert files.reads_as_zeros(str(image))
    with image.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(b"data")
        file.flush()
        os.fsync(file.fileno())
    assert not files.reads_as_zeros(str(image))
