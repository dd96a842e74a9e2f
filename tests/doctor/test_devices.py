"""Devices that are gone, exchanged or given up: real loop devices, and a sysfs of our own for what is not here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from volkit.host import devices, loop, mounts
from volkit.journal import Put, key

from .world import RAW, Served, World

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4", "bindfs")]


def staged_raw(node: World) -> tuple[str, str]:
    """A volume that is staged as a raw device, and the device."""
    volume = node.create(capability=RAW)
    node.stage(volume, RAW)
    (device,) = loop.find(str(node.image(volume)))
    return volume, device


def test_a_device_that_went_is_stuck_and_settled(node: World) -> None:
    volume, device = staged_raw(node)
    loop.detach(device)
    found = node.one()
    assert found.sort == "stuck"
    assert f"volume {volume} is recorded as staged" in found.what
    assert device in found.what
    assert found.repair
    assert found.repair() == "what was begun is undone"
    assert node.findings() == []


def test_a_device_that_is_another_one_now_is_not_touched(node: World) -> None:
    volume, device = staged_raw(node)
    entry = node.engine.node_journal.get(key("stage", volume))
    assert entry
    other = node.base / "other.img"
    other.write_bytes(bytes(1 << 20))
    theirs = loop.attach(str(other))
    changed = {**entry.value, "connection": {**entry.value["connection"], "device": theirs}}
    loop.detach(device)
    node.engine.node_journal.write(Put(entry.key, changed))
    found = node.one()
    assert found.what.endswith(f"its device {theirs} is another device now")
    assert found.repair
    found.repair()
    assert node.findings() == []
    assert loop.find(str(other)) == [theirs]
    loop.detach(theirs)


def test_a_file_that_was_deleted_under_its_device_is_stuck(node: World) -> None:
    volume = node.used()
    node.image(volume).unlink()
    (found,) = [one for one in node.findings() if "goes when it is detached" in one.what]
    assert (found.sort, found.repair) == ("stuck", None)
    assert Path(node.target(volume)).is_dir()


def test_a_device_whose_file_hangs_holds_up_nobody(node: World, served: Served) -> None:
    """What is read from it waits for ever; the doctor reads nothing."""
    volume, device = staged_raw(node)
    loop.detach(device)
    image = served.path / "x.img"
    image.write_bytes(bytes(1 << 20))
    theirs = loop.attach(str(image), direct_io=False)
    try:
        entry = node.engine.node_journal.get(key("stage", volume))
        assert entry
        connection = {**entry.value["connection"], "device": theirs, "identity": {}}
        node.engine.node_journal.write(Put(entry.key, {**entry.value, "connection": connection}))
        served.stop()
        assert node.findings() == []
    finally:
        served.go_on()
        loop.detach(theirs)


# -- what the kernel says of devices that this machine does not have -----------------------------------------


class Sysfs:
    """A loop device's number, with another device's attributes."""

    def __init__(self, root: Path, device: str) -> None:
        self.root = root
        number = devices.number(device)
        assert number
        self.place = root / "devices" / "host1" / "session7" / "target" / "block" / "sdx"
        (self.place / "device").mkdir(parents=True)
        (root / "dev" / "block").mkdir(parents=True)
        (root / "dev" / "block" / "{}:{}".format(*number)).symlink_to(self.place)

    def write(self, name: str, text: str) -> None:
        path = self.root / name if name.startswith("class") else self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def sysfs(node: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    _, device = staged_raw(node)
    made = Sysfs(tmp_path / "sys", device)
    monkeypatch.setattr("volkit.host._block.SYSFS", str(made.root))
    monkeypatch.setattr("volkit.doctor.examine_connections", lambda engine, table: iter(()))
    return made


@pytest.mark.parametrize("state", ["offline", "blocked", "transport-offline", "dead"])
def test_a_scsi_or_nvme_device_that_the_kernel_gave_up(node: World, sysfs: Sysfs, state: str) -> None:
    for well in ("running", "live"):
        sysfs.write("device/state", well)
        assert node.findings() == []
    sysfs.write("device/state", state)
    found = node.one()
    assert (found.sort, found.repair) == ("stuck", None)
    assert found.what.endswith(f"sdx is {state}")


def test_an_iscsi_session_that_failed(node: World, sysfs: Sysfs) -> None:
    sysfs.write("class/iscsi_session/session7/state", "LOGGED_IN")
    assert node.findings() == []
    sysfs.write("class/iscsi_session/session7/state", "FAILED")
    assert node.one().what.endswith("iSCSI session7 of sdx is FAILED")


def test_a_path_of_a_multipath_device(node: World, sysfs: Sysfs) -> None:
    sysfs.write("dm/suspended", "0")
    path = sysfs.root / "devices" / "sdy"
    (path / "device").mkdir(parents=True)
    (path / "device" / "state").write_text("transport-offline\n")
    (sysfs.place / "slaves").mkdir()
    (sysfs.place / "slaves" / "sdy").symlink_to(path)
    assert node.one().what.endswith("sdy is transport-offline (below sdx)")
    sysfs.write("dm/suspended", "1")
    assert node.one().what.endswith("sdx is suspended")


def test_a_leftover_of_the_device_mapper_is_foreign(node: World, sysfs: Sysfs) -> None:
    (sysfs.place / "holders" / "dm-9999").mkdir(parents=True)
    found = node.one()
    assert (found.sort, found.repair) == ("foreign", None)
    assert found.command == "dmsetup remove dm-9999"
    assert "/dev/dm-9999" in found.what


# -- publishing leaves nothing where it failed -----------------------------------------------------------------


def test_a_publish_that_failed_leaves_no_directory(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from volkit.errors import FailedPrecondition

    volume = node.create()
    node.stage(volume)

    def refuse(*args: object, **words: object) -> None:
        raise FailedPrecondition("no")

    with monkeypatch.context() as patch:
        patch.setattr(mounts, "bind", refuse)
        with pytest.raises(FailedPrecondition, match="no"):
            node.publish(volume)
    assert not os.path.exists(node.target(volume))
    assert node.findings() == []
    node.publish(volume)
    assert subprocess.run(["mountpoint", "-q", node.target(volume)], check=False).returncode == 0
