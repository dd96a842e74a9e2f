"""File systems: made, damaged, grown and probed on real loop devices."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotBlank,
    NotFound,
    OutOfRange,
    Unavailable,
    UnsupportedVolume,
)
from volkit.host import _block, _superblock, devices, filesystems, loop, mounts, process
from volkit.host import probe as probing
from volkit.host.filesystems import SUPPORTED, State, Unreadable

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "resize2fs")]

MIB = 1 << 20
TYPES = ("ext4", "ext3", "xfs", "btrfs")
Disk = Callable[[int], str]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a loop device of so many MiB; its file is `backing(device)`."""
    made: list[str] = []

    def make(size: int) -> str:
        path = str(tmp_path / f"{len(made)}.img")
        Path(path).touch()
        os.truncate(path, size * MIB)
        made.append(path)
        return loop.attach(path)

    yield make
    for path in made:
        for device in loop.find(path):
            for mount in mounts.mounts(device=_number(device)):
                mounts.unmount(mount.mount_point)
            loop.detach(device)


def _number(device: str) -> tuple[int, int]:
    number = os.stat(device).st_rdev
    return os.major(number), os.minor(number)


def backing(device: str) -> str:
    found = loop.status(device)
    assert found is not None
    return found.backing_file


def extend(device: str, size: int) -> None:
    os.truncate(backing(device), size * MIB)
    loop.resize(device)


def put(device: str, place: int, data: bytes) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.seek(place)
        file.write(data)
        os.fsync(file.fileno())


def smallest(fs_type: str) -> int:
    return SUPPORTED[fs_type].smallest // MIB


@contextmanager
def mounted(device: str, fs_type: str, point: Path, options: tuple[str, ...] = ()) -> Iterator[str]:
    point.mkdir(exist_ok=True)
    mounts.mount(device, str(point), fs_type, options)
    try:
        yield str(point)
    finally:
        mounts.unmount(str(point))


# probe


def test_a_new_device_is_blank(disk: Disk) -> None:
    assert filesystems.probe(disk(4)) == filesystems.Probe(state=State.BLANK)


def test_a_device_smaller_than_what_is_read_of_it(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "tiny"
    path.write_bytes(bytes(512))
    device = loop.attach(str(path))
    try:
        assert filesystems.probe(device).state is State.BLANK
    finally:
        loop.detach(device)


@pytest.mark.parametrize("fs_type", TYPES)
def test_what_was_made_is_found_with_its_uuid(disk: Disk, fs_type: str) -> None:
    device = disk(smallest(fs_type))
    filesystems.make(device, fs_type, options=("-L", "data"), timeout=60)

    found = filesystems.probe(device)

    assert (found.state, found.type, found.label) == (State.FILESYSTEM, fs_type, "data")
    told = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", device], capture_output=True, text=True, check=True
    )
    assert found.uuid == told.stdout.strip()
    superblock = _superblock.read(device, fs_type)
    assert superblock is not None
    assert superblock.uuid == found.uuid


def test_other_things_are_not_blank(disk: Disk) -> None:
    device = disk(16)
    with open(device, "r+b", buffering=0) as file:  # a LUKS1 header
        file.write(
            b"LUKS\xba\xbe\x00\x01".ljust(168, b"\0") + b"11111111-1111-1111-1111-111111111111\0\0\0\0"
        )
    found = filesystems.probe(device)
    assert (found.state, found.type) == (State.OTHER, "crypto_LUKS")


def test_a_partition_table_is_not_blank(disk: Disk) -> None:
    device = disk(16)
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
    put(device, 0, bytes(446) + entry + bytes(48) + b"\x55\xaa")
    found = filesystems.probe(device)
    assert (found.state, found.type) == (State.OTHER, "dos")


def test_two_signatures_are_not_blank(disk: Disk) -> None:
    device = disk(300)
    filesystems.make(device, "xfs", timeout=60)
    with open(device, "rb") as file:
        head = file.read(512)
    put(device, 0, bytes(512))
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    put(device, 0, head)
    assert filesystems.probe(device) == filesystems.Probe(state=State.OTHER, type="several signatures")


def test_a_damaged_superblock_is_not_blank(disk: Disk) -> None:
    device = disk(16)
    filesystems.make(device, "ext4", timeout=60)
    put(device, 1024 + 0x3FC, b"\xde\xad\xbe\xef")  # its checksum
    assert filesystems.probe(device).state is State.FILESYSTEM


@pytest.mark.parametrize(
    ("size", "what"), [(0, "byte 0"), (5 * MIB, f"byte {8 * MIB - probing._EDGE}")], ids=["head", "tail"]
)
def test_a_device_that_cannot_be_read_is_not_blank(disk: Disk, size: int, what: str) -> None:
    device = disk(8)
    os.truncate(backing(device), size)
    with pytest.raises(Unreadable, match=what):
        filesystems.probe(device)
    with pytest.raises(Unavailable):
        filesystems.make(device, "ext4", timeout=60)


def test_a_read_error_that_only_libblkid_meets_is_not_blank(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(8)
    os.truncate(backing(device), 0)
    monkeypatch.setattr(probing, "_edges_are_zeros", lambda *_: False)
    with pytest.raises(Unreadable, match="could not be probed"):
        filesystems.probe(device)


def test_a_short_read_is_not_blank(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda descriptor, length, place: bytes(length - 1))
    with pytest.raises(Unreadable, match=f"of {probing._EDGE} bytes"):
        filesystems.probe(disk(8))


def test_a_device_without_a_size_is_not_blank(disk: Disk) -> None:
    device = disk(8)
    loop.detach(device)
    with pytest.raises(Unreadable, match="no size"):
        filesystems.probe(device)


def test_an_earlier_read_does_not_hide_that_the_device_failed_since(disk: Disk) -> None:
    device = disk(8)
    with open(device, "rb") as keeper:  # as long as it is open, the kernel keeps what was read
        keeper.read(MIB)
        os.truncate(backing(device), 0)
        with pytest.raises(Unreadable):
            filesystems.probe(device)


def test_probe_refuses_what_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(MIB))
    with pytest.raises(InvalidArgument):
        filesystems.probe(str(tmp_path / "file"))
    with pytest.raises(NotFound):
        filesystems.probe(str(tmp_path / "absent"))


def test_without_libblkid_the_package_is_named(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    device = disk(4)
    probing._blkid.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    try:
        with pytest.raises(FailedPrecondition, match="libblkid1"):
            filesystems.probe(device)
    finally:
        probing._blkid.cache_clear()


def test_other_threads_run_while_libblkid_reads(disk: Disk) -> None:
    """A smoke test of what matters to a driver: probes of many threads at once give the same answers."""
    device = disk(32)
    filesystems.make(device, "ext4", timeout=60)
    found: list[filesystems.Probe] = []
    threads = [threading.Thread(target=lambda: found.append(filesystems.probe(device))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


# make


@pytest.mark.parametrize("zeroed", [True, False])
@pytest.mark.parametrize("fs_type", TYPES)
def test_what_was_made_holds_data(disk: Disk, tmp_path: Path, fs_type: str, zeroed: bool) -> None:
    device = disk(smallest(fs_type))
    filesystems.make(device, fs_type, zeroed=zeroed, timeout=60)
    options = filesystems.mount_options(fs_type)
    with mounted(device, fs_type, tmp_path / "here", options) as point:
        Path(point, "f").write_text("content")
    with mounted(device, fs_type, tmp_path / "here", options) as point:
        assert Path(point, "f").read_text() == "content"
    assert filesystems.check(device, fs_type) is False


@pytest.mark.parametrize("zeroed", [True, False])
def test_ext4_is_sound_on_old_garbage(disk: Disk, zeroed: bool) -> None:
    device = disk(32)
    if not zeroed:
        put(device, 0, os.urandom(1) * (32 * MIB))
    filesystems.make(device, "ext4", zeroed=zeroed, timeout=60)
    subprocess.run(["e2fsck", "-f", "-n", device], check=True, capture_output=True)


@pytest.mark.parametrize("fs_type", TYPES)
def test_nothing_is_made_over_a_file_system(disk: Disk, fs_type: str) -> None:
    device = disk(300)
    filesystems.make(device, "ext4", timeout=60)
    before = filesystems.probe(device)
    with pytest.raises(NotBlank, match=f"ext4 {before.uuid}"):
        filesystems.make(device, fs_type, timeout=60)
    if fs_type != "ext4":
        with pytest.raises(NotBlank):
            filesystems.make(device, fs_type, over_partial=True, timeout=60)
    assert filesystems.probe(device) == before


@pytest.mark.parametrize("fs_type", TYPES)
def test_a_former_attempt_is_written_over_only_for_who_made_it(disk: Disk, fs_type: str) -> None:
    device = disk(smallest(fs_type))
    filesystems.make(device, fs_type, timeout=60)
    before = filesystems.probe(device)
    filesystems.make(device, fs_type, over_partial=True, timeout=60)
    after = filesystems.probe(device)
    assert (after.type, after.uuid == before.uuid) == (fs_type, False)


def test_a_partition_table_is_never_written_over(disk: Disk) -> None:
    device = disk(16)
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
    put(device, 0, bytes(446) + entry + bytes(48) + b"\x55\xaa")
    with pytest.raises(NotBlank, match="dos"):
        filesystems.make(device, "ext4", over_partial=True, timeout=60)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_killed_mkfs_is_finished_under_its_intent(disk: Disk, tmp_path: Path, fs_type: str) -> None:
    device = disk(max(smallest(fs_type), 512))
    finished = 0
    for delay in (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.02):
        half = subprocess.Popen(
            [*SUPPORTED[fs_type].make, *SUPPORTED[fs_type].force, device], stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        half.send_signal(signal.SIGKILL)
        finished += half.wait() == 0
        assert filesystems.probe(device).state in (State.BLANK, State.FILESYSTEM)
        if filesystems.probe(device).state is State.FILESYSTEM:
            with pytest.raises(NotBlank):
                filesystems.make(device, fs_type, timeout=60)
        filesystems.make(device, fs_type, over_partial=True, timeout=60)
        with mounted(device, fs_type, tmp_path / "here") as point:
            Path(point, "f").write_text("content")
    assert finished < 8  # at least one was killed on the way


def test_what_a_killed_mkfs_xfs_leaves_is_xfs_and_is_finished(disk: Disk, tmp_path: Path) -> None:
    device = disk(300)
    filesystems.make(device, "xfs", timeout=60)
    put(device, 126, b"\1")  # sb_inprogress, which mkfs.xfs takes back at its end
    assert filesystems.probe(device).state is State.FILESYSTEM
    (tmp_path / "here").mkdir()
    with pytest.raises(FailedPrecondition):
        mounts.mount(device, str(tmp_path / "here"), "xfs", [])

    filesystems.make(device, "xfs", over_partial=True, timeout=60)

    with mounted(device, "xfs", tmp_path / "here"):
        pass


@pytest.mark.parametrize("fs_type", TYPES)
def test_a_device_too_small_is_refused_untouched(disk: Disk, fs_type: str) -> None:
    device = disk(smallest(fs_type) - 1)
    with pytest.raises(OutOfRange, match=str(SUPPORTED[fs_type].smallest)):
        filesystems.make(device, fs_type, timeout=60)
    assert filesystems.probe(device).state is State.BLANK


def test_an_unknown_type_lists_the_known(disk: Disk) -> None:
    with pytest.raises(UnsupportedVolume, match="'ntfs' is not one of ext4, ext3, xfs, btrfs"):
        filesystems.make(disk(4), "ntfs", timeout=60)


def test_a_mounted_or_read_only_device_is_refused(disk: Disk, tmp_path: Path) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    with mounted(device, "ext4", tmp_path / "here") as point, pytest.raises(InUse, match=point):
        filesystems.make(device, "ext4", over_partial=True, timeout=60)
    blank = disk(8)
    devices.set_read_only(blank, True)
    with pytest.raises(FailedPrecondition, match="read-only"):
        filesystems.make(blank, "ext4", timeout=60)


def test_what_mkfs_says_is_in_the_error(disk: Disk) -> None:
    with pytest.raises(FailedPrecondition, match="--no-such-option"):
        filesystems.make(disk(8), "ext4", options=("--no-such-option",), timeout=60)


def test_a_deadline_ends_mkfs(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "mkfs.ext4"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DeadlineExceeded):
        filesystems.make(disk(8), "ext4", timeout=0.2)


def test_a_mkfs_that_made_nothing_is_not_believed(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = tmp_path / "mkfs.ext4"
    liar.write_text("#!/bin/sh\n")
    liar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unavailable, match="no ext4"):
        filesystems.make(disk(8), "ext4", timeout=60)


@pytest.mark.parametrize(
    ("said", "told"),
    [(b"mke2fs 1.47.0 (5-Feb-2023)\n", True), (b"mke2fs 1.46.5 (30-Dec-2021)\n", False), (b"", False)],
)
def test_what_old_e2fsprogs_do_not_know_is_not_said(
    monkeypatch: pytest.MonkeyPatch, said: bytes, told: bool
) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: process.Result(0, b"", said))
    filesystems._ext4_on_zeros.cache_clear()
    try:
        assert ("assume_storage_prezeroed" in "".join(filesystems._ext4_on_zeros())) is told
    finally:
        filesystems._ext4_on_zeros.cache_clear()


def test_what_a_caller_just_found_is_not_looked_for_again(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(8)
    blank = filesystems.probe(device)
    filesystems.make(device, "ext4", timeout=60)
    with pytest.raises(NotBlank):
        filesystems.make(device, "ext4", found=filesystems.probe(device), timeout=60)
    monkeypatch.setattr(filesystems, "probe_open", None)
    again = disk(8)
    filesystems.make(again, "ext4", found=blank, timeout=60)
    assert _superblock.read(again, "ext4") is not None


# check


def debugfs(device: str, *commands: str) -> None:
    subprocess.run(
        ["debugfs", "-w", "-f", "-", device],
        input="\n".join(commands),
        text=True,
        check=True,
        capture_output=True,
    )


def programs_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are run from now on."""
    names: list[str] = []
    real = process.run

    def run(argv: list[str], **words: Any) -> process.Result:
        names.append(argv[0])
        return real(argv, **words)

    monkeypatch.setattr(process, "run", run)
    return names


def test_a_clean_file_system_is_checked_without_a_program(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    ran = programs_run(monkeypatch)
    assert filesystems.check(device, "ext4") is False
    assert ran == []


def test_a_small_error_is_repaired(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    debugfs(device, "set_super_value free_blocks_count 5", "set_super_value state 2")
    ran = programs_run(monkeypatch)
    assert filesystems.check(device, "ext4") is True
    assert ran == ["e2fsck"]
    assert filesystems.check(device, "ext4") is False


def test_a_great_error_is_left_to_a_person(disk: Disk) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    debugfs(device, "clri <2>", "set_super_value state 2")
    with pytest.raises(FailedPrecondition, match="by hand") as refused:
        filesystems.check(device, "ext4")
    assert "UNEXPECTED INCONSISTENCY" in refused.value.message


def test_the_journal_of_a_crash_is_replayed(disk: Disk, tmp_path: Path) -> None:
    device, crashed = disk(64), disk(64)
    filesystems.make(device, "ext4", timeout=60)
    with mounted(device, "ext4", tmp_path / "here") as point:
        Path(point, "f").write_text("content")
        descriptor = os.open(point, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        subprocess.run(["cp", backing(device), backing(crashed)], check=True)  # as a crash would leave it
        with pytest.raises(InUse, match=point):
            filesystems.check(device, "ext4")
    superblock = _superblock.read(crashed, "ext4")
    assert superblock is not None
    assert not superblock.clean

    filesystems.check(crashed, "ext4")

    superblock = _superblock.read(crashed, "ext4")
    assert superblock is not None
    assert superblock.clean
    with mounted(crashed, "ext4", tmp_path / "there") as point:
        assert Path(point, "f").exists()


def test_a_read_only_device_is_not_repaired(disk: Disk) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    debugfs(device, "set_super_value state 2")
    devices.set_read_only(device, True)
    assert filesystems.check(device, "ext4") is False


def test_a_check_of_something_else_says_so(disk: Disk) -> None:
    device = disk(8)
    with pytest.raises(FailedPrecondition, match="no ext"):
        filesystems.check(device, "ext4")
    with pytest.raises(FailedPrecondition, match="no btrfs"):
        filesystems.check(device, "btrfs")
    assert filesystems.check(device, "vfat") is False


def copy_of(device: str, other: str) -> str:
    subprocess.run(["cp", "--sparse=always", backing(device), backing(other)], check=True)
    return other


def test_a_clone_of_xfs_is_mounted_beside_its_source(disk: Disk, tmp_path: Path) -> None:
    device = disk(300)
    filesystems.make(device, "xfs", timeout=60)
    clone = copy_of(device, disk(300))
    options = filesystems.mount_options("xfs")
    with mounted(device, "xfs", tmp_path / "a", options), mounted(clone, "xfs", tmp_path / "b", options):
        pass
    assert filesystems.mount_options("xfs", read_only=True) == ("ro", "nouuid")
    assert filesystems.mount_options("ext4") == ()
    assert filesystems.mount_options("vfat", read_only=True) == ("ro",)


def test_a_clone_of_btrfs_beside_its_source_is_refused_on_an_old_kernel(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(128)
    filesystems.make(device, "btrfs", timeout=60)
    clone = copy_of(device, disk(128))
    fsid = filesystems.probe(device).uuid
    assert filesystems.check(clone, "btrfs") is False

    # as /sys/fs/btrfs is before Linux 6.7 while the source is mounted
    (tmp_path / fsid / "devices" / os.path.basename(device)).mkdir(parents=True)
    monkeypatch.setattr(filesystems, "_BTRFS_SYSFS", str(tmp_path))
    with pytest.raises(FailedPrecondition, match=f"copy of the btrfs {fsid}, mounted from {device}"):
        filesystems.check(clone, "btrfs")
    assert filesystems.check(device, "btrfs") is False


def test_the_mounted_btrfs_is_where_the_check_looks(disk: Disk, tmp_path: Path) -> None:
    device = disk(128)
    filesystems.make(device, "btrfs", timeout=60)
    fsid = filesystems.probe(device).uuid
    with mounted(device, "btrfs", tmp_path / "here"):
        assert os.listdir(f"{filesystems._BTRFS_SYSFS}/{fsid}/devices") == [os.path.basename(device)]


# grow


@pytest.mark.parametrize("fs_type", TYPES)
def test_the_size_is_the_file_systems_own(disk: Disk, tmp_path: Path, fs_type: str) -> None:
    least = smallest(fs_type)
    device = disk(least)
    filesystems.make(device, fs_type, timeout=60)
    assert filesystems.size(device, fs_type) == least * MIB
    extend(device, max(least + 32, 256))
    assert filesystems.size(device, fs_type) == least * MIB
    assert filesystems.needs_growth(device, fs_type)
    with mounted(device, fs_type, tmp_path / "here") as point:
        assert filesystems.size(device, fs_type, point) == least * MIB
        assert filesystems.needs_growth(device, fs_type, point)


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_grows_while_mounted(
    disk: Disk, tmp_path: Path, fs_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(smallest(fs_type))
    filesystems.make(device, fs_type, timeout=60)
    extend(device, 400)
    with mounted(device, fs_type, tmp_path / "here") as point:
        before = filesystems.usage(point).total
        assert filesystems.grow(device, fs_type, point) is True
        assert filesystems.size(device, fs_type, point) == 400 * MIB
        assert filesystems.usage(point).total > before
        ran = programs_run(monkeypatch)
        assert filesystems.grow(device, fs_type, point) is False
        assert ran == []
    assert filesystems.size(device, fs_type) == 400 * MIB


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_does_not_grow_unmounted(disk: Disk, fs_type: str) -> None:
    device = disk(smallest(fs_type))
    filesystems.make(device, fs_type, timeout=60)
    extend(device, 400)
    with pytest.raises(FailedPrecondition, match="only while it is mounted"):
        filesystems.grow(device, fs_type)


@pytest.mark.parametrize("extra", [1, 63, 65])
def test_xfs_with_a_little_more_room_is_no_error(disk: Disk, tmp_path: Path, extra: int) -> None:
    """Less than an allocation group's least size cannot be used; to expand by that must not fail for ever."""
    device = disk(300)
    filesystems.make(device, "xfs", timeout=60)
    os.truncate(backing(device), 300 * MIB + extra * 4096)
    loop.resize(device)
    with mounted(device, "xfs", tmp_path / "here") as point:
        filesystems.grow(device, "xfs", point)


@pytest.mark.parametrize("fs_type", ["ext4", "ext3"])
def test_ext_grows_unmounted(
    disk: Disk, tmp_path: Path, fs_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = disk(64)
    filesystems.make(device, fs_type, zeroed=True, timeout=60)
    with mounted(device, fs_type, tmp_path / "here") as point:
        Path(point, "f").write_text("content")
    extend(device, 256)
    assert filesystems.grow(device, fs_type) is True
    assert filesystems.size(device, fs_type) == 256 * MIB
    ran = programs_run(monkeypatch)
    assert filesystems.grow(device, fs_type) is False
    assert ran == []
    with mounted(device, fs_type, tmp_path / "here") as point:
        assert Path(point, "f").read_text() == "content"
        assert filesystems.usage(point).total > 200 * MIB


def has_sys_resource() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & 1 << 24)


def test_ext4_grows_mounted_or_says_which_capability_it_takes(disk: Disk, tmp_path: Path) -> None:
    device = disk(64)
    filesystems.make(device, "ext4", timeout=60)
    extend(device, 128)
    with mounted(device, "ext4", tmp_path / "here") as point:
        if has_sys_resource():
            assert filesystems.grow(device, "ext4", point) is True
            assert filesystems.size(device, "ext4", point) == 128 * MIB
        else:
            with pytest.raises(FailedPrecondition, match=r"CAP_SYS_RESOURCE.*offline expansion"):
                filesystems.grow(device, "ext4", point)
            with pytest.raises(InUse, match=point):
                filesystems.grow(device, "ext4")
    if not has_sys_resource():
        assert filesystems.grow(device, "ext4") is True


def test_grow_tells_what_resize2fs_said(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = disk(64)
    filesystems.make(device, "ext4", timeout=60)
    extend(device, 128)
    broken = tmp_path / "resize2fs"
    broken.write_text("#!/bin/sh\necho 'the moon is wrong' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with mounted(device, "ext4", tmp_path / "here") as point:
        with pytest.raises(FailedPrecondition, match="the moon is wrong"):
            filesystems.grow(device, "ext4", point)


def test_growing_what_is_not_there_says_so(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no ext4"):
        filesystems.grow(disk(8), "ext4")
    with pytest.raises(UnsupportedVolume):
        filesystems.grow(disk(8), "ntfs")
    with pytest.raises(NotFound):
        filesystems.size(disk(8), "xfs", str(tmp_path / "absent"))


# usage


def test_usage_counts_bytes_and_inodes(disk: Disk, tmp_path: Path) -> None:
    device = disk(64)
    filesystems.make(device, "ext4", timeout=60)
    with mounted(device, "ext4", tmp_path / "here") as point:
        before = filesystems.usage(point)
        Path(point, "f").write_bytes(os.urandom(8 * MIB))
        os.sync()
        after = filesystems.usage(point)
    assert 48 * MIB < before.total <= 64 * MIB
    assert 8 * MIB <= after.used - before.used <= 9 * MIB
    assert after.used_inodes == before.used_inodes + 1
    assert before.available - after.available == after.used - before.used
    assert before.used_inodes + before.available_inodes == before.total_inodes


def test_usage_of_btrfs_counts_no_inodes(disk: Disk, tmp_path: Path) -> None:
    device = disk(128)
    filesystems.make(device, "btrfs", timeout=60)
    with mounted(device, "btrfs", tmp_path / "here") as point:
        found = filesystems.usage(point)
    assert (found.total, found.total_inodes) == (128 * MIB, 0)


def test_usage_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        filesystems.usage(str(tmp_path / "absent"))


def test_every_type_has_a_reader_of_its_superblock() -> None:
    assert set(_superblock._READERS) == set(SUPPORTED)


def test_the_device_is_not_left_open(disk: Disk) -> None:
    device = disk(8)
    filesystems.make(device, "ext4", timeout=60)
    filesystems.check(device, "ext4")
    filesystems.needs_growth(device, "ext4")
    with _block.opened(device, os.O_RDONLY | os.O_EXCL):
        pass
    assert loop.detach(device, timeout=20)  # which waits in vain for a descriptor of our own


@pytest.mark.root
def test_what_is_said_to_be_zeros_is_believed_only_where_its_edges_are(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 64 * MIB)
    device = loop.attach(str(image))
    try:
        assert filesystems.probe(device, zeroed=True).state is State.BLANK
        filesystems.make(device, "ext4", zeroed=True, timeout=60)
        assert filesystems.probe(device, zeroed=True).type == "ext4"
    finally:
        loop.detach(device)


def test_starts_elsewhere_do_not_keep_the_device(disk: Disk) -> None:
    """Until it executes, a program has a copy of every descriptor, also of a device that another thread has opened
    exclusively.
    """
    device = disk(8)
    end = time.monotonic() + 1

    def start() -> None:
        while time.monotonic() < end:
            process.run(["true"], timeout=60)

    with ThreadPoolExecutor(3) as starters, _block.opened(device) as descriptor:
        for _ in range(3):
            starters.submit(start)
        while time.monotonic() < end:
            filesystems._require_unused(descriptor, device, "it is only looked at")
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))


def test_btrfs_waits_for_the_size_that_the_kernel_can_resize(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "place"
    image.touch()
    place.mkdir()
    os.truncate(image, 128 * MIB)
    device = loop.attach(str(image))
    try:
        filesystems.make(device, "btrfs", zeroed=True, timeout=60)
        mounts.mount(device, str(place), "btrfs", [])
        for size, grown in ((255, False), (256, True)):
            os.truncate(image, size * MIB)
            loop.resize(device)
            assert filesystems.grow(device, "btrfs", str(place)) is grown
    finally:
        mounts.unmount(str(place))
        loop.detach(device)
