"""Block devices: real loop devices, with the kernel's events, with a real udevd, and without either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volkit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from volkit.host import _block, devices, loop

pytestmark = pytest.mark.root

MIB = 1 << 20
UDEVD = "/lib/systemd/systemd-udevd"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "v.img"
    path.touch()
    os.truncate(path, 4 * MIB)
    yield str(path)
    for device in loop.find(str(path)):
        loop.detach(device)


@pytest.fixture
def device(image: str) -> str:
    return loop.attach(image)


def listen_to_udev(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.path.exists(devices.UDEV_CONTROL):
        yield
        return
    had_state = os.path.exists("/run/udev")
    daemon = subprocess.Popen([UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not os.path.exists(devices.UDEV_CONTROL):
            assert daemon.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        yield
    finally:
        subprocess.run(["udevadm", "settle", "--timeout=5"], check=False)
        daemon.terminate()
        daemon.wait(60)
        Path(devices.UDEV_CONTROL).unlink(missing_ok=True)
        if not had_state:
            shutil.rmtree("/run/udev", ignore_errors=True)


def poll_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "_listen", devices._Polling)
    yield


def listen_to_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "UDEV_CONTROL", "/nowhere")
    yield


@pytest.fixture(
    params=[
        listen_to_kernel,
        poll_only,
        # it looks at everybody's devices, as a copy of all mounts holds them
        pytest.param(listen_to_udev, marks=[pytest.mark.needs("udevadm"), pytest.mark.copies_mounts]),
    ],
    ids=["kernel", "polling", "udev"],
)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each way of learning that something happened; its name."""
    name = request.node.callspec.id.split("-")[0]
    for _ in request.param(monkeypatch):
        assert devices._listen().source == name
        yield name


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Runs something a quarter of a second from now."""
    timers: list[threading.Timer] = []

    def start(action: Callable[[], object]) -> None:
        timers.append(threading.Timer(0.25, action))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


def test_identity_of_a_loop_device(image: str, device: str) -> None:
    about = os.stat(image)
    found = devices.read_identity(device)
    assert found["backing_inode"] == f"{about.st_dev}:{about.st_ino}"
    assert found["size"] == str(4 * MIB)
    assert int(found["diskseq"]) > 0
    assert "serial" not in found


def test_diskseq_tells_one_attachment_from_the_next(image: str, device: str) -> None:
    first = devices.read_identity(device)
    loop.detach(device)
    again = loop.attach(image)
    second = devices.read_identity(again)
    assert first["backing_inode"] == second["backing_inode"]
    assert first["diskseq"] != second["diskseq"]


def test_identity_of_scsi_nvme_and_mapper_devices(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = os.stat(device).st_rdev
    place = tmp_path / f"dev/block/{os.major(number)}:{os.minor(number)}"
    for path, content in {
        "device/vpd_pg80": b"\0\x80\0\x08 SN-1   trailing",
        "device/wwid": b"naa.6001405aabb\n",
        "device/vendor": b"LIO-ORG \n",
        "device/model": b"disk 1          \n",
        "dm/uuid": b"mpath-36001405aabb\n",
    }.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    monkeypatch.setattr(_block, "SYSFS", str(tmp_path))

    found = dict(devices.read_identity(device))

    assert {name: found[name] for name in ("serial", "wwid", "vendor", "model", "dm_uuid")} == {
        "serial": "SN-1",
        "wwid": "naa.6001405aabb",
        "vendor": "LIO-ORG",
        "model": "disk 1",
        "dm_uuid": "mpath-36001405aabb",
    }

    (place / "serial").write_bytes(b"nvme-7\n")
    (place / "wwid").write_bytes(b"eui.0025\n")
    found = dict(devices.read_identity(device))
    assert (found["serial"], found["wwid"]) == ("nvme-7", "eui.0025")


def test_a_partition_has_the_identity_of_its_disk(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = os.stat(device).st_rdev
    partition = tmp_path / "devices/sda/sda2"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("2\n")
    (tmp_path / "devices/sda/serial").write_text("S1\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / f"dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(partition)
    monkeypatch.setattr(_block, "SYSFS", str(tmp_path))

    found = devices.read_identity(device)

    assert (found["serial"], found["partition"]) == ("S1", "2")


def test_verify_follows_a_link_to_the_right_device(tmp_path: Path, device: str) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(device)
    identity = {"backing_inode": devices.read_identity(device)["backing_inode"]}
    assert devices.verify(str(link), identity) == device


def test_verify_names_attribute_expected_and_found(device: str) -> None:
    found = devices.read_identity(device)["backing_inode"]
    with pytest.raises(FailedPrecondition) as refused:
        devices.verify(device, {"backing_inode": "1:2", "serial": "f00d", "size": str(4 * MIB)})
    text = refused.value.message
    assert f"backing_inode is {found!r} instead of '1:2'" in text
    assert "no serial, expected 'f00d'" in text
    assert "size" not in text


def test_what_is_no_block_device_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(InvalidArgument, match="a regular file"):
        devices.verify(image, {})
    with pytest.raises(InvalidArgument, match="a directory"):
        devices.size(str(tmp_path))
    with pytest.raises(InvalidArgument, match="a character device"):
        devices.read_identity("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument):
        devices.size(str(tmp_path / "fifo"))
    with pytest.raises(NotFound):
        devices.size(str(tmp_path / "absent"))
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    with pytest.raises(NotFound):
        devices.verify(str(tmp_path / "dangling"), {})


def test_a_node_without_a_device_is_not_found(tmp_path: Path) -> None:
    os.mknod(tmp_path / "node", 0o60600, os.makedev(8, 255))  # no such disk
    with pytest.raises(NotFound):
        devices.size(str(tmp_path / "node"))


def test_size_follows_the_device(image: str, device: str) -> None:
    assert devices.size(device) == 4 * MIB


def test_what_is_not_attached_has_no_size(unattached: str) -> None:
    assert devices.size(unattached) == 0


def test_read_only_is_set_and_taken_back(device: str) -> None:
    devices.set_read_only(device, True)
    with pytest.raises(OSError), open(device, "r+b", buffering=0) as file:
        file.write(b"x" * 512)
    devices.set_read_only(device, False)
    with open(device, "r+b", buffering=0) as file:
        assert file.write(b"x" * 512) == 512


def test_flush_brings_writes_to_the_file(image: str, device: str) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.write(b"y" * 4096)
    devices.flush(device)
    assert Path(image).read_bytes()[:4096] == b"y" * 4096


def test_holders_of_a_plain_device(device: str) -> None:
    assert devices.holders(device) == []


def test_holders_are_named_by_their_nodes(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = os.stat(device).st_rdev
    for name in ("dm-3", "cciss!c0d0"):
        (tmp_path / f"dev/block/{os.major(number)}:{os.minor(number)}/holders/{name}").mkdir(parents=True)
    monkeypatch.setattr(_block, "SYSFS", str(tmp_path))
    assert devices.holders(device) == ["/dev/cciss/c0d0", "/dev/dm-3"]


def test_waits_until_a_device_appears(
    source: str, image: str, tmp_path: Path, later: Callable[[Callable[[], object]], None]
) -> None:
    link = tmp_path / "by-id"
    about = os.stat(image)
    identity = {"backing_inode": f"{about.st_dev}:{about.st_ino}"}

    later(lambda: link.symlink_to(loop.attach(image)))
    found = devices.wait_for(str(link), identity=identity, timeout=60)

    assert [found] == loop.find(image)


def test_does_not_take_another_device_at_the_path(source: str, device: str) -> None:
    with pytest.raises(DeadlineExceeded) as refused:
        devices.wait_for(device, identity={"serial": "f00d"}, timeout=0.05)
    assert "serial, expected 'f00d'" in refused.value.message
    how = "it was polled" if source == "polling" else f"last events from {source}"
    assert how in refused.value.message


def test_waits_until_a_device_has_grown(
    source: str, image: str, device: str, later: Callable[[Callable[[], object]], None]
) -> None:
    os.truncate(image, 8 * MIB)
    later(lambda: loop.resize(device))
    assert devices.wait_for_size(device, 8 * MIB, timeout=60) == 8 * MIB


def test_says_what_size_it_saw(source: str, device: str) -> None:
    with pytest.raises(DeadlineExceeded, match=f"it has {4 * MIB}"):
        devices.wait_for_size(device, 8 * MIB, timeout=0.05)


def test_waits_until_a_device_is_gone(
    source: str, image: str, device: str, later: Callable[[Callable[[], object]], None]
) -> None:
    identity = {"backing_inode": devices.read_identity(device)["backing_inode"]}  # or it is another's already
    later(lambda: loop.detach(device))
    devices.wait_gone(device, identity=identity, timeout=60)
    assert loop.find(image) == []


def test_gone_is_also_unattached_absent_and_another_device(device: str, unattached: str) -> None:
    devices.wait_gone(unattached, timeout=0)
    devices.wait_gone("/dev/absent", timeout=0)
    devices.wait_gone(device, identity={"backing_inode": "1:2"}, timeout=0)
    with pytest.raises(DeadlineExceeded, match="still there"):
        devices.wait_gone(device, timeout=0.05)


def test_an_event_wakes_at_once(image: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "UDEV_CONTROL", "/nowhere")
    monkeypatch.setattr(devices, "_LOOK_AGAIN", 600)
    os.truncate(image, 8 * MIB)
    growing = threading.Timer(0.2, loop.resize, [device])
    growing.start()
    begun = time.monotonic()
    devices.wait_for_size(device, 8 * MIB, timeout=600)
    assert time.monotonic() - begun < 300  # long before it would have looked again by itself
    growing.join()


def test_an_event_between_the_first_look_and_the_wait_is_not_lost(
    image: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "UDEV_CONTROL", "/nowhere")
    monkeypatch.setattr(devices, "_LOOK_AGAIN", 600)
    os.truncate(image, 8 * MIB)
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        grown = devices.size(device) == 8 * MIB
        if looks == 1:
            loop.resize(device)  # right after the look that did not see it
        return grown

    begun = time.monotonic()
    assert devices.wait_until(look, "it did not grow", timeout=600)
    assert time.monotonic() - begun < 300


def test_wait_until_passes_on_what_the_look_raises() -> None:
    def look() -> bool:
        raise NotFound("the session is gone")

    with pytest.raises(NotFound, match="session"):
        devices.wait_until(look, "a disk", timeout=1)


def test_polls_where_netlink_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyudev

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("netlink")

    monkeypatch.setattr(pyudev.Monitor, "from_netlink", refuse)
    assert devices._listen().source == "polling"


def test_polls_where_libudev_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    assert devices._listen().source == "polling"


def test_pyudev_is_imported_only_to_wait() -> None:
    code = "import sys; from volkit.host import devices, filesystems, loop; print('pyudev' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"
