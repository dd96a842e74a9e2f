"""Loop devices: real ones."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from volkit.errors import FailedPrecondition, InUse, InvalidArgument, NotFound
from volkit.host import _block, devices, filesystems, loop, mounts

pytestmark = pytest.mark.root

MIB = 1 << 20
Attach = Callable[..., str]


def image(tmp_path: Path, size: int = 4 * MIB, name: str = "v.img") -> str:
    path = tmp_path / name
    path.touch()
    os.truncate(path, size)
    return str(path)


@pytest.fixture
def attach() -> Iterator[Attach]:
    """`loop.attach`, undone at the end."""
    made: list[tuple[str, dict[str, str]]] = []

    def attach_for_test(path: str, **words: Any) -> str:
        device = loop.attach(path, **words)
        found = loop.status(device)
        assert found is not None
        made.append((device, dict(found.identity)))
        return device

    yield attach_for_test
    for device, identity in made:
        loop.detach(device, expect=identity)


def test_status_tells_what_was_attached(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)

    found = loop.status(device)

    assert found is not None
    about = os.stat(path)
    assert (found.backing_device, found.backing_inode) == (about.st_dev, about.st_ino)
    assert found.backing_file == path
    assert (found.offset, found.size_limit, found.sector_size) == (0, 0, 512)
    assert not found.read_only
    assert not found.autoclear
    assert found.identity == {"backing_inode": f"{about.st_dev}:{about.st_ino}"}


def test_what_is_written_to_the_device_is_in_the_file(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    descriptor = os.open(device, os.O_RDWR)
    os.pwrite(descriptor, b"here", MIB)
    os.close(descriptor)
    devices.flush(device)

    with open(path, "rb") as file:
        file.seek(MIB)
        assert file.read(4) == b"here"


def test_read_only_refuses_a_write(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    os.chmod(path, 0o400)
    device = attach(path, read_only=True)

    found = loop.status(device)
    assert found is not None
    assert found.read_only
    with pytest.raises(OSError) as refused, open(device, "r+b", buffering=0) as file:
        file.write(b"x")
    assert refused.value.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def test_sector_size_of_4096(tmp_path: Path, attach: Attach) -> None:
    found = loop.status(attach(image(tmp_path), sector_size=4096))
    assert found is not None
    assert found.sector_size == 4096


def test_direct_io_is_on_only_when_asked_for(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    direct, buffered = loop.status(attach(path)), loop.status(attach(path, direct_io=False))
    assert direct is not None
    assert buffered is not None
    assert direct.direct_io
    assert not buffered.direct_io


def test_buffered_where_the_file_system_of_the_file_has_larger_sectors(
    tmp_path: Path, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    outer = attach(image(tmp_path, 32 * MIB, "outer.img"), sector_size=4096)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", outer], check=True)
    point = tmp_path / "outer"
    point.mkdir()
    mounts.mount(outer, str(point), "ext4", [])
    try:
        with caplog.at_level("INFO", logger="volkit.host.loop"):
            device = loop.attach(image(point))
        try:
            found = loop.status(device)
            assert found is not None
            assert not found.direct_io
            assert "buffered" in caplog.text
        finally:
            loop.detach(device)
    finally:
        mounts.unmount(str(point))


@pytest.mark.parametrize("size", [0, 511])
def test_a_file_smaller_than_a_sector_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{size} bytes"):
        loop.attach(image(tmp_path, size))


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument):
        loop.attach(str(tmp_path))
    with pytest.raises(InvalidArgument, match="regular file"):
        loop.attach(str(tmp_path / "fifo"), read_only=True)
    with pytest.raises(NotFound):
        loop.attach(str(tmp_path / "absent"))
    with pytest.raises(InvalidArgument, match="NUL"):
        loop.attach("a\0b")
    with pytest.raises(InvalidArgument, match="sector_size 500"):
        loop.attach(image(tmp_path), sector_size=500)


def test_without_loop_control_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CONTROL", str(tmp_path / "loop-control"))
    with pytest.raises(FailedPrecondition, match="modprobe loop"):
        loop.attach(image(tmp_path))


def test_a_missing_device_node_is_made(
    tmp_path: Path, unattached: str, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = unattached
    os.unlink(device)  # as in a container whose /dev is a copy

    def ioctl(descriptor: int, request: int, *more: Any) -> Any:
        if request == loop._CTL_GET_FREE:
            return int(device.removeprefix("/dev/loop"))
        return fcntl.ioctl(descriptor, request, *more)

    monkeypatch.setattr(loop, "fcntl", SimpleNamespace(ioctl=ioctl))

    assert attach(image(tmp_path)) == device

    assert stat.S_ISBLK(os.stat(device).st_mode)
    assert stat.S_IMODE(os.stat(device).st_mode) & 0o007 == 0


def test_a_device_number_above_a_thousand(
    tmp_path: Path, unattached: str, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_free_device", lambda control: unattached)
    path = image(tmp_path)
    assert attach(path) == unattached
    assert loop.find(path) == [unattached]


ATTACHER = """
import sys
from volkit.host import loop
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[1:]:
    loop.attach(path)
"""


def test_processes_that_attach_at_once_each_get_their_own(tmp_path: Path) -> None:
    paths = [image(tmp_path, MIB, f"{number}.img") for number in range(40)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", ATTACHER, *paths[number::4]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        for worker in workers:
            worker.communicate(timeout=60)
            assert worker.returncode == 0
        found = [loop.find(path) for path in paths]
        assert all(len(attached) == 1 for attached in found)
        assert len({attached[0] for attached in found}) == 40
    finally:
        for path in paths:
            for device in loop.find(path):
                loop.detach(device)


def test_a_lost_race_is_tried_again(tmp_path: Path, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = attach(image(tmp_path, name="other.img"))
    real, answers = loop._free_device, [taken, "", taken, "/dev/loop-gone"]
    monkeypatch.setattr(loop, "_free_device", lambda control: answers.pop(0) if answers else real(control))
    path = image(tmp_path)

    device = attach(path)

    assert device != taken
    assert loop.find(path) == [device]
    assert not answers


def test_detach_is_done_once_and_then_told(tmp_path: Path) -> None:
    path = image(tmp_path)
    device = loop.attach(path)
    found = loop.status(device)
    assert found is not None
    assert loop.detach(device)
    assert loop.find(path) == []
    assert not loop.detach(device, expect=found.identity)  # it may be another file's by now
    assert loop.find(path) == []


def test_detach_and_status_of_what_is_not_attached(unattached: str) -> None:
    assert loop.status(unattached) is None
    assert not loop.detach(unattached)
    assert loop.status("/dev/loop-absent") is None
    assert not loop.detach("/dev/loop-absent")


def test_detach_leaves_the_device_of_another_file_alone(tmp_path: Path, attach: Attach) -> None:
    device = attach(image(tmp_path))
    assert not loop.detach(device, expect={"backing_inode": "1:2"})
    assert loop.status(device) is not None
    found = loop.status(device)
    assert found is not None
    assert loop.detach(device, expect=found.identity)


def test_detach_refuses_what_is_no_loop_device(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="regular file"):
        loop.detach(image(tmp_path))
    with pytest.raises(InvalidArgument, match="not a block device"):
        loop.detach("/dev/null")
    with pytest.raises(InvalidArgument):
        loop.status("/dev/null")


def test_detach_of_a_mounted_device_is_refused_and_undone(tmp_path: Path, attach: Attach) -> None:
    device = attach(image(tmp_path, 8 * MIB))
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = tmp_path / "here"
    point.mkdir()
    mounts.mount(device, str(point), "ext4", [])
    try:
        with pytest.raises(InUse, match=str(point)):
            loop.detach(device)
        assert not loop.detach(device, expect={"backing_inode": "1:2"})
        found = loop.status(device)
        assert found is not None
        assert not found.autoclear
    finally:
        mounts.unmount(str(point))
    assert loop.detach(device)


@pytest.mark.copies_mounts
def test_a_mount_in_another_namespace_is_named(tmp_path: Path, attach: Attach) -> None:
    """As of a container that started while the volume was mounted, and has a copy of the mount."""
    device = attach(image(tmp_path, 8 * MIB))
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = tmp_path / "here"
    point.mkdir()
    mounts.mount(device, str(point), "ext4", [])
    words = ["unshare", "--mount", "sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            mounts.unmount(str(point))
            named = rf"a mount at {point} in the mount namespace of pid \d+ \("
            with pytest.raises(InUse, match=named):
                loop.detach(device)
            with pytest.raises(InUse, match=named):
                filesystems.check(device, "ext4")
        finally:
            other.kill()
    filesystems.check(device, "ext4")  # waits until the kernel has taken that mount down
    assert loop.detach(device)


def test_detach_of_a_device_that_is_kept_open_is_refused_and_undone(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    keeper = os.open(device, os.O_RDONLY)
    with pytest.raises(InUse, match="kept open"):
        loop.detach(device, timeout=0.05)
    os.close(keeper)

    time.sleep(0.05)  # were it still marked to clear itself, it would be gone now
    found = loop.status(device)
    assert found is not None
    assert not found.autoclear
    assert loop.detach(device)
    assert loop.find(path) == []


def test_detach_waits_for_who_looks_at_it_for_a_moment(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    keeper = os.open(device, os.O_RDONLY)
    closer = threading.Timer(0.1, os.close, [keeper])
    closer.start()
    try:
        assert loop.detach(device, timeout=60)
    finally:
        closer.join()
    assert loop.find(path) == []


def test_detach_waits_for_who_has_it_exclusively_for_a_moment(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    keeper = os.open(device, os.O_RDONLY | os.O_EXCL)
    with pytest.raises(InUse, match=f"{device} is in use; unmount"):
        loop.detach(device, timeout=0.05)
    closer = threading.Timer(0.1, os.close, [keeper])
    closer.start()
    try:
        assert loop.detach(device, timeout=60)
    finally:
        closer.join()
    assert loop.find(path) == []


def test_what_was_set_read_only_is_not_so_for_the_next_file(tmp_path: Path, attach: Attach) -> None:
    device = attach(image(tmp_path))
    devices.set_read_only(device, True)
    keeper = os.open(device, os.O_RDONLY)
    with pytest.raises(InUse):
        loop.detach(device, timeout=0.02)
    assert _block.read_only(keeper)
    os.close(keeper)

    assert loop.detach(device)
    with _block.opened(device) as descriptor:
        assert not _block.read_only(descriptor)


def test_attach_makes_a_device_writable_that_was_left_read_only(
    tmp_path: Path, unattached: str, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.set_read_only(unattached, True)
    monkeypatch.setattr(loop, "_free_device", lambda control: unattached)
    device = attach(image(tmp_path))
    assert device == unattached
    with _block.opened(device) as descriptor:
        assert not _block.read_only(descriptor)


def test_resize_takes_over_the_size_of_the_file(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    os.truncate(path, 6 * MIB)
    assert devices.size(device) == 4 * MIB
    assert loop.resize(device) == 6 * MIB
    assert devices.size(device) == 6 * MIB


def test_what_is_not_attached_cannot_be_resized(unattached: str) -> None:
    with pytest.raises(FailedPrecondition, match="attach it first"):
        loop.resize(unattached)


def test_find_goes_by_the_inode(tmp_path: Path, attach: Attach) -> None:
    path, other = image(tmp_path), image(tmp_path, name="other.img")
    (tmp_path / "sub").mkdir()
    namesake = image(tmp_path / "sub")
    attached = [attach(path), attach(path)]
    attach(namesake)

    assert sorted(loop.find(path)) == sorted(attached)
    assert loop.find(other) == []

    os.rename(path, tmp_path / "renamed.img")
    assert loop.find(path) == []
    assert sorted(loop.find(str(tmp_path / "renamed.img"))) == sorted(attached)

    os.link(tmp_path / "renamed.img", tmp_path / "link.img")
    assert sorted(loop.find(str(tmp_path / "link.img"))) == sorted(attached)

    os.symlink(tmp_path / "link.img", tmp_path / "symlink.img")
    assert sorted(loop.find(str(tmp_path / "symlink.img"))) == sorted(attached)


def test_find_sees_a_deleted_file_and_not_its_successor(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path)
    device = attach(path)
    os.unlink(path)
    assert loop.find(path) == [device]
    found = loop.status(device)
    assert found is not None
    assert found.backing_file == f"{path} (deleted)"

    image(tmp_path)
    assert loop.find(path) == []


def test_find_lists_a_name_that_is_not_text(tmp_path: Path, attach: Attach) -> None:
    path = image(tmp_path, name=os.fsdecode(b"v \xff\n.img"))
    device = attach(path)
    assert loop.find(path) == [device]
    found = loop.status(device)
    assert found is not None
    assert found.backing_file == path


def test_the_structures_have_the_kernels_size() -> None:
    assert _block.LOOP_INFO.size == 232
    assert loop._CONFIG.size == 304
