"""A backend whose storage is a dictionary: the oracle of tests, and an example of every controller
capability.

Its storage outlives its controllers, as a real one does: two controllers made with the same `Settings.array`
see the same volumes. Its node has no devices: a volume is a directory below `Settings.root`, also one that an
administrator made there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field, frozen

from volkit.backend import Backend, Limits
from volkit.errors import NotFound, ResourceExhausted
from volkit.interfaces import (
    Clones,
    Controller,
    Expands,
    FindsByName,
    Lists,
    ListsPublished,
    ListsSnapshots,
    Modifies,
    Node,
    Publishes,
    ReportsCapacity,
    ReportsHealth,
    Snapshots,
)
from volkit.model import Connection, FileConnection, FileVolume, Snapshot, Volume, VolumeHealth
from volkit.options import option
from volkit.requests import (
    CapacityRequest,
    CapacityResult,
    ConnectRequest,
    ControllerPublishRequest,
    ControllerPublishResult,
    ControllerUnpublishRequest,
    CreateSnapshotRequest,
    CreateVolumeRequest,
    DeleteSnapshotRequest,
    DeleteVolumeRequest,
    DisconnectRequest,
    ExpandVolumeRequest,
    ExpandVolumeResult,
    GetSnapshotRequest,
    GetVolumeRequest,
    ListPublishedRequest,
    ListPublishedResult,
    ListRequest,
    ListSnapshotsRequest,
    ModifyVolumeRequest,
    NodeInfo,
    Page,
)


@define
class Stored:
    """A volume in the array: the record, its name, what it was made with and where it is attached."""

    volume: Volume
    name: str
    tier: str
    nodes: set[str] = field(factory=set)


@define(eq=False)
class Array:
    """The storage itself: what a witness looks at. `before` is called with each method's name, to count or to
    make it fail.
    """

    size: int = 1 << 50
    volumes: dict[str, Stored] = field(factory=dict)
    snapshots: dict[str, tuple[str, Snapshot]] = field(factory=dict)
    made: int = 0
    lock: threading.RLock = field(factory=threading.RLock, repr=False)
    before: Callable[[str], None] = field(default=lambda method: None, repr=False)

    def next_id(self, sort: str) -> str:
        """An id of the array's own."""
        self.made += 1
        return f"{sort}-{self.made:08d}"


ARRAYS: dict[str, Array] = {}
"""The arrays of this process, by name."""


@frozen
class MemorySettings:
    """`array` names the storage; `root` is where its node keeps the directories of volumes."""

    array: str = option(default="default", help="which array of this process")
    root: Path | None = option(default=None, help="directory below which volumes have their files")


@frozen
class MemoryParameters:
    """One that stays, one that may be modified."""

    replicas: int = option(default=1, at_least=1, at_most=9, help="copies of each block")
    tier: str = option(default="fast", mutable=True, help="where the blocks are kept")


class MemoryController(
    Controller[MemorySettings, MemoryParameters],
    FindsByName,
    Publishes,
    Lists,
    ListsPublished,
    Expands,
    Snapshots,
    ListsSnapshots,
    Clones,
    Modifies,
    ReportsCapacity,
    ReportsHealth,
):
    """Knows nothing of idempotency: a second create of one name makes a second volume."""

    def __init__(self, settings: MemorySettings, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        self.array = ARRAYS.setdefault(settings.array, Array())

    def create_volume(self, request: CreateVolumeRequest[MemoryParameters]) -> Volume:
        with self.array.lock:
            self.array.before("create_volume")
            if request.size > self._free():
                raise ResourceExhausted(f"{request.size} bytes do not fit: {self._free()} are left")
            volume = FileVolume(id=self.array.next_id("vol"), capacity=request.size, source=request.source)
            self.array.volumes[volume.id] = Stored(volume, request.name, request.parameters.tier)
            return volume

    def delete_volume(self, request: DeleteVolumeRequest) -> None:
        with self.array.lock:
            self.array.before("delete_volume")
            self._stored(request.volume_id)
            if self.settings.root is not None:
                shutil.rmtree(self.settings.root / request.volume_id, ignore_errors=True)
            del self.array.volumes[request.volume_id]

    def get_volume(self, request: GetVolumeRequest) -> Volume:
        with self.array.lock:
            self.array.before("get_volume")
            if request.volume_id:
                return self._stored(request.volume_id).volume
            for stored in self.array.volumes.values():
                if stored.name == request.name:
                    return stored.volume
            raise NotFound(f"no volume is named {request.name!r}")

    def list_volumes(self, request: ListRequest) -> Page[Volume]:
        with self.array.lock:
            self.array.before("list_volumes")
            return Page.of(sorted(self.array.volumes), request, lambda id_: self.array.volumes[id_].volume)

    def expand_volume(self, request: ExpandVolumeRequest) -> ExpandVolumeResult:
        with self.array.lock:
            self.array.before("expand_volume")
            stored = self._stored(request.volume_id)
            if request.size - stored.volume.capacity > self._free():
                raise ResourceExhausted(f"{request.size} bytes do not fit: {self._free()} are left")
            stored.volume = attrs.evolve(stored.volume, capacity=request.size)
            return ExpandVolumeResult(capacity=request.size, node_expansion_required=False)

    def modify_volume(self, request: ModifyVolumeRequest) -> None:
        with self.array.lock:
            self.array.before("modify_volume")
            self._stored(request.volume_id).tier = request.parameters["tier"]

    def controller_publish(self, request: ControllerPublishRequest) -> ControllerPublishResult:
        with self.array.lock:
            self.array.before("controller_publish")
            self._stored(request.volume_id).nodes.add(request.node_id)
            return ControllerPublishResult(publish_context={"lun": "1"})

    def controller_unpublish(self, request: ControllerUnpublishRequest) -> None:
        with self.array.lock:
            self.array.before("controller_unpublish")
            nodes = self._stored(request.volume_id).nodes
            nodes.difference_update({request.node_id} if request.node_id else set(nodes))

    def list_published(self, request: ListPublishedRequest) -> ListPublishedResult:
        with self.array.lock:
            self.array.before("list_published")
            there = self.array.volumes
            return ListPublishedResult(
                node_ids={id_: tuple(sorted(there[id_].nodes)) for id_ in request.volume_ids if id_ in there}
            )

    def create_snapshot(self, request: CreateSnapshotRequest) -> Snapshot:
        with self.array.lock:
            self.array.before("create_snapshot")
            size = self._stored(request.source_volume_id).volume.capacity
            snapshot = Snapshot(
                id=self.array.next_id("snap"),
                source_volume_id=request.source_volume_id,
                created_at=datetime.now(UTC),
                size=size,
            )
            self.array.snapshots[snapshot.id] = (request.name, snapshot)
            return snapshot

    def delete_snapshot(self, request: DeleteSnapshotRequest) -> None:
        with self.array.lock:
            self.array.before("delete_snapshot")
            if self.array.snapshots.pop(request.snapshot_id, None) is None:
                raise NotFound(f"there is no snapshot {request.snapshot_id!r}")

    def get_snapshot(self, request: GetSnapshotRequest) -> Snapshot:
        with self.array.lock:
            self.array.before("get_snapshot")
            for name, snapshot in self.array.snapshots.values():
                if request.snapshot_id == snapshot.id or (request.name and request.name == name):
                    return snapshot
            raise NotFound(f"there is no snapshot {request.snapshot_id or request.name!r}")

    def list_snapshots(self, request: ListSnapshotsRequest) -> Page[Snapshot]:
        with self.array.lock:
            self.array.before("list_snapshots")
            of: Mapping[str, Snapshot] = {
                id_: one
                for id_, (_, one) in self.array.snapshots.items()
                if request.source_volume_id in ("", one.source_volume_id)
            }
            return Page.of(sorted(of), request, of.get)

    def get_capacity(self, request: CapacityRequest[MemoryParameters]) -> CapacityResult:
        with self.array.lock:
            return CapacityResult(available=self._free())

    def volume_health(self, request: GetVolumeRequest) -> VolumeHealth:
        with self.array.lock:
            self._stored(request.volume_id)
            return VolumeHealth()

    def _stored(self, volume_id: str) -> Stored:
        if volume_id not in self.array.volumes:
            raise NotFound(f"there is no volume {volume_id!r}")
        return self.array.volumes[volume_id]

    def _free(self) -> int:
        return self.array.size - sum(stored.volume.capacity for stored in self.array.volumes.values())


class MemoryNode(Node[MemorySettings]):
    """Publishes a directory per volume."""

    def connect(self, request: ConnectRequest) -> Connection:
        if self.settings.root is None:
            raise NotFound("the memory backend needs the setting 'root' to mount anything")
        directory = self.settings.root / request.volume_id
        if request.volume_id in ARRAYS.setdefault(self.settings.array, Array()).volumes:
            directory.mkdir(parents=True, exist_ok=True)
        if not directory.is_dir():
            raise NotFound(f"there is no volume {request.volume_id!r}")
        return FileConnection(directory=str(directory))

    def disconnect(self, request: DisconnectRequest) -> None:
        """The directory is the volume: it stays."""

    def info(self) -> NodeInfo:
        return NodeInfo(facts={"port": "fc:1"})


class MemoryBackend(Backend[MemorySettings, MemoryParameters]):
    """Volumes in this process's memory, for tests."""

    name = "memory"
    settings = MemorySettings
    parameters = MemoryParameters
    controller = MemoryController
    node = MemoryNode
    volume = FileVolume
    limits = Limits(granularity=1, default_size=1 << 20)


def memory_settings(**values: Any) -> MemorySettings:
    """Settings with an array of their own."""
    name = f"array-{len(ARRAYS)}"
    ARRAYS[name] = Array()
    return MemorySettings(array=name, **values)
