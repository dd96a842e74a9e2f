"""Every operation of the table, through the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from volkit import requests as r
from volkit.backend import Backend, Limits
from volkit.engine import Engine
from volkit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    InvalidToken,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unsupported,
    UnsupportedVolume,
)
from volkit.interfaces import ConnectsPerPod, Controller, ExpandsOffline, FindsByName, Node, Publishes
from volkit.journal import Delete, Put
from volkit.journal.memory import MemoryJournal
from volkit.model import (
    FIRST_FORMAT,
    AccessMode,
    AccessType,
    BlockVolume,
    Capability,
    CapacityRange,
    CloneSource,
    FileVolume,
    Secrets,
    Snapshot,
    SnapshotSource,
    Topology,
    TopologyRequirement,
    Volume,
)
from volkit.operations import OPERATIONS
from volkit.options import NoOptions
from volkit.requests import Call
from volkit.testing.memory import (
    ARRAYS,
    Array,
    MemoryBackend,
    MemoryController,
    MemoryNode,
    MemoryParameters,
    MemorySettings,
    Stored,
    memory_settings,
)

MIB = 1 << 20
MOUNT = Capability()
RAW = Capability(access_type=AccessType.BLOCK)
NOW = Call(wait=0)
Make = Callable[..., "Engine"]


class BlockController(MemoryController):
    """Makes block devices, such as they would be in an array."""

    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        made = super().create_volume(request)
        volume = BlockVolume(id=made.id, capacity=made.capacity, source=made.source, context={"lun": "1"})
        self.array.volumes[made.id].volume = volume
        return volume


class BlockBackend(MemoryBackend):
    name = "blocks"
    controller = BlockController
    volume = BlockVolume
    limits = Limits(min_size=MIB, max_size=1 << 40, default_size=4 * MIB, granularity=MIB)


class OfflineController(MemoryController, ExpandsOffline):
    """Grows what nobody uses."""


class OfflineBackend(MemoryBackend):
    name = "offline"
    controller = OfflineController


class LeastController(Controller[NoOptions, NoOptions], FindsByName):
    """Has nothing that it need not have."""

    def create_volume(self, request: r.CreateVolumeRequest[NoOptions]) -> Volume:
        return FileVolume(id=request.name)

    def delete_volume(self, request: r.DeleteVolumeRequest) -> None:
        pass

    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        raise NotFound("nothing is kept")


class LeastBackend(Backend[NoOptions, NoOptions]):
    name = "least"
    controller = LeastController
    volume = FileVolume


class NodeOnlyBackend(Backend[MemorySettings, NoOptions]):
    name = "nodes"
    settings = MemorySettings
    node = MemoryNode
    volume = FileVolume


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Engine] = []

    def engine(backend: type[Backend[Any, Any]] = MemoryBackend, **words: Any) -> Engine:
        settings = words.pop("settings", None)
        words = {"state_dir": tmp_path / "state", "node_id": "n1", **words}
        if settings is None:
            settings = memory_settings() if backend.settings is MemorySettings else NoOptions()
        made.append(Engine(backend, settings, **words))
        return made[-1]

    yield engine
    for one in made:
        one.close()


@pytest.fixture
def engine(make: Make) -> Engine:
    return make()


def array_of(engine: Engine) -> Array:
    assert isinstance(engine.controller, MemoryController)
    return engine.controller.array


def create(engine: Engine, name: str = "pvc-1", call: Call = NOW, **words: Any) -> Volume:
    words = {"parameters": {}, "capabilities": (MOUNT,), **words}
    volume = engine.run("create_volume", r.CreateVolumeRequest(name=name, **words), call)
    assert isinstance(volume, Volume)
    return volume


def delete(engine: Engine, id_: str, call: Call = NOW) -> None:
    assert engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=id_), call) is None


def get(engine: Engine, id_: str) -> r.VolumeEntry:
    entry = engine.run("get_volume", r.GetVolumeRequest(volume_id=id_))
    assert isinstance(entry, r.VolumeEntry)
    return entry


def publish(
    engine: Engine, id_: str, node_id: str = "n1?port=fc:1", **words: Any
) -> r.ControllerPublishResult:
    request = r.ControllerPublishRequest(volume_id=id_, node_id=node_id, **{"capability": MOUNT, **words})
    result = engine.run("controller_publish", request)
    assert isinstance(result, r.ControllerPublishResult)
    return result


def unpublish(engine: Engine, id_: str, node_id: str = "") -> None:
    assert (
        engine.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=id_, node_id=node_id))
        is None
    )


def expand(engine: Engine, id_: str, required: int = 0, limit: int = 0, **words: Any) -> r.ExpandVolumeResult:
    capacity = CapacityRange(required=required, limit=limit)
    result = engine.run(
        "expand_volume", r.ExpandVolumeRequest(volume_id=id_, capacity_range=capacity, **words)
    )
    assert isinstance(result, r.ExpandVolumeResult)
    return result


def snapshot(engine: Engine, source: str, name: str = "s", **words: Any) -> Snapshot:
    made = engine.run("create_snapshot", r.CreateSnapshotRequest(name=name, source_volume_id=source, **words))
    assert isinstance(made, Snapshot)
    return made


def watched(monkeypatch: pytest.MonkeyPatch, method: str) -> list[Any]:
    """The requests that the backend gets."""
    seen: list[Any] = []
    real = getattr(MemoryController, method)

    def watch(self: MemoryController, request: Any) -> Any:
        seen.append(request)
        return real(self, request)

    monkeypatch.setattr(MemoryController, method, watch)
    return seen


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_row_is_served_by_a_backend_with_everything(engine: Engine) -> None:
    assert set(engine.operations) == set(OPERATIONS)
    assert engine.has(Publishes)
    assert not engine.has(ExpandsOffline)


REQUIRED: dict[str, Any] = {
    "name": "x", "parameters": {}, "volume_id": "x", "capabilities": (MOUNT,), "capability": MOUNT, "node_id": "n",
    "capacity_range": CapacityRange(required=1), "source_volume_id": "x", "snapshot_id": "x",
    "staging_target_path": "/s", "target_path": "/t", "volume_path": "/t",
}  # fmt: skip
OPTIONAL = {
    "get_volume": {"name"}, "get_snapshot": {"name"},
    "create_volume": {"volume_id"}, "create_snapshot": {"snapshot_id"},
    "list_snapshots": {"snapshot_id", "source_volume_id"}, "validate_capabilities": {"parameters", "capabilities"},
    "node_expand": {"staging_target_path", "capability"}, "node_stats": {"staging_target_path"},
    # what a volume can do is known when it is found
    "controller_publish": {"capability"}, "expand_volume": {"capability"},
}  # fmt: skip


def fields_of(operation: str) -> set[str]:
    return {one.name for one in attrs.fields(OPERATIONS[operation].request)}


def request_for(operation: str, **words: Any) -> Any:
    """A request that is right by itself, of a volume that is not there."""
    names = fields_of(operation) & REQUIRED.keys() - (
        OPTIONAL.get(operation, set()) - {"capability", "capabilities", "parameters"}
    )
    return OPERATIONS[operation].request(**{**{name: REQUIRED[name] for name in names}, **words})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_a_backend_has_not_is_unsupported(make: Make, operation: str) -> None:
    engine = make(LeastBackend)
    if operation in engine.operations:
        assert OPERATIONS[operation].mixin is None
        return
    why = "backend 'least' cannot do it"
    with pytest.raises(Unsupported, match=f"{operation}: the {why}"):
        engine.run(operation, request_for(operation))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("service", ["controller", "node"])
def test_a_service_that_is_off_serves_nothing(make: Make, service: str, operation: str) -> None:
    engine = make(services=[service])
    row = OPERATIONS[operation]
    assert (operation in engine.operations) == (row.side == service)
    if row.side != service:
        with pytest.raises(Unsupported, match=f"the {row.side} service is off"):
            engine.run(operation, request_for(operation))
    assert (engine.controller is None, engine.node is None) == (service == "node", service == "controller")


def test_services_are_known_and_a_node_has_an_id(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="'nodes'"):
        make(services=["nodes"])
    with pytest.raises(InvalidArgument, match="node's id"):
        make(node_id="")
    make(node_id="", services=["controller"])


def test_a_backend_without_a_controller_serves_its_nodes(make: Make) -> None:
    engine = make(NodeOnlyBackend)
    assert set(engine.operations) == {name for name, row in OPERATIONS.items() if row.side == "node"}
    with pytest.raises(Unsupported, match="cannot do it"):
        engine.run("create_volume", request_for("create_volume"))


BAD: dict[str, tuple[Any, ...]] = {
    "name": ("", "a\x01", "x" * 256),
    "volume_id": ("", "a\0", "x" * 4097),
    "snapshot_id": ("", "a\0"),
    "node_id": ("", "a\0"),
    "source_volume_id": ("", "\x7f"),
    "staging_target_path": ("relative", "/a/../b", "/"),
    "target_path": ("", "relative", "/"),
    "volume_path": ("",),
    "capacity_range": (CapacityRange(required=-1), CapacityRange(required=2, limit=1)),
    "capability": (Capability(mount_flags=("",)),),
    "capabilities": ((Capability(mount_flags=("",)),),),
    "limit": (-1,),
    "parameters": ({"unknown": "1"}, {"replicas": "many"}, {"replicas": "0"}),
}
BAD_FIELDS = [
    (operation, field, bad)
    for operation in OPERATIONS
    for field in sorted(fields_of(operation) & BAD.keys() - OPTIONAL.get(operation, set()))
    for bad in BAD[field]
    if (operation, field, bad) != ("controller_unpublish", "node_id", "")  # from every node
    and (operation, field) != ("create_snapshot", "parameters")  # which are the backend's own
]


@pytest.mark.parametrize(("operation", "field", "bad"), BAD_FIELDS, ids=lambda value: repr(value)[:30])
def test_a_bad_field_is_refused_before_anything_happens(
    engine: Engine, operation: str, field: str, bad: Any
) -> None:
    called: list[str] = []
    array_of(engine).before = called.append
    with pytest.raises(InvalidArgument):
        engine.run(operation, request_for(operation, **{field: bad}))
    assert not set(called) - {"get_volume"}
    assert engine.journal.scan("") == []


@pytest.mark.parametrize(
    "operation",
    [one for one in OPERATIONS if OPERATIONS[one].method and OPERATIONS[one].side == "controller"],
)
def test_a_fault_of_the_backend_is_unavailable_and_passes(engine: Engine, operation: str) -> None:
    """Whatever a backend raises that is no volkit error: the caller is told to repeat, and the repeat works."""
    volume = create(engine, "there")
    made = snapshot(engine, volume.id, "shot")
    names: dict[str, Any] = {"volume_id": volume.id, "snapshot_id": made.id, "source_volume_id": volume.id}
    names["parameters"] = {}
    if operation == "modify_volume":
        names["parameters"] = {"tier": "slow"}
    if operation == "expand_volume":
        names["capacity_range"] = CapacityRange(required=2 * MIB)
    if operation in ("create_volume", "create_snapshot", "list_snapshots"):
        del names["snapshot_id"], names["volume_id"]
    names = {name: value for name, value in names.items() if name in fields_of(operation)}
    request = request_for(operation, **names)
    failures = ["x"]

    def before(method: str) -> None:
        if method == operation and failures:
            failures.pop()
            raise ZeroDivisionError("a fault")

    array_of(engine).before = before
    if operation != "get_capacity":  # which the memory backend answers without asking anybody
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            engine.run(operation, request, NOW)
    engine.run(operation, request, NOW)
    assert not engine.locks._turns


# -- create ------------------------------------------------------------------------------------------------------------


def test_a_create_is_done_once(engine: Engine) -> None:
    first = create(
        engine, parameters={"replicas": "3", "tier": "slow"}, capacity_range=CapacityRange(required=MIB)
    )
    for _ in range(3):
        assert (
            create(
                engine,
                parameters={"replicas": "3", "tier": "slow"},
                capacity_range=CapacityRange(required=MIB),
            )
            == first
        )
    assert array_of(engine).made == 1
    assert create(engine, "pvc-2").id != first.id


def test_a_create_is_done_once_by_many_at_a_time(make: Make) -> None:
    settings = memory_settings()
    engines = [make(settings=settings), make(settings=settings)]  # as two processes would
    made: list[Volume] = []
    threads = [
        threading.Thread(target=lambda one=one: made.append(create(one, "pvc", Call(wait=30))))
        for one in engines * 8
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert len(made) == 16
    assert len({volume.id for volume in made}) == 1
    assert array_of(engines[0]).made == 1


SAME = [
    {},
    {"capacity_range": CapacityRange(required=MIB)},
    {"capacity_range": CapacityRange(required=MIB - 1, limit=2 * MIB)},
    {"parameters": {"replicas": "1"}},
    {"parameters": {"tier": "fast"}},
    {"mutable_parameters": {"tier": "fast"}},
    {
        "capabilities": (
            Capability(access_mode=AccessMode.MULTI_NODE_MULTI_WRITER, mount_flags=("ro",)),
            MOUNT,
        )
    },
    {"secrets": Secrets({"password": "rotated"})},
    {"metadata": {"csi.storage.k8s.io/pvc/name": "other"}},
    {"topology": TopologyRequirement(requisite=(Topology({"zone": "a"}),))},
]


@pytest.mark.parametrize("words", SAME, ids=repr)
def test_a_compatible_repeat_gets_the_same(engine: Engine, words: dict[str, Any]) -> None:
    assert create(engine, **words) == create(engine) == create(engine, **words)
    assert array_of(engine).made == 1


OTHER = [
    ({"capacity_range": CapacityRange(required=MIB + 1)}, f"{MIB} bytes"),
    ({"capacity_range": CapacityRange(limit=MIB - 1)}, f"{MIB} bytes"),
    ({"parameters": {"replicas": "2"}}, "'replicas' is '1', asked for is '2'"),
    ({"mutable_parameters": {"tier": "slow"}}, "'tier' is 'fast'"),
    ({"parameters": {"tier": "slow"}}, "'tier' is 'fast'"),
    ({"source": CloneSource("vol-1")}, "made from"),
    ({"source": SnapshotSource("snap-1")}, "made from"),
]


@pytest.mark.parametrize(("words", "why"), OTHER, ids=lambda value: str(value)[:40])
def test_an_incompatible_repeat_is_refused_and_says_why(
    engine: Engine, words: dict[str, Any], why: str
) -> None:
    create(engine)
    with pytest.raises(AlreadyExists, match=rf"'pvc-1' exists.*{why}"):
        create(engine, **words)
    assert create(engine).id
    assert array_of(engine).made == 1


def test_a_repeat_for_another_access_is_refused(make: Make) -> None:
    engine = make(BlockBackend)
    raw = Capability(access_type=AccessType.BLOCK)
    create(engine, capabilities=(raw,))
    with pytest.raises(AlreadyExists, match="access by block, asked for is mount"):
        create(engine)
    assert create(engine, capabilities=(raw, raw)).id


@pytest.mark.parametrize(("zone", "fits"), [("a", True), ("b", False)])
def test_a_repeat_from_another_place(engine: Engine, zone: str, fits: bool) -> None:
    volume = create(engine)
    stored = array_of(engine).volumes[volume.id]
    stored.volume = attrs.evolve(volume, topology=(Topology({"zone": "a"}),))
    wanted = TopologyRequirement(preferred=(Topology({"Zone": zone, "rack": "1"}),))
    if fits:
        assert create(engine, topology=wanted).id == volume.id
    else:
        with pytest.raises(AlreadyExists, match="cannot be reached"):
            create(engine, topology=wanted)


def test_a_volume_of_another_kind_under_the_name(make: Make) -> None:
    settings = memory_settings()
    create(make(settings=settings))
    with pytest.raises(AlreadyExists, match="file volume, asked for is a block volume"):
        create(make(BlockBackend, settings=settings))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"parameters": {"replica": "1"}}, r"'replica': valid are replicas, tier; did you mean 'replicas'"),
        ({"parameters": {"replicas": "1", "tier": "a", "pool": "p"}}, "'pool'"),
        ({"parameters": {"replicas": "ten"}}, "'ten' is not an integer"),
        ({"parameters": {"replicas": "10"}}, "at least 1 and at most 9"),
        ({"mutable_parameters": {"replicas": "2"}}, "cannot be changed later"),
        ({"mutable_parameters": {"colour": "2"}}, "mutable parameter 'colour'"),
        ({"capabilities": ()}, "at least one"),
    ],
)
def test_wrong_parameters_are_named(engine: Engine, words: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        create(engine, **words)
    assert array_of(engine).made == 0
    assert engine.journal.scan("") == []


def test_parameters_are_typed_for_the_backend(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, "create_volume")
    secrets = Secrets({"a": "b"})
    create(
        engine,
        parameters={"replicas": "2"},
        mutable_parameters={"tier": "slow"},
        secrets=secrets,
        metadata={"k": "v"},
    )
    (request,) = seen
    assert request.parameters == MemoryParameters(replicas=2, tier="slow")
    assert request.size == MIB
    assert (request.volume_id, request.token) == ("", "")
    assert request.secrets is secrets
    assert request.metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [
        (0, 0, 4 * MIB),
        (1, 0, MIB),
        (MIB + 1, 0, 2 * MIB),
        (0, 2 * MIB, 2 * MIB),
        (3 * MIB, 3 * MIB, 3 * MIB),
        (1 << 40, 0, 1 << 40),
    ],
)
def test_the_size_follows_the_limits(make: Make, required: int, limit: int, size: int) -> None:
    engine = make(BlockBackend)
    asked = CapacityRange(required=required, limit=limit)
    assert create(engine, capabilities=(RAW,), capacity_range=asked).capacity == size


@pytest.mark.parametrize(
    ("fs_type", "required", "size"),
    [("", 1, 8 * MIB), ("", 0, 8 * MIB), ("ext4", 9 * MIB, 9 * MIB), ("xfs", MIB, 300 * MIB)],
)
def test_a_file_system_fits_on_its_volume(make: Make, fs_type: str, required: int, size: int) -> None:
    engine = make(BlockBackend)
    words: dict[str, Any] = {"capabilities": (Capability(fs_type=fs_type),)}
    for _ in range(2):
        assert create(engine, capacity_range=CapacityRange(required=required), **words).capacity == size
    with pytest.raises(OutOfRange, match="volumes have"):
        create(engine, "other", capacity_range=CapacityRange(limit=5 * MIB), **words)


@pytest.mark.parametrize(("required", "limit"), [((1 << 40) + 1, 0), (0, 1), (MIB + 1, MIB + 2)])
def test_a_size_that_cannot_be_made_is_out_of_range(make: Make, required: int, limit: int) -> None:
    engine = make(BlockBackend)
    with pytest.raises(OutOfRange):
        create(engine, capacity_range=CapacityRange(required=required, limit=limit))
    assert engine.journal.scan("") == []


def test_no_room_is_final_and_leaves_nothing(engine: Engine) -> None:
    array_of(engine).size = MIB
    with pytest.raises(ResourceExhausted, match=rf"{2 * MIB} bytes do not fit"):
        create(engine, capacity_range=CapacityRange(required=2 * MIB))
    assert engine.journal.scan("") == []
    assert create(engine).capacity == MIB


def test_a_file_volume_cannot_be_a_raw_device(engine: Engine) -> None:
    with pytest.raises(UnsupportedVolume):
        create(engine, capabilities=(MOUNT, Capability(access_type=AccessType.BLOCK)))


def test_a_blank_block_volume_may_be_formatted_once(make: Make) -> None:
    engine = make(BlockBackend)
    volume = create(engine)
    assert volume.context == {"lun": "1", FIRST_FORMAT: "true"}
    assert create(engine).context == volume.context
    made = snapshot(engine, volume.id)
    for source in (SnapshotSource(made.id), CloneSource(volume.id)):
        copy = create(engine, f"from {source}", source=source)
        assert FIRST_FORMAT not in copy.context
        assert FIRST_FORMAT not in create(engine, f"from {source}", source=source).context


def test_a_file_volume_is_not_formatted(engine: Engine) -> None:
    assert FIRST_FORMAT not in create(engine).context


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_copy_is_as_large_as_its_source(engine: Engine) -> None:
    volume = create(engine, capacity_range=CapacityRange(required=5 * MIB))
    source = SnapshotSource(snapshot(engine, volume.id).id)
    copy = create(engine, "copy", source=source)
    assert (copy.capacity, copy.source) == (5 * MIB, source)
    larger = create(
        engine, "larger", source=CloneSource(volume.id), capacity_range=CapacityRange(required=6 * MIB)
    )
    assert larger.capacity == 6 * MIB
    smaller = create(
        engine, "smaller", source=source, capacity_range=CapacityRange(required=MIB, limit=9 * MIB)
    )
    assert smaller.capacity == 5 * MIB
    with pytest.raises(OutOfRange):
        create(engine, "limited", source=source, capacity_range=CapacityRange(required=MIB, limit=2 * MIB))


@pytest.mark.parametrize("source", [SnapshotSource("none"), CloneSource("none")])
def test_a_source_that_is_not_there(engine: Engine, source: Any) -> None:
    with pytest.raises(NotFound):
        create(engine, source=source)
    assert engine.journal.scan("") == []


@pytest.mark.parametrize("source", [SnapshotSource(""), CloneSource("a\0")])
def test_a_source_without_an_id(engine: Engine, source: Any) -> None:
    with pytest.raises(InvalidArgument, match="volume_content_source"):
        create(engine, source=source)


def test_a_backend_without_sources(make: Make) -> None:
    for source in (SnapshotSource("s"), CloneSource("v")):
        with pytest.raises(InvalidArgument, match="makes no volumes from"):
            create(make(LeastBackend), source=source)


def test_a_repeat_after_the_source_went_is_answered(engine: Engine) -> None:
    volume = create(engine)
    copy = create(engine, "copy", source=CloneSource(volume.id))
    delete(engine, volume.id)
    assert create(engine, "copy", source=CloneSource(volume.id)) == copy


def test_a_snapshot_that_is_not_ready_is_waited_for(engine: Engine) -> None:
    made = snapshot(engine, create(engine).id)
    array_of(engine).snapshots[made.id] = ("s", attrs.evolve(made, ready=False))
    with pytest.raises(Unavailable, match="not ready"):
        create(engine, "copy", source=SnapshotSource(made.id))
    assert snapshot(engine, made.source_volume_id).ready is False
    array_of(engine).snapshots[made.id] = ("s", made)
    assert snapshot(engine, made.source_volume_id).ready
    assert create(engine, "copy", source=SnapshotSource(made.id)).id


# -- delete ------------------------------------------------------------------------------------------------------------


def test_a_delete_may_be_repeated(engine: Engine) -> None:
    volume = create(engine)
    for _ in range(3):
        delete(engine, volume.id)
    delete(engine, "never there")
    assert array_of(engine).volumes == {}
    assert engine.journal.scan("") == []
    assert create(engine).id != volume.id


def test_an_attached_volume_is_not_deleted(engine: Engine) -> None:
    volume = create(engine)
    publish(engine, volume.id)
    with pytest.raises(InUse, match="attached to node 'n1'"):
        delete(engine, volume.id)
    unpublish(engine, volume.id, "n1?port=fc:1")
    delete(engine, volume.id)


def test_a_deletion_that_was_cut_short_is_not_finished_by_a_create_while_the_volume_is_attached(
    engine: Engine,
) -> None:
    """The storage did not answer the delete; the volume was attached all the same, and its name is asked for again."""
    volume = create(engine)
    array = array_of(engine)

    def before(method: str) -> None:
        if method == "delete_volume":
            raise Unavailable("no answer")

    array.before = before
    with pytest.raises(Unavailable):
        delete(engine, volume.id)
    array.before = lambda method: None
    publish(engine, volume.id)
    with pytest.raises(InUse, match="attached to node 'n1'"):
        create(engine)
    assert list(array.volumes) == [volume.id]
    unpublish(engine, volume.id, "n1?port=fc:1")
    assert create(engine).id != volume.id
    assert volume.id not in array.volumes


def test_a_refused_delete_leaves_the_volume_as_it_was(engine: Engine) -> None:
    volume = create(engine)

    def before(method: str) -> None:
        if method == "delete_volume":
            raise InUse("it has snapshots")

    array_of(engine).before = before
    with pytest.raises(InUse, match="snapshots"):
        delete(engine, volume.id)
    assert create(engine) == volume
    assert create(engine, capacity_range=CapacityRange(required=MIB)) == volume


# -- look --------------------------------------------------------------------------------------------------------------


def test_a_volume_is_looked_up(engine: Engine) -> None:
    volume = create(engine)
    assert get(engine, volume.id) == r.VolumeEntry(
        volume=volume, health=attrs.evolve(get(engine, volume.id)).health
    )
    publish(engine, volume.id, "n7?port=fc:9")
    entry = get(engine, volume.id)
    assert entry.published_node_ids == ("n7?port=fc:9",)
    assert entry.health is not None
    with pytest.raises(NotFound):
        get(engine, "none")


def test_the_nodes_in_a_listing_have_the_ids_that_they_gave_themselves(engine: Engine) -> None:
    """The attacher compares them with the nodes' own, facts and all (CSI spec, ListVolumes: published_node_ids)."""
    node_id = engine.run("node_info", r.NodeInfoRequest()).node_id
    capability = Capability(access_mode=AccessMode.MULTI_NODE_MULTI_WRITER)
    volume = create(engine, capabilities=(capability,))
    for one in (node_id, "n2"):
        publish(engine, volume.id, one, capability=capability)
    page = engine.run("list_volumes", r.ListRequest())
    assert page.entries[0].published_node_ids == (node_id, "n2")
    publish(engine, volume.id, "n1?port=fc:2", capability=capability)  # its facts have changed since
    assert get(engine, volume.id).published_node_ids == ("n1?port=fc:2", "n2")


def test_volumes_are_listed_in_pages(engine: Engine) -> None:
    made = {create(engine, f"pvc-{n}").id for n in range(5)}
    seen: list[str] = []
    token = ""
    while True:
        page = engine.run("list_volumes", r.ListRequest(limit=2, token=token))
        assert len(page.entries) <= 2
        seen += [entry.volume.id for entry in page.entries]
        token = page.next_token
        if not token:
            break
    assert seen == sorted(made)
    with pytest.raises(InvalidToken):
        engine.run("list_volumes", r.ListRequest(token="5"))


def test_capabilities_are_confirmed_or_not(engine: Engine) -> None:
    volume = create(engine)

    def ask(*capabilities: Capability, **words: Any) -> Any:
        request = r.ValidateCapabilitiesRequest(volume_id=volume.id, capabilities=capabilities, **words)
        return engine.run("validate_capabilities", request)

    assert ask(MOUNT, Capability(access_mode=AccessMode.MULTI_NODE_MULTI_WRITER)).confirmed
    refused = ask(MOUNT, Capability(access_type=AccessType.BLOCK))
    assert not refused.confirmed
    assert "raw block device" in refused.message
    with pytest.raises(InvalidArgument):
        ask()
    with pytest.raises(NotFound):
        engine.run(
            "validate_capabilities", r.ValidateCapabilitiesRequest(volume_id="none", capabilities=(MOUNT,))
        )


def test_the_context_is_confirmed_too(make: Make) -> None:
    engine = make(BlockBackend)
    volume = create(engine)
    for context, confirmed in ((volume.context, True), ({"lun": "2"}, False), ({}, True)):
        request = r.ValidateCapabilitiesRequest(volume_id=volume.id, capabilities=(MOUNT,), context=context)
        assert engine.run("validate_capabilities", request).confirmed == confirmed


def test_capacity_is_told_for_right_parameters(engine: Engine) -> None:
    array_of(engine).size = 10 * MIB
    create(engine)
    assert engine.run("get_capacity", r.CapacityRequest(parameters={"replicas": "2"})).available == 9 * MIB
    raw = Capability(access_type=AccessType.BLOCK)
    with pytest.raises(UnsupportedVolume):
        engine.run("get_capacity", r.CapacityRequest(parameters={}, capabilities=(raw,)))


def test_a_node_tells_its_facts_in_its_id(engine: Engine) -> None:
    info = engine.run("node_info", r.NodeInfoRequest())
    assert info.node_id == "n1?port=fc:1"


# -- attach ------------------------------------------------------------------------------------------------------------


def test_an_attach_may_be_repeated(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, "controller_publish")
    volume = create(engine)
    for _ in range(3):
        assert publish(engine, volume.id).publish_context == {"lun": "1"}
    (request,) = seen
    assert (request.node_id, request.node_facts) == ("n1", {"port": "fc:1"})
    assert array_of(engine).volumes[volume.id].nodes == {"n1"}


@pytest.mark.parametrize(
    "words",
    [
        {"readonly": True},
        {"capability": Capability(access_mode=AccessMode.SINGLE_NODE_READER_ONLY)},
        {"capability": Capability(fs_type="xfs")},
    ],
)
def test_an_attach_in_another_way_is_refused(engine: Engine, words: dict[str, Any]) -> None:
    volume = create(engine)
    publish(engine, volume.id)
    with pytest.raises(AlreadyExists, match="attached to node 'n1' in another way"):
        publish(engine, volume.id, **words)
    unpublish(engine, volume.id, "n1")
    publish(engine, volume.id, **words)


def test_an_attach_of_what_is_not_there(engine: Engine) -> None:
    with pytest.raises(NotFound):
        publish(engine, "none")
    assert engine.journal.scan("") == []


def test_a_refused_attach_leaves_no_record(engine: Engine) -> None:
    volume = create(engine)

    def before(method: str) -> None:
        if method == "controller_publish":
            raise NotFound("there is no node n1")

    array_of(engine).before = before
    with pytest.raises(NotFound, match="no node"):
        publish(engine, volume.id)
    array_of(engine).before = lambda method: None
    publish(engine, volume.id, "n2")


@pytest.mark.parametrize("journal", ["kept", "lost"])
def test_a_volume_for_one_node_is_not_attached_to_two(make: Make, journal: str) -> None:
    settings = memory_settings()
    engine = make(settings=settings)
    volume = create(engine)
    publish(engine, volume.id, "n1")
    if journal == "lost":
        engine = make(settings=settings, journal=MemoryJournal())
    with pytest.raises(InUse, match="attached to node 'n1'"):
        publish(engine, volume.id, "n2")
    unpublish(engine, volume.id, "n1")
    publish(engine, volume.id, "n2")


class LosingJournal(MemoryJournal):
    """Its lock is lost while the storage attaches; `meanwhile` is what another replica does with the record then."""

    meanwhile: Callable[[Put], Put | Delete] | None = None

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        for change in changes:
            if self.meanwhile and isinstance(change, Put) and "context" in change.value:
                do, self.meanwhile = self.meanwhile, None
                super().write(do(change))
                raise Aborted("the lock was lost")
        super().write(*changes, durable=durable)


@pytest.mark.parametrize("by_another", ["detached", "attached"])
def test_what_is_attached_after_the_lock_was_lost_is_taken_back(make: Make, by_another: str) -> None:
    journal = LosingJournal()
    engine = make(journal=journal)
    volume = create(engine)
    stays = by_another == "attached"
    journal.meanwhile = lambda change: change if stays else Delete(change.key)
    with pytest.raises(Aborted, match="lost") as error:
        publish(engine, volume.id, "n1")
    assert type(error.value) is Aborted
    assert list(array_of(engine).volumes[volume.id].nodes) == (["n1"] if stays else [])


def test_a_volume_with_one_writer_has_no_second(engine: Engine) -> None:
    volume = create(engine)
    one_writer = Capability(access_mode=AccessMode.MULTI_NODE_SINGLE_WRITER)
    publish(engine, volume.id, "n1", capability=one_writer)
    publish(engine, volume.id, "n2", capability=one_writer, readonly=True)
    with pytest.raises(InUse, match="written to by node 'n1'"):
        publish(engine, volume.id, "n3", capability=one_writer)
    unpublish(engine, volume.id, "n1")
    publish(engine, volume.id, "n3", capability=one_writer)


def test_many_nodes_where_the_mode_allows_it(engine: Engine) -> None:
    volume = create(engine)
    for mode in (AccessMode.MULTI_NODE_MULTI_WRITER, AccessMode.MULTI_NODE_READER_ONLY):
        for node in ("n1", "n10", "n2"):
            publish(engine, volume.id, node, capability=Capability(access_mode=mode))
        unpublish(engine, volume.id, "n1")
        assert array_of(engine).volumes[volume.id].nodes == {"n10", "n2"}
        unpublish(engine, volume.id)
        assert array_of(engine).volumes[volume.id].nodes == set()


def test_a_detach_may_be_repeated(engine: Engine) -> None:
    volume = create(engine)
    publish(engine, volume.id)
    for node in ("n1?port=fc:1", "n1", "other", ""):
        unpublish(engine, volume.id, node)
    unpublish(engine, "never there", "n1")
    assert engine.journal.scan("attach/") == []


def test_a_failed_detach_keeps_its_record(engine: Engine) -> None:
    volume = create(engine)
    publish(engine, volume.id)

    def before(method: str) -> None:
        if method == "controller_unpublish":
            raise Unavailable("the array is away")

    array_of(engine).before = before
    with pytest.raises(Unavailable):
        unpublish(engine, volume.id, "n1")
    assert len(engine.journal.scan("attach/")) == 1


# -- grow and modify ---------------------------------------------------------------------------------------------------


def test_a_volume_grows_and_never_shrinks(engine: Engine) -> None:
    volume = create(engine)
    called: list[str] = []
    array_of(engine).before = called.append
    assert expand(engine, volume.id, MIB) == r.ExpandVolumeResult(capacity=MIB, node_expansion_required=False)
    assert expand(engine, volume.id, MIB - 1).capacity == MIB
    assert expand(engine, volume.id, 0, 2 * MIB).capacity == MIB
    assert "expand_volume" not in called
    for _ in range(2):
        assert expand(engine, volume.id, 2 * MIB, 3 * MIB).capacity == 2 * MIB
    assert called.count("expand_volume") == 1
    with pytest.raises(OutOfRange, match="never made smaller"):
        expand(engine, volume.id, MIB, MIB)
    with pytest.raises(OutOfRange, match="never made smaller"):
        expand(engine, volume.id, 0, MIB)
    assert create(engine, capacity_range=CapacityRange(required=MIB)).capacity == 2 * MIB


def test_a_volume_grows_in_steps_of_the_backend(make: Make) -> None:
    engine = make(BlockBackend)
    volume = create(engine, capabilities=(RAW,))
    assert expand(engine, volume.id, 4 * MIB + 1).capacity == 5 * MIB
    again = expand(engine, volume.id, 4 * MIB + 1)
    assert again == r.ExpandVolumeResult(capacity=5 * MIB, node_expansion_required=True)
    with pytest.raises(OutOfRange):
        expand(engine, volume.id, 5 * MIB + 1, 5 * MIB + 2)
    with pytest.raises(OutOfRange):
        expand(engine, volume.id, (1 << 40) + 1)


def test_an_expansion_that_is_refused(engine: Engine) -> None:
    volume = create(engine)
    with pytest.raises(InvalidArgument, match="capacity_range is required"):
        expand(engine, volume.id)
    with pytest.raises(NotFound):
        expand(engine, "none", MIB)
    with pytest.raises(UnsupportedVolume):
        expand(engine, volume.id, 2 * MIB, capability=Capability(access_type=AccessType.BLOCK))
    array_of(engine).size = 2 * MIB
    with pytest.raises(ResourceExhausted):
        expand(engine, volume.id, 3 * MIB)
    assert get(engine, volume.id).volume.capacity == MIB


def test_a_volume_that_grows_offline_is_not_attached(make: Make) -> None:
    engine = make(OfflineBackend)
    volume = create(engine)
    publish(engine, volume.id)
    assert expand(engine, volume.id, MIB).capacity == MIB
    with pytest.raises(InUse):
        expand(engine, volume.id, 2 * MIB)
    unpublish(engine, volume.id)
    assert expand(engine, volume.id, 2 * MIB).capacity == 2 * MIB


def modify(engine: Engine, id_: str, **parameters: str) -> None:
    assert engine.run("modify_volume", r.ModifyVolumeRequest(volume_id=id_, parameters=parameters)) is None


def test_what_is_mutable_is_modified(engine: Engine) -> None:
    volume = create(engine)
    for _ in range(2):
        modify(engine, volume.id, tier="slow")
        assert array_of(engine).volumes[volume.id].tier == "slow"
    modify(engine, volume.id)
    assert (
        create(engine, parameters={"tier": "fast"}).id == volume.id
    )  # the repeat of the create that once was
    with pytest.raises(InvalidArgument, match="'replicas' cannot be changed later"):
        modify(engine, volume.id, replicas="2", tier="fast")
    with pytest.raises(InvalidArgument, match="'colour'"):
        modify(engine, volume.id, colour="red")
    assert array_of(engine).volumes[volume.id].tier == "slow"
    for parameters in ({"tier": "fast"}, {}):
        with pytest.raises(NotFound):
            modify(engine, "none", **parameters)


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_cut_once(engine: Engine) -> None:
    volume, other = create(engine), create(engine, "other")
    first = snapshot(engine, volume.id, parameters={"a": "b"})
    assert first.size == MIB
    assert snapshot(engine, volume.id, parameters={"a": "b"}) == first
    with pytest.raises(AlreadyExists, match=f"of volume {volume.id!r}"):
        snapshot(engine, other.id, parameters={"a": "b"})
    with pytest.raises(AlreadyExists, match="other parameters"):
        snapshot(engine, volume.id)
    assert len(array_of(engine).snapshots) == 1


def test_a_snapshot_of_nothing(engine: Engine) -> None:
    with pytest.raises(NotFound):
        snapshot(engine, "none")
    assert engine.journal.scan("") == []


def test_a_snapshot_and_a_volume_may_have_one_name(engine: Engine) -> None:
    volume = create(engine, "same")
    made = snapshot(engine, volume.id, "same")
    assert create(engine, "same") == volume
    assert snapshot(engine, volume.id, "same") == made


def test_a_snapshot_is_deleted_and_its_name_free(engine: Engine) -> None:
    volume = create(engine)
    first = snapshot(engine, volume.id)
    for id_ in (first.id, first.id, "never there"):
        assert engine.run("delete_snapshot", r.DeleteSnapshotRequest(snapshot_id=id_)) is None
    assert engine.journal.scan("snapshot") == []
    with pytest.raises(NotFound):
        engine.run("get_snapshot", r.GetSnapshotRequest(snapshot_id=first.id))
    second = snapshot(engine, volume.id)
    assert second.id != first.id
    assert engine.run("get_snapshot", r.GetSnapshotRequest(snapshot_id=second.id)) == second


def test_snapshots_are_listed(engine: Engine) -> None:
    volumes = [create(engine, name) for name in "ab"]
    made = [snapshot(engine, volumes[n % 2].id, f"s{n}") for n in range(5)]

    def ids(**words: Any) -> list[str]:
        page = engine.run("list_snapshots", r.ListSnapshotsRequest(**words))
        return [one.id for one in page.entries]

    assert ids() == sorted(one.id for one in made)
    assert ids(source_volume_id=volumes[1].id) == sorted(made[n].id for n in (1, 3))
    assert ids(snapshot_id=made[2].id) == [made[2].id]
    assert ids(snapshot_id=made[2].id, source_volume_id=volumes[1].id) == []
    assert ids(snapshot_id="none") == ids(source_volume_id="none") == []
    assert len(ids(limit=2)) == 2


# -- volumes that volkit did not make, and a journal that is lost ------------------------------------------------------


def test_a_volume_made_by_an_administrator_works_like_any_other(engine: Engine) -> None:
    array = array_of(engine)
    array.volumes["by/hand%2F"] = Stored(FileVolume(id="by/hand%2F", capacity=MIB), "whatever", "fast")
    assert get(engine, "by/hand%2F").volume.capacity == MIB
    assert expand(engine, "by/hand%2F", 2 * MIB).capacity == 2 * MIB
    modify(engine, "by/hand%2F", tier="slow")
    made = snapshot(engine, "by/hand%2F")
    assert create(engine, "copy", source=SnapshotSource(made.id)).capacity == 2 * MIB
    publish(engine, "by/hand%2F")
    with pytest.raises(InUse):
        delete(engine, "by/hand%2F")
    unpublish(engine, "by/hand%2F")
    delete(engine, "by/hand%2F")
    assert "by/hand%2F" not in array.volumes


def test_with_an_empty_journal_everything_is_found_again(make: Make) -> None:
    settings = memory_settings()
    first = make(settings=settings, journal=MemoryJournal())
    volume = create(first, parameters={"replicas": "2"})
    made = snapshot(first, volume.id)
    publish(first, volume.id)
    second = make(settings=settings, journal=MemoryJournal())
    assert create(second, parameters={"replicas": "2"}) == volume
    assert snapshot(second, volume.id) == made
    assert publish(second, volume.id).publish_context == {"lun": "1"}
    with pytest.raises(AlreadyExists):
        create(second, capacity_range=CapacityRange(required=2 * MIB))
    assert array_of(second).made == 2
    unpublish(second, volume.id)
    delete(second, volume.id)
    assert array_of(second).volumes == {}


def test_a_volume_that_went_behind_our_back_is_made_again(engine: Engine) -> None:
    volume = create(engine)
    del array_of(engine).volumes[volume.id]
    again = create(engine)
    assert again.id != volume.id
    assert [entry.key for entry in engine.journal.scan("volume/")] == [f"volume/{again.id}"]


def test_a_volume_whose_number_went_to_another_does_not_lose_its_name(engine: Engine) -> None:
    """Deleted by hand; the id that is recorded for the name is gone."""
    first, second = create(engine, "a"), create(engine, "b")
    del array_of(engine).volumes[first.id]
    delete(engine, first.id)
    assert create(engine, "b") == second


# -- locks, time, the end ----------------------------------------------------------------------------------------------


def hanging(monkeypatch: pytest.MonkeyPatch, method: str) -> tuple[threading.Event, threading.Event]:
    """Lets `method` hang, as a storage does, until the second event."""
    begun, go_on = threading.Event(), threading.Event()
    real = getattr(MemoryController, method)

    def hang(self: MemoryController, request: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return real(self, request)

    monkeypatch.setattr(MemoryController, method, hang)
    return begun, go_on


def test_a_hung_volume_takes_nothing_else_down(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = create(engine, "other")
    begun, go_on = hanging(monkeypatch, "create_volume")
    made: list[Volume] = []
    thread = threading.Thread(target=lambda: made.append(create(engine)))
    thread.start()
    try:
        assert begun.wait(60)
        for call in (
            NOW,
            Call(wait=30, deadline=time.monotonic() + 0.1),
            Call(deadline=time.monotonic() - 5),
        ):
            begin = time.monotonic()
            with pytest.raises(Aborted, match="'pvc-1'"):
                create(engine, "pvc-1", call)
            assert time.monotonic() - begin < 15  # half of the longest wait that was asked for
        assert create(engine, "other", NOW) == other
        assert get(engine, other.id).volume == other
        delete(engine, other.id, NOW)
    finally:
        go_on.set()
        thread.join(60)
    assert create(engine) == made[0]


def test_a_volume_that_is_being_deleted_is_not_touched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = create(engine)
    begun, go_on = hanging(monkeypatch, "delete_volume")
    thread = threading.Thread(target=lambda: delete(engine, volume.id))
    thread.start()
    try:
        assert begun.wait(60)
        with pytest.raises(Aborted):
            create(engine)
        with pytest.raises(Aborted):
            engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=volume.id), NOW)
        grow = r.ExpandVolumeRequest(volume_id=volume.id, capacity_range=CapacityRange(required=9 * MIB))
        with pytest.raises(Aborted):
            engine.run("expand_volume", grow, NOW)
    finally:
        go_on.set()
        thread.join(60)
    assert create(engine).id != volume.id


def test_after_the_end_it_is_unavailable(make: Make) -> None:
    engine = make()
    volume = create(engine)
    engine.close()
    engine.close()
    with pytest.raises(Unavailable, match="closed"):
        create(engine, "other")
    with pytest.raises(Unavailable, match="closed"):
        delete(engine, volume.id)


def test_engines_side_by_side_do_not_mix_their_volumes(make: Make, tmp_path: Path) -> None:
    one, other = make(state_dir=tmp_path / "one"), make(state_dir=tmp_path / "other")
    create(one)
    assert array_of(other).volumes == {}
    create(other)
    assert len({id(array) for array in ARRAYS.values()}) == len(ARRAYS)


def test_a_journal_of_memory_is_refused_where_it_would_double(make: Make) -> None:
    class Forgetful(Controller[NoOptions, NoOptions]):
        def create_volume(self, request: Any) -> Volume:
            return FileVolume(id="v")

        def delete_volume(self, request: Any) -> None:
            pass

        def get_volume(self, request: Any) -> Volume:
            return FileVolume(id="v")

    class ForgetfulBackend(Backend[NoOptions, NoOptions]):
        name = "forgetful"
        controller = Forgetful
        volume = FileVolume

    with pytest.raises(FailedPrecondition, match="'forgetful' finds no volume by name"):
        make(ForgetfulBackend, journal=MemoryJournal())
    assert create(make(ForgetfulBackend)).id == "v"


@pytest.mark.parametrize("wrong", [None, "vol-1", FileVolume(id="")], ids=repr)
def test_what_a_create_returns_is_checked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    monkeypatch.setattr(MemoryController, "create_volume", lambda self, request: wrong)
    with pytest.raises(Unavailable, match="fault of the backend"):
        create(engine)


def test_what_a_cut_returns_is_checked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = create(engine)
    wrong = Snapshot(id="", source_volume_id="v", created_at=datetime.now(UTC))
    monkeypatch.setattr(MemoryController, "create_snapshot", lambda self, request: wrong)
    with pytest.raises(Unavailable, match="fault of the backend"):
        snapshot(engine, volume.id)


def test_where_each_pod_is_connected_nothing_is_staged(make: Make) -> None:
    class PodNode(MemoryNode, ConnectsPerPod):
        pass

    class PodBackend(MemoryBackend):
        name = "pods"
        node = PodNode

    engine = make(PodBackend)
    assert set(OPERATIONS) - set(engine.operations) == {"node_stage", "node_unstage"}
    assert engine.has(ConnectsPerPod)
    with pytest.raises(Unsupported):
        engine.run("node_stage", request_for("node_stage"))


def test_a_node_is_a_class_of_its_own(make: Make) -> None:
    engine = make()
    assert isinstance(engine.node, Node)
    assert isinstance(engine.controller, MemoryController)
    assert engine.node.node_id == engine.controller.node_id == "n1"
