"""An orchestrator in short: the calls of kubelet and the sidecars, in their order, with their paths."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from attrs import frozen

from volkit_csi.client import CallError, Client
from volkit_csi.wire import csi_pb2 as pb

MIB = 1 << 20
AGAIN = frozenset({"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"})
"""The codes that say nothing of how a call ended."""


def capability(
    fs_type: str = "", *, block: bool = False, mode: str = "SINGLE_NODE_MULTI_WRITER"
) -> pb.VolumeCapability:
    """A volume capability: mounted with a file system ("" is the backend's first), or a raw block device."""
    made = pb.VolumeCapability(access_mode={"mode": mode})
    if block:
        made.block.SetInParent()
    else:
        made.mount.fs_type = fs_type
        made.mount.SetInParent()
    return made


@frozen
class Used:
    """A volume where it is used: staged, and published at `target`."""

    id: str
    capability: Any
    staging: Path
    target: Path

    @property
    def file(self) -> Path:
        """What its data is written to: the device, or a file in the file system."""
        return self.target if self.capability.HasField("block") else self.target / "data"

    def write(self, data: bytes) -> None:
        """Write, and sync."""
        flags = os.O_WRONLY | (0 if self.capability.HasField("block") else os.O_CREAT)
        descriptor = os.open(self.file, flags)
        try:
            assert os.write(descriptor, data) == len(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, size: int) -> bytes:
        """Read from the beginning."""
        with self.file.open("rb") as file:
            return file.read(size)

    def size(self) -> int:
        """Bytes of the device or of the file system. Asked without a program, which would start with what other threads
        have open in their volumes.
        """
        if self.capability.HasField("block"):
            with self.target.open("rb") as device:
                return device.seek(0, os.SEEK_END)
        found = os.statvfs(self.target)
        return found.f_blocks * found.f_frsize


class Orchestrator:
    """Calls a driver. With `patience` (seconds), a call whose end is not known is repeated that long, and one that the
    node refuses, as kubelet does.
    """

    def __init__(self, client: Client, home: Path, patience: float = 0.0) -> None:
        self.client = client
        self.home = home
        self.patience = patience
        self.repeats = 0

    def call(self, method: str, request: Any) -> Any:
        """One RPC. Raises CallError."""
        end = time.monotonic() + self.patience
        while True:
            try:
                return self.client.call(method, request, timeout=60)
            except CallError as error:
                refused = method.startswith("Node") and error.code == "FAILED_PRECONDITION"
                if not (error.code in AGAIN or refused) or time.monotonic() > end:
                    raise
            self.repeats += 1
            time.sleep(random.uniform(0.01, 0.1))

    def create(self, name: str, size: int, kind: pb.VolumeCapability, **more: Any) -> Any:
        """CreateVolume; returns the volume."""
        sizes = {"required_bytes": size}
        request = pb.CreateVolumeRequest(name=name, capacity_range=sizes, volume_capabilities=[kind], **more)
        return self.call("CreateVolume", request).volume

    def use(
        self, volume: Any, kind: pb.VolumeCapability, *, readonly: bool = False, pod: str = "pod"
    ) -> Used:
        """NodeStageVolume and NodePublishVolume."""
        staging, target = self.home / "staging" / volume.volume_id, self.home / pod / volume.volume_id
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(exist_ok=True)
        stage = pb.NodeStageVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(staging),
            volume_capability=kind,
            volume_context=dict(volume.volume_context),
        )
        self.call("NodeStageVolume", stage)
        publish = pb.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=str(staging),
            target_path=str(target),
            volume_capability=kind,
            volume_context=dict(volume.volume_context),
            readonly=readonly,
        )
        self.call("NodePublishVolume", publish)
        return Used(volume.volume_id, kind, staging, target)

    def unpublish(self, used: Used) -> None:
        """NodeUnpublishVolume, which removes the target."""
        request = pb.NodeUnpublishVolumeRequest(volume_id=used.id, target_path=str(used.target))
        self.call("NodeUnpublishVolume", request)
        assert not used.target.exists()

    def unuse(self, used: Used) -> None:
        """NodeUnpublishVolume and NodeUnstageVolume; the staging directory is the orchestrator's to remove."""
        self.unpublish(used)
        unstage = pb.NodeUnstageVolumeRequest(volume_id=used.id, staging_target_path=str(used.staging))
        self.call("NodeUnstageVolume", unstage)
        if used.staging.exists():
            used.staging.rmdir()

    def expand(self, volume_id: str, size: int, used: Used | None = None) -> None:
        """ControllerExpandVolume, and NodeExpandVolume where it is in use."""
        sizes = {"required_bytes": size}
        request = pb.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=sizes)
        answer = self.call("ControllerExpandVolume", request)
        assert answer.node_expansion_required
        if used is not None:
            grow = pb.NodeExpandVolumeRequest(
                volume_id=volume_id,
                volume_path=str(used.target),
                staging_target_path=str(used.staging),
                capacity_range=sizes,
                volume_capability=used.capability,
            )
            self.call("NodeExpandVolume", grow)

    def snapshot(self, name: str, volume_id: str) -> str:
        """CreateSnapshot; returns the id."""
        request = pb.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
        made = self.call("CreateSnapshot", request).snapshot
        assert made.ready_to_use
        return str(made.snapshot_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """DeleteSnapshot."""
        self.call("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=snapshot_id))

    def delete(self, volume_id: str) -> None:
        """DeleteVolume."""
        self.call("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume_id))

    def volumes(self) -> list[str]:
        """ListVolumes: the ids."""
        return [entry.volume.volume_id for entry in self.call("ListVolumes", pb.ListVolumesRequest()).entries]
