"""One frozen, keyword-only request per operation, and a result where the answer is more than one noun of the
model.

A new field never breaks a backend: requests are made by volkit alone, results have defaults. Sizes are bytes,
paths are absolute POSIX paths, ids are the backend's own. Secrets are only in `secrets`, and in
`mount_flags`, which some file-system types need them in.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from attrs import field, frozen

from volkit.errors import InvalidToken
from volkit.model import (
    EMPTY,
    NO_SECRETS,
    Capability,
    CapacityRange,
    Connection,
    Secrets,
    Source,
    Topology,
    TopologyRequirement,
    Usage,
    Value,
    Volume,
    VolumeHealth,
    _read_only,
    _tuple,
)

P = TypeVar("P")
T = TypeVar("T")

_TOKEN = "after:"  # of a page: "after this id"


def _mapping() -> Any:
    return field(default=EMPTY, converter=_read_only)


@frozen(kw_only=True, eq=False, repr=False)
class Call(Value):
    """What a call from outside allows: an answer by `deadline` (time.monotonic() seconds), and `wait` seconds
    for the volume's lock.
    """

    deadline: float | None = None
    wait: float = 2.0

    def patience(self) -> float:
        """Seconds that may be spent on waiting for another operation, so that it can still be answered."""
        if self.deadline is None:
            return self.wait
        return max(0.0, min(self.wait, self.deadline - time.monotonic() - 0.1))


# -- controller
# --------------------------------------------------------------------------------------------------------


@frozen(kw_only=True, eq=False, repr=False)
class CreateVolumeRequest(Value, Generic[P]):
    """CSI CreateVolume. The backend gets it checked and completed by the engine:

    `size` is the bytes to make: chosen from `capacity_range` and the backend's limits, or from the source
    where it is larger. `parameters` is the backend's `Parameters`, with `mutable_parameters` merged in.
    `volume_id` is set for a controller that `TakesIds`, `token` for one that `TakesTokens`; both are the same
    on every repeat of the call. `metadata` are the platform's own keys (the claim's name and namespace), good
    for labels only.
    """

    name: str
    parameters: P
    mutable_parameters: Mapping[str, str] = _mapping()
    capacity_range: CapacityRange = CapacityRange()
    capabilities: tuple[Capability, ...] = field(default=(), converter=_tuple)
    source: Source | None = None
    topology: TopologyRequirement | None = None
    secrets: Secrets = NO_SECRETS
    metadata: Mapping[str, str] = _mapping()
    size: int = 0
    volume_id: str = ""
    token: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class DeleteVolumeRequest(Value):
    """CSI DeleteVolume."""

    volume_id: str
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class GetVolumeRequest(Value):
    """Which volume: by `volume_id`, or by `name` (asked only of a controller that `FindsByName`); exactly one
    is set.
    """

    volume_id: str = ""
    name: str = ""
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class ListRequest(Value):
    """A page of a listing: at most `limit` entries (0: as many as the backend likes), after `token` ("" is
    the start).
    """

    limit: int = 0
    token: str = ""
    secrets: Secrets = NO_SECRETS

    @property
    def after(self) -> str:
        """The id that the page begins after, "" at the start. Raises InvalidToken for a token that no page gave out."""
        if not self.token:
            return ""
        if not self.token.startswith(_TOKEN) or self.token == _TOKEN:
            raise InvalidToken("the paging token was not given out by this listing: begin again without one")
        return self.token.removeprefix(_TOKEN)


@frozen(kw_only=True, eq=False, repr=False)
class ListSnapshotsRequest(ListRequest):
    """CSI ListSnapshots: all, those of one volume, or the one with an id; unknown ids give an empty page."""

    source_volume_id: str = ""
    snapshot_id: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class Page(Value, Generic[T]):
    """Entries in an order that stays the same, and the token of what follows ("" at the end)."""

    entries: tuple[T, ...] = field(converter=_tuple)
    next_token: str = ""

    @classmethod
    def of(cls, ids: Sequence[str], request: ListRequest, load: Callable[[str], T | None]) -> Page[T]:
        """One page out of sorted `ids`; `load` makes an entry of an id, or None where it is gone meanwhile."""
        start = bisect.bisect_right(ids, request.after) if request.after else 0
        entries = ((id_, entry) for id_ in ids[start:] if (entry := load(id_)) is not None)
        return cls.take(entries, request)

    @classmethod
    def take(cls, entries: Iterable[tuple[str, T]], request: ListRequest) -> Page[T]:
        """One page of what comes after `request.after`, given as (id, entry) in an order that stays the same.

        The token is the last id of the page, so that what comes and goes between two pages neither repeats
        nor hides another entry. No more is taken from `entries` than the page holds, and one.
        """
        found: list[T] = []
        last = ""
        for id_, entry in entries:
            if request.limit and len(found) == request.limit:
                return cls(entries=found, next_token=_TOKEN + last)
            found.append(entry)
            last = id_
        return cls(entries=found)


@frozen(kw_only=True, eq=False, repr=False)
class VolumeEntry(Value):
    """A volume as listed or looked up: with the nodes it is attached to and its health, where the backend
    tells them.
    """

    volume: Volume
    published_node_ids: tuple[str, ...] = ()
    health: VolumeHealth | None = None


@frozen(kw_only=True, eq=False, repr=False)
class ListPublishedRequest(Value):
    """For which volumes the attached nodes are wanted."""

    volume_ids: tuple[str, ...]


@frozen(kw_only=True, eq=False, repr=False)
class ListPublishedResult(Value):
    """The nodes that each volume is attached to; a volume without one may be left out."""

    node_ids: Mapping[str, tuple[str, ...]]


@frozen(kw_only=True, eq=False, repr=False)
class ValidateCapabilitiesRequest(Value):
    """CSI ValidateVolumeCapabilities: would this existing volume serve all of `capabilities`?"""

    volume_id: str
    capabilities: tuple[Capability, ...]
    context: Mapping[str, str] = _mapping()
    parameters: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class ValidateCapabilitiesResult(Value):
    """`confirmed`, or the `message` that says which one cannot be served."""

    confirmed: bool
    message: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class ControllerPublishRequest(Value):
    """CSI ControllerPublishVolume: make the volume reachable from a node. `node_facts` is what that node's
    `info()` told.
    """

    volume_id: str
    node_id: str
    node_facts: Mapping[str, str] = _mapping()
    capability: Capability
    readonly: bool = False
    volume_context: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class ControllerPublishResult(Value):
    """What the node needs to find the volume, such as a LUN; no secrets in it."""

    publish_context: Mapping[str, str] = _mapping()


@frozen(kw_only=True, eq=False, repr=False)
class ControllerUnpublishRequest(Value):
    """CSI ControllerUnpublishVolume. `node_id` "" means from every node."""

    volume_id: str
    node_id: str = ""
    node_facts: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class ExpandVolumeRequest(Value):
    """CSI ControllerExpandVolume; `size` is the bytes the volume shall have, chosen by the engine from
    `capacity_range`.
    """

    volume_id: str
    capacity_range: CapacityRange
    capability: Capability | None = None
    secrets: Secrets = NO_SECRETS
    size: int = 0


@frozen(kw_only=True, eq=False, repr=False)
class ExpandVolumeResult(Value):
    """The size it has now, and whether the node has to do its part (rescan the device, grow the file
    system).
    """

    capacity: int
    node_expansion_required: bool = True


@frozen(kw_only=True, eq=False, repr=False)
class ModifyVolumeRequest(Value):
    """CSI ControllerModifyVolume: `parameters` holds what to change; all else is to be left as it is.

    The engine hands over field names and typed values, only of fields that `Parameters` declares mutable.
    """

    volume_id: str
    parameters: Mapping[str, Any]
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class CapacityRequest(Value, Generic[P]):
    """CSI GetCapacity: how much can still be made, with these parameters, at this place."""

    parameters: P
    capabilities: tuple[Capability, ...] = ()
    topology: Topology | None = None


@frozen(kw_only=True, eq=False, repr=False)
class CapacityResult(Value):
    """Bytes that new volumes may still take; `maximum_volume_size` and `minimum_volume_size` of one volume,
    or None.
    """

    available: int
    maximum_volume_size: int | None = None
    minimum_volume_size: int | None = None


@frozen(kw_only=True, eq=False, repr=False)
class CreateSnapshotRequest(Value):
    """CSI CreateSnapshot. `snapshot_id` and `token` as in CreateVolumeRequest."""

    name: str
    source_volume_id: str
    parameters: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS
    metadata: Mapping[str, str] = _mapping()
    snapshot_id: str = ""
    token: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class DeleteSnapshotRequest(Value):
    """CSI DeleteSnapshot."""

    snapshot_id: str
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class GetSnapshotRequest(Value):
    """Which snapshot: by id, or by name (of a controller that `FindsByName`); exactly one is set."""

    snapshot_id: str = ""
    name: str = ""
    secrets: Secrets = NO_SECRETS


# -- node: what the orchestrator asks
# ----------------------------------------------------------------------------------


@frozen(kw_only=True, eq=False, repr=False)
class NodeStageRequest(Value):
    """CSI NodeStageVolume: once per volume and node."""

    volume_id: str
    staging_target_path: str
    capability: Capability
    publish_context: Mapping[str, str] = _mapping()
    volume_context: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class NodeUnstageRequest(Value):
    """CSI NodeUnstageVolume: only an id and a path, so the rest comes from volkit's own record."""

    volume_id: str
    staging_target_path: str


@frozen(kw_only=True, eq=False, repr=False)
class NodePublishRequest(Value):
    """CSI NodePublishVolume: once per user. `metadata` are the platform's keys (the pod's name, namespace,
    uid).
    """

    volume_id: str
    target_path: str
    staging_target_path: str = ""
    capability: Capability
    readonly: bool = False
    publish_context: Mapping[str, str] = _mapping()
    volume_context: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS
    metadata: Mapping[str, str] = _mapping()


@frozen(kw_only=True, eq=False, repr=False)
class NodeUnpublishRequest(Value):
    """CSI NodeUnpublishVolume. `keep_target`: what is at the target stays there without the mount, for a platform that
    asks again only while it is there.
    """

    volume_id: str
    target_path: str
    keep_target: bool = False


@frozen(kw_only=True, eq=False, repr=False)
class NodeExpandRequest(Value):
    """CSI NodeExpandVolume; `capacity_range` may be left open: grow to what the device has."""

    volume_id: str
    volume_path: str
    staging_target_path: str = ""
    capacity_range: CapacityRange = CapacityRange()
    capability: Capability | None = None
    secrets: Secrets = NO_SECRETS


@frozen(kw_only=True, eq=False, repr=False)
class NodeExpandResult(Value):
    """The bytes the volume has on this node now."""

    capacity: int


@frozen(kw_only=True, eq=False, repr=False)
class NodeStatsRequest(Value):
    """CSI NodeGetVolumeStats."""

    volume_id: str
    volume_path: str
    staging_target_path: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class NodeStats(Value):
    """Bytes and inodes, and whether the volume is fit for use on this node."""

    usage: Usage
    health: VolumeHealth = VolumeHealth()


@frozen(kw_only=True, eq=False, repr=False)
class NodeInfoRequest(Value):
    """CSI NodeGetInfo."""


@frozen(kw_only=True, eq=False, repr=False)
class NodeInfo(Value):
    """What a node says of itself. A backend's `Node.info()` fills `facts` and `max_volumes`; the engine sets
    `node_id`, and `topology` where the node `ReportsTopology`.

    `facts` (initiator names and the like) reach the controller as `node_facts` of a publish. They travel
    inside the wire's node id, which takes 256 bytes in all. `max_volumes` 0 means no limit.
    """

    node_id: str = ""
    facts: Mapping[str, str] = _mapping()
    topology: Topology | None = None
    max_volumes: int = 0


# -- node: what the backend is asked
# -----------------------------------------------------------------------------------


@frozen(kw_only=True, eq=False, repr=False)
class ConnectRequest(Value):
    """Make the volume reachable on this node, and say where. `resumed` is True when an earlier attempt may
    have been cut short (a crash), so that a device may be there already; it is then to be found again, not
    made twice.
    """

    volume_id: str
    node_id: str
    capability: Capability
    readonly: bool = False
    publish_context: Mapping[str, str] = _mapping()
    volume_context: Mapping[str, str] = _mapping()
    secrets: Secrets = NO_SECRETS
    metadata: Mapping[str, str] = _mapping()
    resumed: bool = False


@frozen(kw_only=True, eq=False, repr=False)
class DisconnectRequest(Value):
    """Undo connect. `connection` is what it returned, or None where the record is lost; not connected is
    success.
    """

    volume_id: str
    node_id: str
    connection: Connection | None = None


@frozen(kw_only=True, eq=False, repr=False)
class ResizeRequest(Value):
    """The volume has grown at its storage: make this node's device show at least `size` bytes (0: whatever it
    has now).
    """

    volume_id: str
    connection: Connection
    size: int = 0
