"""From the wire to the core and back: what goes in comes out, and what cannot be right is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import volkit
from volkit import (
    AccessMode,
    AccessType,
    Capability,
    CapacityRange,
    CloneSource,
    InvalidArgument,
    SnapshotSource,
)
from volkit_csi import answers, codec
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.services import CONTROLLER_RPCS, NODE_RPCS, Rpc

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
MAP = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=10), TEXT, max_size=4)
OWN = MAP.filter(lambda values: not any("/" in key for key in values))  # keys that are no platform's

CAPABILITIES = st.one_of(
    st.builds(
        Capability,
        access_mode=st.sampled_from(AccessMode),
        fs_type=TEXT,
        mount_flags=st.lists(TEXT, max_size=3).map(tuple),
        volume_mount_group=st.sampled_from(("", "1000")),
    ),
    st.builds(Capability, access_mode=st.sampled_from(AccessMode), access_type=st.just(AccessType.BLOCK)),
)
TOPOLOGIES = st.builds(volkit.Topology, MAP)
SOURCES = st.one_of(st.none(), st.builds(SnapshotSource, TEXT), st.builds(CloneSource, TEXT))
VOLUMES = st.builds(
    volkit.BlockVolume,
    id=TEXT,
    capacity=st.integers(0, volkit.MAX_BYTES),
    context=MAP,
    topology=st.lists(TOPOLOGIES, max_size=3).map(tuple),
    source=SOURCES,
)
MOMENTS = st.integers(0, 8 * 10**9 * 10**6).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(0, 0, us)
)
SNAPSHOTS = st.builds(
    volkit.Snapshot,
    id=TEXT,
    source_volume_id=TEXT,
    created_at=MOMENTS,
    size=st.integers(0, volkit.MAX_BYTES),
    ready=st.booleans(),
)


def wire_capability(capability: Capability) -> pb.VolumeCapability:
    """The other direction, by the names of the wire."""
    message = pb.VolumeCapability()
    mode: Any = pb.VolumeCapability.AccessMode.Mode.Value(capability.access_mode.name)
    message.access_mode.mode = mode
    if capability.block:
        message.block.SetInParent()
    else:
        message.mount.SetInParent()
        message.mount.fs_type = capability.fs_type
        message.mount.mount_flags.extend(capability.mount_flags)
        message.mount.volume_mount_group = capability.volume_mount_group
    return message


def sent(message: Any) -> Any:
    """The message as it arrives."""
    return type(message).FromString(message.SerializeToString())


MOUNT = wire_capability(Capability(fs_type="ext4"))


# -- there and back ------------------------------------------------------------------------------------------


@given(CAPABILITIES)
def test_capability(capability: Capability) -> None:
    assert codec.read_capability(sent(wire_capability(capability))) == capability


@given(
    name=TEXT,
    parameters=OWN,
    mutable=OWN,
    metadata=TEXT,
    required=INT64,
    limit=INT64,
    capabilities=st.lists(CAPABILITIES, max_size=3),
    source=SOURCES,
    places=st.one_of(
        st.none(), st.tuples(st.lists(TOPOLOGIES, max_size=2), st.lists(TOPOLOGIES, max_size=2))
    ),
    secrets=MAP,
)
def test_create_volume(
    name: str,
    parameters: dict[str, str],
    mutable: dict[str, str],
    metadata: str,
    required: int,
    limit: int,
    capabilities: list[Capability],
    source: SnapshotSource | CloneSource | None,
    places: tuple[list[volkit.Topology], list[volkit.Topology]] | None,
    secrets: dict[str, str],
) -> None:
    platform = {"csi.storage.k8s.io/pvc/name": metadata}
    message = pb.CreateVolumeRequest(
        name=name,
        parameters=parameters | platform,
        mutable_parameters=mutable,
        capacity_range={"required_bytes": required, "limit_bytes": limit},
        volume_capabilities=[wire_capability(one) for one in capabilities],
        volume_content_source=answers.write_source(source),
        secrets=secrets,
    )
    if places is not None:
        message.accessibility_requirements.SetInParent()
        for name_, topologies in zip(("requisite", "preferred"), places, strict=True):
            for one in topologies:
                getattr(message.accessibility_requirements, name_).add(segments=dict(one.segments))
    request = codec.create_volume(sent(message))
    expected = volkit.CreateVolumeRequest(
        name=name,
        parameters=parameters,
        mutable_parameters=mutable,
        capacity_range=CapacityRange(required=required, limit=limit),
        capabilities=tuple(capabilities),
        source=source,
        topology=None
        if places is None
        else volkit.TopologyRequirement(requisite=tuple(places[0]), preferred=tuple(places[1])),
        secrets=request.secrets,
        metadata=platform,
    )
    assert request == expected
    assert dict(request.secrets) == secrets


@given(VOLUMES)
def test_volume(volume: volkit.Volume) -> None:
    message = sent(answers.write_volume(volume))
    source = codec.read_source(message.content_source) if message.HasField("content_source") else None
    topology = tuple(codec.read_topology(one) for one in message.accessible_topology)
    back = volkit.BlockVolume(
        id=message.volume_id,
        capacity=message.capacity_bytes,
        context=dict(message.volume_context),
        topology=topology,
        source=source,
    )
    assert back == volume


@given(SNAPSHOTS)
def test_snapshot(snapshot: volkit.Snapshot) -> None:
    message = sent(answers.write_snapshot(snapshot))
    back = volkit.Snapshot(
        id=message.snapshot_id,
        source_volume_id=message.source_volume_id,
        created_at=message.creation_time.ToDatetime(tzinfo=UTC),
        size=message.size_bytes,
        ready=message.ready_to_use,
    )
    assert back == snapshot


def test_a_snapshot_of_another_time_zone_is_the_same_moment() -> None:
    east = datetime(2026, 3, 1, 2, 0, tzinfo=timezone(timedelta(hours=9)))
    message = answers.write_snapshot(volkit.Snapshot(id="s", source_volume_id="v", created_at=east))
    assert message.creation_time.ToDatetime(tzinfo=UTC) == datetime(2026, 2, 28, 17, 0, tzinfo=UTC)


@given(volume_id=TEXT, path=TEXT, staging=TEXT, context=OWN, publish=MAP, pod=TEXT, readonly=st.booleans())
def test_node_publish(
    volume_id: str,
    path: str,
    staging: str,
    context: dict[str, str],
    publish: dict[str, str],
    pod: str,
    readonly: bool,
) -> None:
    platform = {"csi.storage.k8s.io/pod.name": pod}
    message = pb.NodePublishVolumeRequest(
        volume_id=volume_id,
        target_path=path,
        staging_target_path=staging,
        volume_capability=MOUNT,
        readonly=readonly,
        volume_context=context | platform | {"storage.kubernetes.io/csiProvisionerIdentity": "17-x"},
        publish_context=publish,
    )
    assert codec.node_publish(sent(message)) == volkit.NodePublishRequest(
        volume_id=volume_id,
        target_path=path,
        staging_target_path=staging,
        capability=Capability(fs_type="ext4"),
        readonly=readonly,
        publish_context=publish,
        volume_context=context,
        metadata=platform | {"storage.kubernetes.io/csiProvisionerIdentity": "17-x"},
    )


# -- what is not set -----------------------------------------------------------------------------------------

NEED_CAPABILITY = [
    row.request
    for row in (*CONTROLLER_RPCS, *NODE_RPCS)
    if row.operation in ("controller_publish", "node_stage", "node_publish")
]


def row_of(request: type) -> Rpc:
    return next(row for row in (*CONTROLLER_RPCS, *NODE_RPCS) if row.request is request)


@pytest.mark.parametrize("request_class", NEED_CAPABILITY, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("capability", "message"),
    [
        (None, "volume_capability is required"),
        (pb.VolumeCapability(), "volume_capability.access_type is required"),
        (pb.VolumeCapability(access_mode={"mode": 1}), "volume_capability.access_type is required"),
        (pb.VolumeCapability(block={}), "volume_capability.access_mode is required"),
        (pb.VolumeCapability(mount={}, access_mode={}), "volume_capability.access_mode is required"),
        (pb.VolumeCapability(mount={}, access_mode={"mode": 99}), "volume_capability.access_mode is 99"),
        (pb.VolumeCapability(mount={}, access_mode={"mode": -1}), "volume_capability.access_mode is -1"),
    ],
)
def test_capability_that_is_not_whole(request_class: Any, capability: Any, message: str) -> None:
    request = sent(request_class(volume_id="v", volume_capability=capability))
    with pytest.raises(InvalidArgument, match=message):
        row_of(request_class).read(request)


@pytest.mark.parametrize(
    "request_class", [pb.CreateVolumeRequest, pb.ValidateVolumeCapabilitiesRequest, pb.GetCapacityRequest]
)
def test_the_faulty_one_of_several_capabilities_is_named(request_class: Any) -> None:
    request = request_class(volume_capabilities=[MOUNT, pb.VolumeCapability(block={})])
    with pytest.raises(InvalidArgument, match=r"volume_capabilities\[1\].access_mode is required"):
        row_of(request_class).read(sent(request))


@pytest.mark.parametrize("request_class", [pb.ControllerExpandVolumeRequest, pb.NodeExpandVolumeRequest])
def test_an_optional_capability(request_class: Any) -> None:
    request = request_class(capacity_range={"required_bytes": 1})
    assert row_of(request_class).read(sent(request)).capability is None  # type: ignore[attr-defined]
    request.volume_capability.CopyFrom(MOUNT)
    assert row_of(request_class).read(sent(request)).capability == Capability(fs_type="ext4")  # type: ignore[attr-defined]
    request.volume_capability.Clear()
    with pytest.raises(InvalidArgument, match="access_type is required"):
        row_of(request_class).read(sent(request))


def test_both_access_types_cannot_be_sent() -> None:
    """On the wire the last of a oneof wins; that is the volume the caller gets."""
    both = MOUNT.SerializeToString() + pb.VolumeCapability(block={}).SerializeToString()
    assert codec.read_capability(pb.VolumeCapability.FromString(both)).block


def test_a_source_without_a_kind() -> None:
    request = pb.CreateVolumeRequest(name="a", volume_content_source={})
    with pytest.raises(InvalidArgument, match="volume_content_source"):
        codec.create_volume(sent(request))


def test_a_set_but_empty_source_reaches_the_engine() -> None:
    request = codec.create_volume(sent(pb.CreateVolumeRequest(volume_content_source={"snapshot": {}})))
    assert request.source == SnapshotSource("")


def test_an_unset_range_is_open_for_all_but_the_controllers_expansion() -> None:
    assert codec.create_volume(pb.CreateVolumeRequest()).capacity_range == CapacityRange()
    assert codec.node_expand(pb.NodeExpandVolumeRequest()).capacity_range == CapacityRange()
    with pytest.raises(InvalidArgument, match="capacity_range is required"):
        codec.controller_expand(pb.ControllerExpandVolumeRequest(volume_id="v"))


def test_unset_topology_is_not_an_empty_one() -> None:
    assert codec.create_volume(pb.CreateVolumeRequest()).topology is None
    here = codec.create_volume(pb.CreateVolumeRequest(accessibility_requirements={}))
    assert here.topology == volkit.TopologyRequirement()
    assert codec.get_capacity(pb.GetCapacityRequest()).topology is None
    assert codec.get_capacity(pb.GetCapacityRequest(accessible_topology={})).topology == volkit.Topology()


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (codec.get_volume, pb.ControllerGetVolumeRequest()),
        (codec.get_snapshot, pb.GetSnapshotRequest()),
    ],
)
def test_look_ups_that_the_core_could_take_for_one_by_name(read: Callable[[Any], Any], message: Any) -> None:
    with pytest.raises(InvalidArgument, match="_id is required"):
        read(message)


@pytest.mark.parametrize("row", [*CONTROLLER_RPCS, *NODE_RPCS], ids=lambda row: row.method)
def test_reading_leaves_the_message_alone(row: Rpc) -> None:
    """To look a missing key of a protobuf map up would insert it; to touch an unset message could set it."""
    message = row.request()
    names = message.DESCRIPTOR.fields_by_name
    if "capacity_range" in names:
        message.capacity_range.required_bytes = 1  # type: ignore[attr-defined]
    if "volume_capability" in names:
        message.volume_capability.CopyFrom(MOUNT)  # type: ignore[attr-defined]
    for name in ("volume_id", "snapshot_id"):
        if name in names:
            setattr(message, name, "x")
    before = message.SerializeToString()
    row.read(message)
    assert message.SerializeToString() == before


# -- limits of the wire --------------------------------------------------------------------------------------


def refused(read: Callable[[Any], Any], message: Any, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        read(sent(message))


@pytest.mark.parametrize("letter", ["a", "é", "\N{GRINNING FACE}"])
def test_strings_are_measured_in_bytes(letter: str) -> None:
    width = len(letter.encode())
    fits = letter * (128 // width)
    assert codec.create_volume(sent(pb.CreateVolumeRequest(name=fits))).name == fits
    refused(codec.create_volume, pb.CreateVolumeRequest(name=fits + letter), "name has")
    refused(codec.create_snapshot, pb.CreateSnapshotRequest(name=fits + letter), "name has")
    mount = {"fs_type": fits + letter}
    refused(codec.read_capability, pb.VolumeCapability(mount=mount, access_mode={"mode": 1}), ".*fs_type has")
    mount = {"volume_mount_group": fits + letter}
    refused(
        codec.read_capability, pb.VolumeCapability(mount=mount, access_mode={"mode": 1}), ".*mount_group has"
    )


def test_node_ids_have_256_bytes() -> None:
    fits = "n" * 256
    publish = pb.ControllerPublishVolumeRequest(node_id=fits, volume_capability=MOUNT)
    assert codec.controller_publish(publish).node_id == fits
    assert codec.controller_unpublish(pb.ControllerUnpublishVolumeRequest(node_id=fits)).node_id == fits
    publish.node_id += "n"
    refused(codec.controller_publish, publish, "node_id has 257 bytes")
    refused(
        codec.controller_unpublish, pb.ControllerUnpublishVolumeRequest(node_id=fits + "n"), "node_id has"
    )


@pytest.mark.parametrize("field", ["target_path", "staging_target_path", "volume_path"])
def test_paths_may_be_long(field: str) -> None:
    rows = [row for row in NODE_RPCS if field in row.request.DESCRIPTOR.fields_by_name]
    assert rows
    for row in rows:
        message: Any = row.request(volume_id="v")
        if "volume_capability" in row.request.DESCRIPTOR.fields_by_name:
            message.volume_capability.CopyFrom(MOUNT)
        setattr(message, field, "/" + "p" * 4095)
        assert len(getattr(row.read(sent(message)), field)) == 4096
        setattr(message, field, "/" + "p" * 4096)
        refused(row.read, message, f"{field} has 4097 bytes")


def test_long_ids_of_an_existing_driver_are_taken() -> None:
    id_ = "projects/p/zones/z/disks/" + "d" * 300
    assert codec.delete_volume(sent(pb.DeleteVolumeRequest(volume_id=id_))).volume_id == id_
    assert codec.delete_snapshot(sent(pb.DeleteSnapshotRequest(snapshot_id=id_))).snapshot_id == id_


MAPS = [
    (row, field.name)
    for row in (*CONTROLLER_RPCS, *NODE_RPCS)
    for field in row.request.DESCRIPTOR.fields
    if field.message_type is not None
    and field.message_type.GetOptions().map_entry
    and field.name != "secrets"
]


@pytest.mark.parametrize(("row", "field"), MAPS, ids=lambda one: one if isinstance(one, str) else one.method)
def test_maps_have_4_kib(row: Rpc, field: str) -> None:
    message: Any = row.request()
    if "volume_capability" in row.request.DESCRIPTOR.fields_by_name:
        message.volume_capability.CopyFrom(MOUNT)
    entries = getattr(message, field)
    entries["key1"], entries["é"] = "v" * 2048, "v" * (4096 - 4 - 2048 - 2)
    row.read(sent(message))
    entries["é"] += "v"
    refused(row.read, message, f"{field} has 4097 bytes")


def test_topology_segments_have_4_kib() -> None:
    big = {"k": "v" * 4096}
    requirement = {"requisite": [{}, {"segments": big}]}
    create = pb.CreateVolumeRequest(accessibility_requirements=requirement)
    refused(codec.create_volume, create, r"accessibility_requirements.requisite\[1\].segments has")
    capacity = pb.GetCapacityRequest(accessible_topology={"segments": big})
    refused(codec.get_capacity, capacity, "accessible_topology.segments has")


def test_what_the_platform_adds_does_not_count() -> None:
    """Two service-account tokens are larger than a map may be; kubelet adds them to what the volume has."""
    tokens = {"csi.storage.k8s.io/serviceAccount.tokens": "t" * 9000}
    message = pb.NodePublishVolumeRequest(volume_capability=MOUNT, volume_context=tokens | {"pool": "a"})
    request = codec.node_publish(sent(message))
    assert dict(request.volume_context) == {"pool": "a"}
    assert dict(request.metadata) == tokens


def test_secrets_may_be_certificates() -> None:
    request = codec.node_stage(
        sent(pb.NodeStageVolumeRequest(volume_capability=MOUNT, secrets={"ca.crt": "c" * 20_000}))
    )
    assert len(request.secrets["ca.crt"]) == 20_000
    assert "ccc" not in repr(request)


def test_mount_flags_have_4_kib_and_are_not_repeated() -> None:
    flags = ["password=hunter2", "f" * 4080]
    message = pb.VolumeCapability(mount={"mount_flags": flags}, access_mode={"mode": 1})
    assert codec.read_capability(sent(message)).mount_flags == tuple(flags)
    message.mount.mount_flags.append("x")
    with pytest.raises(InvalidArgument, match="mount_flags are over 4096 bytes") as caught:
        codec.read_capability(sent(message))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "row", [row for row in CONTROLLER_RPCS if row.method.startswith("List")], ids=lambda row: row.method
)
def test_a_negative_number_of_entries(row: Rpc) -> None:
    refused(row.read, row.request(max_entries=-1), "max_entries is -1")


@given(INT64, INT64)
def test_every_size_reaches_the_engine(required: int, limit: int) -> None:
    sizes = {"required_bytes": required, "limit_bytes": limit}
    expected = CapacityRange(required=required, limit=limit)
    expand = pb.ControllerExpandVolumeRequest(capacity_range=sizes)
    assert codec.controller_expand(sent(expand)).capacity_range == expected
    assert (
        codec.node_expand(sent(pb.NodeExpandVolumeRequest(capacity_range=sizes))).capacity_range == expected
    )


# -- answers -------------------------------------------------------------------------------------------------


def test_validation_echoes_what_was_asked() -> None:
    request = pb.ValidateVolumeCapabilitiesRequest(
        volume_id="v",
        volume_context={"a": "b"},
        volume_capabilities=[MOUNT],
        parameters={"c": "d"},
        mutable_parameters={"e": "f"},
        secrets={"s": "hunter2"},
    )
    answer = answers.validate(request, volkit.ValidateCapabilitiesResult(confirmed=True))
    for name in ("volume_context", "volume_capabilities", "parameters", "mutable_parameters"):
        assert getattr(answer.confirmed, name) == getattr(request, name)
    assert not answer.message
    assert b"hunter2" not in answer.SerializeToString()
    read = codec.validate(request)
    assert dict(read.parameters) == {"c": "d", "e": "f"}
    refusal = answers.validate(request, volkit.ValidateCapabilitiesResult(confirmed=False, message="no"))
    assert not refusal.HasField("confirmed")
    assert refusal.message == "no"


def test_usage_rows() -> None:
    usage = volkit.Usage(total=10, used=3, available=7, total_inodes=5, used_inodes=1, available_inodes=4)
    health = volkit.VolumeHealth(abnormal=True, message="read-only")
    answer = answers.node_stats(None, volkit.NodeStats(usage=usage, health=health))
    rows = [(row.unit, row.total, row.used, row.available) for row in answer.usage]
    assert rows == [(pb.VolumeUsage.BYTES, 10, 3, 7), (pb.VolumeUsage.INODES, 5, 1, 4)]
    assert (answer.volume_condition.abnormal, answer.volume_condition.message) == (True, "read-only")
    block = answers.node_stats(None, volkit.NodeStats(usage=volkit.Usage(total=10)))
    assert [row.unit for row in block.usage] == [pb.VolumeUsage.BYTES]
    assert block.HasField("volume_condition")


def test_capacity_bounds_are_told_apart_from_zero() -> None:
    unknown = sent(answers.get_capacity(None, volkit.CapacityResult(available=5)))
    assert unknown.available_capacity == 5
    assert not unknown.HasField("maximum_volume_size")
    assert not unknown.HasField("minimum_volume_size")
    result = volkit.CapacityResult(available=0, maximum_volume_size=0, minimum_volume_size=1)
    known = sent(answers.get_capacity(None, result))
    assert known.HasField("maximum_volume_size")
    assert known.minimum_volume_size.value == 1


def test_node_info() -> None:
    bare = sent(answers.node_info(None, volkit.NodeInfo(node_id="n1")))
    assert (bare.node_id, bare.max_volumes_per_node) == ("n1", 0)
    assert not bare.HasField("accessible_topology")
    place = volkit.Topology({"volkit.io/node": "n1"})
    full = sent(answers.node_info(None, volkit.NodeInfo(node_id="n1", topology=place, max_volumes=8)))
    assert full.max_volumes_per_node == 8
    assert codec.read_topology(full.accessible_topology) == place


@given(st.lists(st.tuples(VOLUMES, st.lists(TEXT, max_size=2)), max_size=3), TEXT)
def test_a_page_of_volumes(volumes: list[tuple[volkit.Volume, list[str]]], token: str) -> None:
    entries = [
        volkit.VolumeEntry(
            volume=one, published_node_ids=tuple(nodes), health=volkit.VolumeHealth(message="ok")
        )
        for one, nodes in volumes
    ]
    page = sent(answers.list_volumes(None, volkit.Page(entries=tuple(entries), next_token=token)))
    assert page.next_token == token
    assert [entry.volume for entry in page.entries] == [answers.write_volume(one) for one, _ in volumes]
    assert [list(entry.status.published_node_ids) for entry in page.entries] == [
        nodes for _, nodes in volumes
    ]
    assert all(entry.status.volume_condition.message == "ok" for entry in page.entries)


def test_health_that_nobody_tells_is_not_reported() -> None:
    entry = volkit.VolumeEntry(volume=volkit.BlockVolume(id="v"))
    answer = answers.get_volume(None, entry)
    assert answer.HasField("status")
    assert not answer.status.HasField("volume_condition")
    assert (
        not answers.list_volumes(None, volkit.Page(entries=(entry,)))
        .entries[0]
        .status.HasField("volume_condition")
    )
