"""THE TABLE: one row per operation. The lifecycle is data, and nothing else decides what is legal.

It is read by the engine (locks, legality, how a repeat settles), by every adapter (what to report as a
capability, what is unimplemented), by `volkit.lifecycle`, by the generated state machine of the test kit, and
by the documentation.

States follow the CSI specification ("Volume Lifecycle"): CREATED belongs to a volume, NODE_READY and
VOL_READY to a volume on a node, PUBLISHED to a volume at one target of a node.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from volkit import interfaces, model, requests
from volkit.interfaces import Mixin


class State(enum.IntEnum):
    """How far a volume has come; each includes those before it."""

    ABSENT = 0
    CREATED = 1
    NODE_READY = 2
    VOL_READY = 3
    PUBLISHED = 4


class Repeat(enum.Enum):
    """What the same call gets when its work is done already."""

    COMPATIBLE = "the same answer where compatible, else AlreadyExists"
    GONE = "success: it is gone already"
    BIG_ENOUGH = "success: it is big enough already"
    AGAIN = "is applied again"
    READ = "is a read: nothing to repeat"


class Lock(enum.Enum):
    """What one operation holds while it runs; of two that hold the same, the second waits."""

    NAME = "the name, then the id"
    VOLUME = "the volume"
    SNAPSHOT = "the snapshot's name, then its id"
    TARGET = "the volume and the target"
    NONE = "nothing"


@frozen(kw_only=True, eq=False)
class Operation:
    """One row, equal to itself alone. `method` is what the backend's class must have for it ("" where volkit does
    it alone), `mixin` the capability it takes, `without` one that rules it out. `before` and `after` are the
    states it leads from and to (None: it stays); `undo` names the operation that leads back.
    """

    name: str
    side: str
    request: type
    result: type | None
    method: str = ""
    mixin: type[Mixin] | None = None
    without: type[Mixin] | None = None
    before: State | None = None
    after: State | None = None
    undo: str = ""
    lock: Lock = Lock.NONE
    repeat: Repeat = Repeat.READ

    def served_by(self, cls: type | None) -> bool:
        """Can a backend whose class for this side is `cls` do it?"""
        if cls is None:
            return False
        return (self.mixin is None or issubclass(cls, self.mixin)) and not (
            self.without and issubclass(cls, self.without)
        )


def _controller(name: str, request: type, result: type | None, **rest: object) -> Operation:
    return Operation(name=name, side="controller", request=request, result=result, **rest)  # type: ignore[arg-type]


def _node(name: str, request: type, result: type | None, **rest: object) -> Operation:
    return Operation(name=name, side="node", request=request, result=result, **rest)  # type: ignore[arg-type]


_ROWS = (
    _controller(
        "create_volume",
        requests.CreateVolumeRequest,
        model.Volume,
        method="create_volume",
        before=State.ABSENT,
        after=State.CREATED,
        undo="delete_volume",
        lock=Lock.NAME,
        repeat=Repeat.COMPATIBLE,
    ),
    _controller(
        "delete_volume",
        requests.DeleteVolumeRequest,
        None,
        method="delete_volume",
        before=State.CREATED,
        after=State.ABSENT,
        lock=Lock.VOLUME,
        repeat=Repeat.GONE,
    ),
    _controller("get_volume", requests.GetVolumeRequest, requests.VolumeEntry, method="get_volume"),
    _controller(
        "validate_capabilities", requests.ValidateCapabilitiesRequest, requests.ValidateCapabilitiesResult
    ),
    _controller(
        "controller_publish",
        requests.ControllerPublishRequest,
        requests.ControllerPublishResult,
        method="controller_publish",
        mixin=interfaces.Publishes,
        before=State.CREATED,
        after=State.NODE_READY,
        undo="controller_unpublish",
        lock=Lock.VOLUME,
        repeat=Repeat.COMPATIBLE,
    ),
    _controller(
        "controller_unpublish",
        requests.ControllerUnpublishRequest,
        None,
        method="controller_unpublish",
        mixin=interfaces.Publishes,
        before=State.NODE_READY,
        after=State.CREATED,
        lock=Lock.VOLUME,
        repeat=Repeat.GONE,
    ),
    _controller(
        "list_volumes", requests.ListRequest, requests.Page, method="list_volumes", mixin=interfaces.Lists
    ),
    _controller(
        "expand_volume",
        requests.ExpandVolumeRequest,
        requests.ExpandVolumeResult,
        method="expand_volume",
        mixin=interfaces.Expands,
        lock=Lock.VOLUME,
        repeat=Repeat.BIG_ENOUGH,
    ),
    _controller(
        "modify_volume",
        requests.ModifyVolumeRequest,
        None,
        method="modify_volume",
        mixin=interfaces.Modifies,
        lock=Lock.VOLUME,
        repeat=Repeat.AGAIN,
    ),
    _controller(
        "get_capacity",
        requests.CapacityRequest,
        requests.CapacityResult,
        method="get_capacity",
        mixin=interfaces.ReportsCapacity,
    ),
    _controller(
        "create_snapshot",
        requests.CreateSnapshotRequest,
        model.Snapshot,
        method="create_snapshot",
        mixin=interfaces.Snapshots,
        undo="delete_snapshot",
        lock=Lock.SNAPSHOT,
        repeat=Repeat.COMPATIBLE,
    ),
    _controller(
        "delete_snapshot",
        requests.DeleteSnapshotRequest,
        None,
        method="delete_snapshot",
        mixin=interfaces.Snapshots,
        lock=Lock.SNAPSHOT,
        repeat=Repeat.GONE,
    ),
    _controller(
        "get_snapshot",
        requests.GetSnapshotRequest,
        model.Snapshot,
        method="get_snapshot",
        mixin=interfaces.Snapshots,
    ),
    _controller(
        "list_snapshots",
        requests.ListSnapshotsRequest,
        requests.Page,
        method="list_snapshots",
        mixin=interfaces.ListsSnapshots,
    ),
    _node(
        "node_stage",
        requests.NodeStageRequest,
        None,
        method="connect",
        without=interfaces.ConnectsPerPod,
        before=State.NODE_READY,
        after=State.VOL_READY,
        undo="node_unstage",
        lock=Lock.VOLUME,
        repeat=Repeat.COMPATIBLE,
    ),
    _node(
        "node_unstage",
        requests.NodeUnstageRequest,
        None,
        method="disconnect",
        without=interfaces.ConnectsPerPod,
        before=State.VOL_READY,
        after=State.NODE_READY,
        lock=Lock.VOLUME,
        repeat=Repeat.GONE,
    ),
    _node(
        "node_publish",
        requests.NodePublishRequest,
        None,
        before=State.VOL_READY,
        after=State.PUBLISHED,
        undo="node_unpublish",
        lock=Lock.TARGET,
        repeat=Repeat.COMPATIBLE,
    ),
    _node(
        "node_unpublish",
        requests.NodeUnpublishRequest,
        None,
        before=State.PUBLISHED,
        after=State.VOL_READY,
        lock=Lock.TARGET,
        repeat=Repeat.GONE,
    ),
    _node(
        "node_expand",
        requests.NodeExpandRequest,
        requests.NodeExpandResult,
        lock=Lock.VOLUME,
        repeat=Repeat.BIG_ENOUGH,
    ),
    _node("node_stats", requests.NodeStatsRequest, requests.NodeStats),
    _node("node_info", requests.NodeInfoRequest, requests.NodeInfo),
)

OPERATIONS: Final[Mapping[str, Operation]] = {row.name: row for row in _ROWS}
"""The table, by name."""
