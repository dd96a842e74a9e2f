"""The controller: topology, sources, deletion while in use, snapshots and pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from volkit import (
    FIRST_FORMAT,
    AccessMode,
    AlreadyExists,
    Capability,
    CapacityRange,
    CloneSource,
    InUse,
    InvalidArgument,
    InvalidToken,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    SnapshotSource,
    Topology,
    TopologyRequirement,
    load_backend,
    requests,
)
from volkit.backend import mixins
from volkit.host import loop, mounts
from volkit_loop.backend import LoopBackend
from volkit_loop.controller import LoopController
from volkit_loop.options import LoopParameters

MIB = 1 << 20
HERE = Topology({"volkit.io/node": "n1"})
ELSEWHERE = Topology({"volkit.io/node": "n2"})
pytestmark = pytest.mark.root


def test_it_is_found_by_its_name_and_has_the_capabilities_of_its_classes() -> None:
    assert load_backend("loop") is LoopBackend
    assert mixins(LoopBackend.controller) == {
        "TakesIds", "Lists", "Expands", "Snapshots", "ListsSnapshots", "Clones", "ReportsCapacity",
    }  # fmt: skip
    assert AccessMode.SINGLE_NODE_MULTI_WRITER in LoopBackend.limits.access_modes
    assert not any(mode.multi_node for mode in LoopBackend.limits.access_modes)


def test_a_volume_is_complete_and_the_same_when_looked_up(site: Any) -> None:
    volume = site.create("one", 16 * MIB)
    assert (volume.capacity, volume.topology, volume.source) == (16 * MIB, (HERE,), None)
    assert site.controller.get_volume(requests.GetVolumeRequest(volume_id=volume.id)) == volume
    site.delete(volume.id)
    with pytest.raises(NotFound):
        site.controller.get_volume(requests.GetVolumeRequest(volume_id=volume.id))
    with pytest.raises(NotFound):
        site.delete(volume.id)
    assert not site.image(volume.id).exists()


@pytest.mark.parametrize(
    ("requisite", "preferred", "made"),
    [
        ((HERE,), (), True),
        ((ELSEWHERE, HERE), (ELSEWHERE,), True),
        ((Topology({"VOLKIT.IO/node": "n1"}),), (), True),
        ((ELSEWHERE,), (), False),
        ((), (ELSEWHERE,), False),
        ((), (ELSEWHERE, HERE), True),
        ((), (), True),
    ],
)
def test_it_is_made_only_where_it_is_wanted(site: Any, requisite: Any, preferred: Any, made: bool) -> None:
    wanted = TopologyRequirement(requisite=requisite, preferred=preferred)
    request = requests.CreateVolumeRequest(
        name="one", parameters=LoopParameters(), size=MIB, volume_id="v1234567", topology=wanted
    )
    if made:
        assert site.controller.create_volume(request).topology == (HERE,)
    else:
        with pytest.raises(ResourceExhausted, match="n2"):
            site.controller.create_volume(request)
        assert site.controller.list_volumes(requests.ListRequest()).entries == ()


def test_capacity_is_that_of_this_node_and_of_these_parameters(tmp_path: Path, site: Any) -> None:
    def ask(controller: LoopController, **more: Any) -> int:
        request = requests.CapacityRequest(parameters=LoopParameters(**more), topology=place)
        return controller.get_capacity(request).available

    place: Topology | None = ELSEWHERE
    assert ask(site.controller) == 0
    place = HERE
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert abs(ask(site.controller) - free) < 256 * MIB
    double = type(site)(tmp_path / "double", overcommit=2.0)
    assert abs(ask(double.controller) - 2 * free) < 512 * MIB
    assert abs(ask(double.controller, preallocate=True) - free) < 256 * MIB


def test_a_second_process_that_makes_the_same_gets_the_same(site: Any) -> None:
    volume = site.create("one", 16 * MIB)
    assert site.create("one", 16 * MIB) == volume
    with pytest.raises(AlreadyExists):
        site.create("one", 32 * MIB)
    other = site.create("two", 16 * MIB)
    snapshot = site.snapshot("cut", volume)
    assert site.snapshot("cut", volume) == snapshot
    with pytest.raises(AlreadyExists):
        site.snapshot("cut", other)


def test_a_volume_from_a_source_has_its_content_and_may_be_larger(site: Any) -> None:
    volume = site.create("one", 8 * MIB)
    content = os.urandom(8 * MIB)
    site.image(volume.id).write_bytes(content)
    snapshot = site.snapshot("cut", volume)
    site.image(volume.id).write_bytes(bytes(8 * MIB))
    restored = site.create("restored", 12 * MIB, source=snapshot)
    assert restored.source == SnapshotSource(snapshot)
    assert site.image(restored.id).read_bytes() == content + bytes(4 * MIB)
    clone = site.create("clone", 12 * MIB, source=restored)
    assert clone.source == CloneSource(restored.id)
    assert site.image(clone.id).read_bytes() == content + bytes(4 * MIB)
    with pytest.raises(OutOfRange):
        site.create("small", 4 * MIB, source=snapshot)
    with pytest.raises(NotFound):
        site.create("orphan", 8 * MIB, source="s-missing")
    with pytest.raises(NotFound):
        site.create("escape", 8 * MIB, source="../../etc/passwd")


def test_a_preallocated_volume_stays_so_when_it_grows(site: Any) -> None:
    volume = site.create("one", 4 * MIB, preallocate=True)
    for size in (4 * MIB, 8 * MIB):
        request = requests.ExpandVolumeRequest(
            volume_id=volume.id, capacity_range=CapacityRange(required=size), size=size
        )
        assert site.controller.expand_volume(request).capacity == size
        found = site.image(volume.id).stat()
        assert (found.st_size, found.st_blocks * 512 >= size) == (size, True)


def test_a_volume_that_does_not_fit_changes_nothing(site: Any) -> None:
    before = site.available()
    with pytest.raises(ResourceExhausted, match="promised"):
        site.create("huge", before * 2 // 4096 * 4096)
    volume = site.create("one", MIB)
    with pytest.raises(ResourceExhausted):
        site.controller.expand_volume(
            requests.ExpandVolumeRequest(
                volume_id=volume.id, capacity_range=CapacityRange(), size=before * 2 // 4096 * 4096
            )
        )
    assert site.image(volume.id).stat().st_size == MIB
    assert site.in_the_making() == []


def test_snapshots_are_listed_by_volume_and_outlive_it(site: Any) -> None:
    one, two = site.create("one"), site.create("two")
    cuts = sorted(site.snapshot(f"one-{number}", one) for number in range(5))
    site.snapshot("two-0", two)
    site.delete(one.id)

    def ids(**more: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = site.controller.list_snapshots(requests.ListSnapshotsRequest(limit=2, token=token, **more))
            assert all(entry.created_at.tzinfo and entry.ready for entry in page.entries)
            found += [entry.id for entry in page.entries]
            if not (token := page.next_token):
                return found

    assert sorted(ids(source_volume_id=one.id)) == cuts
    assert len(ids()) == 6
    assert ids(source_volume_id="v-missing") == []
    for cut in cuts:
        site.controller.delete_snapshot(requests.DeleteSnapshotRequest(snapshot_id=cut))
        with pytest.raises(NotFound):
            site.controller.get_snapshot(requests.GetSnapshotRequest(snapshot_id=cut))
    assert len(ids()) == 1


def test_a_snapshot_parameter_is_refused_by_name(site: Any) -> None:
    volume = site.create("one")
    with pytest.raises(InvalidArgument, match="'speed'"):
        site.controller.create_snapshot(
            requests.CreateSnapshotRequest(
                name="cut", source_volume_id=volume.id, snapshot_id="s-cut", parameters={"speed": "high"}
            )
        )


def test_pages_go_on_after_the_last_entry_even_when_it_is_gone(site: Any) -> None:
    volumes = {site.create(f"number-{number}", MIB).id for number in range(25)}
    page = site.controller.list_volumes(requests.ListRequest(limit=10))
    site.delete(page.entries[-1].id)
    rest = site.controller.list_volumes(requests.ListRequest(limit=20, token=page.next_token))
    assert {entry.id for entry in (*page.entries, *rest.entries)} == volumes
    assert rest.next_token == ""
    with pytest.raises(InvalidToken):
        site.controller.list_volumes(requests.ListRequest(token="7"))


def test_a_volume_in_use_is_not_deleted(site: Any, mounted: Any) -> None:
    volume = site.create("one", 32 * MIB)
    place = mounted(volume, "ext4", fresh=True)
    with pytest.raises(InUse, match=str(place)):
        site.delete(volume.id)
    mounts.unmount(str(place))
    (device,) = loop.find(str(site.image(volume.id)))
    with open(device, "rb"), pytest.raises(InUse):
        site.delete(volume.id)
    target = place.with_name("raw")
    target.touch()
    mounts.bind(device, str(target))
    with pytest.raises(InUse, match="raw"):
        site.delete(volume.id)
    assert loop.find(str(site.image(volume.id))) == [device]
    mounts.unmount(str(target))
    site.delete(volume.id)  # attached still, by nobody: a leftover
    assert loop.find(str(site.image(volume.id))) == []


def test_nothing_of_a_capability_reaches_the_disk_layout(site: Any) -> None:
    request = requests.CreateVolumeRequest(
        name="../../etc/cron.d/x",
        parameters=LoopParameters(),
        size=MIB,
        volume_id="v1234567",
        capabilities=(Capability(fs_type="ext4"),),
    )
    site.controller.create_volume(request)
    assert [path.name for path in site.pool.rglob("*.img")] == ["v1234567.img"]


@pytest.mark.parametrize("written", [False, True])
def test_a_copy_may_be_formatted_only_where_its_source_was_never_written_to(site: Any, written: bool) -> None:
    source = site.create("source", 16 * MIB)
    if written:
        with site.image(source.id).open("r+b") as file:
            file.seek(8 * MIB)
            file.write(b"data")
    snapshot = site.snapshot("cut", source)
    for name, copied in (("clone", source), ("restored", snapshot)):
        copy = site.create(name, 16 * MIB, source=copied)
        assert dict(copy.context) == ({} if written else {FIRST_FORMAT: "true"})
        assert site.controller.get_volume(requests.GetVolumeRequest(volume_id=copy.id)) == copy
