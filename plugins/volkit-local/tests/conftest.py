"""Pools on real file systems; what is mounted or attached below a test's directory goes when it ends."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit import CapacityRange, CloneSource, InUse, SnapshotSource, Volume, options, requests
from volkit.host import loop, mounts
from volkit.host.scratch import Scratch
from volkit_local.controller import LocalController
from volkit_local.node import LocalNode
from volkit_local.options import LocalParameters, LocalSettings

MIB = 1 << 20
POOL_SIZE = {"btrfs": 256 * MIB, "xfs": 320 * MIB, "ext4": 128 * MIB, "tmpfs": 128 * MIB}


def id_of(name: str, letter: str = "v") -> str:
    """An id as volkit derives it from a name: 34 characters."""
    return letter + hashlib.sha256(name.encode()).hexdigest()[:33]


class Site:
    """One node with its pool: what the engine would ask, in short."""

    def __init__(self, pool: Path, node_id: str = "n1", **settings: Any) -> None:
        pool.mkdir(exist_ok=True, mode=0o700)
        self.pool = pool
        self.settings = LocalSettings(pool=pool, **settings)
        self.controller = LocalController(self.settings, node_id)
        self.node = LocalNode(self.settings, node_id)

    def create(
        self, name: str, size: int = 16 * MIB, *, source: Volume | str | None = None, **parameters: Any
    ) -> Volume:
        origin = (
            SnapshotSource(source) if isinstance(source, str) else CloneSource(source.id) if source else None
        )
        made: Volume = self.controller.create_volume(
            requests.CreateVolumeRequest(
                name=name,
                parameters=options.complete(LocalParameters, {"advisory_size": True, **parameters}),
                capacity_range=CapacityRange(required=size),
                size=size,
                volume_id=id_of(name),
                source=origin,
            )
        )
        return made

    def delete(self, volume: Volume) -> None:
        self.controller.delete_volume(requests.DeleteVolumeRequest(volume_id=volume.id))

    def get(self, volume: Volume) -> Volume:
        found: Volume = self.controller.get_volume(requests.GetVolumeRequest(volume_id=volume.id))
        return found

    def snapshot(self, name: str, volume: Volume) -> str:
        request = requests.CreateSnapshotRequest(
            name=name, source_volume_id=volume.id, snapshot_id=id_of(name, "s")
        )
        return str(self.controller.create_snapshot(request).id)

    def expand(self, volume: Volume, size: int) -> None:
        request = requests.ExpandVolumeRequest(
            volume_id=volume.id, capacity_range=CapacityRange(required=size), size=size
        )
        self.controller.expand_volume(request)

    def health(self, volume: Volume) -> str:
        return self.controller.volume_health(requests.GetVolumeRequest(volume_id=volume.id)).message

    def available(self) -> int:
        """Counted anew."""
        (self.pool / "ledger").write_bytes(b"")
        return int(self.controller.pool.available())

    def data(self, volume: Volume) -> Path:
        return Path(self.controller.pool.get("volumes", volume.id).data)

    def left(self) -> list[Path]:
        """What is being made or removed."""
        return [*self.pool.glob("scratch/*/*"), *self.pool.glob("trash/*")]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path) -> Iterator[None]:
    """Unmounts and detaches everything below the test's directory, innermost first."""
    yield
    close_scratch()
    for mount in reversed(mounts.mounts(under=str(tmp_path))):
        with suppress(InUse):
            mounts.unmount(mount.mount_point, lazy=True)
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached meanwhile
            if attribute.read_text().startswith(f"{tmp_path}/"):
                detach(f"/dev/{attribute.parts[3]}")


def close_scratch() -> None:
    """Those of ended drivers keep their file system busy until they are collected."""
    for one in gc.get_objects():
        if isinstance(one, Scratch):
            one.close()


def detach(device: str) -> None:
    """At its last user's end, if need be: a mount may be seen for a moment by another process's namespace."""
    subprocess.run(["losetup", "--detach", device], check=True)


def make_file_system(place: Path, fs_type: str, size: int = 0) -> Path:
    """Makes a file system of a size and mounts it at `place`."""
    place.mkdir(mode=0o700)
    size = size or POOL_SIZE[fs_type]
    if fs_type == "tmpfs":
        mounts.mount("tmpfs", str(place), "tmpfs", [f"size={size}", "mode=0700"])
        return place
    image = place.with_name(f"{place.name}.file")
    image.touch()
    os.truncate(image, size)
    subprocess.run([f"mkfs.{fs_type}", "-q", str(image)], check=True, capture_output=True)
    mounts.mount(loop.attach(str(image), direct_io=False), str(place), fs_type)
    return place


@pytest.fixture(scope="class")
def class_file_system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A file system of the class's type, `fs_type`, for all its cases."""
    fs_type: str = request.node.cls.fs_type
    place = make_file_system(tmp_path_factory.mktemp(fs_type) / "fs", fs_type)
    yield place
    close_scratch()
    mounts.unmount(str(place))
    for device in loop.find(f"{place}.file"):
        detach(device)


@pytest.fixture
def filesystem(tmp_path: Path) -> Callable[..., Path]:
    """Makes a file system below the test's directory."""

    def make(fs_type: str, size: int = 0) -> Path:
        return make_file_system(tmp_path / fs_type, fs_type, size)

    return make


@pytest.fixture
def site(filesystem: Callable[..., Path]) -> Callable[..., Site]:
    """A node whose pool is on a file system of a type."""

    def make(fs_type: str, size: int = 0, **settings: Any) -> Site:
        return Site(filesystem(fs_type, size) / "pool", **settings)

    return make
