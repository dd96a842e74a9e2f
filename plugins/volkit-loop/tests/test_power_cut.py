"""A power cut, as near to a real one as one machine gets: pool, journal and state are on a file system of their own,
and after each SIGKILL it goes on with what its block device had been given by then. What was only in the page cache is
lost, and so is the order in which the rest was written, as far as nobody had it synced.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from volkit import CapacityRange, InUse, SnapshotSource
from volkit.host import loop, mounts
from volkit.requests import ExpandVolumeRequest
from volkit.testing import BackendSuite, Kit, Storage
from volkit.testing.matrix import kills
from volkit.testing.scenarios import SCENARIOS
from volkit.testing.sharing_cases import Used
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings
from volkit_loop.witness import Images

MIB = 1 << 20
OPERATIONS = [name for name in SCENARIOS if name not in ("reads", "modify", "attach", "detach")]


class Disk:
    """A file system in a file, whose power can be cut."""

    def __init__(self, directory: Path) -> None:
        self.image, self.copy, self.place = directory / "disk", directory / "copy", directory / "mounted"
        self.cuts = 0
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self.on()

    def on(self) -> None:
        self.device = loop.attach(str(self.image), direct_io=False)
        mounts.mount(self.device, str(self.place), "ext4")

    def off(self) -> None:
        gc.collect()  # a pool that nobody uses any more keeps its directory open
        with suppress(InUse):
            mounts.unmount(str(self.place))
        mounts.unmount(str(self.place), lazy=True)
        loop.detach(self.device)

    def cut(self) -> None:
        """Keep what is on the block device at this moment."""
        subprocess.run(["cp", "--sparse=always", self.image, self.copy], check=True)

    def restart(self) -> None:
        """Go on with what was kept."""
        self.off()
        self.copy.replace(self.image)
        self.on()
        self.cuts += 1


class OnADisk(Kit):
    """A kit whose directory is on a disk that loses its power with the machine."""

    disk: Disk

    def power_cut(self, lost: int | None) -> None:
        self.disk.cut()  # before anything is unmounted, which would write what a power cut loses
        super().power_cut(lost)

    def tear_log(self, journal: Path, synced: int, seed: int) -> None:
        """Nothing: the disk has what it has."""


class Suite(BackendSuite):
    __test__ = False
    backend = LoopBackend
    size: ClassVar[int] = 16 * MIB
    sample_kills: ClassVar[int] = 16

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def storage(self, directory: Path) -> Storage:
        images = Images(directory)

        def reboot() -> None:
            images.detach()
            self.disk.restart()
            (directory / "ledger").unlink(missing_ok=True)  # is of another boot, and this one had none

        return Storage(settings=LoopSettings(pool=directory), witness=images, reboot=reboot)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.off()


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_doubles_and_leaks_nothing(operation: str, disk: Disk) -> None:
    directory = disk.place / operation
    directory.mkdir()
    subprocess.run(["sync", "-f", disk.place], check=True)
    kit = OnADisk(Suite(disk), directory)
    kit.disk = disk
    try:
        kills(kit, SCENARIOS[operation])
    except BaseException:
        kit.close(judge=False)
        raise
    kit.close()
    assert disk.cuts >= 4


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_what_was_answered_survives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    """The pool alone is on the disk: nothing else syncs it."""
    pool = disk.place / "pool"
    pool.mkdir()
    subprocess.run(["sync", "-f", disk.place], check=True)

    class PoolOnADisk(Suite):
        def storage(self, directory: Path) -> Storage:
            return super().storage(pool)

    directory = tmp_path / "kit"
    directory.mkdir()
    kit = OnADisk(PoolOnADisk(disk), directory)
    kit.disk = disk
    volume = kit.create()
    kit.power_cut(None)
    assert kit.get(volume.id).capacity == volume.capacity
    wanted = CapacityRange(required=kit.larger(volume))
    kit.run("expand_volume", ExpandVolumeRequest(volume_id=volume.id, capacity_range=wanted))
    kit.power_cut(None)
    assert kit.get(volume.id).capacity == wanted.required
    used = Used(kit, volume)
    used.begin()
    used.write()
    snapshot = kit.cut(volume.id)
    kit.power_cut(None)
    restored = kit.create(source=SnapshotSource(snapshot.id))
    kit.power_cut(None)
    copy = Used(kit, restored)
    copy.begin()
    assert (copy.target / "volkit").read_bytes().startswith(volume.id.encode())
    for one in (copy, used):
        one.end()
    kit.delete(volume.id)
    kit.uncut(snapshot.id)
    kit.power_cut(None)
    kit.expect("after a delete and a power cut", volumes=1)
    kit.undo()
    kit.close()
