"""Directories as volumes: sizes that are kept to, copies of one moment, full pools and hostile users."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit import (
    Capability,
    CapacityRange,
    CapacityRequest,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    Engine,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NodePublishRequest,
    NodeStageRequest,
    NodeUnpublishRequest,
    NodeUnstageRequest,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Topology,
    TopologyRequirement,
    options,
    requests,
)
from volkit.host import mounts
from volkit_local.backend import LocalBackend
from volkit_local.options import LocalParameters, LocalSettings

MIB = 1 << 20

pytestmark = pytest.mark.root

Sites = Callable[..., Any]


def write(path: Path, size: int) -> int:
    """0, or the number of the error."""
    try:
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    return 0


# -- sizes


def test_a_volume_on_btrfs_takes_no_more_than_its_size(site: Sites) -> None:
    one = site("btrfs")
    volume = one.create("v", 16 * MIB)
    data = one.data(volume)
    assert (volume.capacity, dict(volume.context)) == (16 * MIB, {"sizeEnforced": "true"})
    assert write(data / "a", 12 * MIB) == 0
    assert write(data / "b", 12 * MIB) == errno.EDQUOT
    one.expand(volume, 32 * MIB)
    assert write(data / "b", 12 * MIB) == 0
    assert one.get(volume).capacity == 32 * MIB
    subprocess.run(["sync", "--file-system", data], check=True)
    usage = one.node.usage(volume.id, None)
    assert usage.total == 32 * MIB
    assert 24 * MIB <= usage.used < 26 * MIB


@pytest.mark.parametrize("fs_type", ["xfs", "ext4", "tmpfs"])
def test_elsewhere_a_size_is_refused_or_is_only_a_word(site: Sites, fs_type: str) -> None:
    one = site(fs_type)
    with pytest.raises(OutOfRange, match="advisorySize=true"):
        one.create("v", advisory_size=False)
    endless = one.create("endless", 0, advisory_size=False)
    assert (endless.capacity, dict(endless.context)) == (0, {})
    volume = one.create("v", 16 * MIB)
    assert (volume.capacity, dict(volume.context)) == (16 * MIB, {"sizeEnforced": "false"})
    assert write(one.data(volume) / "a", 20 * MIB) == 0  # nothing keeps it
    usage = one.node.usage(volume.id, None)
    assert usage.used >= 20 * MIB
    assert usage.total >= usage.used + usage.available - MIB
    one.expand(volume, 32 * MIB)
    assert one.get(volume).capacity == 32 * MIB
    with pytest.raises(ResourceExhausted, match="bytes left"):
        one.create("too large", 1 << 40)
    with pytest.raises(ResourceExhausted):
        one.expand(volume, 1 << 40)


def test_quotas_can_be_left_alone(site: Sites) -> None:
    one = site("btrfs", quota=False)
    plain = one.create("plain", 16 * MIB)
    assert plain.context["sizeEnforced"] == "false"
    with pytest.raises(OutOfRange):
        one.create("v", advisory_size=False)
    other = type(one)(one.pool)
    copy = other.create("copy", 16 * MIB, source=plain)  # of a plain directory
    assert copy.context["sizeEnforced"] == "false"
    enforced = other.create("enforced", 16 * MIB)
    assert enforced.context["sizeEnforced"] == "true"
    for volume in (plain, copy, enforced):
        assert other.health(volume) == ""
    assert "not enforced any more" in one.health(enforced)
    for volume in (plain, copy, enforced):
        one.delete(volume)
    assert one.left() == []


def test_what_is_promised_is_there(site: Sites) -> None:
    one = site("btrfs")
    free = one.available()
    first = one.create("first", free // 2 // 4096 * 4096)
    assert one.available() <= free // 2 + MIB
    with pytest.raises(ResourceExhausted, match="do not fit"):
        one.create("second", free)
    with pytest.raises(ResourceExhausted):
        one.expand(first, free * 2)
    assert one.get(first).capacity == first.capacity
    assert write(one.data(first) / "a", 32 * MIB) == 0
    subprocess.run(["sync", "--file-system", one.pool], check=True)
    before = one.available()
    snapshot = one.snapshot("s", first)
    assert one.available() <= before - 32 * MIB  # to write over what is shared takes new space
    one.controller.delete_snapshot(requests.DeleteSnapshotRequest(snapshot_id=snapshot))
    one.delete(first)
    assert one.left() == []
    overcommitted = type(one)(one.pool, overcommit=10)
    assert overcommitted.available() > free * 5


def test_a_full_pool_lets_volumes_go(site: Sites) -> None:
    one = site("btrfs", overcommit=100)
    volumes = [one.create(f"v{number}", 1 << 30) for number in range(3)]
    assert write(one.data(volumes[0]) / "a", 1 << 30) == errno.ENOSPC
    assert write(one.data(volumes[1]) / "a", 8 * MIB) == errno.ENOSPC
    for volume in volumes:
        one.delete(volume)
    assert one.left() == []
    with pytest.raises(NotFound):
        one.get(volumes[0])


# -- copies


def test_a_busy_volume_on_btrfs_is_copied_with_all_that_was_written_before(site: Sites) -> None:
    one = site("btrfs")
    volume = one.create("v", 8 * MIB)
    data, over, written = one.data(volume), threading.Event(), [0]

    def count() -> None:
        with (data / "a").open("wb", buffering=0) as a, (data / "b").open("wb", buffering=0) as b:
            for number in itertools.count(1):
                for file in (a, b):
                    os.pwrite(file.fileno(), number.to_bytes(8) * 2048, 0)
                written[0] = number
                if over.is_set():
                    return

    writer = threading.Thread(target=count)
    writer.start()
    copies = []
    try:
        for number in range(6):
            before = written[0]
            copies.append((before, one.create(f"r{number}", source=one.snapshot(f"s{number}", volume))))
        before = written[0]
        copies.append((before, one.create("clone", source=volume)))
    finally:
        over.set()
        writer.join()
    for before, copy in copies[1:]:
        for name in "ab":
            assert before <= int.from_bytes((one.data(copy) / name).read_bytes()[:8]) <= written[0]
    (one.data(copies[0][1]) / "a").write_text("its own")
    assert (data / "a").read_bytes() != b"its own"


@pytest.mark.parametrize("fs_type", ["xfs", "ext4"])
def test_a_busy_volume_elsewhere_is_copied_when_it_rests(site: Sites, fs_type: str) -> None:
    one = site(fs_type)
    volume = one.create("v", 16 * MIB)
    data, over = one.data(volume), threading.Event()
    assert write(data / "large", 8 * MIB) == 0
    before = one.available()

    def write_on() -> None:
        while not over.is_set():
            (data / "busy").write_text(os.urandom(8).hex())

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        with pytest.raises(FailedPrecondition, match="changed while it was copied"):
            one.snapshot("s", volume)
    finally:
        over.set()
        writer.join()
    assert one.left() == []
    copy = one.create("copy", 16 * MIB, source=one.snapshot("s", volume))
    assert (one.data(copy) / "large").read_bytes() == (data / "large").read_bytes()
    taken = before - one.available()
    assert taken < 4 * MIB if fs_type == "xfs" else taken >= 16 * MIB


def test_a_snapshot_outlives_its_volume(site: Sites) -> None:
    one = site("btrfs")
    volume = one.create("v")
    (one.data(volume) / "file").write_text("content")
    snapshot = one.snapshot("s", volume)
    one.delete(volume)
    restored = one.create("restored", source=snapshot)
    assert (one.data(restored) / "file").read_text() == "content"
    assert restored.source.snapshot_id == snapshot
    found = one.controller.get_snapshot(requests.GetSnapshotRequest(snapshot_id=snapshot))
    assert (found.source_volume_id, found.size) == (volume.id, volume.capacity)
    with pytest.raises(InvalidArgument, match="takes none"):
        one.controller.create_snapshot(
            requests.CreateSnapshotRequest(
                name="t", source_volume_id=restored.id, snapshot_id="s-1", parameters={"a": "b"}
            )
        )


# -- users


def test_what_users_put_into_a_volume_reaches_nothing_else(site: Sites, tmp_path: Path) -> None:
    for fs_type in ("btrfs", "xfs"):
        one = site(fs_type)
        other, volume = one.create("other"), one.create("v")
        (one.data(other) / "precious").write_text("precious")
        precious = tmp_path / f"precious-{fs_type}"
        precious.mkdir()
        (precious / "file").touch()
        data = one.data(volume)
        (data / "up").symlink_to("../../../..")
        (data / "precious").symlink_to(precious)
        (data / "record").write_text('{"size": 1}')
        (data / "deep" / "er").mkdir(parents=True)
        (data / "deep" / "link").symlink_to(one.data(other))
        os.mkfifo(data / "fifo")
        copy = one.create("copy", source=one.snapshot("s", volume))
        assert os.readlink(one.data(copy) / "up") == "../../../.."
        one.delete(volume)
        one.delete(copy)
        assert os.listdir(precious) == ["file"]
        assert (one.data(other) / "precious").read_text() == "precious"
        assert one.left() == []


def test_a_volume_is_removed_while_somebody_swaps_what_is_in_it(site: Sites, tmp_path: Path) -> None:
    one = site("xfs")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    for number in range(10):
        volume = one.create(f"v{number}")
        data = one.data(volume)
        (data / "a" / "b").mkdir(parents=True)
        (data / "a" / "b" / "file").touch()
        held, over = os.open(data, os.O_RDONLY), threading.Event()

        def swap(held: int = held, over: threading.Event = over) -> None:
            while not over.is_set():
                with suppress(OSError):
                    os.rename("a", "away", src_dir_fd=held, dst_dir_fd=held)
                    os.symlink(precious, "a", dir_fd=held)
                    os.unlink("a", dir_fd=held)
                    os.rename("away", "a", src_dir_fd=held, dst_dir_fd=held)

        swapper = threading.Thread(target=swap)
        swapper.start()
        one.delete(volume)
        over.set()
        swapper.join()
        os.close(held)
        with pytest.raises(NotFound):
            one.get(volume)
    assert os.listdir(precious) == ["file"]


def test_a_subvolume_that_a_user_made_is_told_of_and_goes_with_the_volume(site: Sites) -> None:
    one = site("btrfs")
    volume = one.create("v")
    assert one.health(volume) == ""
    subprocess.run(
        ["btrfs", "subvolume", "create", one.data(volume) / "own"], check=True, capture_output=True
    )
    assert "does not count" in one.health(volume)
    one.delete(volume)
    assert one.left() == []


def test_a_volume_that_is_mounted_by_anybody_is_not_removed(site: Sites, tmp_path: Path) -> None:
    one = site("btrfs")
    volume = one.create("v")
    (one.data(volume) / "below").mkdir()
    (tmp_path / "target").mkdir()
    mounts.bind(str(one.data(volume) / "below"), str(tmp_path / "target"))
    with pytest.raises(InUse, match=str(tmp_path / "target")):
        one.delete(volume)
    mounts.unmount(str(tmp_path / "target"))
    one.delete(volume)


# -- parameters and pools


@pytest.mark.parametrize("mode", ["", "0", "778", "u+x", "01777 7", "99999"])
def test_permissions_that_are_none_are_refused(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="mode"):
        options.read(LocalParameters, {"mode": mode})


@pytest.mark.parametrize("fs_type", ["btrfs", "ext4"])
def test_a_new_volume_has_the_permissions_that_were_asked_for(site: Sites, fs_type: str) -> None:
    one = site(fs_type)
    assert one.data(one.create("v1")).stat().st_mode & 0o7777 == 0o755
    mode = options.read(LocalParameters, {"mode": "1777"}).mode
    volume = one.create("v2", mode=mode)
    assert one.data(volume).stat().st_mode & 0o7777 == 0o1777
    copy = one.create("v3", source=volume)  # as its source
    assert one.data(copy).stat().st_mode & 0o7777 == 0o1777


def test_a_pool_that_somebody_changed_is_told_of(site: Sites) -> None:
    one = site("ext4")
    volume = one.create("v")
    record = one.data(volume).parent / "record"
    assert json.loads(record.read_text())["size"] == volume.capacity
    record.write_text("{")
    with pytest.raises(FailedPrecondition, match="restore it"):
        one.get(volume)
    one.pool.chmod(0o777)
    with pytest.raises(FailedPrecondition, match="can be changed by others"):
        type(one)(one.pool)


def test_volumes_belong_to_their_node(site: Sites) -> None:
    one = site("tmpfs")
    volume = one.create("v")
    assert volume.topology == (one.node.topology(),) == (Topology({"volkit.io/node": "n1"}),)
    elsewhere = Topology({"volkit.io/node": "n2"})
    request: Any = requests.CreateVolumeRequest(
        name="w",
        parameters=LocalParameters(),
        capacity_range=CapacityRange(),
        size=MIB,
        volume_id="v-w",
        topology=TopologyRequirement(requisite=(elsewhere,)),
    )
    with pytest.raises(ResourceExhausted, match="n2"):
        one.controller.create_volume(request)
    for place, some in ((elsewhere, False), (one.node.topology(), True), (None, True)):
        found = one.controller.get_capacity(
            requests.CapacityRequest(parameters=LocalParameters(), topology=place)
        )
        assert bool(found.available) is some


# -- the whole way


def test_a_group_is_given_the_volume_before_the_pod_sees_it(
    filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    pool = filesystem("btrfs") / "pool"
    pool.mkdir(mode=0o700)
    engine = Engine(LocalBackend, LocalSettings(pool=pool), state_dir=tmp_path / "state", node_id="n1")
    staging, target = str(tmp_path / "staging"), str(tmp_path / "target")
    way = Capability(volume_mount_group="2000", mount_flags=("noexec", "nosuid"))
    volume = engine.run(
        "create_volume",
        CreateVolumeRequest(
            name="v", parameters={}, capabilities=(way,), capacity_range=CapacityRange(required=MIB)
        ),
    )
    common = {"volume_id": volume.id, "volume_context": volume.context}
    engine.run("node_stage", NodeStageRequest(staging_target_path=staging, capability=way, **common))
    publish = NodePublishRequest(staging_target_path=staging, target_path=target, capability=way, **common)
    engine.run("node_publish", publish)
    assert Path(target).stat().st_gid == 2000
    assert Path(target).stat().st_mode & 0o7777 == 0o2775
    here = mounts.mount_at(target)
    assert here is not None
    assert {"noexec", "nosuid"} <= {*here.options}
    (Path(target) / "script").write_text("#!/bin/sh\n")
    (Path(target) / "script").chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([f"{target}/script"], check=True)
    with pytest.raises(InUse):
        engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume.id))
    engine.run("node_unpublish", NodeUnpublishRequest(volume_id=volume.id, target_path=target))
    engine.run("node_unstage", NodeUnstageRequest(volume_id=volume.id, staging_target_path=staging))
    for flag in ("dev", "suid", "context=x"):
        bad = Capability(mount_flags=(flag,))
        with pytest.raises(InvalidArgument, match="not allowed"):
            engine.run("create_volume", CreateVolumeRequest(name="w", parameters={}, capabilities=(bad,)))
    assert engine.run("get_capacity", CapacityRequest(parameters={})).available > 0
    engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume.id))
    engine.close()
