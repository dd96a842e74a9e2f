"""The node: real loop devices, and copies of file systems while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from volkit import AccessMode, AccessType, Capability, CapacityRange, FailedPrecondition, NotFound, requests
from volkit.host import devices, files, filesystems, freeze, loop, mounts

MIB = 1 << 20
RAW = Capability(access_type=AccessType.BLOCK)
READERS = Capability(access_type=AccessType.BLOCK, access_mode=AccessMode.SINGLE_NODE_READER_ONLY)
pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]


def status(device: str) -> loop.LoopStatus:
    found = loop.status(device)
    assert found
    return found


def test_connect_and_disconnect(site: Any) -> None:
    volume = site.create("one", 16 * MIB)
    connection = site.connect(volume)
    assert devices.verify(connection.device, connection.identity) == connection.device
    assert devices.size(connection.device) == 16 * MIB
    assert status(connection.device).direct_io
    assert connection.zeroed
    for resumed in (True, False):
        again = site.connect(volume, resumed=resumed)
        assert (again.device, again.identity) == (connection.device, connection.identity)
        assert not again.zeroed  # who knows what was written to it since
    site.disconnect(volume, connection)
    assert loop.find(str(site.image(volume.id))) == []
    site.disconnect(volume, connection)
    site.disconnect(volume)


def test_without_a_record_the_device_is_found_by_its_file(site: Any) -> None:
    volume = site.create("one")
    site.connect(volume)
    site.disconnect(volume)
    assert loop.find(str(site.image(volume.id))) == []


@pytest.mark.parametrize("id_", ["v-missing", "../../etc/passwd", "pvc/1", ""])
def test_a_volume_that_is_not_there(site: Any, id_: str) -> None:
    with pytest.raises(NotFound):
        site.node.connect(requests.ConnectRequest(volume_id=id_, node_id="n1", capability=Capability()))
    site.node.disconnect(requests.DisconnectRequest(volume_id=id_, node_id="n1"))


def test_a_device_whose_number_went_to_another_volume_is_left_alone(site: Any) -> None:
    one, two = site.create("one"), site.create("two")
    connection = site.connect(one)
    loop.detach(connection.device)
    other = site.connect(two)
    if other.device != connection.device:
        pytest.fail(f"the kernel gave {other.device}, not {connection.device}, which this test is about")
    site.disconnect(one, connection)
    assert loop.find(str(site.image(two.id))) == [other.device]
    with pytest.raises(FailedPrecondition):
        site.node.resize(requests.ResizeRequest(volume_id=one.id, connection=connection))


def test_twenty_devices_at_once(site: Any) -> None:
    volumes = [site.create(f"number-{number}", MIB) for number in range(20)]
    connections: dict[str, Any] = {}

    def attach(volume: Any) -> None:
        connections[volume.id] = site.connect(volume)

    threads = [threading.Thread(target=attach, args=[volume]) for volume in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({connection.device for connection in connections.values()}) == 20
    for volume in volumes:
        connection = connections[volume.id]
        devices.verify(connection.device, connection.identity)
        site.disconnect(volume, connection)
        assert loop.find(str(site.image(volume.id))) == []


def test_a_raw_reader_cannot_write_and_a_file_system_can_replay_its_log(site: Any) -> None:
    volume = site.create("one")
    connection = site.connect(volume, capability=READERS)
    assert status(connection.device).read_only
    writable = site.connect(volume, capability=RAW)
    assert not status(writable.device).read_only
    assert loop.find(str(site.image(volume.id))) == [writable.device]
    site.disconnect(volume, writable)
    for more in (
        {"readonly": True},
        {"capability": Capability(access_mode=AccessMode.SINGLE_NODE_READER_ONLY)},
    ):
        connection = site.connect(volume, **more)
        assert not status(connection.device).read_only
        site.disconnect(volume, connection)


def test_direct_io_is_a_setting(tmp_path: Path, site: Any) -> None:
    buffered = type(site)(tmp_path / "buffered", direct_io=False)
    volume = buffered.create("one")
    assert not status(buffered.connect(volume).device).direct_io


@pytest.mark.needs("mkfs.xfs", "xfs_growfs")
def test_a_mounted_volume_grows(site: Any, mounted: Any) -> None:
    volume = site.create("one", 320 * MIB)
    place = mounted(volume, "xfs", fresh=True)
    connection = site.connect(volume, resumed=True)
    request = requests.ExpandVolumeRequest(
        volume_id=volume.id, capacity_range=CapacityRange(required=400 * MIB), size=400 * MIB
    )
    assert site.controller.expand_volume(request).node_expansion_required
    with pytest.raises(FailedPrecondition, match="expand the volume first"):
        site.node.resize(requests.ResizeRequest(volume_id=volume.id, connection=connection, size=500 * MIB))
    site.node.resize(requests.ResizeRequest(volume_id=volume.id, connection=connection, size=400 * MIB))
    assert devices.size(connection.device) == 400 * MIB
    assert filesystems.grow(connection.device, "xfs", str(place), timeout=60)


@pytest.mark.needs("mkfs.xfs")
def test_a_clone_of_a_mounted_xfs_is_mounted_beside_it(site: Any, mounted: Any) -> None:
    volume = site.create("one", 320 * MIB)
    place = mounted(volume, "xfs", fresh=True)
    (place / "marker").write_text("here")
    clone = site.create("clone", 320 * MIB, source=volume)
    twin = mounted(clone, "xfs", fresh=False)
    assert (twin / "marker").read_text() == "here"
    (twin / "marker").write_text("there")
    assert (place / "marker").read_text() == "here"


def write_all_the_time(place: Path, stop: threading.Event, written: list[int]) -> None:
    """Numbered files, each synced before the next: a copy of one moment has no gap in them."""
    number = 0
    while not stop.is_set():
        with open(place / f"{number:06d}", "w") as file:
            file.write(str(number) * 500)
            file.flush()
            os.fsync(file.fileno())
        written.append(number)
        number += 1


@pytest.mark.parametrize(
    "pool_type",
    [
        pytest.param("ext4"),
        pytest.param("xfs", marks=pytest.mark.needs("mkfs.xfs")),
        pytest.param("btrfs", marks=pytest.mark.needs("mkfs.btrfs")),
    ],
)
@pytest.mark.parametrize("direct_io", [True, False])
def test_a_snapshot_under_writes_is_one_moment_and_clean(
    site: Any, filesystem: Any, mounted: Any, pool_type: str, direct_io: bool
) -> None:
    here = type(site)(filesystem(pool_type), direct_io=direct_io)
    volume = here.create("one", 64 * MIB)
    place = mounted(volume, "ext4", fresh=True, at=here)
    (place / "unsynced").write_text("written before the cut")
    stop = threading.Event()
    written: list[int] = []
    writer = threading.Thread(target=write_all_the_time, args=[place, stop, written])
    writer.start()
    try:
        while len(written) < 20:
            time.sleep(0.005)
        before = len(written)
        snapshot = here.snapshot("cut", volume)
        while len(written) < before + 20:
            time.sleep(0.005)
    finally:
        stop.set()
        writer.join()
    restored = here.create("restored", 64 * MIB, source=snapshot)
    image = str(here.image(restored.id))
    check = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    assert "recover" not in check.stdout + check.stderr
    twin = mounted(restored, "ext4", fresh=False, at=here)
    assert (twin / "unsynced").read_text() == "written before the cut"
    found = sorted(int(path.name) for path in twin.glob("[0-9]*"))
    assert found == list(range(len(found)))
    assert len(found) >= before
    whole = [number for number in found if (twin / f"{number:06d}").read_text() == str(number) * 500]
    assert whole[:before] == list(range(before))
    assert len(whole) >= len(found) - 1


def test_a_copy_that_takes_too_long_lets_the_file_system_go(
    site: Any, mounted: Any, filesystem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = type(site)(filesystem("ext4"), freeze_limit=0.2)
    volume = here.create("one", 32 * MIB)
    place = mounted(volume, "ext4", fresh=True, at=here)
    real = files.clone

    def slow(source: str, made: str) -> Any:
        time.sleep(1)
        (place / "written-meanwhile").write_text("x")  # would wait for ever were it frozen still
        return real(source, made)

    monkeypatch.setattr(files, "clone", slow)
    with pytest.raises(FailedPrecondition, match="may be frozen"):
        here.snapshot("cut", volume)
    (place / "written-later").write_text("x")
    assert list(here.controller.pool.after("snapshots")) == []


def test_what_somebody_else_froze_stays_frozen(site: Any, mounted: Any) -> None:
    volume = site.create("one", 32 * MIB)
    place = mounted(volume, "ext4", fresh=True)
    subprocess.run(["fsfreeze", "-f", str(place)], check=True)
    site.snapshot("cut", volume)
    thawed = subprocess.run(["fsfreeze", "-u", str(place)], check=False)
    assert thawed.returncode == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from volkit_loop import pool
place = pool.Pool(Path(sys.argv[1]))
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
pool.files.clone = die
place.create(pool.SNAPSHOTS, "s-cut", 1 << 20, source=place.get(pool.VOLUMES, sys.argv[2]))
"""


def test_what_a_killed_process_left_frozen_is_let_go_by_the_next(site: Any, mounted: Any) -> None:
    volume = site.create("one", 32 * MIB)
    place = mounted(volume, "ext4", fresh=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(site.pool), volume.id], check=False)
    assert killed.returncode == -signal.SIGKILL
    stuck = threading.Thread(target=(place / "written").write_text, args=["x"], daemon=True)
    stuck.start()
    stuck.join(0.3)
    assert stuck.is_alive()
    type(site)(site.pool)
    stuck.join(60)
    assert not stuck.is_alive()
    assert [path for path in (site.pool / "making").rglob("*") if path.is_file()] == []


def test_a_raw_volume_is_flushed_into_its_copy(site: Any) -> None:
    volume = site.create("one", 8 * MIB)
    connection = site.connect(volume, capability=RAW)
    content = os.urandom(MIB)
    with open(connection.device, "r+b") as file:
        file.write(content)
        file.flush()
        snapshot = site.snapshot("cut", volume)
    copy = Path(site.controller.pool.path("snapshots", snapshot))
    assert copy.read_bytes() == content + bytes(7 * MIB)


@pytest.mark.needs("mkfs.btrfs")
def test_btrfs_in_a_volume_is_frozen_too(site: Any, mounted: Any) -> None:
    volume = site.create("one", 128 * MIB)
    place = mounted(volume, "btrfs", fresh=True)
    frozen = False
    with freeze.frozen(str(site.image(volume.id)), 30):
        writer = threading.Thread(target=(place / "written").write_text, args=["x"])
        writer.start()
        writer.join(0.3)
        frozen = writer.is_alive()
    writer.join(60)
    assert frozen
    assert not writer.is_alive()


def test_discarded_space_goes_back_to_the_pool(site: Any) -> None:
    volume = site.create("one", 32 * MIB)
    device = site.connect(volume).device
    with open(device, "r+b") as file:
        file.write(os.urandom(16 * MIB))
        os.fsync(file.fileno())
    assert site.image(volume.id).stat().st_blocks * 512 >= 16 * MIB
    subprocess.run(["blkdiscard", device], check=True)
    assert site.image(volume.id).stat().st_blocks * 512 < MIB


def test_the_node_names_its_place(site: Any) -> None:
    assert site.node.topology().segments == {"volkit.io/node": "n1"}
    assert site.node.info().facts == {}
    assert mounts.mounts(under=str(site.pool)) == []
