"""A backend whose storage is a dictionary: the oracle of tests, and an example of every controller
capability.

Its storage outlives its controllers, as a real one does: two controllers made with the same `Settings.array`
see the same volumes. With `Settings.file` it outlives its process, too. Its node has no devices: a volume is a
directory below `Settings.root`, also one that an administrator made there.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

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
    MountsForGroup,
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
from volkit.testing.witness import Witness


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
    lock: AbstractContextManager[Any] = field(factory=threading.RLock, repr=False)
    before: Callable[[str], None] = field(default=lambda method: None, repr=False)

    @classmethod
    def in_file(cls, path: Path) -> Array:
        """An array that is kept in a file, and shared by all who have it open, one at a time."""
        array = cls()
        array.lock = _InFile(array, path)
        return array

    def image(self) -> bytes:
        """All of it, as bytes."""
        volumes = [
            (one.volume.id, one.volume.capacity, one.volume.source, one.name, one.tier, sorted(one.nodes))
            for one in self.volumes.values()
        ]
        return pickle.dumps((self.made, volumes, self.snapshots))

    def load(self, image: bytes) -> None:
        """Be what `image` was."""
        self.made, volumes, self.snapshots = pickle.loads(image)
        self.volumes = {
            id_: Stored(FileVolume(id=id_, capacity=capacity, source=source), name, tier, set(nodes))
            for id_, capacity, source, name, tier, nodes in volumes
        }

    def next_id(self, sort: str) -> str:
        """An id of the array's own."""
        self.made += 1
        return f"{sort}-{self.made:08d}"


class _InFile(AbstractContextManager["_InFile"]):
    """The lock of an array in a file: what is changed under it is written at its end, all or nothing."""

    def __init__(self, array: Array, path: Path) -> None:
        self._array = array
        self._path = os.fspath(path)
        self._mine = threading.RLock()
        self._depth = 0
        self._descriptor = -1
        self._image = b""

    def __enter__(self) -> _InFile:
        self._mine.acquire()
        self._depth += 1
        if self._depth == 1:
            self._descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                self._image = Path(self._path).read_bytes()
                self._array.load(self._image)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._depth == 1 and (image := self._array.image()) != self._image:
                draft = os.open(
                    f"{self._path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
                )
                os.write(draft, image)
                os.close(draft)
                os.replace(f"{self._path}.new", self._path)
                self._image = image
        finally:
            self._depth -= 1
            if not self._depth:
                os.close(self._descriptor)
            self._mine.release()


ARRAYS: dict[str, Array] = {}
"""The arrays of this process, by name."""


@frozen
class MemorySettings:
    """`array` names the storage; `root` is where its node keeps the directories of volumes; in `file` the storage
    outlives its process.
    """

    array: str = option(default="default", help="which array of this process")
    file: Path | None = option(default=None, help="file that the array is kept in")
    root: Path | None = option(default=None, help="directory below which volumes have their files")


def array_of(settings: MemorySettings) -> Array:
    """The storage that the settings name."""
    if settings.array not in ARRAYS:
        ARRAYS[settings.array] = Array.in_file(settings.file) if settings.file else Array()
    return ARRAYS[settings.array]


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
        self.array: Array = array_of(settings)

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


class MemoryNode(Node[MemorySettings], MountsForGroup):
    """Publishes a directory per volume."""

    def connect(self, request: ConnectRequest) -> Connection:
        if self.settings.root is None:
            raise NotFound("the memory backend needs the setting 'root' to mount anything")
        directory = self.settings.root / request.volume_id
        array = array_of(self.settings)
        with array.lock:
            if request.volume_id in array.volumes:
                directory.mkdir(parents=True, exist_ok=True)
        if not directory.is_dir():
            raise NotFound(f"there is no volume {request.volume_id!r}")
        return FileConnection(directory=str(directory))

    def disconnect(self, request: DisconnectRequest) -> None:
        """The directory is the volume: it stays."""

    def info(self) -> NodeInfo:
        return NodeInfo(facts={"port": "fc:1"})


class ArrayWitness(Witness):
    """Looks into the array, without the controller."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def volumes(self) -> list[str]:
        with self.array.lock:
            return list(self.array.volumes)

    def snapshots(self) -> list[str]:
        with self.array.lock:
            return list(self.array.snapshots)

    def attachments(self) -> list[tuple[str, str]]:
        with self.array.lock:
            return [(id_, node) for id_, stored in self.array.volumes.items() for node in stored.nodes]

    def capacity(self, volume_id: str) -> int:
        with self.array.lock:
            return self.array.volumes[volume_id].volume.capacity


class MemoryBackend(Backend[MemorySettings, MemoryParameters]):
    """Volumes in this process's memory, for tests."""

    name = "memory"
    settings = MemorySettings
    parameters = MemoryParameters
    controller: ClassVar[type[Controller[Any, Any]] | None] = MemoryController
    node: ClassVar[type[Node[Any]] | None] = MemoryNode
    volume: ClassVar[type[Volume]] = FileVolume
    limits: ClassVar[Limits] = Limits(granularity=1, default_size=1 << 20)


def memory_settings(**values: Any) -> MemorySettings:
    """Settings with an array of their own."""
    settings = MemorySettings(array=f"array-{len(ARRAYS)}", **values)
    array_of(settings)
    return settings
