"""From the messages of the wire to the values of the core: each function named after an operation makes its
request out of a message (`answers` goes the other way).

Checked is only what the core's values cannot express or the wire alone demands: messages and oneofs that are
not set (`HasField`: an unset message reads as an empty one), enum values nobody knows, and the size limits of
the CSI spec ("Size Limits": 128 bytes a string, 4 KiB a map). Taken beyond these limits, since what exists
must go on working: ids, which are the backend's own; paths, which kubelet makes longer (gocsi #105), up to
PATH_MAX; secrets, which hold certificates. Everything else is the engine's to judge.

Maps are copied by `dict()`: to look a missing key up in a protobuf map inserts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import volkit
from volkit import (
    AccessMode,
    AccessType,
    Capability,
    CapacityRange,
    CloneSource,
    InvalidArgument,
    Secrets,
    SnapshotSource,
    Source,
    Topology,
    TopologyRequirement,
)
from volkit_csi.lean import csi_pb2 as pb

MAX_STRING: Final = 128
MAX_NODE_ID: Final = 256
MAX_MAP: Final = 4096
MAX_MOUNT_FLAGS: Final = 4096
MAX_PATH: Final = 4096

_MODES: Final[Mapping[int, AccessMode]] = {
    pb.VolumeCapability.AccessMode.Mode.Value(mode.name): mode for mode in AccessMode
}


# -- parts of requests ---------------------------------------------------------------------------------------


def _string(value: str, field: str, limit: int = MAX_STRING) -> str:
    if len(value) > limit or len(value.encode()) > limit:
        raise InvalidArgument(f"{field} has {len(value.encode())} bytes: at most {limit} are allowed")
    return value


def _map(entries: Mapping[str, str], field: str) -> dict[str, str]:
    values = dict(entries)
    return _bounded(values, field) if values else values


def _bounded(values: dict[str, str], field: str) -> dict[str, str]:
    size = sum(len(key.encode()) + len(value.encode()) for key, value in values.items())
    if size > MAX_MAP:
        raise InvalidArgument(f"{field} has {size} bytes of keys and values: at most {MAX_MAP} are allowed")
    return values


def _split(entries: Mapping[str, str], field: str) -> tuple[dict[str, str], dict[str, str]]:
    """The user's own keys, and the platform's; only the former are bounded: kubelet adds tokens to the
    latter.
    """
    values = dict(entries)
    if not values:
        return values, values
    own, metadata = volkit.split_metadata(values)
    return _bounded(dict(own), field), dict(metadata)


def _secrets(entries: Mapping[str, str]) -> Secrets:
    values = dict(entries)
    return Secrets(values) if values else volkit.NO_SECRETS


def _limit(max_entries: int) -> int:
    if max_entries < 0:
        raise InvalidArgument(f"max_entries is {max_entries}: give 0 (no limit) or more")
    return max_entries


def read_capability(message: pb.VolumeCapability, field: str = "volume_capability") -> Capability:
    """Raises InvalidArgument for an access type or mode that is unset or unknown, and for over-long
    strings.
    """
    access_type = message.WhichOneof("access_type")
    if access_type is None:
        raise InvalidArgument(f"{field}.access_type is required: set block or mount")
    number = message.access_mode.mode
    mode = _MODES.get(number)
    if mode is None:
        fault = f"is {int(number)}, which is not known" if number else "is required"
        names = ", ".join(one.name for one in _MODES.values())
        raise InvalidArgument(f"{field}.access_mode {fault}: set one of {names}")
    if access_type == "block":
        return Capability(access_mode=mode, access_type=AccessType.BLOCK)
    mount = message.mount
    flags = tuple(mount.mount_flags)
    if sum(len(flag.encode()) for flag in flags) > MAX_MOUNT_FLAGS:
        raise InvalidArgument(f"{field}.mount.mount_flags are over {MAX_MOUNT_FLAGS} bytes in all")
    return Capability(
        access_mode=mode,
        fs_type=_string(mount.fs_type, f"{field}.mount.fs_type"),
        mount_flags=flags,
        volume_mount_group=_string(mount.volume_mount_group, f"{field}.mount.volume_mount_group"),
    )


def _capability(request: Any) -> Capability:
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability is required")
    return read_capability(request.volume_capability)


def _capability_or_none(request: Any) -> Capability | None:
    return read_capability(request.volume_capability) if request.HasField("volume_capability") else None


def _capabilities(messages: Iterable[pb.VolumeCapability]) -> tuple[Capability, ...]:
    return tuple(read_capability(one, f"volume_capabilities[{at}]") for at, one in enumerate(messages))


def _range(request: Any) -> CapacityRange:
    if not request.HasField("capacity_range"):
        return CapacityRange()
    sizes = request.capacity_range
    return CapacityRange(required=sizes.required_bytes, limit=sizes.limit_bytes)


def read_source(message: pb.VolumeContentSource) -> Source:
    """Raises InvalidArgument where neither a snapshot nor a volume is named."""
    match message.WhichOneof("type"):
        case "snapshot":
            return SnapshotSource(message.snapshot.snapshot_id)
        case "volume":
            return CloneSource(message.volume.volume_id)
    raise InvalidArgument("volume_content_source.type is required: set snapshot or volume")


def read_topology(message: pb.Topology, field: str = "accessible_topology") -> Topology:
    """Raises InvalidArgument for segments over the limit of a map."""
    return Topology(_map(message.segments, f"{field}.segments"))


def _requirement(message: pb.TopologyRequirement) -> TopologyRequirement:
    def places(name: str, topologies: Iterable[pb.Topology]) -> tuple[Topology, ...]:
        return tuple(
            read_topology(one, f"accessibility_requirements.{name}[{at}]")
            for at, one in enumerate(topologies)
        )

    return TopologyRequirement(
        requisite=places("requisite", message.requisite), preferred=places("preferred", message.preferred)
    )


# -- requests ------------------------------------------------------------------------------------------------


def create_volume(request: pb.CreateVolumeRequest) -> volkit.CreateVolumeRequest[Any]:
    """The engine gets the parameters as strings and reads them itself."""
    parameters, metadata = _split(request.parameters, "parameters")
    mutable, more = _split(request.mutable_parameters, "mutable_parameters")
    has = request.HasField
    return volkit.CreateVolumeRequest(
        name=_string(request.name, "name"),
        parameters=parameters,
        mutable_parameters=mutable,
        capacity_range=_range(request),
        capabilities=_capabilities(request.volume_capabilities),
        source=read_source(request.volume_content_source) if has("volume_content_source") else None,
        topology=_requirement(request.accessibility_requirements)
        if has("accessibility_requirements")
        else None,
        secrets=_secrets(request.secrets),
        metadata=metadata | more,
    )


def delete_volume(request: pb.DeleteVolumeRequest) -> volkit.DeleteVolumeRequest:
    return volkit.DeleteVolumeRequest(volume_id=request.volume_id, secrets=_secrets(request.secrets))


def get_volume(request: pb.ControllerGetVolumeRequest) -> volkit.GetVolumeRequest:
    if not request.volume_id:  # the core could also ask by name
        raise InvalidArgument("volume_id is required")
    return volkit.GetVolumeRequest(volume_id=request.volume_id)


def validate(request: pb.ValidateVolumeCapabilitiesRequest) -> volkit.ValidateCapabilitiesRequest:
    parameters, _ = _split(request.parameters, "parameters")
    mutable, _ = _split(request.mutable_parameters, "mutable_parameters")
    return volkit.ValidateCapabilitiesRequest(
        volume_id=request.volume_id,
        capabilities=_capabilities(request.volume_capabilities),
        context=_split(request.volume_context, "volume_context")[0],
        parameters=parameters | mutable,
        secrets=_secrets(request.secrets),
    )


def controller_publish(request: pb.ControllerPublishVolumeRequest) -> volkit.ControllerPublishRequest:
    return volkit.ControllerPublishRequest(
        volume_id=request.volume_id,
        node_id=_string(request.node_id, "node_id", MAX_NODE_ID),
        capability=_capability(request),
        readonly=request.readonly,
        volume_context=_split(request.volume_context, "volume_context")[0],
        secrets=_secrets(request.secrets),
    )


def controller_unpublish(request: pb.ControllerUnpublishVolumeRequest) -> volkit.ControllerUnpublishRequest:
    return volkit.ControllerUnpublishRequest(
        volume_id=request.volume_id,
        node_id=_string(request.node_id, "node_id", MAX_NODE_ID),
        secrets=_secrets(request.secrets),
    )


def list_volumes(request: pb.ListVolumesRequest) -> volkit.ListRequest:
    return volkit.ListRequest(limit=_limit(request.max_entries), token=request.starting_token)


def get_capacity(request: pb.GetCapacityRequest) -> volkit.CapacityRequest[Any]:
    here = request.HasField("accessible_topology")
    return volkit.CapacityRequest(
        parameters=_split(request.parameters, "parameters")[0],
        capabilities=_capabilities(request.volume_capabilities),
        topology=read_topology(request.accessible_topology) if here else None,
    )


def controller_expand(request: pb.ControllerExpandVolumeRequest) -> volkit.ExpandVolumeRequest:
    if not request.HasField("capacity_range"):
        raise InvalidArgument("capacity_range is required")
    return volkit.ExpandVolumeRequest(
        volume_id=request.volume_id,
        capacity_range=_range(request),
        capability=_capability_or_none(request),
        secrets=_secrets(request.secrets),
    )


def modify_volume(request: pb.ControllerModifyVolumeRequest) -> volkit.ModifyVolumeRequest:
    return volkit.ModifyVolumeRequest(
        volume_id=request.volume_id,
        parameters=_split(request.mutable_parameters, "mutable_parameters")[0],
        secrets=_secrets(request.secrets),
    )


def create_snapshot(request: pb.CreateSnapshotRequest) -> volkit.CreateSnapshotRequest:
    parameters, metadata = _split(request.parameters, "parameters")
    return volkit.CreateSnapshotRequest(
        name=_string(request.name, "name"),
        source_volume_id=request.source_volume_id,
        parameters=parameters,
        secrets=_secrets(request.secrets),
        metadata=metadata,
    )


def delete_snapshot(request: pb.DeleteSnapshotRequest) -> volkit.DeleteSnapshotRequest:
    return volkit.DeleteSnapshotRequest(snapshot_id=request.snapshot_id, secrets=_secrets(request.secrets))


def get_snapshot(request: pb.GetSnapshotRequest) -> volkit.GetSnapshotRequest:
    if not request.snapshot_id:  # the core could also ask by name
        raise InvalidArgument("snapshot_id is required")
    return volkit.GetSnapshotRequest(snapshot_id=request.snapshot_id, secrets=_secrets(request.secrets))


def list_snapshots(request: pb.ListSnapshotsRequest) -> volkit.ListSnapshotsRequest:
    return volkit.ListSnapshotsRequest(
        limit=_limit(request.max_entries),
        token=request.starting_token,
        source_volume_id=request.source_volume_id,
        snapshot_id=request.snapshot_id,
        secrets=_secrets(request.secrets),
    )


def node_stage(request: pb.NodeStageVolumeRequest) -> volkit.NodeStageRequest:
    return volkit.NodeStageRequest(
        volume_id=request.volume_id,
        staging_target_path=_string(request.staging_target_path, "staging_target_path", MAX_PATH),
        capability=_capability(request),
        publish_context=_map(request.publish_context, "publish_context"),
        volume_context=_split(request.volume_context, "volume_context")[0],
        secrets=_secrets(request.secrets),
    )


def node_unstage(request: pb.NodeUnstageVolumeRequest) -> volkit.NodeUnstageRequest:
    return volkit.NodeUnstageRequest(
        volume_id=request.volume_id,
        staging_target_path=_string(request.staging_target_path, "staging_target_path", MAX_PATH),
    )


def node_publish(request: pb.NodePublishVolumeRequest) -> volkit.NodePublishRequest:
    context, metadata = _split(request.volume_context, "volume_context")
    return volkit.NodePublishRequest(
        volume_id=request.volume_id,
        target_path=_string(request.target_path, "target_path", MAX_PATH),
        staging_target_path=_string(request.staging_target_path, "staging_target_path", MAX_PATH),
        capability=_capability(request),
        readonly=request.readonly,
        publish_context=_map(request.publish_context, "publish_context"),
        volume_context=context,
        secrets=_secrets(request.secrets),
        metadata=metadata,
    )


def node_unpublish(request: pb.NodeUnpublishVolumeRequest) -> volkit.NodeUnpublishRequest:
    return volkit.NodeUnpublishRequest(
        volume_id=request.volume_id, target_path=_string(request.target_path, "target_path", MAX_PATH)
    )


def node_expand(request: pb.NodeExpandVolumeRequest) -> volkit.NodeExpandRequest:
    return volkit.NodeExpandRequest(
        volume_id=request.volume_id,
        volume_path=_string(request.volume_path, "volume_path", MAX_PATH),
        staging_target_path=_string(request.staging_target_path, "staging_target_path", MAX_PATH),
        capacity_range=_range(request),
        capability=_capability_or_none(request),
        secrets=_secrets(request.secrets),
    )


def node_stats(request: pb.NodeGetVolumeStatsRequest) -> volkit.NodeStatsRequest:
    return volkit.NodeStatsRequest(
        volume_id=request.volume_id,
        volume_path=_string(request.volume_path, "volume_path", MAX_PATH),
        staging_target_path=_string(request.staging_target_path, "staging_target_path", MAX_PATH),
    )


def node_info(request: pb.NodeGetInfoRequest) -> volkit.NodeInfoRequest:
    return volkit.NodeInfoRequest()
