"""What the controller is asked, told to the pool."""

from __future__ import annotations

import os

from volkit import (
    FIRST_FORMAT,
    AlreadyExists,
    BlockVolume,
    Clones,
    CloneSource,
    Controller,
    Expands,
    InUse,
    InvalidArgument,
    Lists,
    ListsSnapshots,
    OutOfRange,
    Page,
    ReportsCapacity,
    ResourceExhausted,
    Snapshot,
    Snapshots,
    SnapshotSource,
    Source,
    TakesIds,
    Topology,
    TopologyRequirement,
    Volume,
    requests,
)
from volkit.host import loop, mounts
from volkit_loop.options import LoopParameters, LoopSettings
from volkit_loop.pool import SNAPSHOTS, VOLUMES, Image, Pool


class LoopController(
    Controller[LoopSettings, LoopParameters],
    TakesIds,
    Lists,
    Expands,
    Snapshots,
    ListsSnapshots,
    Clones,
    ReportsCapacity,
):
    """Makes image files in the pool of the node it runs on."""

    def __init__(self, settings: LoopSettings, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        self.pool: Pool = Pool(
            settings.pool, overcommit=settings.overcommit, freeze_limit=settings.freeze_limit
        )
        self.topology: tuple[Topology, ...] = (Topology.of_node(node_id),) if node_id else ()

    def create_volume(self, request: requests.CreateVolumeRequest[LoopParameters]) -> Volume:
        self._require_here(request.topology)
        source = self._source(request.source)
        if source and request.size < source.size:
            raise OutOfRange(f"{request.size} bytes are less than the {source.size} of {source.id}")
        id_, thick = request.volume_id, request.parameters.preallocate
        try:
            image = self.pool.create(VOLUMES, id_, request.size, preallocate=thick, source=source)
        except AlreadyExists:  # another process was faster
            image = self.pool.get(VOLUMES, id_)
            if (image.size, _source(image)) != (request.size, request.source):
                raise
        return self._volume(image)

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        image = self.pool.get(VOLUMES, request.volume_id)
        for device in loop.find(image.path):
            if bound := [one.mount_point for one in mounts.mounts() if _is_node(one, device)]:
                raise InUse(f"volume {image.id} is in use as {device} at {bound[0]}: unpublish it first")
            loop.detach(device, expect={"backing_inode": image.inode})
        self.pool.remove(image)

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        return self._volume(self.pool.get(VOLUMES, request.volume_id))

    def list_volumes(self, request: requests.ListRequest) -> Page[Volume]:
        images = self.pool.after(VOLUMES, request.after)
        return Page.take(((image.id, self._volume(image)) for image in images), request)

    def expand_volume(self, request: requests.ExpandVolumeRequest) -> requests.ExpandVolumeResult:
        image = self.pool.get(VOLUMES, request.volume_id)
        if request.size > image.size:
            self.pool.grow(image, request.size)
        return requests.ExpandVolumeResult(capacity=max(request.size, image.size))

    def create_snapshot(self, request: requests.CreateSnapshotRequest) -> Snapshot:
        if request.parameters:
            raise InvalidArgument(f"unknown parameter {min(request.parameters)!r}: a snapshot takes none")
        source = self.pool.get(VOLUMES, request.source_volume_id)
        try:
            return _snapshot(self.pool.create(SNAPSHOTS, request.snapshot_id, source.size, source=source))
        except AlreadyExists:
            snapshot = _snapshot(self.pool.get(SNAPSHOTS, request.snapshot_id))
            if snapshot.source_volume_id != source.id:
                raise
            return snapshot

    def delete_snapshot(self, request: requests.DeleteSnapshotRequest) -> None:
        self.pool.remove(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def get_snapshot(self, request: requests.GetSnapshotRequest) -> Snapshot:
        return _snapshot(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def list_snapshots(self, request: requests.ListSnapshotsRequest) -> Page[Snapshot]:
        of = request.source_volume_id
        found = ((image.id, _snapshot(image)) for image in self.pool.after(SNAPSHOTS, request.after))
        return Page.take((one for one in found if of in ("", one[1].source_volume_id)), request)

    def get_capacity(self, request: requests.CapacityRequest[LoopParameters]) -> requests.CapacityResult:
        wanted = TopologyRequirement(requisite=(request.topology,) if request.topology else ())
        if not wanted.met_by(self.topology):
            return requests.CapacityResult(available=0)
        available = self.pool.available(preallocate=request.parameters.preallocate)
        return requests.CapacityResult(available=available, maximum_volume_size=available)

    def _volume(self, image: Image) -> Volume:
        return BlockVolume(
            id=image.id,
            capacity=image.size,
            context={FIRST_FORMAT: "true"} if image.record.blank else {},
            topology=self.topology,
            source=_source(image),
        )

    def _source(self, source: Source | None) -> Image | None:
        if isinstance(source, SnapshotSource):
            return self.pool.get(SNAPSHOTS, source.snapshot_id)
        return self.pool.get(VOLUMES, source.volume_id) if source else None

    def _require_here(self, topology: TopologyRequirement | None) -> None:
        if topology and not topology.met_by(self.topology):
            raise ResourceExhausted(
                f"the pool {self.settings.pool} is on node {self.node_id!r}, and the volume is wanted on {topology}"
            )


def _source(image: Image) -> Source | None:
    kind, _, id_ = image.record.parent.partition("/")
    if not kind:
        return None
    return SnapshotSource(id_) if kind == SNAPSHOTS else CloneSource(id_)


def _snapshot(image: Image) -> Snapshot:
    from datetime import UTC, datetime

    return Snapshot(
        id=image.id,
        source_volume_id=image.record.parent.partition("/")[2],
        created_at=datetime.fromtimestamp(image.record.created, UTC),
        size=image.size,
    )


def _is_node(mount: mounts.Mount, device: str) -> bool:
    """A bind mount of the device's node, as of a raw block volume, which the kernel counts as no use."""
    return mount.root == f"/{os.path.basename(device)}" and mount.fs_type in ("devtmpfs", "tmpfs")
