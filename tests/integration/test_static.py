"""Volumes that the journal never saw, or sees no more: what is there decides, not what is written down."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from volkit_csi.client import CallError
from volkit_csi.wire import csi_pb2 as pb

from .driver import Driver, loops, mounts
from .orchestrator import MIB, Orchestrator, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
SIZE = 16 * MIB
EXT4, RAW = capability("ext4"), capability(block=True)
KINDS = pytest.mark.parametrize("kind", [EXT4, RAW], ids=["mount", "block"])


def image(driver: Driver, id_: str, *, size: int = SIZE, fs_type: str = "") -> Path:
    """An image that an administrator puts into the pool."""
    path = driver.pool / "volumes" / id_[-2:] / f"{id_}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    if fs_type:
        subprocess.run([f"mkfs.{fs_type}", "-q", path], check=True)
    return path


def handle(id_: str, **context: str) -> Any:
    """A volume as a PersistentVolume of the administrator's gives it: volumeHandle and volumeAttributes."""
    return pb.Volume(volume_id=id_, volume_context=context)


def forget(driver: Driver) -> None:
    """Lose the state directory, and start again."""
    driver.stop()
    shutil.rmtree(driver.state)
    driver.start()
    assert driver.records() == {}


def reboot(driver: Driver) -> None:
    """All mounts and devices go, the files stay, and the driver starts again."""
    driver.kill()
    for point in reversed(mounts(driver.home)):
        subprocess.run(["umount", point], check=True)
    for device in loops(driver.home):
        subprocess.run(["losetup", "-d", device], check=True)
    assert not mounts(driver.home)
    assert not loops(driver.home)
    driver.start()


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_volume_made_by_an_administrator(driver: Driver, orchestrator: Orchestrator, fs_type: str) -> None:
    co = orchestrator
    size = SIZE if fs_type == "ext4" else 300 * MIB
    path = image(driver, "archive-2024", size=size, fs_type=fs_type)
    kind = capability(fs_type)
    assert co.volumes() == ["archive-2024"]
    used = co.use(handle("archive-2024"), kind)
    used.write(b"an administrator's")
    with pytest.raises(CallError, match="FAILED_PRECONDITION"):
        co.delete(used.id)
    snapshot = co.snapshot("s", used.id)
    co.unuse(used)
    co.expand(used.id, 2 * size)
    used = co.use(handle("archive-2024"), kind)
    assert used.size() > 1.7 * size
    assert used.read(100) == b"an administrator's"
    co.unuse(used)
    co.delete_snapshot(snapshot)
    co.delete(used.id)
    assert not path.exists()
    assert driver.left() == []


def test_a_blank_one_is_formatted_only_with_permission(driver: Driver, orchestrator: Orchestrator) -> None:
    co = orchestrator
    path = image(driver, "blank-1")
    with pytest.raises(CallError, match='firstFormat: "true"'):
        co.use(handle("blank-1"), EXT4)
    assert path.stat().st_blocks == 0
    assert loops(driver.home) == {}
    used = co.use(handle("blank-1", firstFormat="true"), EXT4)
    used.write(b"x")
    co.unuse(used)
    co.use(handle("blank-1"), EXT4)
    assert used.read(100) == b"x"


def test_a_permission_does_not_reach_what_is_there(driver: Driver, orchestrator: Orchestrator) -> None:
    """Another file system, or a signature of something else: neither is formatted, whatever the attributes say."""
    co = orchestrator
    other = image(driver, "other-1", fs_type="ext4")
    swap = image(driver, "swap-1")
    subprocess.run(["mkswap", swap], check=True, capture_output=True)
    for path in (other, swap):
        before = path.read_bytes()
        with pytest.raises(CallError, match="FAILED_PRECONDITION"):
            co.use(handle(path.stem, firstFormat="true"), capability("xfs"))
        assert path.read_bytes() == before
    assert loops(driver.home) == {}


@KINDS
def test_an_empty_journal_with_volumes_in_use(driver: Driver, orchestrator: Orchestrator, kind: Any) -> None:
    """Everything goes on: repeats are answered, what is mounted is adopted, and comes down."""
    co = orchestrator
    volume = co.create("v", SIZE, kind)
    used = co.use(volume, kind)
    used.write(b"before")
    before = mounts(driver.home), loops(driver.home)
    forget(driver)
    with pytest.raises(CallError, match="FAILED_PRECONDITION"):
        co.delete(used.id)
    assert co.create("v", SIZE, kind).volume_id == volume.volume_id
    assert co.volumes() == [volume.volume_id]
    assert co.use(volume, kind) == used
    assert (mounts(driver.home), loops(driver.home)) == before
    assert used.read(6) == b"before"
    second = co.use(volume, kind, pod="second")
    assert second.read(6) == b"before"
    co.unpublish(second)
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


@KINDS
def test_an_empty_journal_when_all_is_taken_down(
    driver: Driver, orchestrator: Orchestrator, kind: Any
) -> None:
    """NodeUnpublish and NodeUnstage carry an id and a path, and that is enough."""
    co = orchestrator
    volume = co.create("v", SIZE, kind)
    used = co.use(volume, kind)
    snapshot = co.snapshot("s", used.id)
    forget(driver)
    assert co.snapshot("s", used.id) == snapshot
    co.unuse(used)
    assert mounts(driver.home) == loops(driver.home) == {}
    forget(driver)
    co.delete_snapshot(snapshot)
    co.delete(used.id)
    assert driver.left() == []


@KINDS
def test_unpublish_and_unstage_after_a_reboot(driver: Driver, orchestrator: Orchestrator, kind: Any) -> None:
    co = orchestrator
    used = co.use(co.create("v", SIZE, kind), kind)
    reboot(driver)
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


@KINDS
def test_use_goes_on_after_a_reboot(driver: Driver, orchestrator: Orchestrator, kind: Any) -> None:
    """Stage and publish are called again, without an unpublish: the records of before are no truth."""
    co = orchestrator
    volume = co.create("v", SIZE, kind)
    used = co.use(volume, kind)
    used.write(b"before")
    reboot(driver)
    assert co.use(volume, kind) == used
    assert used.read(6) == b"before"
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


@KINDS
def test_a_device_number_that_is_another_files_now(
    driver: Driver, orchestrator: Orchestrator, tmp_path: Path, kind: Any
) -> None:
    """After a reboot the recorded /dev/loopN is somebody else's: it is neither used nor detached."""
    co = orchestrator
    volume = co.create("v", SIZE, kind)
    used = co.use(volume, kind)
    used.write(b"before")
    (device,) = loops(driver.home)
    stranger = driver.home / "stranger"
    stranger.write_bytes(b"stranger".ljust(MIB, b"\0"))
    reboot(driver)
    subprocess.run(["losetup", device, stranger], check=True)
    # first the call that would detach it, then those that would use it
    co.call(
        "NodeUnstageVolume",
        pb.NodeUnstageVolumeRequest(volume_id=used.id, staging_target_path=str(used.staging)),
    )
    assert loops(driver.home) == {device: f"{stranger} 0"}
    assert co.use(volume, kind) == used
    assert used.read(6) == b"before"
    assert stranger.read_bytes().startswith(b"stranger")
    co.unuse(used)
    assert loops(driver.home) == {device: f"{stranger} 0"}
    subprocess.run(["losetup", "-d", device], check=True)
    co.delete(used.id)
    assert driver.left() == []


def test_a_second_controller_with_an_empty_journal(drivers: Callable[..., Driver]) -> None:
    """It wakes up elsewhere, and repeats the calls of the first: one volume, one snapshot."""
    first = drivers("first").start()
    co = Orchestrator(first.client, first.home)
    volume = co.create("v", SIZE, RAW)
    snapshot = co.snapshot("s", volume.volume_id)
    first.kill()
    second = drivers("second", pool=first.pool).start()
    co = Orchestrator(second.client, second.home)
    assert co.create("v", SIZE, RAW).volume_id == volume.volume_id
    assert co.snapshot("s", volume.volume_id) == snapshot
    with pytest.raises(CallError, match="ALREADY_EXISTS"):
        co.create("v", 2 * SIZE, RAW)
    assert len(second.images()) == 2
    co.delete_snapshot(snapshot)
    co.delete(volume.volume_id)
    assert second.left() == []
