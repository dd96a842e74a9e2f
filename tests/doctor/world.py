"""A node for the doctor's tests: an engine of the loop backend, or of directories that something else serves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from volkit import requests as r
from volkit.backend import Backend
from volkit.doctor import Finding, examine
from volkit.engine import Engine
from volkit.host import loop, mounts
from volkit.model import AccessType, Capability, CapacityRange
from volkit.registry import load_backend
from volkit.testing.memory import MemoryBackend, memory_settings

PATIENCE = 60.0
MOUNTED = Capability(fs_type="ext4")
RAW = Capability(access_type=AccessType.BLOCK)


class World:
    """One host. Everything is below `base`, and goes with it."""

    def __init__(self, base: Path, backend: type[Backend[Any, Any]], settings: object) -> None:
        self.base = base
        self.engine = Engine(backend, settings, state_dir=base / "state", node_id="n1")

    def staging(self, volume_id: str) -> str:
        return str(self.base / "kubelet" / volume_id / "globalmount")

    def target(self, volume_id: str) -> str:
        return str(self.base / "pods" / volume_id / "mount")

    def create(self, name: str = "v", size: int = 16 << 20, capability: Capability = MOUNTED) -> str:
        request: Any = r.CreateVolumeRequest(
            name=name,
            parameters={},
            capabilities=(capability,),
            capacity_range=CapacityRange(required=size),
        )
        return str(self.engine.run("create_volume", request).id)

    def stage(self, volume_id: str, capability: Capability = MOUNTED) -> None:
        request = r.NodeStageRequest(
            volume_id=volume_id,
            staging_target_path=self.staging(volume_id),
            capability=capability,
            volume_context={"firstFormat": "true"},
        )
        self.engine.run("node_stage", request)

    def publish(self, volume_id: str, capability: Capability = MOUNTED, target: str = "") -> None:
        request = r.NodePublishRequest(
            volume_id=volume_id,
            staging_target_path=self.staging(volume_id),
            target_path=target or self.target(volume_id),
            capability=capability,
        )
        self.engine.run("node_publish", request)

    def unpublish(self, volume_id: str, target: str = "") -> None:
        request = r.NodeUnpublishRequest(volume_id=volume_id, target_path=target or self.target(volume_id))
        self.engine.run("node_unpublish", request)

    def unstage(self, volume_id: str) -> None:
        request = r.NodeUnstageRequest(volume_id=volume_id, staging_target_path=self.staging(volume_id))
        self.engine.run("node_unstage", request)

    def used(self, name: str = "v", capability: Capability = MOUNTED, size: int = 16 << 20) -> str:
        """A volume, staged and published."""
        volume_id = self.create(name, size, capability)
        self.stage(volume_id, capability)
        self.publish(volume_id, capability)
        return volume_id

    def findings(self, min_age: float = 0) -> list[Finding]:
        return list(examine(self.engine, min_age=min_age))

    def one(self) -> Finding:
        """The only finding there is."""
        found = self.findings()
        assert len(found) == 1, found
        return found[0]

    def image(self, volume_id: str) -> Path:
        (found,) = (self.base / "pool" / "volumes").rglob(f"{volume_id}.img")
        return found

    def close(self) -> None:
        self.engine.close()
        for one in reversed(mounts.mounts(under=str(self.base))):
            mounts.unmount(one.mount_point, lazy=True)
        for device, backing in loop.attached():
            if backing.startswith(f"{self.base}/"):
                loop.detach(device)


def loop_world(base: Path) -> World:
    (base / "pool").mkdir()
    backend = load_backend("loop")
    return World(base, backend, backend.settings(pool=base / "pool", overcommit=100.0))


def directory_world(base: Path, root: Path) -> World:
    """Volumes are directories below `root`."""
    return World(base, MemoryBackend, memory_settings(root=root))


def tmpfs(path: str) -> None:
    """Somebody else's mount."""
    os.makedirs(path, exist_ok=True)
    mounts.mount("foreign", path, "tmpfs")


def until(so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end
        time.sleep(0.02)


class Served:
    """A directory served by a real FUSE program (bindfs) at `path`: it can be stopped, and killed."""

    def __init__(self, base: Path) -> None:
        self.path = base / "served"
        (base / "origin").mkdir()
        self.path.mkdir()
        self.program = subprocess.Popen(["bindfs", "-f", str(base / "origin"), str(self.path)])
        until(lambda: mounts.is_mount_point(str(self.path)))

    def stop(self) -> None:
        self.program.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.program.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.program.kill()
        self.program.wait()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.go_on()
        self.kill()
        mounts.unmount(str(self.path), lazy=True)
