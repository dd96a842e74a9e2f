"""Mounts that no record tells of, and mounts that answer no more: real ones. What is foreign stays as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit.doctor import Finding
from volkit.doctor.node import _Changes
from volkit.errors import InUse
from volkit.host import loop, mounts
from volkit.journal import Delete, Put, key
from volkit.model import Capability
from volkit.recovery import recover

from .world import MOUNTED, RAW, Served, World, loop_world, tmpfs, until

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4", "bindfs")]


def foreign(found: Finding) -> str:
    """The path of a finding that is shown and not repaired."""
    assert (found.sort, found.repair) == ("foreign", None)
    command, path = found.command.split()
    assert command == "umount"
    return path


@pytest.mark.parametrize(
    "capability", [MOUNTED, RAW, Capability(fs_type="btrfs")], ids=["ext4", "raw", "btrfs"]
)
def test_nothing_is_found_where_all_is_well(node: World, capability: Capability) -> None:
    size = 128 << 20
    volume = node.used("v", capability, size)
    node.used("w", capability, size)
    assert node.findings() == []
    node.unpublish(volume)
    assert node.findings() == []
    node.unstage(volume)
    assert node.findings() == []


def test_what_is_mounted_over_a_volume_is_foreign(node: World) -> None:
    volume = node.used()
    for place in (node.staging(volume), node.target(volume)):
        tmpfs(place)
        found = node.one()
        assert foreign(found) == place
        assert f"over or instead of volume {volume}" in found.what
        subprocess.run(found.command.split(), check=True)
        assert node.findings() == []


def test_what_is_mounted_instead_of_a_volume_stays(node: World) -> None:
    volume = node.create()
    node.stage(volume)
    mounts.unmount(node.staging(volume))
    tmpfs(node.staging(volume))
    assert foreign(node.one()) == node.staging(volume)
    entry = node.engine.node_journal.get(key("stage", volume))
    assert entry
    node.engine.node_journal.write(Put(entry.key, {**entry.value, "state": "connecting"}))
    ((_, did, settled),) = recover(node.engine, min_age=0)
    assert "it stays" in did
    assert not settled
    here = mounts.mount_at(node.staging(volume))
    assert here
    assert here.source == "foreign"


def test_what_is_mounted_inside_a_volume_is_foreign(node: World) -> None:
    volume = node.used()
    inside = f"{node.staging(volume)}/inside"
    tmpfs(inside)
    assert foreign(node.one()) == inside


def test_what_is_mounted_beside_staged_volumes_is_foreign(node: World) -> None:
    node.stage(node.create())
    beside = node.staging("another")
    tmpfs(beside)
    tmpfs(str(node.base / "elsewhere" / "another" / "globalmount"))
    assert foreign(node.one()) == beside


@pytest.mark.parametrize(
    ("capability", "root"), [(MOUNTED, ""), (Capability(fs_type="btrfs"), "/part"), (RAW, "")]
)
def test_a_bind_of_a_volume_elsewhere_is_foreign(node: World, capability: Capability, root: str) -> None:
    volume = node.used("v", capability, 128 << 20)
    elsewhere = node.base / "elsewhere"
    if capability.block:
        elsewhere.touch()
    else:
        elsewhere.mkdir()
    if root:
        command = ["btrfs", "-q", "subvolume", "create", node.staging(volume) + root]
        subprocess.run(command, check=True)
    mounts.bind((node.target(volume) if capability.block else node.staging(volume)) + root, str(elsewhere))
    found = node.one()
    assert foreign(found) == str(elsewhere)
    assert volume in found.what


def test_what_kubelet_binds_is_its_own(node: World) -> None:
    """For a container's subPath, and of a raw volume's node; once unpublished, it was forgotten there."""
    kubelet, capabilities = node.base / "kubelet", {"mounted": MOUNTED, "raw": RAW}
    target = {"mounted": kubelet / "pods/u1/volumes/kubernetes.io~csi/pv1/mount"}
    target["raw"] = kubelet / "plugins/kubernetes.io/csi/volumeDevices/publish/pv2/u1"
    copy = {"mounted": kubelet / "pods/u1/volume-subpaths/pv1/c/0"}
    copy["raw"] = kubelet / "plugins/kubernetes.io/csi/volumeDevices/pv2/dev/u1"
    for name, capability in capabilities.items():
        volume = node.create(name, capability=capability)
        node.stage(volume, capability)
        target[name].parent.mkdir(parents=True)
        node.publish(volume, capability, str(target[name]))
        copy[name].parent.mkdir(parents=True)
        copy[name].touch() if name == "raw" else copy[name].mkdir()
        mounts.bind(str(target[name]), str(copy[name]))
        assert node.findings() == []
        node.unpublish(volume, str(target[name]))
        assert foreign(node.one()) == str(copy[name])
        mounts.unmount(str(copy[name]))


def test_an_administrator_moved_the_directory_by_a_link(node: World) -> None:
    """The mount table knows the paths without the link."""
    for name in ("kubelet", "pods"):
        (node.base / "disk" / name).mkdir(parents=True)
        (node.base / name).symlink_to(node.base / "disk" / name)
    volume = node.used()
    assert node.findings() == []
    inside = f"{node.base}/disk/pods/{volume}/mount/inside"
    tmpfs(inside)
    assert foreign(node.one()) == inside


def test_a_mount_point_with_odd_characters_can_be_pasted(node: World) -> None:
    volume = node.used()
    elsewhere = str(node.base / "it's a dir")
    os.mkdir(elsewhere)
    mounts.bind(node.staging(volume), elsewhere)
    subprocess.run(node.one().command, shell=True, check=True)
    assert node.findings() == []


def test_a_mount_that_somebody_removed_is_stuck_and_repaired(node: World) -> None:
    volume = node.used()
    mounts.unmount(node.target(volume))
    found = node.one()
    assert (found.sort, found.command) == ("stuck", "volkit recover")
    assert found.repair
    assert found.repair() == "what was begun is undone"
    assert not os.path.exists(node.target(volume))
    mounts.unmount(node.staging(volume))
    found = node.one()
    assert found.sort == "stuck"
    assert found.repair
    assert found.repair() == "what was begun is undone"
    assert node.findings() == []
    assert not loop.find(str(node.image(volume)))


@pytest.mark.copies_mounts
def test_a_copy_in_another_mount_namespace_keeps_a_device_in_use(node: World) -> None:
    """As of a container that was started while the volume was staged."""
    volume = node.create()
    node.stage(volume)
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "100"]) as container:
        try:
            own = os.readlink("/proc/self/ns/mnt")
            until(lambda: os.readlink(f"/proc/{container.pid}/ns/mnt") != own)
            assert node.findings() == []
            with pytest.raises(InUse):
                node.unstage(volume)
            copy, stage = sorted(node.findings(), key=lambda one: "namespace" not in one.what)
            assert (copy.sort, copy.repair) == ("stuck", None)
            assert f"mount namespace of pid {container.pid} (" in copy.what
            assert stage.command == "volkit recover"
            subprocess.run(copy.command.split(), check=True)
            node.unstage(volume)
            assert node.findings() == []
        finally:
            container.kill()


def test_a_volume_that_is_worked_on_is_left_out(node: World) -> None:
    volume = node.used()
    mounts.unmount(node.target(volume))
    target_key = key("target", volume, node.target(volume))
    with node.engine.locks.hold(target_key, key("volume", volume), wait=0):
        assert node.findings() == []
    assert len(node.findings()) == 1


def test_a_volume_of_a_lost_record_is_leaked_and_left_where_it_is_mounted(node: World) -> None:
    volume = node.create()
    node.stage(volume)
    node.engine.node_journal.write(Delete(key("stage", volume)))
    mount, device = node.findings()
    assert {mount.sort, device.sort} == {"leaked"}
    assert mount.repair is None
    assert device.repair is None
    for one in (mount, device):
        subprocess.run(one.command.split(), check=True)
    assert node.findings() == []


def test_the_tables_are_read_as_often_for_many_findings_as_for_one(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else thousands of volumes would take half an hour: after a reboot, and after the loss of the journal."""
    read = {"mount table": 0, "connections": 0}
    node_class: Any = type(node.engine.node)
    real, listed = mounts.mounts, node_class.list_connections

    def counted(**words: Any) -> list[mounts.Mount]:
        read["mount table"] += 1
        return real(**words)

    def connections(self: object) -> Iterator[Any]:
        read["connections"] += 1
        yield from listed(self)

    monkeypatch.setattr(mounts, "mounts", counted)
    monkeypatch.setattr(node_class, "list_connections", connections)
    monkeypatch.setattr(_Changes, "__bool__", lambda self: False)  # others mount and unmount meanwhile
    counts = []
    for names in (("v0",), ("v1", "v2", "v3", "v4")):
        for name in names:
            volume = node.create(name, capability=RAW)
            loop.attach(str(node.image(volume)))
            gone = {"path": node.target(name), "readonly": False, "staging": "", "capability": RAW.record()}
            node.engine.node_journal.write(Put(key("target", name, node.target(name)), gone))
        read.update({"mount table": 0, "connections": 0})
        assert len(node.findings()) == 2 * (1 if names == ("v0",) else 5)
        counts.append(dict(read))
    assert counts[0] == counts[1]


def test_a_device_that_is_bound_somewhere_is_left_there(node: World) -> None:
    volume = node.create(capability=RAW)
    device = loop.attach(str(node.image(volume)))
    place = node.base / "node"
    place.touch()
    mounts.bind(device, str(place))
    bound, attached = node.findings()
    assert bound.command == f"umount {place}"
    assert attached.repair is None
    mounts.unmount(str(place))
    found = node.one()
    assert found.repair
    assert found.repair() == "it is disconnected"


def test_another_drivers_volume_of_the_same_name_is_not_ours(
    node: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ids come from names, so two drivers of one host may have the same: their devices are told by their files."""
    node.create()
    other = loop_world(tmp_path_factory.mktemp("other"))
    try:
        volume = other.create()
        assert node.image(volume).name == other.image(volume).name
        device = loop.attach(str(other.image(volume)))
        assert node.findings() == []
        assert other.one().command == f"losetup -d {device}"
    finally:
        other.close()


def test_a_second_device_of_a_staged_volume_is_leaked_and_left(node: World) -> None:
    volume = node.used()
    device = loop.attach(str(node.image(volume)))
    found = node.one()
    assert (found.sort, found.command, found.repair) == ("leaked", f"losetup -d {device}", None)


def test_a_device_of_a_volume_that_is_not_in_the_journal_is_left(node: World) -> None:
    volume = node.create()
    device = loop.attach(str(node.image(volume)))
    for entry in node.engine.journal.scan(""):
        node.engine.journal.write(Delete(entry.key))
    stored, attached = node.findings()
    assert stored.sort == "foreign"
    assert (attached.sort, attached.command, attached.repair) == ("leaked", f"losetup -d {device}", None)


# -- what answers no more ------------------------------------------------------------------------------------


def test_a_mount_that_hangs_is_stuck_and_holds_up_nobody(
    share: World, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = share.used()
    assert share.findings() == []
    served.stop()
    with monkeypatch.context() as patch:
        patch.setattr("volkit.doctor.finding.ANSWER_SECONDS", 1.0)
        target, stage = share.findings()
    assert target.sort == stage.sort == "stuck"
    assert f"{volume} at {share.target(volume)} does not answer" in target.what
    assert f"{volume} at {share.staging(volume)} does not answer" in stage.what
    assert target.repair is None
    assert target.command.startswith(f"umount -f {share.target(volume)}  # gives up")
    served.go_on()
    assert share.findings() == []


def test_a_mount_that_is_dead_is_stuck_and_repaired(share: World, served: Served) -> None:
    volume = share.used()
    served.kill()
    target, stage = share.findings()
    assert target.command == f"umount -l {share.target(volume)}"
    assert "nobody serves" in target.what
    for one in (target, stage):
        assert one.repair
        assert one.repair() == "what was begun is undone"
    assert [one.what for one in share.findings()] == []
    assert not mounts.mounts(under=str(share.base / "kubelet"))
    assert not mounts.mounts(under=str(share.base / "pods"))


def test_a_place_behind_a_mount_that_hangs_holds_up_nobody(
    node: World, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record's path itself leads through it."""
    record = {
        "path": str(served.path / "deep" / "mount"),
        "readonly": False,
        "capability": MOUNTED.record(),
        "staging": "",
        "since": 1.0,
    }
    node.engine.node_journal.write(Put(key("target", "v", record["path"]), record))  # type: ignore[arg-type]
    served.stop()
    with monkeypatch.context() as patch:
        patch.setattr("volkit.doctor.node._RESOLVE_SECONDS", 1.0)
        found = node.one()
    assert (found.sort, found.command) == ("stuck", "volkit recover")
    served.go_on()
    assert found.repair
    found.repair()
    assert node.findings() == []


def test_the_command_ends_where_a_mount_hangs(share: World, served: Served, tmp_path: Path) -> None:
    """As a process of its own: it takes no longer than its deadlines, and ends with nothing left of it."""
    share.used()
    served.stop()
    stopped = subprocess.run(
        ["timeout", "-k", "1", "100", "python", "-c", _DOCTOR, str(share.base)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"},  # type: ignore[attr-defined]
    )
    assert stopped.returncode == 1, stopped.stderr
    assert stopped.stdout.count("does not answer") == 2
    served.go_on()
    until(lambda: share.findings() == [])


_DOCTOR = """
import sys
from pathlib import Path
from volkit.doctor import examine
from volkit.engine import Engine
from volkit.testing.memory import MemoryBackend, memory_settings
base = Path(sys.argv[1])
settings = memory_settings(root=base / "served")
engine = Engine(MemoryBackend, settings, state_dir=base / "state", node_id="n1", services=("node",))
found = list(examine(engine, min_age=0))
print(*(one.what for one in found), sep="\\n")
engine.close()
raise SystemExit(1 if found else 0)
"""
