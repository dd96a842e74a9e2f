"""What the controller is asked, told to the pool; a class for each sort of file system that the pool can be on."""

from __future__ import annotations

from datetime import UTC, datetime

from volkit import (
    Clones,
    CloneSource,
    Controller,
    Expands,
    FileVolume,
    InUse,
    InvalidArgument,
    Lists,
    ListsSnapshots,
    OutOfRange,
    Page,
    ReportsCapacity,
    ReportsHealth,
    ResourceExhausted,
    Snapshot,
    Snapshots,
    SnapshotSource,
    Source,
    TakesIds,
    Topology,
    TopologyRequirement,
    Volume,
    VolumeHealth,
    requests,
)
from volkit.host import mounts
from volkit_local.options import LocalParameters, LocalSettings
from volkit_local.pool import SNAPSHOTS, VOLUMES, Pool, Record, Tree


class Directories(Controller[LocalSettings, LocalParameters], TakesIds, Lists, ReportsCapacity):
    """Plain directories, on any file system: nothing enforces a size."""

    def __init__(self, settings: LocalSettings, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        self.pool = Pool(settings)
        self.topology = (Topology.of_node(node_id),) if node_id else ()

    def create_volume(self, request: requests.CreateVolumeRequest[LocalParameters]) -> Volume:
        if request.topology and not request.topology.met_by(self.topology):
            raise ResourceExhausted(
                f"the pool {self.pool.root} is on node {self.node_id!r}, and the volume is wanted on {request.topology}"
            )
        id_, record, mode = request.volume_id, self._record(request), request.parameters.permissions
        source = self._source(request.source)
        return self._volume(self.pool.create(VOLUMES, id_, record, source=source, mode=mode))

    def _record(self, request: requests.CreateVolumeRequest[LocalParameters]) -> Record:
        asked = request.capacity_range
        if self.pool.quota:
            return Record(size=request.size, enforced=True)
        if not asked.required and not asked.limit:
            return Record()
        if not request.parameters.advisory_size:
            raise OutOfRange(
                f"nothing enforces a size in the pool {self.pool.root}: put it on btrfs, ask for no size, or accept "
                "by the parameter advisorySize=true that the size is only a word"
            )
        if request.size > (free := self.pool.available()):
            raise ResourceExhausted(f"the pool {self.pool.root} has {free} bytes left, not {request.size}")
        return Record(size=request.size)

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        tree = self.pool.get(VOLUMES, request.volume_id)
        if bound := mounts.bound_at(tree.data):
            raise InUse(f"volume {tree.id} is in use at {bound[0]}: unpublish it first")
        self.pool.remove(tree)

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        return self._volume(self.pool.get(VOLUMES, request.volume_id))

    def list_volumes(self, request: requests.ListRequest) -> Page[Volume]:
        trees = self.pool.after(VOLUMES, request.after)
        return Page.take(((tree.id, self._volume(tree)) for tree in trees), request)

    def get_capacity(self, request: requests.CapacityRequest[LocalParameters]) -> requests.CapacityResult:
        wanted = TopologyRequirement(requisite=(request.topology,) if request.topology else ())
        available = self.pool.available() if wanted.met_by(self.topology) else 0
        return requests.CapacityResult(available=available, maximum_volume_size=available)

    def _volume(self, tree: Tree) -> Volume:
        size, source = tree.record.size, _source(tree)
        said = {"sizeEnforced": str(tree.record.enforced).lower()} if size else {}
        return FileVolume(id=tree.id, capacity=size, context=said, topology=self.topology, source=source)

    def _source(self, source: Source | None) -> Tree | None:
        if isinstance(source, SnapshotSource):
            return self.pool.get(SNAPSHOTS, source.snapshot_id)
        return self.pool.get(VOLUMES, source.volume_id) if source else None


class Sized(Directories, Expands, ReportsHealth):
    """Where the file system enforces sizes: ext4 with project quotas."""

    def expand_volume(self, request: requests.ExpandVolumeRequest) -> requests.ExpandVolumeResult:
        self.pool.grow(self.pool.get(VOLUMES, request.volume_id), request.size)
        return requests.ExpandVolumeResult(capacity=request.size, node_expansion_required=False)

    def volume_health(self, request: requests.GetVolumeRequest) -> VolumeHealth:
        tree = self.pool.get(VOLUMES, request.volume_id)
        message = self.pool.quota.trouble(tree.data) if self.pool.quota and tree.record.enforced else ""
        return VolumeHealth(abnormal=bool(message), message=message)


class Copied(Directories, Snapshots, ListsSnapshots, Clones):
    """Where files can share blocks, as on xfs: copies take no space, and are refused of what is written to."""

    def create_snapshot(self, request: requests.CreateSnapshotRequest) -> Snapshot:
        if request.parameters:
            raise InvalidArgument(f"unknown parameter {min(request.parameters)!r}: a snapshot takes none")
        source = self.pool.get(VOLUMES, request.source_volume_id)
        record = Record(size=source.record.size)
        return _snapshot(self.pool.create(SNAPSHOTS, request.snapshot_id, record, source=source))

    def delete_snapshot(self, request: requests.DeleteSnapshotRequest) -> None:
        self.pool.remove(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def get_snapshot(self, request: requests.GetSnapshotRequest) -> Snapshot:
        return _snapshot(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def list_snapshots(self, request: requests.ListSnapshotsRequest) -> Page[Snapshot]:
        of = request.source_volume_id
        found = ((tree.id, _snapshot(tree)) for tree in self.pool.after(SNAPSHOTS, request.after))
        return Page.take((one for one in found if of in ("", one[1].source_volume_id)), request)


class SizedAndCopied(Sized, Copied):
    """Where both is there: btrfs, whose snapshots are of one moment; xfs with project quotas."""


def _source(tree: Tree) -> Source | None:
    kind, _, id_ = tree.record.parent.partition("/")
    if not kind:
        return None
    return SnapshotSource(id_) if kind == SNAPSHOTS else CloneSource(id_)


def _snapshot(tree: Tree) -> Snapshot:
    return Snapshot(
        id=tree.id,
        source_volume_id=tree.record.parent.partition("/")[2],
        created_at=datetime.fromtimestamp(tree.record.created, UTC),
        size=tree.record.size,
    )
