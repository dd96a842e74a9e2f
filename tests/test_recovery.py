"""What a killed process leaves is found and settled: real child processes, SIGKILL, real loop devices."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from volkit import requests as r
from volkit.doctor import examine
from volkit.engine import Engine
from volkit.errors import Aborted, InUse, Unavailable
from volkit.host import loop, mounts
from volkit.interfaces import Controller
from volkit.journal import Delete, Put, key
from volkit.journal.memory import MemoryJournal
from volkit.locks import Locks
from volkit.making import Making
from volkit.model import NO_SECRETS, Capability, CapacityRange, Volume
from volkit.recovery import records, recover, settle
from volkit.registry import load_backend
from volkit.testing.memory import MemoryBackend, memory_settings

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
SIZE = CapacityRange(required=16 << 20)
LEFT = "left: "

CHILD = """
import importlib, os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_recovery import Node
owner = importlib.import_module({module!r})
owner = getattr(owner, {owner!r}, owner)
alive = getattr(owner, {name!r})
def dying(*arguments, **options):
    if {before!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    alive(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
node = Node(Path({base!r}))
for step in {steps!r}:
    if step == {steps!r}[-1]:
        setattr(owner, {name!r}, dying)
    getattr(node, step)()
"""


class Node:
    """One host: its pool, its records, one volume and the places it is mounted at."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "pool").mkdir(exist_ok=True)
        backend = load_backend("loop")
        settings = backend.settings(pool=base / "pool", overcommit=100.0)
        self.engine = Engine(backend, settings, state_dir=base / "state", node_id="n1")
        self.staging, self.target = str(base / "staging"), str(base / "target")
        assert self.engine.provisioning is not None
        self.id = self.engine.provisioning.volumes.id_for("v")

    def create(self) -> Volume:
        request: Any = r.CreateVolumeRequest(
            name="v", parameters={}, capabilities=(Capability(),), capacity_range=SIZE
        )
        volume: Volume = self.engine.run("create_volume", request)
        return volume

    def delete(self) -> None:
        self.engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=self.id))

    def stage(self) -> None:
        request = r.NodeStageRequest(
            volume_id=self.id,
            staging_target_path=self.staging,
            capability=Capability(fs_type="ext4"),
            volume_context={"firstFormat": "true"},
        )
        self.engine.run("node_stage", request)

    def publish(self) -> None:
        request = r.NodePublishRequest(
            volume_id=self.id,
            staging_target_path=self.staging,
            target_path=self.target,
            capability=Capability(fs_type="ext4"),
        )
        self.engine.run("node_publish", request)

    def unpublish(self) -> None:
        self.engine.run("node_unpublish", r.NodeUnpublishRequest(volume_id=self.id, target_path=self.target))

    def unstage(self) -> None:
        self.engine.run(
            "node_unstage", r.NodeUnstageRequest(volume_id=self.id, staging_target_path=self.staging)
        )

    def die(self, steps: list[str], place: str, *, before: bool = False) -> None:
        """Another process does the steps; the last one ends by SIGKILL right before or after a function's work."""
        module, owner, name = place.split(":")
        words = {"tests": str(Path(__file__).parent), "base": str(self.base), "steps": steps}
        program = CHILD.format(module=module, owner=owner, name=name, before=before, **words)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == -9, done.stderr

    def images(self) -> list[Path]:
        return [path for path in (self.base / "pool/volumes").rglob("*") if path.is_file()]

    def devices(self) -> list[str]:
        return [
            path.parts[3]
            for path in Path("/sys/block").glob("loop*/loop/backing_file")
            if path.read_text().startswith(f"{self.base}/")
        ]

    def recover(self, **options: Any) -> list[tuple[str, str, bool]]:
        return [(one.kind, did, settled) for one, did, settled in recover(self.engine, min_age=0, **options)]

    def findings(self) -> list[tuple[str, str]]:
        return [(one.sort, one.what) for one in examine(self.engine, min_age=0)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with closing(made.engine):
        yield made
    for mount in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(mount.mount_point)
    for name in made.devices():
        loop.detach(f"/dev/{name}")


MADE = "volkit_loop.pool:Pool:create"
REMOVED = "volkit_loop.pool:Pool:remove"
ATTACHED = "volkit_loop.node:LoopNode:connect"
MOUNTED = "volkit.host.mounts::mount"
BOUND = "volkit.host.mounts::bind"
FORMATTED = "volkit.host._block::sync"


def test_a_create_that_happened_is_recorded(node: Node) -> None:
    node.die(["create"], MADE)
    assert node.recover() == [("volume-name", "it was made: its id is recorded", True)]
    assert node.recover() == []
    assert node.findings() == []
    assert node.create().id == node.id
    assert len(node.images()) == 1


def test_a_create_that_did_not_happen_leaves_no_intent(node: Node) -> None:
    node.die(["create"], MADE, before=True)
    (record,) = records(node.engine.journal)
    assert (record.kind, record.id, record.state) == ("volume-name", "v", "creating")
    assert record.age is not None
    assert 0 <= record.age < 60
    assert node.recover(dry_run=True) == [("volume-name", "would be settled by looking", False)]
    assert node.recover() == [("volume-name", "nothing was made: the intent is removed", True)]
    assert records(node.engine.journal) == []


@pytest.mark.parametrize("before", [False, True])
def test_a_deletion_is_finished(node: Node, before: bool) -> None:
    node.die(["create", "delete"], REMOVED, before=before)
    assert node.recover() == [("volume", "the deletion is finished", True)]
    assert node.images() == []
    assert records(node.engine.journal) == []


@pytest.mark.parametrize(("place", "before"), [(ATTACHED, True), (ATTACHED, False), (MOUNTED, True)])
def test_a_stage_that_was_cut_short_is_undone(node: Node, place: str, before: bool) -> None:
    node.die(["create", "stage"], place, before=before)
    assert [sort for sort, _ in node.findings()] == ["stuck"]
    assert node.recover() == [("stage", "what was begun is undone", True)]
    assert node.devices() == []
    assert node.findings() == []
    node.stage()
    node.unstage()


def test_a_stage_that_is_done_stays(node: Node) -> None:
    node.die(["create", "stage"], MOUNTED)
    assert node.recover() == []
    assert mounts.is_mount_point(node.staging)
    node.stage()
    node.unstage()


@pytest.mark.parametrize("before", [True, False])
def test_the_intent_to_make_a_file_system_outlives_recovery(node: Node, before: bool) -> None:
    node.die(["create", "stage"], FORMATTED, before=before)
    (row,) = node.recover()
    assert row == (
        "stage",
        "it is unmounted and disconnected; the next stage makes its file system anew",
        True,
    )
    assert node.devices() == []
    node.stage()
    node.unstage()
    assert node.findings() == []


def test_a_half_made_file_system_is_remembered_and_needs_nobody(node: Node) -> None:
    """After an unstage nothing is connected or mounted: there is nothing to settle, and a deletion forgets it."""
    node.die(["create", "stage"], FORMATTED)
    node.unstage()
    (left,) = [one for one in records(node.engine.journal) if one.kind == "stage"]
    assert (left.state, left.unfinished) == ("half-made ext4", False)
    assert list(recover(node.engine, min_age=0)) == []
    assert list(examine(node.engine, min_age=0)) == []
    node.stage()
    node.unstage()
    node.delete()
    assert records(node.engine.journal) == []


def test_a_half_made_file_system_is_forgotten_with_its_volume(node: Node) -> None:
    node.die(["create", "stage"], FORMATTED)
    assert [settled for *_, settled in recover(node.engine, min_age=0)] == [True]
    node.delete()
    assert records(node.engine.journal) == []


def test_a_publish_that_was_cut_short_is_undone(node: Node) -> None:
    node.die(["create", "stage", "publish"], BOUND, before=True)
    assert node.recover() == [("target", "what was begun is undone", True)]
    assert not Path(node.target).exists()
    assert mounts.is_mount_point(node.staging)
    node.publish()
    assert node.findings() == []
    node.unpublish()
    node.unstage()


def test_what_somebody_holds_and_what_is_young_is_left(node: Node) -> None:
    node.die(["create", "stage"], ATTACHED)
    ((_, did, settled),) = recover(node.engine)
    assert did.startswith(LEFT)
    assert not settled
    with node.engine.locks.hold(key("volume", node.id), wait=0):
        ((_, did, settled),) = node.recover()
    assert "another operation" in did
    assert not settled
    assert len(node.devices()) == 1


def test_a_volume_made_anew_is_not_deleted_by_the_old_intent(node: Node) -> None:
    """The intent is read, the orchestrator finishes the deletion and makes the volume again: it stays."""
    node.die(["create", "delete"], REMOVED, before=True)
    rows = recover(node.engine, min_age=0)
    old = [one for one in records(node.engine.journal) if one.state == "deleting"]
    node.create()
    assert settle(node.engine, old[0]) == ("it was settled meanwhile", True)
    assert list(rows) == []
    assert len(node.images()) == 1


def test_the_doctor_tells_what_is_gone_and_what_is_not_ours(node: Node) -> None:
    node.create()
    node.stage()
    (node.base / "elsewhere").mkdir()
    mounts.bind(node.staging, str(node.base / "elsewhere"))
    (foreign,) = examine(node.engine)
    assert (foreign.sort, foreign.repair) == ("foreign", None)
    assert foreign.command == f"umount {node.base}/elsewhere"
    mounts.unmount(str(node.base / "elsewhere"))
    node.unstage()
    (image,) = node.images()
    image.unlink()
    (stuck,) = examine(node.engine)
    assert stuck.sort == "stuck"
    assert "not in the storage" in stuck.what
    assert stuck.repair is not None
    stuck.repair()
    assert list(examine(node.engine)) == []
    assert records(node.engine.journal) == []


def test_a_volume_of_a_lost_journal_is_foreign(node: Node) -> None:
    node.create()
    for record in records(node.engine.journal):
        node.engine.journal.write(Delete(record.key))
    (found,) = examine(node.engine)
    assert (found.sort, found.repair) == ("foreign", None)
    assert node.id in found.command


def test_a_device_without_a_record_is_leaked(node: Node) -> None:
    node.create()
    (image,) = node.images()
    device = loop.attach(str(image))
    (found,) = examine(node.engine)
    assert (found.sort, found.command) == ("leaked", f"losetup -d {device}")
    assert found.repair is not None
    with node.engine.locks.hold(key("volume", node.id), wait=0), pytest.raises(Aborted):
        found.repair()
    assert node.devices() != []
    assert found.repair() == "it is disconnected"
    assert found.repair() == "it was settled meanwhile"
    assert node.findings() == []


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_that_outlived_its_driver_is_leaked(node: Node) -> None:
    node.die(["create", "stage"], FORMATTED, before=True)
    entry = node.engine.node_journal.get(key("stage", node.id))
    assert entry is not None
    device = entry.value["connection"]["device"]
    with subprocess.Popen(["tail", "-f", "/dev/null", device]) as orphan:
        try:
            until(lambda: device in {os.path.realpath(fd) for fd in Path(f"/proc/{orphan.pid}/fd").iterdir()})
            found = [one for one in examine(node.engine) if one.sort == "leaked"]
            with node.engine.locks.hold(key("volume", node.id), wait=0):
                assert [one for one in examine(node.engine) if one.sort == "leaked"] == []
        finally:
            orphan.kill()
    assert [one.command for one in found] == [f"kill {orphan.pid}"]


# -- the quarantine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record_key", "value"),
    [
        ("volume-name/w", {"state": "?"}),
        ("volume/w", {"request": []}),
        ("snapshot/w", {"name": 1}),
        ("stage/w", {"path": "/x", "state": "connected"}),
        ("target/w/%2Fx", {"path": None}),
        ("attach/w/n", {"node": "n", "readonly": "no"}),
    ],
)
def test_a_record_of_a_wrong_shape_stops_nobody(node: Node, record_key: str, value: dict[str, Any]) -> None:
    journal = node.engine.journal
    journal.write(Put(record_key, value))
    node.create()
    node.stage()
    node.unstage()
    assert node.recover() == []
    assert journal.get(record_key) is None
    (found,) = examine(node.engine)
    assert found.sort == "stuck"
    assert found.command == f"volkit journal --forget {key('quarantine', record_key)}"
    node.delete()


def test_a_volume_whose_records_cannot_be_read_is_not_deleted(node: Node) -> None:
    node.create()
    node.stage()
    node.publish()
    stage_key, target_key = key("stage", node.id), key("target", node.id, node.target)
    node.engine.node_journal.write(Put(target_key, {}))
    with pytest.raises(InUse, match=f"published at {node.target}"):
        node.unstage()
    node.unpublish()
    node.engine.node_journal.write(Put(stage_key, {}))
    with pytest.raises(InUse, match="quarantine"):
        node.delete()
    node.unstage()
    node.delete()
    assert records(node.engine.node_journal) == []
    assert (node.devices(), node.images()) == ([], [])


class Forgetful(Controller[Any, Any]):
    """Finds nothing by name, takes no ids, no tokens."""

    def create_volume(self, request: Any) -> Any:
        raise AssertionError

    def delete_volume(self, request: Any) -> None: ...

    def get_volume(self, request: Any) -> Any: ...


def test_a_name_in_the_quarantine_is_not_made_twice() -> None:
    journal = MemoryJournal()
    making: Making[Volume] = Making(
        "volume",
        Forgetful(None),
        journal,
        Locks(),
        look=Forgetful.get_volume,
        remove=lambda id_, secrets: None,
    )
    journal.write(Put("volume-name/a", {"state": "who knows"}))
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"--forget quarantine/volume-name%2Fa"):
            making.find("a", NO_SECRETS)
    journal.write(Put("volume-name/b", {"state": "creating", "request": None}))
    assert making.resolve("b", NO_SECRETS) == "unknown"


def test_an_attachment_in_the_quarantine_still_counts(tmp_path: Path) -> None:
    settings, journal = memory_settings(), MemoryJournal()
    engine = Engine(MemoryBackend, settings, state_dir=tmp_path, journal=journal, services=("controller",))
    with closing(engine):
        assert engine.provisioning is not None
        engine.journal.write(Put("attach/v/n1", {"node": 1}))
        for _ in range(2):
            assert engine.provisioning.attaching.records("v") == {"n1": {}}
        engine.provisioning.attaching.forget("v", "n1")
        assert records(engine.journal) == []


def test_a_journal_that_is_away_keeps_the_other_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller's, which is in etcd, say."""
    away, here = MemoryJournal(), MemoryJournal()
    stage = {"path": "/x", "state": "connecting", "connection": None, "since": time.time()}
    here.write(Put("stage/v", {**stage, "capability": Capability().record()}))

    def scan(prefix: str, **words: Any) -> list[Any]:
        raise Unavailable("etcd is away")

    monkeypatch.setattr(away, "scan", scan)
    engine: Any = SimpleNamespace(journal=away, node_journal=here)
    told = recover(engine, dry_run=True, min_age=0)
    assert next(told)[0].key == "stage/v"
    with pytest.raises(Unavailable, match="etcd is away"):
        next(told)
