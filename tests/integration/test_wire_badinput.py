"""Bad input over the real socket: each call is refused with its code, and nothing on the host is changed by it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from volkit_csi.client import METHODS, SERVICES, CallError
from volkit_csi.wire import csi_pb2 as pb

from .driver import Driver, loops, mounts, tree
from .orchestrator import MIB, Orchestrator, Used, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
SECRET = "hunter2-and-more"
SIZE = 16 * MIB
INVALID, MISSING, EXISTS = "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS"
REFUSED, RANGE, FULL = "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"
EXT4, RAW = capability("ext4"), capability(block=True)


class Site:
    """A driver with a volume of every sort, and a directory with things that must stay as they are."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.driver = Driver(home, arguments=["--log-level", "debug"]).start()
        self.co = Orchestrator(self.driver.client, home)
        self.bait = home / "bait"
        for name in ("full", "empty", "parent"):
            (self.bait / name).mkdir(parents=True)
        for name in ("file", "full/file"):
            (self.bait / name).write_text("precious")
        (self.bait / "nothing").touch()
        (self.bait / "link").symlink_to(self.bait / "empty")
        (self.bait / "dangling").symlink_to(self.bait / "gone")
        self.mounted = self.used("mounted", EXT4)
        self.raw = self.used("raw", RAW)
        self.staged = self.used("staged", EXT4)
        self.co.unpublish(self.staged)
        self.formatted = self.used("formatted", EXT4)
        self.co.unuse(self.formatted)
        self.plain = self.co.create("plain", SIZE, EXT4).volume_id
        self.snapshot = self.co.snapshot("snapshot", self.plain)

    def used(self, name: str, kind: Any) -> Used:
        used = self.co.use(self.co.create(name, SIZE, kind), kind)
        used.write(name.encode().ljust(512))
        return used

    def world(self) -> dict[str, Any]:
        """All that a call could change."""
        files = tree(self.home)
        for path in list(files):
            if Path(path).relative_to(self.home).parts[0] in ("log", "state", "csi.sock") or path.endswith(
                "/ledger"
            ):
                del files[path]
        attached = loops(self.home)
        for backing in attached.values():  # a mounted file system writes by itself
            path = backing.rpartition(" ")[0]
            files[path] = files[path].rpartition(" ")[0]
        return {
            "files": files,
            "mounts": mounts(self.home),
            "loops": attached,
            "records": self.driver.records(),
            "data": {used.id: used.read(512) for used in (self.mounted, self.raw)},
        }

    def close(self) -> None:
        self.driver.end()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        yield made
        # none of it hinders the rest of their lives
        for used in (made.mounted, made.raw, made.staged):
            made.co.unuse(used)
        made.co.delete_snapshot(made.snapshot)
        for volume_id in (made.mounted.id, made.raw.id, made.staged.id, made.formatted.id, made.plain):
            made.co.delete(volume_id)
        assert made.driver.left() == []
        assert SECRET not in made.driver.text()
        assert "Traceback" not in made.driver.text()
        assert "failed unexpectedly" not in made.driver.text()
    finally:
        made.close()


# -- requests that would be fine, but for what a case changes ------------------------------------------------


def create(site: Site, **changes: Any) -> Any:
    fine = {"name": "new", "volume_capabilities": [EXT4], "capacity_range": {"required_bytes": SIZE}}
    return pb.CreateVolumeRequest(**{**fine, **changes})


def snapshot(site: Site, **changes: Any) -> Any:
    return pb.CreateSnapshotRequest(**{"name": "new", "source_volume_id": site.plain, **changes})


def expand(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "capacity_range": {"required_bytes": 2 * SIZE}}
    return pb.ControllerExpandVolumeRequest(**{**fine, **changes})


def validate(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "volume_capabilities": [EXT4]}
    return pb.ValidateVolumeCapabilitiesRequest(**{**fine, **changes})


def stage(site: Site, **changes: Any) -> Any:
    """Of a volume that is not used now."""
    fine = {
        "volume_id": site.formatted.id,
        "staging_target_path": f"{site.bait}/empty",
        "volume_capability": EXT4,
        "volume_context": {"firstFormat": "true"},
    }
    return pb.NodeStageVolumeRequest(**{**fine, **changes})


def restage(site: Site, **changes: Any) -> Any:
    """Of a volume that is staged."""
    used = site.mounted
    fine = {"volume_id": used.id, "staging_target_path": str(used.staging), "volume_capability": EXT4}
    return pb.NodeStageVolumeRequest(**{**fine, **changes})


def unstage(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeUnstageVolumeRequest(
        **{"volume_id": used.id, "staging_target_path": str(used.staging), **changes}
    )


def publish(site: Site, **changes: Any) -> Any:
    """Of a volume that is staged, to a place that is free."""
    used = site.staged
    fine = {
        "volume_id": used.id,
        "staging_target_path": str(used.staging),
        "target_path": f"{site.bait}/parent/target",
        "volume_capability": EXT4,
    }
    return pb.NodePublishVolumeRequest(**{**fine, **changes})


def republish(site: Site, **changes: Any) -> Any:
    """Of a volume that is published, where it is."""
    return publish_of(site.mounted, **changes)


def republish_raw(site: Site, **changes: Any) -> Any:
    return publish_of(site.raw, **changes)


def publish_of(used: Used, **changes: Any) -> Any:
    fine = {
        "volume_id": used.id,
        "staging_target_path": str(used.staging),
        "target_path": str(used.target),
        "volume_capability": used.capability,
    }
    return pb.NodePublishVolumeRequest(**{**fine, **changes})


def unpublish(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeUnpublishVolumeRequest(**{"volume_id": used.id, "target_path": str(used.target), **changes})


def stats(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeGetVolumeStatsRequest(**{"volume_id": used.id, "volume_path": str(used.target), **changes})


def grow(site: Site, **changes: Any) -> Any:
    used = site.mounted
    return pb.NodeExpandVolumeRequest(**{"volume_id": used.id, "volume_path": str(used.target), **changes})


def delete(site: Site, **changes: Any) -> Any:
    return pb.DeleteVolumeRequest(**changes)


def delete_snapshot(site: Site, **changes: Any) -> Any:
    return pb.DeleteSnapshotRequest(**changes)


def get(site: Site, **changes: Any) -> Any:
    return pb.ControllerGetVolumeRequest(**changes)


def get_snapshot(site: Site, **changes: Any) -> Any:
    return pb.GetSnapshotRequest(**changes)


def volumes(site: Site, **changes: Any) -> Any:
    return pb.ListVolumesRequest(**changes)


def snapshots(site: Site, **changes: Any) -> Any:
    return pb.ListSnapshotsRequest(**changes)


def capacity(site: Site, **changes: Any) -> Any:
    return pb.GetCapacityRequest(**changes)


def attach(site: Site, **changes: Any) -> Any:
    fine = {"volume_id": site.plain, "node_id": "n1", "volume_capability": EXT4}
    return pb.ControllerPublishVolumeRequest(**{**fine, **changes})


# -- what a case changes -------------------------------------------------------------------------------------

Make = Callable[..., Any]
Changes = dict[str, Any]
Case = tuple[Make, Changes | Callable[[Site], Changes], str]

CONTROL = ["\0", "a\0b", "\x01", "a\x7fb", "a\x9fb"]
NAMES = ["", *CONTROL, "x" * 129, "é" * 65]
BAD_IDS = ["", *CONTROL, "x" * 5000]
NO_IDS = [
    *("gone", "..", ".", "/", "a/b", "../../../../etc/passwd", "/etc/passwd", "v-\n", "é", "x" * 300),
    *("volumes/../v-0", "making", "ledger", "v-0.img", "V-0"),
]
PATHS = ["", *CONTROL, "relative/path", "/", "//", "/a/../b", "/..", "/" + "x/" * 2100, "x" * 5000]


def mode(number: int) -> Any:
    made = pb.VolumeCapability(access_mode={"mode": number})
    made.mount.SetInParent()
    return made


def flags(*words: str) -> Any:
    made = capability("ext4")
    made.mount.mount_flags.extend(words)
    return made


NO_ACCESS_TYPE = pb.VolumeCapability(access_mode={"mode": 1})
NO_MODE = pb.VolumeCapability(mount={})
MULTI_NODE = mode(5)
KINDS = [pb.VolumeCapability(), NO_ACCESS_TYPE, NO_MODE, mode(0), mode(99), mode(-1)]
BAD_KINDS = [
    *KINDS,
    capability("ntfs"),
    capability("../ext4"),
    capability("x" * 200),
    flags(""),
    flags("a\0b"),
    flags("x" * 4097),
]
SIZES: list[tuple[dict[str, int], str]] = [
    ({"required_bytes": -1}, INVALID),
    ({"limit_bytes": -1}, INVALID),
    ({"required_bytes": -(2**63)}, INVALID),
    ({"required_bytes": 2 * SIZE, "limit_bytes": SIZE}, INVALID),
    ({"limit_bytes": 1}, RANGE),
    ({"required_bytes": 4097, "limit_bytes": 4098}, RANGE),
]


def cases() -> Iterator[Case]:
    yield from ((create, {"name": name}, INVALID) for name in NAMES)
    yield from ((snapshot, {"name": name}, INVALID) for name in NAMES)
    yield from of_ids()
    yield from of_paths()
    yield from of_sizes()
    yield from of_capabilities()
    yield from of_what_is_there_already()
    yield from of_parameters()
    yield from of_the_rest()


def of_ids() -> Iterator[Case]:
    for id_ in BAD_IDS:
        for make in (delete, get, expand, validate, stage, unstage, publish, unpublish, stats, grow):
            yield make, {"volume_id": id_}, INVALID
        yield snapshot, {"source_volume_id": id_}, INVALID
        yield create, {"volume_content_source": {"volume": {"volume_id": id_}}}, INVALID
        yield create, {"volume_content_source": {"snapshot": {"snapshot_id": id_}}}, INVALID
        for make in (delete_snapshot, get_snapshot):
            yield make, {"snapshot_id": id_}, INVALID
    for id_ in NO_IDS:
        for make in (get, expand, validate, stage, stats, grow):
            yield make, {"volume_id": id_}, MISSING
        yield snapshot, {"source_volume_id": id_}, MISSING
        yield get_snapshot, {"snapshot_id": id_}, MISSING
        yield create, {"volume_content_source": {"volume": {"volume_id": id_}}}, MISSING
        yield create, {"volume_content_source": {"snapshot": {"snapshot_id": id_}}}, MISSING
        yield publish, {"volume_id": id_}, REFUSED  # it is not staged
        # gone already is success, with nothing done
        yield delete, {"volume_id": id_}, ""
        yield delete_snapshot, {"snapshot_id": id_}, ""
        yield snapshots, {"snapshot_id": id_}, ""
        yield snapshots, {"source_volume_id": id_}, ""


def of_paths() -> Iterator[Case]:
    for path in PATHS:
        for make in (stage, unstage):
            yield make, {"staging_target_path": path}, INVALID
        for make in (publish, unpublish):
            yield make, {"target_path": path}, INVALID
    for path in ("x" * 5000, "relative", "/a/../b", "\0"):
        yield publish, {"staging_target_path": path}, INVALID
    yield publish, {"staging_target_path": ""}, REFUSED
    yield publish, {"staging_target_path": "/elsewhere"}, REFUSED
    for make in (stats, grow):
        yield make, {"volume_path": ""}, INVALID
        for path in ("relative/path", "/", "/a/../b", "/nowhere", "/" + "x" * 4000, "\x01"):
            yield make, {"volume_path": path}, MISSING
    for name, code in (("file", INVALID), ("link", INVALID), ("dangling", INVALID), ("file/below", INVALID)):
        yield stage, at("staging_target_path", name), code
        yield publish, at("target_path", name), code
    yield publish, at("target_path", "full"), REFUSED  # NodeUnpublish could not remove it
    for name, code in (
        ("empty", INVALID),
        ("full", INVALID),
        ("link", INVALID),
        ("dangling", INVALID),
        ("file", REFUSED),
    ):
        yield republish_raw, at("target_path", name), code
    for name in ("link", "dangling"):
        yield unpublish, at("target_path", name), INVALID
    for name in ("file", "full"):
        yield unpublish, at("target_path", name), REFUSED


def at(field: str, name: str) -> Callable[[Site], Changes]:
    return lambda site: {field: str(site.bait / name)}


def of_sizes() -> Iterator[Case]:
    for sizes, code in SIZES:
        yield create, {"capacity_range": sizes}, code
        if sizes != {
            "required_bytes": 4097,
            "limit_bytes": 4098,
        }:  # the volume is larger: that is another case
            yield expand, {"capacity_range": sizes}, code
    for bytes_ in (2**63 - 1, 2**60):
        for make in (create, expand):
            yield make, {"capacity_range": {"required_bytes": bytes_}}, f"{RANGE} {FULL}"
    yield expand, {"capacity_range": {}}, INVALID
    yield expand, {"capacity_range": {"required_bytes": MIB, "limit_bytes": 2 * MIB}}, RANGE  # never smaller
    for sizes in ({"required_bytes": -1}, {"required_bytes": 2, "limit_bytes": 1}):
        yield grow, {"capacity_range": sizes}, INVALID
    yield grow, {"capacity_range": {"required_bytes": 2 * SIZE}}, REFUSED  # the device has not that much
    yield grow, {"capacity_range": {"limit_bytes": MIB}}, RANGE


def of_capabilities() -> Iterator[Case]:
    yield create, {"volume_capabilities": []}, INVALID
    yield validate, {"volume_capabilities": []}, INVALID
    for kind in BAD_KINDS:
        yield create, {"volume_capabilities": [kind]}, INVALID
        yield create, {"volume_capabilities": [EXT4, kind]}, INVALID
        yield stage, {"volume_capability": kind}, INVALID
        yield publish, {"volume_capability": kind}, INVALID
    for kind in KINDS:
        yield validate, {"volume_capabilities": [kind]}, INVALID
        yield expand, {"volume_capability": kind}, INVALID
    yield create, {"volume_capabilities": [MULTI_NODE]}, INVALID
    yield stage, {"volume_capability": MULTI_NODE}, REFUSED
    yield publish, {"volume_capability": MULTI_NODE}, REFUSED
    for make in (stage, publish):
        yield make, {"volume_capability": None}, INVALID
    yield stage, {"volume_capability": flags(f"password={SECRET}")}, f"{INVALID} {REFUSED}"
    secret = {"volume_capability": flags("noatime", f"pass={SECRET}"), "secrets": {"key": SECRET}}
    yield stage, secret, f"{INVALID} {REFUSED}"


def of_what_is_there_already() -> Iterator[Case]:
    plain = {"name": "plain"}
    for changes in (
        {"parameters": {"preallocate": "true"}},
        {"volume_capabilities": [RAW]},
        {"volume_capabilities": [EXT4, RAW]},
        {"capacity_range": {"limit_bytes": SIZE - 4096}},
        {"capacity_range": {"required_bytes": 2 * SIZE}},
    ):
        yield create, plain | changes, EXISTS
    yield create, lambda site: plain | from_snapshot(site.snapshot), EXISTS
    yield (
        create,
        lambda site: plain | {"volume_content_source": {"volume": {"volume_id": site.raw.id}}},
        EXISTS,
    )
    yield snapshot, lambda site: {"name": "snapshot", "source_volume_id": site.raw.id}, EXISTS
    yield delete, lambda site: {"volume_id": site.mounted.id}, REFUSED
    yield delete, lambda site: {"volume_id": site.raw.id}, REFUSED
    yield delete, lambda site: {"volume_id": site.staged.id}, REFUSED
    yield unstage, {}, REFUSED
    yield restage, at("staging_target_path", "empty"), EXISTS
    other = mode(1)
    for kind in (capability("xfs"), other, RAW):
        yield restage, {"volume_capability": kind}, EXISTS
    yield republish, {"readonly": True}, EXISTS
    for make in (
        restage,
        republish,
    ):  # flags are not compared, since they are not recorded: they may be secret
        yield make, {"volume_capability": flags("noatime", f"password={SECRET}")}, ""
    yield republish, {"volume_capability": other}, EXISTS
    yield republish_raw, {"readonly": True}, EXISTS
    yield republish_raw, {"volume_capability": EXT4}, f"{EXISTS} {REFUSED}"
    yield publish, {"volume_capability": RAW}, REFUSED
    # another volume's: it stays
    yield publish, lambda site: {"target_path": str(site.mounted.target)}, REFUSED
    yield unpublish, lambda site: {"target_path": str(site.raw.target)}, REFUSED
    yield unpublish, lambda site: {"volume_id": "gone"}, REFUSED
    yield unstage, lambda site: {"volume_id": "gone"}, REFUSED
    yield stage, lambda site: {"staging_target_path": str(site.mounted.staging)}, REFUSED


def from_snapshot(id_: str) -> Changes:
    return {"volume_content_source": {"snapshot": {"snapshot_id": id_}}}


def of_parameters() -> Iterator[Case]:
    for parameters in (
        {"nosuch": "1"},
        {"preallocte": "true"},
        {"": "1"},
        {"preallocate": "perhaps"},
        {"preallocate": ""},
        {"pool": "/etc"},
        {"x" * 129: "1"},
        {"preallocate": "x" * 5000},
    ):
        yield create, {"parameters": parameters}, INVALID
        yield capacity, {"parameters": parameters}, INVALID
        yield create, {"mutable_parameters": parameters}, INVALID
    yield create, {"mutable_parameters": {"preallocate": "true"}}, INVALID  # it cannot be changed later
    yield snapshot, {"parameters": {"nosuch": "1"}}, INVALID
    yield create, {"parameters": {"nosuch": "1"}, "secrets": {"password": SECRET}}, INVALID


def of_the_rest() -> Iterator[Case]:
    yield create, {"volume_content_source": {}}, INVALID
    yield (
        create,
        lambda site: from_snapshot(site.snapshot) | {"capacity_range": {"limit_bytes": 4 * MIB}},
        RANGE,
    )
    elsewhere = {"requisite": [{"segments": {"volkit.io/node": "n2"}}]}
    yield create, {"accessibility_requirements": elsewhere}, FULL
    for make in (volumes, snapshots):
        yield make, {"max_entries": -1}, INVALID
        for token in ("x", "after:", "\x01", "x" * 5000):
            yield make, {"starting_token": token}, "ABORTED"
    yield (
        stage,
        lambda site: {"volume_id": site.plain, "volume_context": {}},
        REFUSED,
    )  # it may not be formatted
    yield attach, {}, "UNIMPLEMENTED"


CASES = list(cases())


def called(case: Case) -> str:
    changes = case[1] if isinstance(case[1], dict) else {}
    what = ",".join(f"{key}={str(value)[:24]!r}" for key, value in changes.items())
    return f"{case[0].__name__} {what}".encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("case", CASES, ids=called)
def test_refused_and_nothing_changed(site: Site, case: Case) -> None:
    make, changes, codes = case
    request = make(site, **(changes if isinstance(changes, dict) else changes(site)))
    method = request.DESCRIPTOR.name.removesuffix("Request")
    before = site.world()
    try:
        site.co.client.call(method, request)
        code = message = ""
    except CallError as error:
        code, message = error.code, error.message
    assert code in codes.split() or code == codes, message
    assert SECRET not in message
    assert "\n" not in message
    assert bool(message) == bool(code)
    assert differences(before, site.world()) == []


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was."""
    found = []
    for part, was in before.items():
        found += [
            f"{part}: {key}: {was.get(key)} -> {after[part].get(key)}"
            for key in {*was, *after[part]}
            if was.get(key) != after[part].get(key)
        ]
    return found


def test_no_secret_is_logged(site: Site) -> None:
    """At the level of debug, which shows whole requests."""
    assert "NodeStageVolume request" in site.driver.text()
    assert SECRET not in site.driver.text()


def test_an_empty_capacity_range_asks_for_nothing(site: Site) -> None:
    """0 is unset on the wire, and Nomad sends both so where its user gives no size."""
    volume = site.co.call("CreateVolume", create(site, name="sizeless", capacity_range={})).volume
    again = site.co.call(
        "CreateVolume", pb.CreateVolumeRequest(name="sizeless", volume_capabilities=[EXT4])
    ).volume
    assert volume == again
    site.co.delete(volume.volume_id)


def test_over_2_63_is_no_message(site: Site) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pb.CapacityRange(required_bytes=2**63)
    over = create(site).SerializeToString() + b"\x12\x0b\x08" + b"\xff" * 9 + b"\x7f"  # a varint of ten bytes
    assert raw_call(site, "CreateVolume", over)[0] is grpc.StatusCode.INVALID_ARGUMENT


ODD_NAMES = [
    "..",
    ".",
    "/",
    "../../../etc/passwd",
    "a/b",
    "a\nb",
    " ",
    "é" * 64,
    "x" * 128,
    "\N{GRINNING FACE}",
    "%2F",
    "-rf",
    "$(x)",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_is_only_a_name(site: Site, name: str) -> None:
    """The id is made by volkit, and is a safe file name."""
    before = site.world()
    volume = site.co.create(name, MIB, RAW)
    cut = site.co.snapshot(name, volume.volume_id)
    new = set(site.world()["files"]) - set(before["files"])
    images = sorted(Path(path) for path in new if path.endswith(".img"))
    assert [image.stem for image in images] == sorted([cut, volume.volume_id])
    assert all(image.parents[2] == site.driver.pool for image in images)
    assert all(id_.replace("-", "").isalnum() and id_.isascii() for id_ in (cut, volume.volume_id))
    site.co.delete_snapshot(cut)
    site.co.delete(volume.volume_id)
    assert sorted(site.driver.images()) == sorted(
        Path(p).relative_to(site.driver.pool).as_posix() for p in before["files"] if p.endswith(".img")
    )


def test_a_link_in_the_pool_is_no_volume(site: Site) -> None:
    """An id that names a symbolic link leads nowhere."""
    id_ = "v-0123456789abcdef"
    link = site.driver.pool / "volumes" / id_[-2:] / f"{id_}.img"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(site.bait / "file")
    try:
        for request in (get(site, volume_id=id_), stage(site, volume_id=id_)):
            with pytest.raises(CallError, match=MISSING):
                site.co.call(request.DESCRIPTOR.name.removesuffix("Request"), request)
        assert id_ not in site.co.volumes()
        site.co.delete(id_)
        assert link.is_symlink()
    finally:
        link.unlink()
    assert (site.bait / "file").read_text() == "precious"


def test_a_link_above_the_target_is_followed(site: Site) -> None:
    """An administrator moves /var/lib/kubelet to another disk by one."""
    moved = site.home / "moved"
    moved.symlink_to(site.bait / "parent")
    target = f"{moved}/target"
    site.co.call("NodePublishVolume", publish(site, target_path=target))
    assert (site.bait / "parent/target/data").exists()
    site.co.call("NodeUnpublishVolume", unpublish(site, volume_id=site.staged.id, target_path=target))
    assert not (site.bait / "parent/target").exists()
    moved.unlink()


# -- bytes and messages at random ----------------------------------------------------------------------------

CALLS = 3000


def raw_call(site: Site, method: str, data: bytes) -> tuple[Any, str]:
    row = METHODS[method]
    with grpc.insecure_channel(f"unix:{site.co.client.path}") as channel:
        return answer(channel.unary_unary(f"/{row.containing_service.full_name}/{method}"), data)


def answer(call: Any, data: bytes) -> tuple[Any, str]:
    try:
        call(data, timeout=30)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def filled(message: Any, site: Site, dice: random.Random, depth: int = 0) -> Any:
    """Some of the fields set: with values that are there, and with odd ones."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.2:
            continue
        value = getattr(message, field.name)
        if field.message_type is None:
            if field.is_repeated:
                value.extend([scalar(field, site, dice)] * dice.randrange(2))
            else:
                setattr(message, field.name, scalar(field, site, dice))
        elif field.message_type.GetOptions().map_entry:
            if dice.random() < 0.3:
                word = SECRET if field.name == "secrets" else dice.choice(("", "true", "1"))
                value[dice.choice(("preallocate", "nosuch", "", "firstFormat"))] = word
        elif depth < 5:
            if field.is_repeated:
                filled(value.add(), site, dice, depth + 1)
            else:
                value.SetInParent()
                filled(value, site, dice, depth + 1)
    return message


def scalar(field: Any, site: Site, dice: random.Random) -> Any:
    if field.enum_type is not None:
        return dice.choice((0, 1, 1, 1, 2, 5, 6, 7, 7, 99, -1))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if field.cpp_type != field.CPPTYPE_STRING:
        wide = field.cpp_type == field.CPPTYPE_INT64
        return dice.choice((0, 1, -1, 4096, SIZE, 2**62, -(2**63)) if wide else (0, 1, -1, 2**31 - 1))
    odd = ["", "x", "..", "a/b", "\x01", "é" * 100, "x" * 5000]
    if field.name.endswith("volume_id"):
        return dice.choice([*odd, site.mounted.id, site.raw.id, site.staged.id, site.plain])
    if field.name == "snapshot_id":
        return dice.choice([*odd, site.snapshot])
    if field.name.endswith("path"):
        bait = [f"{site.bait}/{name}" for name in ("file", "full", "link", "dangling", "empty", "parent/new")]
        return dice.choice(
            [*odd, *bait, str(site.mounted.staging), str(site.mounted.target), str(site.raw.target)]
        )
    if field.name == "mount_flags":
        return dice.choice(("ro", "noatime", "bogus", "", f"password={SECRET}"))
    if field.name == "fs_type":
        return dice.choice(("", "ext4", "xfs", "ntfs"))
    return dice.choice([*odd, "fuzz-1", "fuzz-2", "n1"])


def shaken(data: bytes, dice: random.Random) -> bytes:
    """Noise; or the message cut short, longer, or with bytes changed."""
    match dice.randrange(4):
        case 0:
            return dice.randbytes(dice.randrange(64))
        case 1:
            return data[: dice.randrange(len(data) + 1)]
        case 2:
            return data + dice.randbytes(dice.randrange(1, 8))
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        if changed:
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def test_noise(tmp_path: Path) -> None:
    """Whatever comes: a code that means something, a driver that answers, and what nobody gave it stays as it was."""
    site = Site(tmp_path / "noise")
    dice = random.Random(7)
    methods = [one.name for name in SERVICES for one in pb.DESCRIPTOR.services_by_name[name].methods]
    codes: Counter[str] = Counter()
    try:
        # an empty target is removed by NodeUnpublish, and one is made where it is to be published
        given = ("/parent", "/empty")
        bait = {path: what for path, what in tree(site.bait).items() if not any(one in path for one in given)}
        with grpc.insecure_channel(f"unix:{site.co.client.path}") as channel:
            calls = {
                one: channel.unary_unary(f"/{METHODS[one].containing_service.full_name}/{one}")
                for one in methods
            }
            for count in range(CALLS):
                method = methods[count % len(methods)]
                request = getattr(pb, METHODS[method].input_type.name)
                data = filled(request(), site, dice).SerializeToString()
                code, message = answer(calls[method], data if count % 2 else shaken(data, dice))
                assert code.name not in ("INTERNAL", "UNKNOWN", "DATA_LOSS"), (method, message)
                assert "unexpected" not in message, (method, message)
                assert "Traceback" not in message
                assert SECRET not in message
                codes[code.name] += 1
        site.driver.client.wait(timeout=1)
        assert codes.keys() > {"OK", INVALID, MISSING}, codes
        take_down(site)
        assert site.driver.left() == []
        after = tree(site.bait)
        assert {path: after.get(path) for path in bait} == bait
        assert SECRET not in site.driver.text()
        assert "Traceback" not in site.driver.text()
        assert "failed unexpectedly" not in site.driver.text()
    finally:
        site.close()


def take_down(site: Site) -> None:
    """Undo what a lucky message has put up, as the records tell."""
    for key in list(site.driver.records()):
        kind, _, rest = key.partition("/")
        if kind == "target":
            id_, _, path = rest.partition("/")
            request = {"volume_id": id_, "target_path": path.replace("%2F", "/")}
            site.co.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(**request))
    staged = [
        (key.partition("/")[2], value)
        for key, value in site.driver.records().items()
        if key.startswith("stage/")
    ]
    for id_, value in staged:
        path = value.partition('"path": "')[2].partition('"')[0]
        site.co.call(
            "NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=id_, staging_target_path=path)
        )
    for entry in site.co.call("ListSnapshots", pb.ListSnapshotsRequest()).entries:
        site.co.delete_snapshot(entry.snapshot.snapshot_id)
    for id_ in site.co.volumes():
        site.co.delete(id_)
