"""Bad input over the real socket: each call is refused with its code, and nothing on the host is changed by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from volkit_csi.client import CallError
from volkit_csi.wire import csi_pb2 as pb

from .bait import (
    EXT4,
    RAW,
    SECRET,
    SIZE,
    Site,
    attach,
    capacity,
    create,
    delete,
    delete_snapshot,
    expand,
    get,
    get_snapshot,
    grow,
    publish,
    republish,
    republish_raw,
    restage,
    snapshot,
    snapshots,
    stage,
    stats,
    unpublish,
    unstage,
    validate,
    volumes,
)
from .orchestrator import MIB, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
INVALID, MISSING, EXISTS = "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS"
REFUSED, RANGE, FULL = "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"


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
    for make in (restage, republish):  # a secret among them is neither recorded nor compared
        yield make, {"volume_capability": flags("noatime", f"password={SECRET}")}, EXISTS
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
    with grpc.insecure_channel(f"unix:{site.co.client.path}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/csi.v1.Controller/CreateVolume")(over)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


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
