"""Pools on real file systems; what is attached or mounted below a test's directory goes when it ends."""

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

from volkit import Capability, CloneSource, InUse, SnapshotSource, Volume, requests
from volkit.host import loop, mounts
from volkit_loop.controller import LoopController
from volkit_loop.node import LoopNode
from volkit_loop.options import LoopParameters, LoopSettings
from volkit_loop.pool import Pool

MIB = 1 << 20


def id_of(name: str, letter: str = "v") -> str:
    """An id as volkit derives it from a name: 34 characters."""
    return letter + hashlib.sha256(name.encode()).hexdigest()[:33]


def _source(source: Volume | str | None) -> SnapshotSource | CloneSource | None:
    if isinstance(source, str):
        return SnapshotSource(source)
    return CloneSource(source.id) if source else None


class Site:
    """One node with its pool: what the engine would ask, in short."""

    def __init__(self, pool: Path, **settings: Any) -> None:
        pool.mkdir(exist_ok=True)
        self.pool = pool
        self.settings = LoopSettings(pool=pool, **settings)
        self.controller = LoopController(self.settings, "n1")
        self.node = LoopNode(self.settings, "n1")

    def create(
        self,
        name: str,
        size: int = 16 * MIB,
        *,
        source: Volume | str | None = None,
        preallocate: bool = False,
    ) -> Volume:
        return self.controller.create_volume(
            requests.CreateVolumeRequest(
                name=name,
                parameters=LoopParameters(preallocate=preallocate),
                size=size,
                volume_id=id_of(name),
                source=_source(source),
            )
        )

    def delete(self, volume_id: str) -> None:
        self.controller.delete_volume(requests.DeleteVolumeRequest(volume_id=volume_id))

    def snapshot(self, name: str, volume: Volume) -> str:
        request = requests.CreateSnapshotRequest(
            name=name, source_volume_id=volume.id, snapshot_id=id_of(name, "s")
        )
        return self.controller.create_snapshot(request).id

    def connect(self, volume: Volume, **more: Any) -> Any:
        request = {"volume_id": volume.id, "node_id": "n1", "capability": Capability(), **more}
        return self.node.connect(requests.ConnectRequest(**request))

    def disconnect(self, volume: Volume, connection: Any = None) -> None:
        self.node.disconnect(
            requests.DisconnectRequest(volume_id=volume.id, node_id="n1", connection=connection)
        )

    def available(self) -> int:
        """Counted anew."""
        (self.pool / "ledger").write_bytes(b"")
        return self.promised()

    def promised(self) -> int:
        """As the ledger has it."""
        return self.controller.get_capacity(requests.CapacityRequest(parameters=LoopParameters())).available

    def image(self, volume_id: str) -> Path:
        return Path(self.controller.pool.path("volumes", volume_id))

    def in_the_making(self) -> list[Path]:
        return [path for path in (self.pool / "making").rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path) -> Iterator[None]:
    """Unmounts and detaches everything below the test's directory, innermost first."""
    yield
    for one in gc.get_objects():
        if isinstance(one, Pool) and one._making:
            one.release()  # of its directory, which keeps the file system busy
    for _ in range(4):  # a volume is mounted from a pool that is mounted from an image
        for mount in reversed(mounts.mounts(under=str(tmp_path))):
            subprocess.run(["fsfreeze", "-u", mount.mount_point], check=False, capture_output=True)
            with suppress(InUse):
                mounts.unmount(mount.mount_point)
        for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(InUse, OSError):  # detached meanwhile
                if attribute.read_text().startswith(f"{tmp_path}/"):
                    loop.detach(f"/dev/{attribute.parts[3]}")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "pool")


Filesystem = Callable[..., Path]


@pytest.fixture
def filesystem(tmp_path: Path) -> Filesystem:
    """Makes a file system of a size and mounts it below the test's directory."""

    def make(fs_type: str, size: int = 512 * MIB) -> Path:
        place = tmp_path / fs_type
        place.mkdir()
        if fs_type == "tmpfs":
            mounts.mount("tmpfs", str(place), "tmpfs", [f"size={size}"])
            return place
        image = tmp_path / f"{fs_type}.file"
        image.touch()
        os.truncate(image, size)
        subprocess.run([f"mkfs.{fs_type}", "-q", str(image)], check=True, capture_output=True)
        mounts.mount(loop.attach(str(image), direct_io=False), str(place), fs_type)
        return place

    return make


@pytest.fixture
def mounted(site: Site, tmp_path: Path) -> Callable[..., Path]:
    """Connects a volume, makes a file system on it where it has none, and mounts it."""

    def mount(volume: Volume, fs_type: str, *, fresh: bool, at: Site | None = None) -> Path:
        device = (at or site).connect(volume).device
        place = tmp_path / f"mounted-{volume.id[:8]}"
        place.mkdir()
        if fresh:
            subprocess.run([f"mkfs.{fs_type}", "-q", device], check=True, capture_output=True)
        mounts.mount(device, str(place), fs_type, ["nouuid"] if fs_type == "xfs" else [])
        return place

    return mount
