"""What a vendor writes: a Controller, which makes volumes, and a Node, which makes them reachable on a
machine.

```python
class AcmeController(Controller[AcmeSettings, AcmeParameters], FindsByName, Expands):
    def create_volume(self, request): ...
    def delete_volume(self, request): ...
    def get_volume(self, request): ...
    def expand_volume(self, request): ...

class AcmeNode(Node[AcmeSettings]):
    def connect(self, request): ...
    def disconnect(self, request): ...
```

Methods block, may be called from several threads at once (never for one volume at the same time), and need
not be idempotent, validated, locked or recorded: volkit's engine is all of that. To be idempotent does no
harm.

A capability is reported because the class inherits its mixin, and for no other reason. A mixin without its
method, a method without its mixin, and an `async def` are refused when the class is defined, so that a driver
cannot promise what it does not have (VAST's advertised a controller it had not, kadalu's answered OK to an
expansion it did not do).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Generic, TypeVar

from volkit.model import Connection, Snapshot, Topology, Usage, Volume, VolumeHealth
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
    ResizeRequest,
)

S = TypeVar("S")
P = TypeVar("P")


class Mixin:
    """The root of all capability mixins. `needs` names the mixins that this one makes no sense without.

    No ABC: its answers to issubclass go wrong for good classes after a bad one was refused at its definition,
    and volkit's own check is made earlier than that of abc.
    """

    needs: ClassVar[tuple[str, ...]] = ()


# -- how a create is made safe to repeat: a controller has at least one, or needs a journal that follows it
# --------------


class FindsByName(Mixin):
    """`get_volume` (and `get_snapshot`) also answers `request.name`: names are unique in the storage, and
    kept by it.
    """


class TakesIds(Mixin):
    """`create_volume` makes the volume under `request.volume_id` (a snapshot under `request.snapshot_id`),
    which volkit derives from the name: 34 characters, `[a-z0-9-]`, begins with a letter; safe as a file name,
    a ZFS data set or an LVM volume.
    """


class TakesTokens(Mixin):
    """`create_volume` hands `request.token` to a storage that answers the same token with the same volume,
    and only once makes it.
    """


# -- what a controller can do beyond create, delete and get
# ------------------------------------------------------------


class Publishes(Mixin):
    """Volumes are attached to nodes by the storage (CSI PUBLISH_UNPUBLISH_VOLUME)."""

    @abstractmethod
    def controller_publish(self, request: ControllerPublishRequest) -> ControllerPublishResult:
        """Attach. Raises NotFound for the volume or the node, ResourceExhausted where the node has no slot
        left.
        """

    @abstractmethod
    def controller_unpublish(self, request: ControllerUnpublishRequest) -> None:
        """Detach from one node, or from all (`node_id` ""). NotFound counts as done."""


class Lists(Mixin):
    """Volumes can be listed (CSI LIST_VOLUMES)."""

    @abstractmethod
    def list_volumes(self, request: ListRequest) -> Page[Volume]:
        """One page, in an order that stays the same; `Page.of` slices a sorted list of ids. Raises
        InvalidToken.
        """


class ListsPublished(Mixin):
    """The storage tells which nodes a volume is attached to (CSI LIST_VOLUMES_PUBLISHED_NODES)."""

    needs: ClassVar[tuple[str, ...]] = ("Publishes", "Lists")

    @abstractmethod
    def list_published(self, request: ListPublishedRequest) -> ListPublishedResult:
        """The node ids per volume, for all the volumes of one page in one question."""


class Expands(Mixin):
    """Volumes grow while they are in use (CSI EXPAND_VOLUME, VolumeExpansion ONLINE)."""

    @abstractmethod
    def expand_volume(self, request: ExpandVolumeRequest) -> ExpandVolumeResult:
        """Grow to `request.size`. Never called for a volume that has it already. Raises OutOfRange,
        ResourceExhausted.
        """


class ExpandsOffline(Mixin):
    """Volumes grow only while they are not published (CSI VolumeExpansion OFFLINE)."""

    needs: ClassVar[tuple[str, ...]] = ("Expands",)


class Snapshots(Mixin):
    """Snapshots can be made, and volumes from them (CSI CREATE_DELETE_SNAPSHOT): `create_volume` gets a
    SnapshotSource.
    """

    @abstractmethod
    def create_snapshot(self, request: CreateSnapshotRequest) -> Snapshot:
        """Cut. Returns after the cut is made; `ready=False` where it cannot be used yet. Raises NotFound for
        the volume.
        """

    @abstractmethod
    def delete_snapshot(self, request: DeleteSnapshotRequest) -> None:
        """Remove. NotFound counts as done. Raises InUse."""

    @abstractmethod
    def get_snapshot(self, request: GetSnapshotRequest) -> Snapshot:
        """Raises NotFound."""


class ListsSnapshots(Mixin):
    """Snapshots can be listed (CSI LIST_SNAPSHOTS)."""

    needs: ClassVar[tuple[str, ...]] = ("Snapshots",)

    @abstractmethod
    def list_snapshots(self, request: ListSnapshotsRequest) -> Page[Snapshot]:
        """One page of all snapshots, or of those of one volume. The engine answers a question for a single id
        by `get_snapshot`.
        """


class Clones(Mixin):
    """Volumes can be made from volumes (CSI CLONE_VOLUME): `create_volume` gets a CloneSource."""


class Modifies(Mixin):
    """The parameters declared mutable can be changed later (CSI MODIFY_VOLUME)."""

    @abstractmethod
    def modify_volume(self, request: ModifyVolumeRequest) -> None:
        """Apply all of `request.parameters` or none."""


class ReportsCapacity(Mixin):
    """The room that is left can be told (CSI GET_CAPACITY)."""

    @abstractmethod
    def get_capacity(self, request: CapacityRequest[Any]) -> CapacityResult:
        """What can still be made."""


class ReportsHealth(Mixin):
    """The storage knows when a volume is not well (CSI VOLUME_CONDITION)."""

    @abstractmethod
    def volume_health(self, request: GetVolumeRequest) -> VolumeHealth:
        """Raises NotFound."""


# -- what a node can do beyond connect
# ---------------------------------------------------------------------------------


class ConnectsPerPod(Mixin):
    """connect runs at every publish instead of once at stage, since it needs what only comes there (per-pod
    credentials).
    """


class ListsConnections(Mixin):
    """The node tells what it has connected of its storage, also what nobody recorded: `volkit doctor` finds by it what
    was leaked, and has it disconnected.
    """

    @abstractmethod
    def list_connections(self) -> Iterable[tuple[str, Connection]]:
        """(volume id, connection) of all that is connected on this machine and leads to this storage, and nothing of
        another one: a second pair for a second connection of one volume.
        """


class MountsByProgram(Mixin):
    """connect returns a FuseConnection. A driver that could not keep its programs alive beyond its own end is refused
    at its start: see `volkit.host.fuse`.
    """


class MountsForGroup(Mixin):
    """The files of a volume can be given to a group: `Capability.volume_mount_group` (CSI VOLUME_MOUNT_GROUP,
    Kubernetes' fsGroup). volkit does it to the file system of a device and to a directory before they are published
    (`volkit.host.ownership`); a connect that mounts over the network or by a program has to bring it, as an option.
    """


class ReportsTopology(Mixin):
    """Volumes can be used only from some places, and a node knows where it is (CSI
    VOLUME_ACCESSIBILITY_CONSTRAINTS).
    """

    @abstractmethod
    def topology(self) -> Topology:
        """Where this node is, in the segments that `Volume.topology` speaks of. Always the same."""


# -- the two interfaces
# ------------------------------------------------------------------------------------------------


_ASYNC: Final = 0x80 | 0x200  # CO_COROUTINE and CO_ASYNC_GENERATOR of inspect, which takes 8 ms to load


class _Checked:
    """Refuses, at its definition, a class whose methods and mixins do not match. `abstract=True` exempts a
    vendor's own base.
    """

    mixins: ClassVar[tuple[type[Mixin], ...]] = ()

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        for name, value in own.items():
            code = getattr(
                getattr(value, "__func__", value), "__code__", None
            )  # of a static or class method too
            if code is not None and code.co_flags & _ASYNC:
                raise TypeError(
                    f"{cls.__name__}.{name} is an async def: volkit's methods block; remove the async"
                )
        if abstract:
            return
        for mixin in cls.mixins:
            cls._check(mixin)
        for base in (base for base in cls.__mro__ if issubclass(base, Mixin) and base is not Mixin):
            if not issubclass(base, (_Checked, *cls.mixins)):
                raise TypeError(
                    f"{cls.__name__} cannot have {base.__name__}: it has {', '.join(m.__name__ for m in cls.mixins)}"
                )
        if missing := sorted(_abstract(cls) - {name for mixin in cls.mixins for name in _abstract(mixin)}):
            raise TypeError(f"{cls.__name__} lacks {', '.join(missing)}: define it")

    @classmethod
    def _check(cls, mixin: type[Mixin]) -> None:
        methods = _abstract(mixin)
        if issubclass(cls, mixin):
            for other in mixin.needs:
                if not any(base.__name__ == other for base in cls.__mro__):
                    raise TypeError(
                        f"{cls.__name__} has {mixin.__name__} without {other}: add {other} to its bases"
                    )
            if missing := sorted(name for name in methods if _is_missing(getattr(cls, name))):
                raise TypeError(
                    f"{cls.__name__} has {mixin.__name__} but not {', '.join(missing)}: define it, or remove the base"
                )
        elif present := sorted(name for name in methods if hasattr(cls, name)):
            raise TypeError(
                f"{cls.__name__} defines {', '.join(present)} without {mixin.__name__}: "
                f"add {mixin.__name__} to its bases"
            )


def _is_missing(value: object) -> bool:
    return _is_abstract(value) or not callable(value)


def _is_abstract(value: object) -> bool:
    return getattr(value, "__isabstractmethod__", False)


def _abstract(cls: type) -> set[str]:
    return {name for name in dir(cls) if _is_abstract(getattr(cls, name, None))}


class Controller(_Checked, Generic[S, P], abstract=True):
    """Makes, deletes and finds volumes. One per process, made by volkit with the operator's settings."""

    mixins: ClassVar[tuple[type[Mixin], ...]] = (
        FindsByName,
        TakesIds,
        TakesTokens,
        Publishes,
        Lists,
        ListsPublished,
        Expands,
        ExpandsOffline,
        Snapshots,
        ListsSnapshots,
        Clones,
        Modifies,
        ReportsCapacity,
        ReportsHealth,
    )

    def __init__(self, settings: S, node_id: str = "") -> None:
        """`node_id` is the node this process runs on, for a backend whose volumes live there; "" for a
        controller apart.
        """
        self.settings = settings
        self.node_id = node_id

    @abstractmethod
    def create_volume(self, request: CreateVolumeRequest[P]) -> Volume:
        """Make it, and return it complete. Raises ResourceExhausted, OutOfRange, NotFound (the source),
        InvalidArgument; Unavailable or DeadlineExceeded where it is not known whether it was made (volkit
        then looks).
        """

    @abstractmethod
    def delete_volume(self, request: DeleteVolumeRequest) -> None:
        """Remove it. NotFound counts as done. Raises InUse where snapshots or attachments forbid it."""

    @abstractmethod
    def get_volume(self, request: GetVolumeRequest) -> Volume:
        """The volume as it is in the storage now. Raises NotFound, and only where it is proven not to be
        there.
        """


class Node(_Checked, Generic[S], abstract=True):
    """Makes a volume reachable on the machine it runs on, and says where; volkit formats, mounts and
    publishes it from there.
    """

    mixins: ClassVar[tuple[type[Mixin], ...]] = (
        ConnectsPerPod,
        ListsConnections,
        MountsByProgram,
        MountsForGroup,
        ReportsTopology,
    )

    def __init__(self, settings: S, node_id: str) -> None:
        self.settings = settings
        self.node_id = node_id

    @abstractmethod
    def connect(self, request: ConnectRequest) -> Connection:
        """Log in, attach, rescan, wait: whatever it takes until the device or the file system is there.
        Raises NotFound.
        """

    @abstractmethod
    def disconnect(self, request: DisconnectRequest) -> None:
        """Undo it. Called after everything is unmounted."""

    def info(self) -> NodeInfo:
        """Facts and limits of this node."""
        return NodeInfo()

    def resize(self, request: ResizeRequest) -> None:
        """Make the grown size visible here. The default trusts the kernel to have noticed."""

    def usage(self, volume_id: str, connection: Connection) -> Usage | None:
        """How much of the volume is used, where the storage knows better than statvfs(2); None leaves it to
        volkit.
        """
        return None

    def pending(self, volume_id: str, connection: Connection) -> int:
        """Bytes that were written to the volume here and are not in the storage yet (a write-back cache). Nothing is
        unmounted before it is 0.
        """
        return 0
