"""What the controller is asked, told to the pool."""

from __future__ import annotations

from datetime import UTC, datetime

import volkit
from volkit import CloneSource, FileVolume, Page, Snapshot, SnapshotSource, Topology, Volume, requests
from volkit.host import mounts
from volkit_local.options import LocalParameters, LocalSettings
from volkit_local.pool import SNAPSHOTS, VOLUMES, Pool, Tree


class LocalController(
    volkit.Controller[LocalSettings, LocalParameters], volkit.TakesIds, volkit.Lists, volkit.Expands, volkit.Snapshots,
    volkit.ListsSnapshots, volkit.Clones, volkit.ReportsCapacity, volkit.ReportsHealth,
):  # fmt: skip
    """Directories of the pool; their sizes are enforced where its file system has quotas."""

    def __init__(self, settings: LocalSettings, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        self.pool: Pool = Pool(settings)
        self.topology: tuple[Topology, ...] = (Topology.of_node(node_id),) if node_id else ()

    def create_volume(self, request: requests.CreateVolumeRequest[LocalParameters]) -> Volume:
        if request.topology and not request.topology.met_by(self.topology):
            raise volkit.ResourceExhausted(
                f"the pool {self.pool.root} is on node {self.node_id!r}, and the volume is wanted on {request.topology}"
            )
        source = self._source(request.source)
        size, mode = self._size(request, source), request.parameters.mode
        return self._volume(self.pool.create(VOLUMES, request.volume_id, size, source=source, mode=mode))

    def _size(self, request: requests.CreateVolumeRequest[LocalParameters], source: Tree | None) -> int:
        """Bytes, 0 for no end. Raises OutOfRange where nothing would keep the volume to what is asked for."""
        if self.pool.enforces(source):
            return request.size
        if not request.capacity_range.required and not request.capacity_range.limit:
            return 0
        if not request.parameters.advisory_size:
            raise volkit.OutOfRange(
                f"nothing enforces a size in the pool {self.pool.root}: put it on btrfs and run as the machine's "
                "root, ask for no size, or accept by the parameter advisorySize=true that the size is only a word"
            )
        self.pool.require_room(request.size)
        return request.size

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        tree = self.pool.get(VOLUMES, request.volume_id)
        if bound := mounts.bound_at(tree.data):
            raise volkit.InUse(f"volume {tree.id} is in use at {bound[0]}: unpublish it first")
        self.pool.remove(tree)

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        return self._volume(self.pool.get(VOLUMES, request.volume_id))

    def list_volumes(self, request: requests.ListRequest) -> Page[Volume]:
        trees = self.pool.after(VOLUMES, request.after)
        return Page.take(((tree.id, self._volume(tree)) for tree in trees), request)

    def expand_volume(self, request: requests.ExpandVolumeRequest) -> requests.ExpandVolumeResult:
        self.pool.grow(self.pool.get(VOLUMES, request.volume_id), request.size)
        return requests.ExpandVolumeResult(capacity=request.size, node_expansion_required=False)

    def create_snapshot(self, request: requests.CreateSnapshotRequest) -> Snapshot:
        if request.parameters:
            raise volkit.InvalidArgument(
                f"unknown parameter {min(request.parameters)!r}: a snapshot takes none"
            )
        source = self.pool.get(VOLUMES, request.source_volume_id)
        size = source.size
        return _snapshot(self.pool.create(SNAPSHOTS, request.snapshot_id, size, source=source))

    def delete_snapshot(self, request: requests.DeleteSnapshotRequest) -> None:
        self.pool.remove(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def get_snapshot(self, request: requests.GetSnapshotRequest) -> Snapshot:
        return _snapshot(self.pool.get(SNAPSHOTS, request.snapshot_id))

    def list_snapshots(self, request: requests.ListSnapshotsRequest) -> Page[Snapshot]:
        of = request.source_volume_id
        found = ((tree.id, _snapshot(tree)) for tree in self.pool.after(SNAPSHOTS, request.after))
        return Page.take((one for one in found if of in ("", one[1].source_volume_id)), request)

    def get_capacity(self, request: requests.CapacityRequest[LocalParameters]) -> requests.CapacityResult:
        wanted = volkit.TopologyRequirement(requisite=(request.topology,) if request.topology else ())
        available = self.pool.available() if wanted.met_by(self.topology) else 0
        return requests.CapacityResult(available=available, maximum_volume_size=available)

    def volume_health(self, request: requests.GetVolumeRequest) -> volkit.VolumeHealth:
        message = self.pool.trouble(self.pool.get(VOLUMES, request.volume_id))
        return volkit.VolumeHealth(abnormal=bool(message), message=message)

    def _volume(self, tree: Tree) -> Volume:
        kind, _, id_ = tree.parent.partition("/")
        source = SnapshotSource(id_) if kind == SNAPSHOTS else CloneSource(id_) if kind else None
        size, said = tree.size, {"sizeEnforced": str(tree.enforced).lower()}
        return FileVolume(
            id=tree.id, capacity=size, context=said if size else {}, topology=self.topology, source=source
        )

    def _source(self, source: volkit.Source | None) -> Tree | None:
        if isinstance(source, SnapshotSource):
            return self.pool.get(SNAPSHOTS, source.snapshot_id)
        return self.pool.get(VOLUMES, source.volume_id) if source else None


def _snapshot(tree: Tree) -> Snapshot:
    return Snapshot(
        id=tree.id,
        source_volume_id=tree.parent.partition("/")[2],
        created_at=datetime.fromtimestamp(tree.created, UTC),
        size=tree.size,
    )
