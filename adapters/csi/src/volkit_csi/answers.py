"""From the values of the core to the messages of the wire: each function named after an operation makes the
answer to a message (its first argument) out of the operation's result.

A core value that the wire cannot hold, such as a size over 2^63 - 1, raises ValueError or TypeError.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import volkit
from volkit import CloneSource, SnapshotSource, Source, Topology, VolumeHealth
from volkit_csi.lean import csi_pb2 as pb

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def write_source(source: Source | None) -> pb.VolumeContentSource | None:
    match source:
        case SnapshotSource(snapshot_id):
            snapshot = pb.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id)
            return pb.VolumeContentSource(snapshot=snapshot)
        case CloneSource(volume_id):
            return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=volume_id))
    return None


def write_topology(topology: Topology | None) -> pb.Topology | None:
    return pb.Topology(segments=topology.segments) if topology is not None else None


def write_volume(volume: volkit.Volume) -> pb.Volume:
    return pb.Volume(
        volume_id=volume.id,
        capacity_bytes=volume.capacity,
        volume_context=volume.context,
        content_source=write_source(volume.source),
        accessible_topology=[pb.Topology(segments=place.segments) for place in volume.topology],
    )


def write_condition(health: VolumeHealth | None) -> pb.VolumeCondition | None:
    return (
        pb.VolumeCondition(abnormal=health.abnormal, message=health.message) if health is not None else None
    )


def write_snapshot(snapshot: volkit.Snapshot) -> pb.Snapshot:
    since = snapshot.created_at - _EPOCH
    return pb.Snapshot(
        snapshot_id=snapshot.id,
        source_volume_id=snapshot.source_volume_id,
        size_bytes=snapshot.size,
        creation_time={"seconds": since.days * 86400 + since.seconds, "nanos": since.microseconds * 1000},
        ready_to_use=snapshot.ready,
    )


def create_volume(_: object, volume: volkit.Volume) -> pb.CreateVolumeResponse:
    return pb.CreateVolumeResponse(volume=write_volume(volume))


def get_volume(_: object, entry: volkit.VolumeEntry) -> pb.ControllerGetVolumeResponse:
    status = pb.ControllerGetVolumeResponse.VolumeStatus(
        published_node_ids=entry.published_node_ids, volume_condition=write_condition(entry.health)
    )
    return pb.ControllerGetVolumeResponse(volume=write_volume(entry.volume), status=status)


def validate(
    request: pb.ValidateVolumeCapabilitiesRequest, result: volkit.ValidateCapabilitiesResult
) -> pb.ValidateVolumeCapabilitiesResponse:
    """Confirms by echoing what was asked for (CSI spec, ValidateVolumeCapabilitiesResponse)."""
    if not result.confirmed:
        return pb.ValidateVolumeCapabilitiesResponse(message=result.message)
    confirmed = pb.ValidateVolumeCapabilitiesResponse.Confirmed(
        volume_context=request.volume_context,
        volume_capabilities=request.volume_capabilities,
        parameters=request.parameters,
        mutable_parameters=request.mutable_parameters,
    )
    return pb.ValidateVolumeCapabilitiesResponse(confirmed=confirmed, message=result.message)


def controller_publish(
    _: object, result: volkit.ControllerPublishResult
) -> pb.ControllerPublishVolumeResponse:
    return pb.ControllerPublishVolumeResponse(publish_context=result.publish_context)


def list_volumes(_: object, page: volkit.Page[volkit.VolumeEntry]) -> pb.ListVolumesResponse:
    entries = [
        pb.ListVolumesResponse.Entry(
            volume=write_volume(entry.volume),
            status=pb.ListVolumesResponse.VolumeStatus(
                published_node_ids=entry.published_node_ids, volume_condition=write_condition(entry.health)
            ),
        )
        for entry in page.entries
    ]
    return pb.ListVolumesResponse(entries=entries, next_token=page.next_token)


def get_capacity(_: object, result: volkit.CapacityResult) -> pb.GetCapacityResponse:
    largest, smallest = result.maximum_volume_size, result.minimum_volume_size
    return pb.GetCapacityResponse(
        available_capacity=result.available,
        maximum_volume_size={"value": largest} if largest is not None else None,
        minimum_volume_size={"value": smallest} if smallest is not None else None,
    )


def controller_expand(_: object, result: volkit.ExpandVolumeResult) -> pb.ControllerExpandVolumeResponse:
    return pb.ControllerExpandVolumeResponse(
        capacity_bytes=result.capacity, node_expansion_required=result.node_expansion_required
    )


def create_snapshot(_: object, snapshot: volkit.Snapshot) -> pb.CreateSnapshotResponse:
    return pb.CreateSnapshotResponse(snapshot=write_snapshot(snapshot))


def get_snapshot(_: object, snapshot: volkit.Snapshot) -> pb.GetSnapshotResponse:
    return pb.GetSnapshotResponse(snapshot=write_snapshot(snapshot))


def list_snapshots(_: object, page: volkit.Page[volkit.Snapshot]) -> pb.ListSnapshotsResponse:
    entries = [pb.ListSnapshotsResponse.Entry(snapshot=write_snapshot(one)) for one in page.entries]
    return pb.ListSnapshotsResponse(entries=entries, next_token=page.next_token)


def node_expand(_: object, result: volkit.NodeExpandResult) -> pb.NodeExpandVolumeResponse:
    return pb.NodeExpandVolumeResponse(capacity_bytes=result.capacity)


def node_stats(_: object, stats: volkit.NodeStats) -> pb.NodeGetVolumeStatsResponse:
    """A row of bytes, and one of inodes where the file system counts them."""
    usage = stats.usage
    rows = [
        pb.VolumeUsage(
            unit=pb.VolumeUsage.BYTES, total=usage.total, used=usage.used, available=usage.available
        )
    ]
    if usage.total_inodes:
        inodes = pb.VolumeUsage(
            unit=pb.VolumeUsage.INODES,
            total=usage.total_inodes,
            used=usage.used_inodes,
            available=usage.available_inodes,
        )
        rows.append(inodes)
    return pb.NodeGetVolumeStatsResponse(usage=rows, volume_condition=write_condition(stats.health))


def node_info(_: object, info: volkit.NodeInfo) -> pb.NodeGetInfoResponse:
    return pb.NodeGetInfoResponse(
        node_id=info.node_id,
        max_volumes_per_node=info.max_volumes,
        accessible_topology=write_topology(info.topology),
    )
