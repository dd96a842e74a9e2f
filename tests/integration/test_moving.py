"""Moving in, moving out, and between versions: volumes and live mounts stay what they are (docs/howto/)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from volkit import inventory
from volkit import requests as r
from volkit.doctor import examine
from volkit.engine import Engine
from volkit.errors import FailedPrecondition, InUse
from volkit.host import loop
from volkit.host import mounts as table
from volkit.journal import Put, key, sqlite
from volkit.model import AccessMode, Capability, CapacityRange, Volume
from volkit.registry import load_backend

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4", "losetup")]
MIB = 1 << 20
SHARED = Capability(access_mode=AccessMode.SINGLE_NODE_MULTI_WRITER, fs_type="ext4")


class Node:
    """A node with a pool, kubelet's directories, and a driver that is opened when it is needed."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.pool = base / "pool"
        self.pool.mkdir()

    @contextmanager
    def driver(self) -> Iterator[Engine]:
        backend = load_backend("loop")
        engine = Engine(
            backend, backend.settings(pool=self.pool), state_dir=self.base / "state", node_id="n1"
        )
        try:
            yield engine
        finally:
            engine.close()

    def image(self, id_: str) -> Path:
        return self.pool / "volumes" / id_[-2:] / f"{id_}.img"

    def staging(self, id_: str) -> Path:
        return self.base / "kubelet/plugins" / id_ / "globalmount"

    def target(self, id_: str, pod: str = "a") -> Path:
        return self.base / "kubelet/pods" / pod / id_ / "mount"

    def made_by_hand(self, id_: str) -> str:
        """A volume as another driver made, attached, mounted and bound it; returns its device."""
        image, staging, target = self.image(id_), self.staging(id_), self.target(id_)
        for directory in (image.parent, staging, target):
            directory.mkdir(parents=True, exist_ok=True)
        image.touch()
        os.truncate(image, 16 * MIB)
        self.run("mkfs.ext4", "-q", str(image))
        device = self.run("losetup", "--find", "--show", str(image)).strip()
        self.run("mount", device, str(staging))
        (staging / "data").write_text("another driver's")
        self.run("mount", "--bind", str(staging), str(target))
        return device

    @staticmethod
    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def stage(self, engine: Engine, id_: str, context: dict[str, str] | None = None) -> None:
        self.staging(id_).mkdir(parents=True, exist_ok=True)
        request = r.NodeStageRequest(
            volume_id=id_,
            staging_target_path=str(self.staging(id_)),
            capability=SHARED,
            volume_context=context or {},
        )
        engine.run("node_stage", request)

    def publish(self, engine: Engine, id_: str, pod: str = "a") -> None:
        self.target(id_, pod).parent.mkdir(parents=True, exist_ok=True)
        request = r.NodePublishRequest(
            volume_id=id_,
            target_path=str(self.target(id_, pod)),
            staging_target_path=str(self.staging(id_)),
            capability=SHARED,
        )
        engine.run("node_publish", request)

    def unpublish(self, engine: Engine, id_: str, pod: str = "a") -> None:
        path = str(self.target(id_, pod))
        engine.run("node_unpublish", r.NodeUnpublishRequest(volume_id=id_, target_path=path))

    def unstage(self, engine: Engine, id_: str) -> None:
        path = str(self.staging(id_))
        engine.run("node_unstage", r.NodeUnstageRequest(volume_id=id_, staging_target_path=path))

    def devices(self) -> list[str]:
        return [device for device, backing in loop.attached() if backing.startswith(f"{self.pool}/")]

    def clean(self) -> None:
        for one in reversed(table.mounts(under=str(self.base))):
            subprocess.run(["umount", one.mount_point], check=False)
        for device in self.devices():
            subprocess.run(["losetup", "-d", device], check=False)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    try:
        yield made
        assert table.mounts(under=str(tmp_path)) == []
        assert made.devices() == []
    finally:
        made.clean()


def create(engine: Engine, name: str) -> Volume:
    request: r.CreateVolumeRequest[object] = r.CreateVolumeRequest(
        name=name,
        parameters={},
        capabilities=(SHARED,),
        capacity_range=CapacityRange(required=16 * MIB),
    )
    volume: Volume = engine.run("create_volume", request)
    return volume


# -- moving in -----------------------------------------------------------------------------------------------


def test_a_live_mount_goes_on_and_is_taken_down_by_the_new_driver(node: Node) -> None:
    device = node.made_by_hand("legacy-1")
    open_file = (node.target("legacy-1") / "data").open("a")
    with node.driver() as engine:
        with pytest.raises(InUse):
            engine.run("delete_volume", r.DeleteVolumeRequest(volume_id="legacy-1"))
        assert node.devices() == [device]
        open_file.write(", and still written to")
        open_file.close()
        node.unpublish(engine, "legacy-1")
        assert not node.target("legacy-1").exists()
        assert (node.staging("legacy-1") / "data").read_text() == "another driver's, and still written to"
        node.unstage(engine, "legacy-1")
        assert node.devices() == []
        engine.run("delete_volume", r.DeleteVolumeRequest(volume_id="legacy-1"))
    assert not node.image("legacy-1").exists()


def test_a_live_mount_is_adopted_by_the_next_call_with_the_same_device(node: Node) -> None:
    device = node.made_by_hand("legacy-1")
    with node.driver() as engine, (node.target("legacy-1") / "data").open("a") as used:
        node.stage(engine, "legacy-1")  # as kubelet calls for a second pod
        node.publish(engine, "legacy-1", "b")
        node.publish(engine, "legacy-1", "a")
        assert node.devices() == [device], "no second device on one image: two caches would destroy it"
        used.write("!")
        used.flush()
        assert (node.target("legacy-1", "b") / "data").read_text() == "another driver's!"
        [item] = inventory.take(engine).volumes
        assert (item.id, item.state, sorted(item.published)) == (
            "legacy-1",
            "published",
            sorted(str(node.target("legacy-1", pod)) for pod in "ab"),
        )
        engine.run(
            "expand_volume",
            r.ExpandVolumeRequest(volume_id="legacy-1", capacity_range=CapacityRange(required=32 * MIB)),
        )
    assert os.path.getsize(node.image("legacy-1")) == 32 * MIB
    with node.driver() as engine:
        for pod in "ab":
            node.unpublish(engine, "legacy-1", pod)
        node.unstage(engine, "legacy-1")


def test_what_is_mounted_there_of_somebody_else_is_not_adopted(node: Node) -> None:
    node.made_by_hand("legacy-1")
    other = node.made_by_hand("legacy-2")
    node.run("umount", str(node.target("legacy-2")))
    node.run("umount", str(node.staging("legacy-2")))
    node.run("umount", str(node.target("legacy-1")))
    node.run("umount", str(node.staging("legacy-1")))
    node.run("mount", other, str(node.staging("legacy-1")))
    with node.driver() as engine:
        with pytest.raises(FailedPrecondition, match="something else is mounted"):
            node.stage(engine, "legacy-1")
        assert (node.staging("legacy-1") / "data").exists()
    node.run("umount", str(node.staging("legacy-1")))
    node.clean()


# -- moving out ----------------------------------------------------------------------------------------------


def test_a_volume_outlives_volkit_and_what_was_mounted_can_be_undone_by_hand(node: Node) -> None:
    with node.driver() as engine:
        volume = create(engine, "pvc-1")
        node.stage(engine, volume.id, dict(volume.context))
        node.publish(engine, volume.id)
        (node.target(volume.id) / "data").write_text("volkit's")
    # the driver is gone, and its state with it
    (node.base / "state").rename(node.base / "old-state")
    assert (node.target(volume.id) / "data").read_text() == "volkit's"
    node.run("umount", str(node.target(volume.id)))
    node.run("umount", str(node.staging(volume.id)))
    (device,) = node.devices()
    node.run("losetup", "-d", device)
    device = node.run("losetup", "--find", "--show", str(node.image(volume.id))).strip()
    node.run("mount", device, str(node.staging(volume.id)))
    assert (node.staging(volume.id) / "data").read_text() == "volkit's"
    node.run("umount", str(node.staging(volume.id)))
    node.run("losetup", "-d", device)


# -- between versions ----------------------------------------------------------------------------------------


def test_an_upgrade_and_a_rollback_keep_the_journal_and_the_mounts(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node.driver() as engine:
        volume = create(engine, "pvc-1")
        node.stage(engine, volume.id, dict(volume.context))
        node.publish(engine, volume.id, "a")
        (node.target(volume.id, "a") / "data").write_text("kept")
    [device] = node.devices()
    with monkeypatch.context() as patch:
        added = "ALTER TABLE record ADD COLUMN note TEXT NOT NULL DEFAULT ''"
        patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, added))
        with node.driver() as newer:
            node.publish(newer, volume.id, "b")
            for entry in newer.node_journal.scan(
                key("target", "")
            ):  # the newer one keeps more in its records
                newer.node_journal.write(Put(entry.key, {**entry.value, "added-later": {"x": 1}}))
            assert [one.state for one in inventory.take(newer).volumes] == ["published"]
    assert node.devices() == [device]
    with node.driver() as engine:  # rolled back
        assert create(engine, "pvc-1").id == volume.id
        node.publish(engine, volume.id, "b")
        assert (node.target(volume.id, "b") / "data").read_text() == "kept"
        assert [one.what for one in examine(engine) if one.sort not in ("unfit", "advice")] == []
        node.unpublish(engine, volume.id, "b")
        node.unpublish(engine, volume.id, "a")
        node.unstage(engine, volume.id)


def test_two_versions_back_is_refused_and_nothing_is_touched(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node.driver() as engine:
        create(engine, "pvc-1")
    with monkeypatch.context() as patch:
        added = ("CREATE TABLE note (text TEXT)", "CREATE TABLE remark (text TEXT)")
        patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, *added))
        with node.driver() as newest:
            create(newest, "pvc-2")
    with pytest.raises(FailedPrecondition, match="upgrade volkit"), node.driver():
        pass
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, added[0]))
    with node.driver() as newer:
        assert sorted(name for name, _ in newer.provisioning.names()) == ["pvc-1", "pvc-2"]  # type: ignore[union-attr]
