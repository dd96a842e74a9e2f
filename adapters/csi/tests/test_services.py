"""The services: the table is whole, capabilities follow the backend's classes, and a call ends as it
should.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import volkit
from volkit import AccessMode, Call, Engine
from volkit.testing.memory import MemoryBackend, MemoryController, MemoryNode, memory_settings
from volkit_csi import services
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.server import Handler, ServerContext
from volkit_csi.services import CONTROLLER, CONTROLLER_RPCS, IDENTITY, NODE, NODE_RPCS, Plugin, Rpc, handlers
from volkit_csi.status import Code, RpcError

PLUGIN = Plugin(name="memory.csi.volkit.io", version="1.2", manifest={"backend": "memory"})
ROWS = (*CONTROLLER_RPCS, *NODE_RPCS)
MOUNT = pb.VolumeCapability(mount={"fs_type": ""}, access_mode={"mode": 1})
VOLUME = volkit.FileVolume(id="vol-1", capacity=1024, context={"pool": "a"})
SNAPSHOT = volkit.Snapshot(id="snap-1", source_volume_id="vol-1", created_at=datetime(2026, 1, 1, tzinfo=UTC))

RESULTS: Mapping[str, Any] = {
    "create_volume": VOLUME,
    "get_volume": volkit.VolumeEntry(volume=VOLUME, published_node_ids=("n1",)),
    "validate_capabilities": volkit.ValidateCapabilitiesResult(confirmed=True),
    "controller_publish": volkit.ControllerPublishResult(publish_context={"lun": "1"}),
    "list_volumes": volkit.Page(entries=(volkit.VolumeEntry(volume=VOLUME),), next_token="after:vol-1"),
    "expand_volume": volkit.ExpandVolumeResult(capacity=2048),
    "get_capacity": volkit.CapacityResult(available=1 << 40),
    "create_snapshot": SNAPSHOT,
    "get_snapshot": SNAPSHOT,
    "list_snapshots": volkit.Page(entries=(SNAPSHOT,)),
    "node_expand": volkit.NodeExpandResult(capacity=2048),
    "node_stats": volkit.NodeStats(usage=volkit.Usage(total=10)),
    "node_info": volkit.NodeInfo(node_id="n1"),
}
"""What each operation that answers something answers."""


class FakeEngine:
    """Offers what an engine offers; records what is run, and answers out of a table or raises."""

    def __init__(self, answer: Callable[[str], Any] = RESULTS.get) -> None:
        self.backend = MemoryBackend
        self.controller = object()
        self.node = object()
        self.operations = volkit.OPERATIONS
        self.answer = answer
        self.calls: list[tuple[str, Any, Call]] = []
        self.broken = ""

    def needs_restart(self) -> str:
        return self.broken

    def has(self, mixin: type[volkit.Mixin]) -> bool:
        return issubclass(MemoryController, mixin) or issubclass(MemoryNode, mixin)

    def run(self, operation: str, request: Any, call: Call) -> Any:
        self.calls.append((operation, request, call))
        return self.answer(operation)


def serve(engine: Any, **options: Any) -> dict[str, dict[str, Handler]]:
    return handlers(engine, PLUGIN, **options)


def whole(row: Rpc) -> Any:
    """A request that lacks nothing the adapter looks at."""
    message: Any = row.request()
    names = message.DESCRIPTOR.fields_by_name
    for name in ("volume_id", "snapshot_id", "name", "node_id", "source_volume_id"):
        if name in names:
            setattr(message, name, "x-1")
    if "capacity_range" in names:
        message.capacity_range.required_bytes = 2048
    if "volume_capability" in names:
        message.volume_capability.CopyFrom(MOUNT)
    if "volume_capabilities" in names:
        message.volume_capabilities.add().CopyFrom(MOUNT)
    return message


def call(served: Mapping[str, Mapping[str, Handler]], message: Any, *, deadline: float | None = None) -> Any:
    """One call, and its answer read."""
    method = message.DESCRIPTOR.name.removesuffix("Request")
    service, handler = next((name, methods[method]) for name, methods in served.items() if method in methods)
    data = handler(message.SerializeToString(), ServerContext(f"/{service}/{method}", deadline))
    return getattr(pb, f"{method}Response").FromString(data)


def code(served: Mapping[str, Mapping[str, Handler]], message: Any) -> Code:
    with pytest.raises(RpcError) as caught:
        call(served, message)
    return caught.value.code


# -- the table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("Identity", 3), ("Controller", 15), ("Node", 8)])
def test_every_rpc_of_the_wire_is_served(name: str, count: int) -> None:
    methods = serve(FakeEngine())[f"csi.v1.{name}"]
    assert methods.keys() == {one.name for one in pb.DESCRIPTOR.services_by_name[name].methods}
    assert len(methods) == count


def test_rows_have_the_requests_of_the_wire_and_operations_of_the_table() -> None:
    wire = {
        one.name: one.input_type
        for name in ("Controller", "Node")
        for one in pb.DESCRIPTOR.services_by_name[name].methods
    }
    for row in ROWS:
        assert row.request.DESCRIPTOR is wire[row.method]
        assert (row.write is None) == (volkit.OPERATIONS[row.operation].result is None)
    assert sorted(row.operation for row in ROWS) == sorted(volkit.OPERATIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.method)
def test_each_rpc_runs_its_operation(row: Rpc) -> None:
    engine = FakeEngine()
    answer = call(serve(engine), whole(row))
    [(operation, request, _)] = engine.calls
    assert operation == row.operation
    assert type(request) is volkit.OPERATIONS[operation].request
    assert bool(answer.ListFields()) == (row.operation in RESULTS)


# -- identity and capabilities -------------------------------------------------------------------------------


def test_plugin_info() -> None:
    answer = call(serve(FakeEngine()), pb.GetPluginInfoRequest())
    assert (answer.name, answer.vendor_version) == ("memory.csi.volkit.io", "1.2")
    assert dict(answer.manifest) == {"backend": "memory"}


def test_probe_is_ready_and_asks_nobody() -> None:
    engine = FakeEngine()
    answer = call(serve(engine), pb.ProbeRequest())
    assert answer.HasField("ready")
    assert answer.ready.value
    assert not engine.calls


@pytest.fixture
def engine_of(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Makes real engines."""
    made: list[Engine] = []

    def make(backend: Any = MemoryBackend, **options: Any) -> Engine:
        settings = memory_settings(root=tmp_path / "root")
        state_dir = tmp_path / f"state-{len(made)}"
        state_dir.mkdir()
        made.append(Engine(backend, settings, state_dir=state_dir, **{"node_id": "n1", **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def names(answer: Any) -> set[str]:
    """The capabilities in an answer, by their names on the wire."""
    found = set()
    for one in answer.capabilities:
        kind = one.WhichOneof("type")
        inner = getattr(one, kind)
        prefix = "" if kind == "rpc" else f"{kind}:"
        found.add(prefix + inner.DESCRIPTOR.enum_types_by_name["Type"].values_by_number[inner.type].name)
    return found


class LeastController(volkit.Controller[Any, Any], volkit.FindsByName):
    """Makes, deletes and finds."""

    def create_volume(self, request: Any) -> volkit.Volume:
        return VOLUME

    def delete_volume(self, request: Any) -> None: ...

    def get_volume(self, request: Any) -> volkit.Volume:
        return VOLUME


class OfflineController(LeastController, volkit.Expands, volkit.ExpandsOffline):
    """Grows what nobody uses."""

    def expand_volume(self, request: Any) -> volkit.ExpandVolumeResult:
        return volkit.ExpandVolumeResult(capacity=request.size)


class PodNode(MemoryNode, volkit.ConnectsPerPod):
    """Connects for each pod."""


def backend_of(controller: Any, node: Any = MemoryNode, **rest: Any) -> Any:
    fields = {"name": "made", "settings": MemoryBackend.settings, "parameters": MemoryBackend.parameters}
    return type("Made", (volkit.Backend,), {**fields, "controller": controller, "node": node, **rest})


ALL_CONTROLLER = {
    "CREATE_DELETE_VOLUME",
    "PUBLISH_UNPUBLISH_VOLUME",
    "LIST_VOLUMES",
    "GET_CAPACITY",
    "CREATE_DELETE_SNAPSHOT",
    "LIST_SNAPSHOTS",
    "CLONE_VOLUME",
    "PUBLISH_READONLY",
    "EXPAND_VOLUME",
    "LIST_VOLUMES_PUBLISHED_NODES",
    "VOLUME_CONDITION",
    "GET_VOLUME",
    "SINGLE_NODE_MULTI_WRITER",
    "MODIFY_VOLUME",
    "GET_SNAPSHOT",
}
ALL_NODE = {
    "STAGE_UNSTAGE_VOLUME",
    "GET_VOLUME_STATS",
    "EXPAND_VOLUME",
    "VOLUME_CONDITION",
    "SINGLE_NODE_MULTI_WRITER",
    "VOLUME_MOUNT_GROUP",
}


def test_a_backend_with_everything_reports_everything(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of())
    assert names(call(served, pb.ControllerGetCapabilitiesRequest())) == ALL_CONTROLLER
    assert names(call(served, pb.NodeGetCapabilitiesRequest())) == ALL_NODE
    plugin = names(call(served, pb.GetPluginCapabilitiesRequest()))
    assert plugin == {"service:CONTROLLER_SERVICE", "volume_expansion:ONLINE"}


def test_every_capability_of_the_wire_is_decided_upon() -> None:
    """A newer wire brings names that are not in the tables yet."""
    wire = set(pb.ControllerServiceCapability.RPC.Type.keys()) - {"UNKNOWN"}
    assert wire == services.CONTROLLER_CAPABILITIES.keys() == ALL_CONTROLLER
    node = set(pb.NodeServiceCapability.RPC.Type.keys()) - {"UNKNOWN"}
    assert node == services.NODE_CAPABILITIES.keys() == ALL_NODE


def test_the_documentation_names_every_capability_and_what_it_takes() -> None:
    page = (Path(__file__).parents[3] / "docs/csi.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (controller|node) \| ([A-Z_]+) \| (.*) \|$", page, re.MULTILINE)
    told = {(service, name): why for service, name, why in rows}
    tables = {"controller": services.CONTROLLER_CAPABILITIES, "node": services.NODE_CAPABILITIES}
    assert told.keys() == {(service, name) for service, table in tables.items() for name in table}
    for (service, name), why in told.items():
        need = tables[service][name]
        if isinstance(need, str):
            row = volkit.OPERATIONS[need]
            expected = f"`{row.mixin.__name__}`" if row.mixin else "always"
            expected = f"unless `{row.without.__name__}`" if row.without else expected
        elif isinstance(need, AccessMode):
            expected = "unless the backend's `limits` leave that mode out"
        else:
            expected = f"`{need.__name__}`"
        assert why.startswith(expected), (service, name)


def test_a_backend_with_the_least(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of(backend_of(LeastController, PodNode)))
    assert names(call(served, pb.ControllerGetCapabilitiesRequest())) == {
        "CREATE_DELETE_VOLUME",
        "GET_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
    }
    assert names(call(served, pb.NodeGetCapabilitiesRequest())) == ALL_NODE - {
        "STAGE_UNSTAGE_VOLUME",
        "EXPAND_VOLUME",
    }
    assert names(call(served, pb.GetPluginCapabilitiesRequest())) == {"service:CONTROLLER_SERVICE"}
    for message in (pb.ListVolumesRequest(), pb.CreateSnapshotRequest(), pb.NodeStageVolumeRequest()):
        assert code(served, message) is Code.UNIMPLEMENTED, message


def test_offline_expansion(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of(backend_of(OfflineController)))
    plugin = names(call(served, pb.GetPluginCapabilitiesRequest()))
    assert plugin == {"service:CONTROLLER_SERVICE", "volume_expansion:OFFLINE"}
    assert "EXPAND_VOLUME" in names(call(served, pb.NodeGetCapabilitiesRequest()))


def test_an_access_mode_that_the_storage_has_not(engine_of: Callable[..., Engine]) -> None:
    modes = frozenset(AccessMode) - {AccessMode.SINGLE_NODE_MULTI_WRITER}
    served = serve(engine_of(backend_of(MemoryController, limits=volkit.Limits(access_modes=modes))))
    for message in (pb.ControllerGetCapabilitiesRequest(), pb.NodeGetCapabilitiesRequest()):
        assert "SINGLE_NODE_MULTI_WRITER" not in names(call(served, message))


def test_a_node_apart(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of(services=("node",)))
    assert served.keys() == {IDENTITY, CONTROLLER, NODE}
    assert served[CONTROLLER].keys() == {"ControllerGetCapabilities"}
    assert names(call(served, pb.ControllerGetCapabilitiesRequest())) == set()
    assert names(call(served, pb.NodeGetCapabilitiesRequest())) == ALL_NODE
    # the controller runs elsewhere, and every instance has to answer alike
    plugin = names(call(served, pb.GetPluginCapabilitiesRequest()))
    assert plugin == {"service:CONTROLLER_SERVICE", "volume_expansion:ONLINE"}


def test_a_node_without_any_controller(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of(services=("node",)), headless=True)
    assert names(call(served, pb.GetPluginCapabilitiesRequest())) == set()


def test_a_controller_apart(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of(services=("controller",), node_id=""))
    assert served.keys() == {IDENTITY, CONTROLLER}
    assert names(call(served, pb.ControllerGetCapabilitiesRequest())) == ALL_CONTROLLER


def test_constrained(engine_of: Callable[..., Engine]) -> None:
    def reported(engine: Any) -> set[str]:
        return names(call(serve(engine), pb.GetPluginCapabilitiesRequest()))

    assert "service:VOLUME_ACCESSIBILITY_CONSTRAINTS" not in reported(engine_of())
    engine = FakeEngine()
    engine.has = lambda mixin: True  # type: ignore[method-assign]
    assert "service:VOLUME_ACCESSIBILITY_CONSTRAINTS" in reported(engine)


# -- how a call ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [one for methods in serve(FakeEngine()).values() for one in methods])
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\x01", b"\x0a"], ids=["tag", "cut", "short"])
def test_what_is_no_message(method: str, data: bytes) -> None:
    engine = FakeEngine()
    served = serve(engine)
    handler = next(methods[method] for methods in served.values() if method in methods)
    with pytest.raises(RpcError) as caught:
        handler(data, ServerContext(method))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"the request is not a readable csi.v1.{method}Request"
    assert not engine.calls


def test_a_string_that_is_no_text() -> None:
    with pytest.raises(RpcError) as caught:
        serve(FakeEngine())[CONTROLLER]["DeleteVolume"](b"\x0a\x01\xff", ServerContext("DeleteVolume"))
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("error", volkit.ERRORS)
def test_an_error_of_the_engine_is_answered_by_its_code(error: type[volkit.VolkitError]) -> None:
    def fail(operation: str) -> None:
        raise error("no\nluck")

    served = serve(FakeEngine(fail))
    with pytest.raises(RpcError) as caught:
        call(served, pb.DeleteVolumeRequest(volume_id="v"))
    assert caught.value.message == "no luck"
    assert caught.value.__cause__ is None
    assert caught.value.code.name not in ("OK", "INTERNAL", "UNKNOWN")


def test_a_volume_that_cannot_do_it() -> None:
    def fail(operation: str) -> None:
        raise volkit.UnsupportedVolume("no raw block")

    served = serve(FakeEngine(fail))
    codes = {row.method: code(served, whole(row)) for row in ROWS}
    preconditions = {method for method, one in codes.items() if one is Code.FAILED_PRECONDITION}
    assert preconditions == {"ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"}
    assert set(codes.values()) == {Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT}


@pytest.mark.parametrize(
    "result",
    [
        volkit.FileVolume(id="v", capacity=2**63),
        volkit.FileVolume(id="hunter2\udc80"),
        volkit.FileVolume(id=17),  # type: ignore[arg-type]
        None,
    ],
    ids=["too large", "no text", "no string", "nothing"],
)
def test_a_result_that_the_wire_cannot_hold(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The volume is made: an answer that the provisioner takes as final would leak it."""
    served = serve(FakeEngine({"create_volume": result}.get))
    with pytest.raises(RpcError) as caught:
        call(served, pb.CreateVolumeRequest(name="pvc"))
    assert caught.value.code is Code.UNAVAILABLE
    assert "see the driver's log" in caught.value.message
    assert "answers.py" in caplog.text
    assert "hunter2" not in caplog.text


def test_deadlines_become_patience() -> None:
    engine = FakeEngine()
    served = serve(engine)
    now = time.monotonic()
    for deadline in (None, now + 60, now + 1, now - 1):
        call(served, pb.DeleteVolumeRequest(volume_id="v"), deadline=deadline)
    without, far, near, past = (one for _, _, one in engine.calls)
    assert (without.deadline, without.wait) == (None, 2.0)
    assert (far.deadline, far.wait) == (now + 60, 2.0)
    assert 0.0 <= near.patience() <= 0.9
    assert past.patience() == 0.0


# -- the log -------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What volkit's own log would say, as JSON lines."""
    root = logging.getLogger()
    handlers_, level = root.handlers[:], root.level
    root.handlers[:] = []
    stream = StringIO()
    volkit.launch.configure_logging("info", "json", stream)
    yield stream
    root.handlers[:] = handlers_
    root.setLevel(level)


def lines(log: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_only_what_the_engine_never_saw_is_logged_here(log: StringIO) -> None:
    """How an operation ended is one line of the engine's own (tests/test_events.py)."""
    served = serve(FakeEngine())
    for row in ROWS:
        call(served, whole(row))
    assert lines(log) == []
    with pytest.raises(RpcError):
        call(served, pb.CreateVolumeRequest(name="x" * 200))
    [line] = lines(log)
    assert (line["rpc"], line["level"]) == ("CreateVolume", "info")
    assert "INVALID_ARGUMENT" in line["message"]
    assert line["request"]


def test_an_id_cannot_fake_a_line(log: StringIO) -> None:
    with pytest.raises(RpcError):
        call(serve(FakeEngine()), pb.CreateVolumeRequest(name="v\nerror: on fire" * 100))
    [line] = lines(log)
    assert "\n" not in line["message"]


@frozen
class Keyed:
    """A parameter that nobody may see."""

    api_key: str = volkit.option(default="", secret=True)


def test_debug_shows_requests_and_answers_without_secrets(
    log: StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    engine.backend = backend_of(LeastController, parameters=Keyed)
    served = serve(engine)
    message = pb.CreateVolumeRequest(
        name="pvc-1",
        parameters={"apiKey": "hunter2", "api-key": "hunter3", "pool": "blue"},
        secrets={"password": "hunter4"},
        volume_capabilities=[
            pb.VolumeCapability(mount={"mount_flags": ["pass=hunter5"]}, access_mode={"mode": 1})
        ],
    )
    call(served, message)
    assert "blue" not in log.getvalue(), "requests are for debug only"
    logging.getLogger().setLevel("DEBUG")
    call(served, message)
    assert "blue" in log.getvalue()
    assert "vol-1" in log.getvalue()
    assert "hunter" not in log.getvalue()


# -- with the real engine ------------------------------------------------------------------------------------


def test_a_volume_all_the_way(engine_of: Callable[..., Engine], tmp_path: Path) -> None:
    served = serve(engine_of())

    def ask(kind: Any, **fields: Any) -> Any:
        return call(served, kind(**fields))

    create = pb.CreateVolumeRequest(
        name="pvc-1",
        capacity_range={"required_bytes": 4096},
        volume_capabilities=[MOUNT],
        parameters={"replicas": "2", "csi.storage.k8s.io/pvc/name": "data"},
    )
    volume = call(served, create).volume
    assert volume.capacity_bytes == 4096
    assert call(served, create).volume == volume, "a repeat gets the same volume"
    info = ask(pb.NodeGetInfoRequest)
    publish = pb.ControllerPublishVolumeRequest(
        volume_id=volume.volume_id,
        node_id=info.node_id,
        volume_capability=MOUNT,
        volume_context=volume.volume_context,
    )
    assert dict(call(served, publish).publish_context) == {"lun": "1"}
    [entry] = ask(pb.ListVolumesRequest).entries
    assert entry.volume.volume_id == volume.volume_id
    assert len(entry.status.published_node_ids) == 1
    got = ask(pb.ControllerGetVolumeRequest, volume_id=volume.volume_id)
    assert got.volume.volume_id == volume.volume_id
    assert got.status.published_node_ids == entry.status.published_node_ids
    assert not got.status.volume_condition.abnormal
    snapshot = ask(pb.CreateSnapshotRequest, name="s1", source_volume_id=volume.volume_id).snapshot
    assert snapshot.creation_time.seconds > 0
    assert [one.snapshot for one in ask(pb.ListSnapshotsRequest).entries] == [snapshot]
    assert ask(pb.GetSnapshotRequest, snapshot_id=snapshot.snapshot_id).snapshot == snapshot
    restore = pb.CreateVolumeRequest(
        name="pvc-2",
        volume_capabilities=[MOUNT],
        volume_content_source={"snapshot": {"snapshot_id": snapshot.snapshot_id}},
    )
    restored = call(served, restore).volume
    assert restored.content_source == restore.volume_content_source
    grown = ask(
        pb.ControllerExpandVolumeRequest, volume_id=volume.volume_id, capacity_range={"required_bytes": 8192}
    )
    assert (grown.capacity_bytes, grown.node_expansion_required) == (8192, False)
    ask(pb.ControllerModifyVolumeRequest, volume_id=volume.volume_id, mutable_parameters={"tier": "slow"})
    validate = pb.ValidateVolumeCapabilitiesRequest(volume_id=volume.volume_id, volume_capabilities=[MOUNT])
    assert call(served, validate).confirmed.volume_capabilities == validate.volume_capabilities
    assert ask(pb.GetCapacityRequest).available_capacity > 0
    ask(pb.ControllerUnpublishVolumeRequest, volume_id=volume.volume_id, node_id=info.node_id)
    ask(pb.DeleteSnapshotRequest, snapshot_id=snapshot.snapshot_id)
    for one in (restored, volume):
        ask(pb.DeleteVolumeRequest, volume_id=one.volume_id)
        ask(pb.DeleteVolumeRequest, volume_id=one.volume_id)
    assert not ask(pb.ListVolumesRequest).entries


def test_codes_that_csi_sanity_looks_for(engine_of: Callable[..., Engine]) -> None:
    served = serve(engine_of())
    there = call(served, pb.CreateVolumeRequest(name="a", volume_capabilities=[MOUNT])).volume.volume_id
    expected: list[tuple[Any, Code]] = [
        (pb.CreateVolumeRequest(volume_capabilities=[MOUNT]), Code.INVALID_ARGUMENT),
        (pb.CreateVolumeRequest(name="b"), Code.INVALID_ARGUMENT),
        (pb.DeleteVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.ControllerPublishVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.ControllerPublishVolumeRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.ControllerPublishVolumeRequest(volume_id=there, node_id="n1"), Code.INVALID_ARGUMENT),
        (
            pb.ControllerPublishVolumeRequest(volume_id="gone", node_id="n1", volume_capability=MOUNT),
            Code.NOT_FOUND,
        ),
        (pb.ControllerUnpublishVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.ValidateVolumeCapabilitiesRequest(), Code.INVALID_ARGUMENT),
        (pb.ValidateVolumeCapabilitiesRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.ValidateVolumeCapabilitiesRequest(volume_id="gone", volume_capabilities=[MOUNT]), Code.NOT_FOUND),
        (pb.ListVolumesRequest(starting_token="invalid-token"), Code.ABORTED),
        (pb.ListSnapshotsRequest(starting_token="invalid-token"), Code.ABORTED),
        (pb.ListVolumesRequest(max_entries=-1), Code.INVALID_ARGUMENT),
        (pb.ControllerGetVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.ControllerGetVolumeRequest(volume_id="gone"), Code.NOT_FOUND),
        (pb.GetSnapshotRequest(), Code.INVALID_ARGUMENT),
        (pb.GetSnapshotRequest(snapshot_id="gone"), Code.NOT_FOUND),
        (pb.CreateSnapshotRequest(name="s"), Code.INVALID_ARGUMENT),
        (pb.CreateSnapshotRequest(source_volume_id=there), Code.INVALID_ARGUMENT),
        (pb.DeleteSnapshotRequest(), Code.INVALID_ARGUMENT),
        (pb.ControllerExpandVolumeRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.ControllerExpandVolumeRequest(capacity_range={"required_bytes": 1}), Code.INVALID_ARGUMENT),
        (
            pb.ControllerExpandVolumeRequest(volume_id="gone", capacity_range={"required_bytes": 1}),
            Code.NOT_FOUND,
        ),
        (pb.NodeStageVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.NodeStageVolumeRequest(volume_id=there, volume_capability=MOUNT), Code.INVALID_ARGUMENT),
        (pb.NodeStageVolumeRequest(volume_id=there, staging_target_path="/s"), Code.INVALID_ARGUMENT),
        (pb.NodeUnstageVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.NodeUnstageVolumeRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.NodePublishVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.NodePublishVolumeRequest(volume_id=there, target_path="/t"), Code.INVALID_ARGUMENT),
        (pb.NodeUnpublishVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.NodeUnpublishVolumeRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.NodeGetVolumeStatsRequest(), Code.INVALID_ARGUMENT),
        (pb.NodeGetVolumeStatsRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.NodeGetVolumeStatsRequest(volume_id="gone", volume_path="/nowhere"), Code.NOT_FOUND),
        (pb.NodeGetVolumeStatsRequest(volume_id=there, volume_path="some/path"), Code.NOT_FOUND),
        (pb.NodeExpandVolumeRequest(), Code.INVALID_ARGUMENT),
        (pb.NodeExpandVolumeRequest(volume_id=there), Code.INVALID_ARGUMENT),
        (pb.NodeExpandVolumeRequest(volume_id="gone", volume_path="some/path"), Code.NOT_FOUND),
    ]
    wrong = [
        (type(message).__name__, str(message).replace("\n", " "), got.name, wanted.name)
        for message, wanted in expected
        if (got := code(served, message)) is not wanted
    ]
    assert not wrong
    assert not call(served, pb.ListSnapshotsRequest(snapshot_id="gone")).entries
    assert not call(served, pb.ListSnapshotsRequest(source_volume_id="gone")).entries


def test_probe_tells_of_a_process_that_has_to_be_restarted() -> None:
    engine = FakeEngine()
    served = serve(engine)
    assert call(served, pb.ProbeRequest()).ready.value
    engine.broken = "the journal cannot be written"
    with pytest.raises(RpcError, match=engine.broken) as caught:
        call(served, pb.ProbeRequest())
    assert caught.value.code is Code.FAILED_PRECONDITION
