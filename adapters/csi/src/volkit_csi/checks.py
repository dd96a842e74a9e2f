"""What `volkit check --endpoint` looks at in any CSI driver, from outside: one function a row.

A row gets a `Driver`, does calls, and calls `expect` with what must be true. It makes its volumes by
`driver.volume()`, so that they go away again, whatever happens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final

from volkit_csi.checking import (
    AGAIN,
    SECRET,
    UNKNOWN_ID,
    Driver,
    Failed,
    Row,
    Used,
    expect,
    missing_fields,
    nothing_made,
)
from volkit_csi.client import METHODS, CallError
from volkit_csi.lean import csi_pb2

pb: Any = csi_pb2
_REFUSED: Final = ("INVALID_ARGUMENT", "ALREADY_EXISTS")

ROWS: Final[list[Row]] = []


def row(
    id: str, title: str, source: str, *needs: str, strict: bool = True
) -> Callable[[Callable[[Driver], None]], Callable[[Driver], None]]:
    """Puts a check into ROWS."""

    def put(check: Callable[[Driver], None]) -> Callable[[Driver], None]:
        ROWS.append(Row(id, title, source, check, needs, strict))
        return check

    return put


# -- what the driver is --------------------------------------------------------------------------------------


@row("identity-name", "the driver's name is a domain name of at most 63 characters", "GetPluginInfo")
def identity_name(driver: Driver) -> None:
    name = driver.call("GetPluginInfo").name
    expect(re.fullmatch(r"[A-Za-z]([A-Za-z0-9.-]{0,61}[A-Za-z])?", name), f"the driver's name is {name!r}")


@row("identity-capabilities", "its capabilities fit each other", "Capabilities")
def identity_capabilities(driver: Driver) -> None:
    rules = (
        ("controller:LIST_VOLUMES_PUBLISHED_NODES", "controller:PUBLISH_UNPUBLISH_VOLUME"),
        ("controller:LIST_VOLUMES_PUBLISHED_NODES", "controller:LIST_VOLUMES"),
        ("controller:PUBLISH_READONLY", "controller:PUBLISH_UNPUBLISH_VOLUME"),
        ("controller:CLONE_VOLUME", "controller:CREATE_DELETE_VOLUME"),
    )
    for one, other in rules:
        expect(not driver.has(one) or driver.has(other), f"{one} is reported without {other}")
    if driver.has("controller") and driver.has("node"):
        sides = [driver.has(f"{side}:SINGLE_NODE_MULTI_WRITER") for side in ("controller", "node")]
        expect(len(set(sides)) == 1, "SINGLE_NODE_MULTI_WRITER is reported by one of the services alone")


@row("identity-unknown-method", "a method that is not there is UNIMPLEMENTED", "Error Scheme", strict=False)
def identity_unknown_method(driver: Driver) -> None:
    for method, needed in (
        ("ListSnapshots", "controller:LIST_SNAPSHOTS"),
        ("GetCapacity", "controller:GET_CAPACITY"),
    ):
        if not driver.has(needed):
            driver.refused(method, None, "without its capability", ("UNIMPLEMENTED",))


# -- create and delete ---------------------------------------------------------------------------------------

_CREATES = ("controller:CREATE_DELETE_VOLUME",)


@row("create-missing-fields", "CreateVolume without a required field is INVALID_ARGUMENT, and makes nothing",
     "CreateVolumeRequest", *_CREATES)  # fmt: skip
def create_missing_fields(driver: Driver) -> None:
    with nothing_made(driver, "CreateVolume with a required field missing"):
        request = driver.creation()
        paths = [
            "name",
            "volume_capabilities",
            "volume_capabilities.access_mode",
            "volume_capabilities.mount",
        ]
        missing_fields(driver, "CreateVolume", request, *paths)
        unset = driver.creation()
        unset.volume_capabilities[0].access_mode.mode = 0
        driver.refused("CreateVolume", unset, "with access mode UNKNOWN")


@row("create-bad-values", "CreateVolume with a value nobody knows or no name may have is refused",
     "CreateVolumeRequest", *_CREATES)  # fmt: skip
def create_bad_values(driver: Driver) -> None:
    with nothing_made(driver, "CreateVolume with a bad value"):
        unknown = driver.creation()
        unknown.volume_capabilities[0].access_mode.mode = 4711
        driver.refused("CreateVolume", unknown, "with an unknown access mode")
        driver.refused("CreateVolume", driver.creation("n" * 129), "with a name of 129 bytes")
        driver.refused("CreateVolume", driver.creation("a\x00b"), "with a NUL in its name")
        backward = driver.creation(capacity_range={"required_bytes": 2 << 20, "limit_bytes": 1 << 20})
        driver.refused(
            "CreateVolume", backward, "with a limit below the size", ("INVALID_ARGUMENT", "OUT_OF_RANGE")
        )
        negative = driver.creation(capacity_range={"required_bytes": -1})
        driver.refused("CreateVolume", negative, "with a negative size", ("INVALID_ARGUMENT", "OUT_OF_RANGE"))


@row("create-repeated", "CreateVolume again is the same volume", "CreateVolume", *_CREATES)
def create_repeated(driver: Driver) -> None:
    name = driver.name()
    first = driver.volume(name)
    again = driver.patiently("CreateVolume", driver.creation(name)).volume
    expect(
        again.volume_id == first.volume_id, f"the second CreateVolume of one name made {again.volume_id!r}"
    )
    expect(again.capacity_bytes == first.capacity_bytes, "the second CreateVolume tells another size")


@row("create-other-access", "the same name with block instead of mount is refused", "CreateVolume", *_CREATES)
def create_other_access(driver: Driver) -> None:
    name = driver.name()
    driver.volume(name)
    other = driver.creation(name, volume_capabilities=[driver.capability(block=True)])
    driver.refused("CreateVolume", other, "of the same name, as a block device", _REFUSED)


@row("create-other-size", "the same name with a larger size is refused", "CreateVolume", *_CREATES)
def create_other_size(driver: Driver) -> None:
    name = driver.name()
    volume = driver.volume(name)
    if volume.capacity_bytes:
        larger = driver.creation(name, capacity_range={"required_bytes": 2 * volume.capacity_bytes})
        driver.refused(
            "CreateVolume", larger, "of the same name, twice as large", ("ALREADY_EXISTS", "OUT_OF_RANGE")
        )


@row("create-other-source", "the same name with a source is refused", "CreateVolume",
     *_CREATES, "controller:CREATE_DELETE_SNAPSHOT")  # fmt: skip
def create_other_source(driver: Driver) -> None:
    name = driver.name()
    volume = driver.volume(name)
    snapshot = driver.snapshot(volume.volume_id)
    source = {"snapshot": {"snapshot_id": snapshot.snapshot_id}}
    driver.refused("CreateVolume", driver.creation(name, volume_content_source=source),
                   "of the same name, from a snapshot", _REFUSED)  # fmt: skip


@row(
    "create-concurrent", "sixteen CreateVolume of one name at once make one volume", "Concurrency", *_CREATES
)
def create_concurrent(driver: Driver) -> None:
    request = driver.creation()

    def create(_: int) -> str:
        try:
            return str(driver.call("CreateVolume", request).volume.volume_id)
        except CallError as error:
            return f"!{error.code}"

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(create, range(16)))
    final = driver.patiently("CreateVolume", request).volume.volume_id
    ids = {final, *(one for one in answers if not one.startswith("!"))}
    for volume_id in ids:
        driver.later(partial(driver.delete, volume_id))
    expect(len(ids) == 1, f"one name became {len(ids)} volumes: {sorted(ids)}")
    codes = {one[1:] for one in answers if one.startswith("!")}
    expect(
        codes <= AGAIN,
        f"a CreateVolume beside its like is answered with {sorted(codes - AGAIN)}: say ABORTED",
    )


@row("create-abandoned", "a CreateVolume whose caller gave up is finished or undone by the next one",
     "Timeouts", *_CREATES)  # fmt: skip
def create_abandoned(driver: Driver) -> None:
    name = driver.name()
    before = set(driver.listed()) if driver.has("controller:LIST_VOLUMES") else set()
    for timeout in (0.001, 0.003, 0.01):
        driver.code("CreateVolume", driver.creation(name), timeout)
    volume = driver.volume(name)
    if driver.has("controller:LIST_VOLUMES"):
        new = set(driver.listed()) - before
        for stray in new - {volume.volume_id}:
            driver.later(partial(driver.delete, stray))
        expect(new == {volume.volume_id}, f"one name became {len(new)} volumes: {sorted(new)}")


@row(
    "delete-repeated",
    "DeleteVolume of what is gone is OK, and without an id INVALID_ARGUMENT",
    "DeleteVolume",
    *_CREATES,
)
def delete_repeated(driver: Driver) -> None:
    volume = driver.volume()
    for _ in range(2):
        code = driver.code(
            "DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume.volume_id, secrets=driver.secrets)
        )
        expect(code == "OK", f"DeleteVolume of what is gone is answered with {code}")
    missing_fields(driver, "DeleteVolume", pb.DeleteVolumeRequest(volume_id="x"), "volume_id")


@row(
    "create-delete-racing",
    "creates and deletes of one volume at once leave one volume, or none",
    "Concurrency",
    *_CREATES,
)
def create_delete_racing(driver: Driver) -> None:
    request = driver.creation()
    volume_id = driver.patiently("CreateVolume", request).volume.volume_id
    driver.later(lambda: driver.delete(volume_id))

    def work(number: int) -> str:
        if number % 2:
            return driver.code(
                "DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume_id, secrets=driver.secrets)
            )
        return driver.code("CreateVolume", request)

    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(work, range(16)))
    expect(codes <= AGAIN | {"OK"}, f"creates and deletes at once are answered with {sorted(codes)}")
    again = driver.patiently("CreateVolume", request).volume.volume_id
    driver.later(lambda: driver.delete(again))
    if driver.has("controller:LIST_VOLUMES"):
        there = [one for one in driver.listed() if one in (volume_id, again)]
        expect(there == [again], f"after a race and a CreateVolume these are listed: {there}")


# -- lists ---------------------------------------------------------------------------------------------------


@row(
    "list-pages",
    "ListVolumes gives pages that add up to the whole",
    "ListVolumes",
    *_CREATES,
    "controller:LIST_VOLUMES",
)
def list_pages(driver: Driver) -> None:
    made = {driver.volume().volume_id for _ in range(3)}
    first = driver.call("ListVolumes", pb.ListVolumesRequest(max_entries=1))
    expect(len(first.entries) == 1, f"ListVolumes with max_entries 1 gives {len(first.entries)} entries")
    expect(first.next_token, "ListVolumes with max_entries 1 of several volumes gives no next_token")
    for limit in (1, 2, 0):
        ids = driver.listed(limit)
        expect(len(set(ids)) == len(ids), f"pages of {limit} list a volume twice")
        expect(made <= set(ids), f"pages of {limit} do not list {sorted(made - set(ids))}")


@row("list-pages-while-deleting", "a deletion between two pages hides no other volume", "ListVolumes",
     *_CREATES, "controller:LIST_VOLUMES")  # fmt: skip
def list_pages_while_deleting(driver: Driver) -> None:
    made = [driver.volume().volume_id for _ in range(4)]
    page = driver.call("ListVolumes", pb.ListVolumesRequest(max_entries=2))
    seen = [entry.volume.volume_id for entry in page.entries]
    gone = next((one for one in seen if one in made), made[0])
    driver.delete(gone)
    token = page.next_token
    while token:
        try:
            page = driver.call("ListVolumes", pb.ListVolumesRequest(max_entries=2, starting_token=token))
        except CallError as error:
            expect(
                error.code == "ABORTED", f"a page after a deletion is answered with {error.code}, not ABORTED"
            )
            return
        seen += [entry.volume.volume_id for entry in page.entries]
        token = page.next_token
    hidden = set(made) - {gone} - set(seen)
    expect(not hidden, f"a deletion between two pages hid {sorted(hidden)}")


@row(
    "list-bad-token",
    "ListVolumes with a token nobody gave out is ABORTED",
    "ListVolumes",
    "controller:LIST_VOLUMES",
)
def list_bad_token(driver: Driver) -> None:
    driver.refused(
        "ListVolumes",
        pb.ListVolumesRequest(starting_token="volkit-no-such-token"),
        "with a bad token",
        ("ABORTED",),
    )
    driver.refused("ListVolumes", pb.ListVolumesRequest(max_entries=-1), "with max_entries -1")


@row("snapshot-pages", "ListSnapshots gives pages that add up to the whole", "ListSnapshots",
     *_CREATES, "controller:CREATE_DELETE_SNAPSHOT", "controller:LIST_SNAPSHOTS")  # fmt: skip
def snapshot_pages(driver: Driver) -> None:
    volume = driver.volume()
    made = {driver.snapshot(volume.volume_id).snapshot_id for _ in range(3)}
    found: list[str] = []
    token = ""
    while True:
        answer = driver.call("ListSnapshots", pb.ListSnapshotsRequest(max_entries=1, starting_token=token))
        found += [entry.snapshot.snapshot_id for entry in answer.entries]
        token = answer.next_token
        if not token:
            break
    expect(len(set(found)) == len(found), "pages of 1 list a snapshot twice")
    expect(made <= set(found), f"pages of 1 do not list {sorted(made - set(found))}")
    of = driver.call("ListSnapshots", pb.ListSnapshotsRequest(source_volume_id=UNKNOWN_ID))
    expect(not of.entries, "ListSnapshots lists snapshots of a volume that is not there")


@row("snapshot-repeated", "CreateSnapshot again is the same snapshot, of another volume ALREADY_EXISTS",
     "CreateSnapshot", *_CREATES, "controller:CREATE_DELETE_SNAPSHOT")  # fmt: skip
def snapshot_repeated(driver: Driver) -> None:
    first, second, name = driver.volume(), driver.volume(), driver.name()
    snapshot = driver.snapshot(first.volume_id, name)
    request = pb.CreateSnapshotRequest(name=name, source_volume_id=first.volume_id, secrets=driver.secrets)
    again = driver.patiently("CreateSnapshot", request).snapshot
    expect(again.snapshot_id == snapshot.snapshot_id, f"the second CreateSnapshot made {again.snapshot_id!r}")
    request.source_volume_id = second.volume_id
    driver.refused("CreateSnapshot", request, "of the same name and another volume", ("ALREADY_EXISTS",))
    missing_fields(driver, "CreateSnapshot", request, "name", "source_volume_id")
    missing_fields(driver, "DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id="x"), "snapshot_id")


# -- the other calls of the controller -----------------------------------------------------------------------


@row("controller-missing-fields", "the controller's other calls refuse a missing field with INVALID_ARGUMENT",
     "Controller Service RPC", *_CREATES)  # fmt: skip
def controller_missing_fields(driver: Driver) -> None:
    volume = driver.volume()
    validate = pb.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id, volume_capabilities=[driver.capability()], secrets=driver.secrets
    )
    missing_fields(driver, "ValidateVolumeCapabilities", validate, "volume_id", "volume_capabilities")
    validate.volume_id = UNKNOWN_ID
    driver.refused("ValidateVolumeCapabilities", validate, "of a volume that is not there", ("NOT_FOUND",))
    if driver.has("controller:EXPAND_VOLUME"):
        expand = pb.ControllerExpandVolumeRequest(
            volume_id=volume.volume_id, capacity_range={"required_bytes": 1}, secrets=driver.secrets
        )
        missing_fields(driver, "ControllerExpandVolume", expand, "volume_id", "capacity_range")
    if driver.has("controller:PUBLISH_UNPUBLISH_VOLUME"):
        publish = pb.ControllerPublishVolumeRequest(
            volume_id=volume.volume_id,
            node_id=driver.node_id or "n1",
            volume_capability=driver.capability(),
            secrets=driver.secrets,
        )
        missing_fields(
            driver, "ControllerPublishVolume", publish, "volume_id", "node_id", "volume_capability"
        )
        missing_fields(
            driver,
            "ControllerUnpublishVolume",
            pb.ControllerUnpublishVolumeRequest(volume_id="x"),
            "volume_id",
        )


# -- the node ------------------------------------------------------------------------------------------------

_USES = (*_CREATES, "node")


@row("node-missing-fields", "the node's calls refuse a missing field with INVALID_ARGUMENT, and mount nothing",
     "Node Service RPC", *_USES)  # fmt: skip
def node_missing_fields(driver: Driver) -> None:
    used = driver.used(driver.volume())
    if driver.has("node:STAGE_UNSTAGE_VOLUME"):
        paths = ("volume_id", "staging_target_path", "volume_capability", "volume_capability.access_mode")
        missing_fields(driver, "NodeStageVolume", used.staging_request(), *paths)
        unstage = pb.NodeUnstageVolumeRequest(
            volume_id=UNKNOWN_ID, staging_target_path=str(driver.staging / "none")
        )
        missing_fields(driver, "NodeUnstageVolume", unstage, "volume_id", "staging_target_path")
    paths = ("volume_id", "target_path", "volume_capability", "volume_capability.access_mode")
    missing_fields(driver, "NodePublishVolume", used.publishing(), *paths)
    unpublish = pb.NodeUnpublishVolumeRequest(volume_id=UNKNOWN_ID, target_path=str(driver.targets / "none"))
    missing_fields(driver, "NodeUnpublishVolume", unpublish, "volume_id", "target_path")
    expect(not used.mounted(), "a NodePublishVolume that was refused has mounted something")
    if driver.has("node:GET_VOLUME_STATS"):
        stats = pb.NodeGetVolumeStatsRequest(volume_id="x", volume_path=str(driver.targets))
        missing_fields(driver, "NodeGetVolumeStats", stats, "volume_id", "volume_path")


@row("publish-repeated", "NodePublishVolume again mounts nothing twice", "NodePublishVolume", *_USES)
def publish_repeated(driver: Driver) -> None:
    used = driver.used(driver.volume())
    for _ in range(3):
        used.publish()
    expect(used.mounted() == 1, f"after three equal NodePublishVolume the target has {used.mounted()} mounts")


@row("publish-other-arguments", "a second NodePublishVolume of a target with another readonly is ALREADY_EXISTS",
     "NodePublishVolume", *_USES)  # fmt: skip
def publish_other_arguments(driver: Driver) -> None:
    used = driver.used(driver.volume())
    used.publish()
    other = used.publishing(readonly=True)
    driver.refused("NodePublishVolume", other, "of the same target, read-only now", ("ALREADY_EXISTS",))


@row("publish-read-only", "what is published read-only cannot be written to", "NodePublishVolume", *_USES)
def publish_read_only(driver: Driver) -> None:
    used = driver.used(driver.volume())
    used.publish(readonly=True)
    try:
        (used.target / "volkit-check").write_text("x")
    except OSError:
        return
    raise Failed("a file could be written to a volume that was published read-only")


@row("publish-second-target", "a second target is refused for SINGLE_NODE_SINGLE_WRITER", "NodePublishVolume",
     *_USES, "node:SINGLE_NODE_MULTI_WRITER")  # fmt: skip
def publish_second_target(driver: Driver) -> None:
    capability = driver.capability(mode="SINGLE_NODE_SINGLE_WRITER")
    used = driver.used(driver.volume(volume_capabilities=[capability]), capability=capability)
    used.publish()
    second = used.target.with_name(used.target.name + "-2")
    driver.later(lambda: used.unpublish(second))
    driver.refused(
        "NodePublishVolume",
        used.publishing(target_path=str(second)),
        "at a second target",
        ("FAILED_PRECONDITION",),
    )


@row("unpublish-cleans", "NodeUnpublishVolume removes the target, and is OK again and for what never was",
     "NodeUnpublishVolume", *_USES)  # fmt: skip
def unpublish_cleans(driver: Driver) -> None:
    used = driver.used(driver.volume())
    used.publish()
    for _ in range(2):
        used.unpublish()
        expect(not used.mounted(), "after NodeUnpublishVolume something is mounted at the target")
        expect(not os.path.lexists(used.target), "after NodeUnpublishVolume the target is still there")
    expect(driver.targets.exists(), "NodeUnpublishVolume removed the directory that the target was in")
    never = pb.NodeUnpublishVolumeRequest(volume_id=UNKNOWN_ID, target_path=str(driver.targets / "never"))
    driver.refused("NodeUnpublishVolume", never, "of what never was", ("OK", "NOT_FOUND"))


@row("delete-while-published", "DeleteVolume of a published volume is refused, or leaves no mount behind",
     "DeleteVolume", *_USES)  # fmt: skip
def delete_while_published(driver: Driver) -> None:
    used = driver.used(driver.volume())
    used.publish()
    request = pb.DeleteVolumeRequest(volume_id=used.volume.volume_id, secrets=driver.secrets)
    code = driver.code("DeleteVolume", request)
    expect(
        code != "OK" or not used.mounted(),
        "DeleteVolume of a published volume is answered with OK, and its mount stays: say FAILED_PRECONDITION",
    )
    expect(
        code in ("OK", "FAILED_PRECONDITION", *AGAIN),
        f"DeleteVolume of a published volume is answered with {code}",
    )


@row("publish-unstaged", "NodePublishVolume of what is not staged is refused, and mounts nothing",
     "NodePublishVolume", *_USES, "node:STAGE_UNSTAGE_VOLUME")  # fmt: skip
def publish_unstaged(driver: Driver) -> None:
    used = Used(driver, driver.volume())
    driver.later(used.down)
    used.attach()
    code = driver.code("NodePublishVolume", used.publishing())
    expect(code != "OK", "NodePublishVolume of a volume that is not staged is answered with OK")
    expect(not used.mounted(), "a NodePublishVolume that was refused has mounted something")


@row("stats", "NodeGetVolumeStats tells the size of a published volume, and NOT_FOUND elsewhere",
     "NodeGetVolumeStats", *_USES, "node:GET_VOLUME_STATS")  # fmt: skip
def stats(driver: Driver) -> None:
    used = driver.used(driver.volume())
    used.publish()
    request = pb.NodeGetVolumeStatsRequest(volume_id=used.volume.volume_id, volume_path=str(used.target))
    rows = driver.call("NodeGetVolumeStats", request).usage
    expect(any(one.unit == pb.VolumeUsage.BYTES and one.total > 0 for one in rows), f"its usage is {rows}")
    request.volume_path = str(driver.targets / "elsewhere")
    driver.refused("NodeGetVolumeStats", request, "at a path where it is not", ("NOT_FOUND",))


# -- secrets -------------------------------------------------------------------------------------------------


@row(
    "secrets",
    "no secret and no mount flag's value is told in an answer, an error or the log",
    "Secrets Requirements",
)
def secrets(driver: Driver) -> None:
    told = {"password": SECRET}
    flags = (f"password={SECRET}",)
    start = driver.log.stat().st_size if driver.log else 0
    driver.said.clear()
    for method, row in METHODS.items():
        request = getattr(pb, row.input_type.name)()
        names = request.DESCRIPTOR.fields_by_name
        if "secrets" not in names:
            continue
        request.secrets.update(told)
        if "volume_id" in names:
            request.volume_id = UNKNOWN_ID
        if "volume_capability" in names:
            request.volume_capability.CopyFrom(driver.capability(flags=flags))
        if "staging_target_path" in names:
            request.staging_target_path = str(driver.staging / "none")
        if "target_path" in names:
            request.target_path = str(driver.targets / "none")
        driver.code(method, request, 20)
    if driver.has("controller:CREATE_DELETE_VOLUME"):
        bad = driver.creation(
            secrets={**driver.secrets, **told}, parameters={**driver.parameters, "volkitNoSuch": "1"}
        )
        bad.volume_capabilities[0].CopyFrom(driver.capability(flags=flags))
        with suppress(CallError):
            volume = driver.call("CreateVolume", bad).volume
            driver.later(lambda: driver.delete(volume.volume_id))
    for text in driver.said:
        expect(SECRET not in text, f"a secret is told by {text.partition(':')[0]}")
    if driver.log:
        with driver.log.open("rb") as file:
            file.seek(start)
            expect(
                SECRET.encode() not in file.read(),
                "a secret, or a mount flag's value, is in the driver's log",
            )
