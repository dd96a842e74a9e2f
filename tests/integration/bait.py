"""A driver with a volume of every sort and paths of every sort, and requests of it that would be fine as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from volkit_csi.wire import csi_pb2 as pb

from .driver import Driver, loops, mounts, tree
from .orchestrator import MIB, Orchestrator, Used, capability

SECRET = "hunter2-and-more"
SIZE = 16 * MIB
EXT4, RAW = capability("ext4"), capability(block=True)


class Site:
    """A driver with a volume of every sort, and a directory with things that must stay as they are."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.driver = Driver(home, arguments=["--log-level", "debug"]).start()
        self.co = Orchestrator(self.driver.client, home)
        self.bait = home / "bait"
        for name in ("full", "empty", "parent"):
            (self.bait / name).mkdir(parents=True)
        for name in ("file", "full/file"):
            (self.bait / name).write_text("precious")
        (self.bait / "nothing").touch()
        (self.bait / "link").symlink_to(self.bait / "empty")
        (self.bait / "dangling").symlink_to(self.bait / "gone")
        self.mounted = self.used("mounted", EXT4)
        self.raw = self.used("raw", RAW)
        self.staged = self.used("staged", EXT4)
        self.co.unpublish(self.staged)
        self.formatted = self.used("formatted", EXT4)
        self.co.unuse(self.formatted)
        self.plain = self.co.create("plain", SIZE, EXT4).volume_id
        self.snapshot = self.co.snapshot("snapshot", self.plain)

    def used(self, name: str, kind: Any) -> Used:
        used = self.co.use(self.co.create(name, SIZE, kind), kind)
        used.write(name.encode().ljust(512))
        return used

    def world(self) -> dict[str, Any]:
        """All that a call could change."""
        files = tree(self.home)
        for path in list(files):
            if Path(path).relative_to(self.home).parts[0] in ("log", "state", "csi.sock") or path.endswith(
                "/ledger"
            ):
                del files[path]
        attached = loops(self.home)
        for backing in attached.values():  # a mounted file system writes by itself
            path = backing.rpartition(" ")[0]
            files[path] = files[path].rpartition(" ")[0]
        return {
            "files": files,
            "mounts": mounts(self.home),
            "loops": attached,
            "records": self.driver.records(),
            "data": {used.id: used.read(512) for used in (self.mounted, self.raw)},
        }

    def close(self) -> None:
        self.driver.end()


# -- requests ------------------------------------------------


def create(site: Site, **changes: Any) -> Any:
    fine = {"name": "new", "volume_capabilities": [EXT4], "capacity_range": {"required_bytes": SIZE}}
    return pb.CreateVolumeRequest(**{**fine, **changes})


def snapshot(site: Site, **changes: Any) -> Any:
    return pb.CreateSnapshotRequest(**{"name": "new", "source_volume_id": site.plain, **changes})


def expand(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "capacity_range": {"required_bytes": 2 * SIZE}}
    return pb.ControllerExpandVolumeRequest(**{**fine, **changes})


def validate(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "volume_capabilities": [EXT4]}
    return pb.ValidateVolumeCapabilitiesRequest(**{**fine, **changes})


def stage(site: Site, **changes: Any) -> Any:
    """Of a volume that is not used now."""
    fine = {
        "volume_id": site.formatted.id,
        "staging_target_path": f"{site.bait}/empty",
        "volume_capability": EXT4,
        "volume_context": {"firstFormat": "true"},
    }
    return pb.NodeStageVolumeRequest(**{**fine, **changes})


def restage(site: Site, **changes: Any) -> Any:
    """Of a volume that is staged."""
    used = site.mounted
    fine = {"volume_id": used.id, "staging_target_path": str(used.staging), "volume_capability": EXT4}
    return pb.NodeStageVolumeRequest(**{**fine, **changes})


def unstage(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeUnstageVolumeRequest(
        **{"volume_id": used.id, "staging_target_path": str(used.staging), **changes}
    )


def publish(site: Site, **changes: Any) -> Any:
    """Of a volume that is staged, to a place that is free."""
    used = site.staged
    fine = {
        "volume_id": used.id,
        "staging_target_path": str(used.staging),
        "target_path": f"{site.bait}/parent/target",
        "volume_capability": EXT4,
    }
    return pb.NodePublishVolumeRequest(**{**fine, **changes})


def republish(site: Site, **changes: Any) -> Any:
    """Of a volume that is published, where it is."""
    return publish_of(site.mounted, **changes)


def republish_raw(site: Site, **changes: Any) -> Any:
    return publish_of(site.raw, **changes)


def publish_of(used: Used, **changes: Any) -> Any:
    fine = {
        "volume_id": used.id,
        "staging_target_path": str(used.staging),
        "target_path": str(used.target),
        "volume_capability": used.capability,
    }
    return pb.NodePublishVolumeRequest(**{**fine, **changes})


def unpublish(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeUnpublishVolumeRequest(**{"volume_id": used.id, "target_path": str(used.target), **changes})


def stats(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeGetVolumeStatsRequest(**{"volume_id": used.id, "volume_path": str(used.target), **changes})


def grow(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeExpandVolumeRequest(**{"volume_id": used.id, "volume_path": str(used.target), **changes})


def delete(site: Site, **changes: Any) -> Any:
    return pb.DeleteVolumeRequest(**changes)


def delete_snapshot(site: Site, **changes: Any) -> Any:
    return pb.DeleteSnapshotRequest(**changes)


def get(site: Site, **changes: Any) -> Any:
    return pb.ControllerGetVolumeRequest(**changes)


def get_snapshot(site: Site, **changes: Any) -> Any:
    return pb.GetSnapshotRequest(**changes)


def volumes(site: Site, **changes: Any) -> Any:
    return pb.ListVolumesRequest(**changes)


def snapshots(site: Site, **changes: Any) -> Any:
    return pb.ListSnapshotsRequest(**changes)


def capacity(site: Site, **changes: Any) -> Any:
    return pb.GetCapacityRequest(**changes)


def attach(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "node_id": "n1", "volume_capability": EXT4}
    return pb.ControllerPublishVolumeRequest(**{**fine, **changes})
