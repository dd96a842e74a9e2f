"""From a connection to a staged and published volume, on real mounts and real loop devices."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, frozen

from volkit import requests as r
from volkit.backend import Backend, Limits
from volkit.engine import Engine
from volkit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotBlank,
    NotFound,
    OutOfRange,
    Unavailable,
    UnsupportedVolume,
)
from volkit.host import devices, filesystems, loop, mounts, probe
from volkit.interfaces import ConnectsPerPod, Node
from volkit.journal import Delete, Entry, Journal, Put, key
from volkit.journal.memory import MemoryJournal
from volkit.locks import Locks
from volkit.model import (
    FIRST_FORMAT,
    AccessMode,
    AccessType,
    BlockConnection,
    BlockVolume,
    Capability,
    CapacityRange,
    Connection,
    FileConnection,
    FileVolume,
)
from volkit.node_state import NodeState
from volkit.options import NoOptions, option
from volkit.publishing import Publishing
from volkit.requests import Call
from volkit.staging import Staging
from volkit.testing.memory import MemoryBackend, MemoryNode, memory_settings
from volkit.upkeep import Upkeep

pytestmark = pytest.mark.root

MIB = 1 << 20
MOUNT = Capability()
RAW = Capability(access_type=AccessType.BLOCK)
READER = Capability(access_mode=AccessMode.MULTI_NODE_READER_ONLY)
BLANK = {FIRST_FORMAT: "true"}
SMALLEST = {"ext4": 16, "xfs": 300, "btrfs": 256}
SHARED_RAW = Capability(access_type=AccessType.BLOCK, access_mode=AccessMode.MULTI_NODE_MULTI_WRITER)


class Killed(BaseException):
    """The process ends here."""


# -- the backends ------------------------------------------------------------------------------------------------------


@frozen
class DiskSettings:
    root: Path = option(help="where the images are")


class DiskNode(Node[DiskSettings]):
    """A volume is an image file; it is there as a loop device."""

    def connect(self, request: r.ConnectRequest) -> Connection:
        path = str(self.settings.root / request.volume_id)
        if not os.path.exists(path):
            raise NotFound(f"there is no image {request.volume_id!r}")
        device = next(iter(loop.find(path)), None) or loop.attach(path)
        found = loop.status(device)
        assert found is not None
        return BlockConnection(device=device, identity=found.identity)

    def disconnect(self, request: r.DisconnectRequest) -> None:
        for device in loop.find(str(self.settings.root / request.volume_id)):
            loop.detach(device)

    def resize(self, request: r.ResizeRequest) -> None:
        assert isinstance(request.connection, BlockConnection)
        loop.resize(request.connection.device)


class DiskBackend(Backend[DiskSettings, NoOptions]):
    name = "disks"
    settings = DiskSettings
    node = DiskNode
    volume = BlockVolume
    limits = Limits(fs_types=("ext4", "xfs", "btrfs"))


class PodNode(MemoryNode, ConnectsPerPod):
    """Connects for each pod."""


class PodBackend(MemoryBackend):
    name = "pods"
    node = PodNode


@frozen
class Process:
    """The rooms of a node's side, without lanes."""

    state: NodeState
    staging: Staging
    publishing: Publishing
    upkeep: Upkeep

    def run(self, operation: str, request: Any) -> Any:
        rooms = (self.staging, self.publishing, self.upkeep)
        return next(getattr(room, operation) for room in rooms if hasattr(room, operation))(
            request, Call(wait=30)
        )


@define
class World:
    """A node with its disks and directories; its journal and what is mounted outlive a crash of the process."""

    base: Path
    backend: type[Backend[Any, Any]]
    settings: Any
    journal: Journal

    def process(self) -> Process:
        """A new process."""
        assert self.backend.node is not None
        node = self.backend.node(self.settings, "n1")
        state = NodeState(node, self.backend, self.journal, Locks(self.base / "locks"), "n1")
        return Process(state, Staging(state), Publishing(state), Upkeep(state))

    def run(self, operation: str, request: Any) -> Any:
        return self.process().run(operation, request)

    @property
    def staging(self) -> str:
        return str(self.base / "staging")

    @property
    def target(self) -> str:
        return str(self.base / "pods/target")

    def image(self, size: int = 16, name: str = "v") -> str:
        path = self.base / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, size * MIB)
        return str(path)

    def stage(self, capability: Capability = MOUNT, path: str = "", volume: str = "v", **words: Any) -> None:
        words = {"volume_context": BLANK, **words}
        request = r.NodeStageRequest(
            volume_id=volume, staging_target_path=path or self.staging, capability=capability, **words
        )
        assert self.run("node_stage", request) is None

    def unstage(self, path: str = "", volume: str = "v") -> None:
        request = r.NodeUnstageRequest(volume_id=volume, staging_target_path=path or self.staging)
        assert self.run("node_unstage", request) is None

    def publish(
        self, capability: Capability = MOUNT, target: str = "", volume: str = "v", **words: Any
    ) -> None:
        words = {"staging_target_path": self.staging, **words}
        request = r.NodePublishRequest(
            volume_id=volume, target_path=target or self.target, capability=capability, **words
        )
        assert self.run("node_publish", request) is None

    def unpublish(self, target: str = "", volume: str = "v") -> None:
        assert (
            self.run(
                "node_unpublish", r.NodeUnpublishRequest(volume_id=volume, target_path=target or self.target)
            )
            is None
        )

    def expand(self, required: int = 0, path: str = "", limit: int = 0) -> int:
        capacity = CapacityRange(required=required, limit=limit)
        request = r.NodeExpandRequest(
            volume_id="v", volume_path=path or self.staging, capacity_range=capacity
        )
        result = self.run("node_expand", request)
        assert isinstance(result, r.NodeExpandResult)
        return result.capacity

    def stats(self, path: str = "", volume: str = "v") -> r.NodeStats:
        found = self.run("node_stats", r.NodeStatsRequest(volume_id=volume, volume_path=path or self.target))
        assert isinstance(found, r.NodeStats)
        return found

    def records(self, prefix: str = "") -> list[str]:
        return [entry.key for entry in self.journal.scan(prefix)]

    def loops(self) -> list[str]:
        return loop.find(str(self.base / "images/v"))

    def mounted(self) -> list[str]:
        """Every mount below, by its place: one that is stacked on another is there twice."""
        return sorted(
            one.mount_point for one in mounts.mounts() if one.mount_point.startswith(f"{self.base}/")
        )


def _volumes_of_an_administrator(base: Path) -> Path:
    """Where the memory backend's directories are: of two volumes that nobody created."""
    for name in ("v", "w"):
        (base / "directories" / name).mkdir(parents=True, exist_ok=True)
    return base / "directories"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for one in sorted((one.mount_point for one in mounts.mounts()), key=len, reverse=True):
        if one.startswith(f"{tmp_path}/"):
            mounts.unmount(one, lazy=True)
    for image in [*(tmp_path / "images").glob("*"), *tmp_path.glob("*.img")]:
        for device in loop.find(str(image)):
            devices.set_read_only(device, False)
            loop.detach(device)


def world_of(base: Path, backend: type[Backend[Any, Any]]) -> World:
    settings = (
        DiskSettings(base / "images")
        if backend is DiskBackend
        else memory_settings(root=_volumes_of_an_administrator(base))
    )
    return World(base, backend, settings, MemoryJournal())


@pytest.fixture
def disk(base: Path) -> World:
    world = world_of(base, DiskBackend)
    world.image()
    return world


@pytest.fixture
def files(base: Path) -> World:
    return world_of(base, MemoryBackend)


@pytest.fixture(params=["disk", "files", "raw"])
def any_world(request: pytest.FixtureRequest, base: Path) -> tuple[World, Capability]:
    """A file system on a device, a directory, and a raw device."""
    world = world_of(base, MemoryBackend if request.param == "files" else DiskBackend)
    world.image()
    return world, RAW if request.param == "raw" else MOUNT


def fill(path: str, name: str = "file", content: str = "content") -> None:
    Path(path, name).write_text(content)


def content(path: str, name: str = "file") -> str:
    return Path(path, name).read_text()


# -- the way there and back --------------------------------------------------------------------------------------------


def test_there_and_back_each_step_twice(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    for _ in range(3):
        world.stage(capability)
    for _ in range(3):
        world.publish(capability)
    assert len(world.mounted()) == (1 if capability is RAW else 2)
    if capability is RAW:
        Path(world.target).write_bytes(b"raw content")
        assert Path(world.loops()[0]).read_bytes()[:11] == b"raw content"
    else:
        fill(world.target)
        assert content(world.staging) == "content"
    for _ in range(3):
        world.unpublish()
    assert not os.path.exists(world.target)
    assert os.path.isdir(os.path.dirname(world.target))
    for _ in range(3):
        world.unstage()
    assert world.mounted() == []
    assert world.loops() == []
    assert world.records() == []


def test_what_was_written_is_there_the_next_time(disk: World) -> None:
    disk.stage()
    fill(disk.staging)
    disk.unstage()
    disk.stage(volume_context={})
    assert content(disk.staging) == "content"


def test_undoing_what_was_never_done(any_world: tuple[World, Capability]) -> None:
    world, _ = any_world
    world.unpublish()
    world.unstage()
    assert world.records() == []


@pytest.mark.parametrize("fs_type", SMALLEST)
def test_the_file_system_that_was_asked_for(disk: World, fs_type: str) -> None:
    disk.image(SMALLEST[fs_type])
    disk.stage(Capability(fs_type=fs_type, mount_flags=("noatime",)))
    here = mounts.mount_at(disk.staging)
    assert here is not None
    assert here.fs_type == fs_type
    assert "noatime" in here.options
    assert os.listdir(disk.staging) == []
    disk.stage(Capability(fs_type=fs_type, mount_flags=("noatime",)))
    assert disk.mounted() == [disk.staging]


def test_an_ext_file_system_does_without_lost_found(disk: World) -> None:
    """It is repaired and grows as ever; what somebody has in it, or beside it, stays."""
    image = disk.image(16)
    disk.stage(Capability(fs_type="ext4"))
    os.mkdir(f"{disk.staging}/orphan")
    Path(f"{disk.staging}/orphan/file").write_text("kept")
    disk.unstage()
    subprocess.run(["debugfs", "-w", "-R", "unlink orphan", image], check=True, capture_output=True)
    assert subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True).returncode == 1
    disk.stage(volume_context={})
    assert os.listdir(disk.staging) == ["lost+found"]
    (found,) = Path(disk.staging, "lost+found").iterdir()
    assert (found / "file").read_text() == "kept"
    disk.unstage()
    assert subprocess.run(["e2fsck", "-fn", image], check=False, capture_output=True).returncode == 0


def test_other_mount_flags_are_refused(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    for call in (world.stage, world.publish):
        for _ in range(2):
            call(evolve(capability, mount_flags=("noatime",)))
        for flags in ((), ("nodiratime",), ("noatime", "nodev")):
            with pytest.raises(AlreadyExists, match="other mount flags"):
                call(evolve(capability, mount_flags=flags))


def test_a_secret_in_mount_flags_may_rotate_and_is_not_recorded(disk: World) -> None:
    for call in (disk.stage, disk.publish):
        for password in ("hunter2", "hunter3"):
            call(Capability(mount_flags=("noatime", f"comment={password}")))
        with pytest.raises(AlreadyExists, match="other mount flags"):
            call(Capability(mount_flags=("noatime",)))
    assert "hunter" not in str([dict(entry.value) for entry in disk.journal.scan("")])


def test_a_record_of_an_older_version_tells_of_no_flags(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    for entry in world.journal.scan(""):
        old = {name: value for name, value in entry.value.items() if name != "flags"}
        world.journal.write(Put(entry.key, old))
    world.stage(evolve(capability, mount_flags=("noatime",)))
    world.publish(evolve(capability, mount_flags=("noatime",)))


def test_other_arguments_are_refused(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    with pytest.raises(AlreadyExists, match=f"staged at {world.staging}"):
        world.stage(capability, path=f"{world.staging}-2")
    other = Capability(access_type=capability.access_type, access_mode=AccessMode.SINGLE_NODE_MULTI_WRITER)
    with pytest.raises(AlreadyExists, match="another capability"):
        world.stage(other)
    world.publish(capability)
    with pytest.raises(AlreadyExists, match="another readonly"):
        world.publish(capability, readonly=True)
    with pytest.raises(AlreadyExists, match="another capability"):
        world.publish(other)
    with pytest.raises(AlreadyExists, match="another staging"):
        world.publish(capability, staging_target_path=f"{world.staging}-2")
    world.stage(capability)
    world.publish(capability)


def test_the_order_is_kept(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    with pytest.raises(FailedPrecondition, match="not staged"):
        world.publish(capability)
    with pytest.raises(FailedPrecondition, match="staging_target_path is required"):
        world.publish(capability, staging_target_path="")
    world.stage(capability)
    with pytest.raises(FailedPrecondition, match="not staged at"):
        world.publish(capability, staging_target_path=f"{world.staging}-2")
    world.publish(capability)
    with pytest.raises(InUse, match=f"published at {world.target}"):
        world.unstage()
    assert len(world.records()) == 2
    world.unstage(path=f"{world.staging}-2")  # staged, but not there: there is nothing to do
    world.stage(capability)
    world.unpublish()
    world.unstage()


def test_a_mount_is_not_published_as_a_device_nor_a_device_as_a_mount(disk: World) -> None:
    disk.stage()
    with pytest.raises(FailedPrecondition, match="staged as mount"):
        disk.publish(RAW)
    disk.unstage()
    disk.stage(RAW)
    with pytest.raises(FailedPrecondition, match="staged as block"):
        disk.publish()
    assert disk.records("target/") == []


def test_a_directory_is_no_raw_device(files: World) -> None:
    with pytest.raises(UnsupportedVolume, match="no block device"):
        files.stage(RAW)
    assert files.records() == []


def test_what_cannot_be_connected_leaves_no_record(disk: World) -> None:
    with pytest.raises(NotFound, match="'none'"):
        disk.stage(volume="none")
    assert disk.records() == []
    assert disk.mounted() == []


def test_a_volume_in_use_on_this_node_is_not_deleted(files: World) -> None:
    engine = Engine(files.backend, files.settings, state_dir=files.base / "other", node_id="n1")
    create: Any = r.CreateVolumeRequest(name="pvc", parameters={}, capabilities=(MOUNT,))
    volume = engine.run("create_volume", create).id
    delete = r.DeleteVolumeRequest(volume_id=volume)
    stage = r.NodeStageRequest(volume_id=volume, staging_target_path=files.staging, capability=MOUNT)
    publish = r.NodePublishRequest(
        volume_id=volume, target_path=files.target, staging_target_path=files.staging, capability=MOUNT
    )
    engine.run("node_stage", stage)
    with pytest.raises(InUse, match=f"in use at {files.staging}"):
        engine.run("delete_volume", delete)
    engine.run("node_publish", publish)
    with pytest.raises(InUse, match=f"in use at {files.target}"):
        engine.run("delete_volume", delete)
    mounts.unmount(files.target)  # gone behind our back: a stale record holds nobody up
    mounts.unmount(files.staging)
    engine.run("delete_volume", delete)
    engine.close()


# -- read-only ---------------------------------------------------------------------------------------------------------


def test_a_read_only_publish_cannot_be_written(disk: World, files: World) -> None:
    for world in (disk, files):
        world.stage()
        world.publish(readonly=True)
        with pytest.raises(OSError, match="Read-only"):
            fill(world.target)
        fill(world.staging)
        assert content(world.target) == "content"
        world.unpublish()
        world.publish()
        fill(world.target, "second")
        world.unpublish()
        world.unstage()


def test_a_read_only_device_really_refuses_writes(disk: World) -> None:
    disk.stage(RAW)
    disk.publish(RAW, readonly=True)
    device = disk.loops()[0]
    for path in (disk.target, device):  # by the device's own node too: a container makes one from its number
        with pytest.raises(OSError, match=r"not permitted|Read-only"):
            with open(path, "r+b", buffering=0) as file:
                file.write(b"x" * 512)
    assert len(Path(disk.target).read_bytes()) == 16 * MIB
    disk.unpublish()
    disk.publish(RAW)
    with open(disk.target, "r+b", buffering=0) as file:
        file.write(b"x" * 512)


def test_a_reader_stages_read_only(disk: World, files: World) -> None:
    disk.stage()
    fill(disk.staging)
    disk.unstage()
    for world in (disk, files):
        world.stage(READER)
        world.publish(READER)
        for path in (world.staging, world.target):
            with pytest.raises(OSError, match="Read-only"):
                fill(path, "other")
        world.stage(READER)
        world.publish(READER)
        with pytest.raises(FailedPrecondition, match="staged read-only"):
            world.publish(MOUNT, world.target + "-of-a-writer")
        assert world is files or content(world.target) == "content"
        world.unpublish()
        world.publish(MOUNT, readonly=True)
        world.unpublish()
        world.unstage()


def test_a_target_is_kept_where_that_is_asked_for(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    for _ in range(2):
        request = r.NodeUnpublishRequest(volume_id="v", target_path=world.target, keep_target=True)
        assert world.run("node_unpublish", request) is None
        assert os.path.exists(world.target)
        assert mounts.mount_at(world.target) is None
    world.unpublish()
    assert not os.path.exists(world.target)
    world.unstage()


def test_a_group_gets_what_is_published_where_the_backend_can(files: World, disk: World) -> None:
    group, other = (evolve(MOUNT, volume_mount_group=gid) for gid in ("2000", "2001"))
    for world in (files, disk):
        world.stage(group)
        fill(world.staging)
        world.publish(group, readonly=True)  # nothing is changed for who only reads
        assert os.stat(f"{world.target}/file").st_gid == 0
        world.unpublish()
        world.stage(other)  # the group is the pod's: it is the same stage
        world.publish(other)
        expected = 2001 if world is files else 0
        assert os.stat(f"{world.target}/file").st_gid == os.stat(world.target).st_gid == expected
        world.unpublish()
        for gid in ("staff", "-1", str(2**32 - 1), "1" * 11):
            with pytest.raises(InvalidArgument, match="volume_mount_group"):
                world.publish(evolve(MOUNT, volume_mount_group=gid))
        world.unstage()


# -- the first format --------------------------------------------------------------------------------------------------


def put(world: World, place: int, data: bytes) -> None:
    with open(world.base / "images/v", "r+b") as file:
        file.seek(place)
        file.write(data)


def head(world: World) -> bytes:
    with open(world.base / "images/v", "rb") as file:
        return file.read(MIB)


PARTITION = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
FOREIGN = {
    "dos": [(446, PARTITION), (510, b"\x55\xaa")],
    "swap": [(4086, b"SWAPSPACE2"), (1024, (1).to_bytes(4, "little") + (4095).to_bytes(4, "little"))],
}


@pytest.mark.parametrize("what", ["dos", "swap"])
@pytest.mark.parametrize("context", [BLANK, {}])
def test_what_holds_something_else_is_never_written(disk: World, what: str, context: dict[str, str]) -> None:
    for place, data in FOREIGN[what]:
        put(disk, place, data)
    before = head(disk)
    with pytest.raises(NotBlank, match=what):
        disk.stage(volume_context=context)
    assert head(disk) == before
    assert disk.loops() == []
    assert disk.records() == []


@pytest.mark.parametrize(
    "context", [{}, {FIRST_FORMAT: "false"}, {FIRST_FORMAT: "True"}, {"first-format": "true"}]
)
def test_blank_without_permission_stays_blank(disk: World, context: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match=r'firstFormat: "true"'):
        disk.stage(volume_context=context)
    assert head(disk) == bytes(MIB)
    assert disk.loops() == []
    assert disk.mounted() == []
    assert disk.records() == []


def test_blank_and_wanted_read_only_stays_blank(disk: World) -> None:
    with pytest.raises(FailedPrecondition, match="nothing to read"):
        disk.stage(READER)
    assert head(disk) == bytes(MIB)
    assert disk.records() == []


def test_another_type_than_asked_for_is_refused(disk: World) -> None:
    disk.stage(Capability(fs_type="ext4"))
    fill(disk.staging)
    disk.unstage()
    with pytest.raises(NotBlank, match="type ext4, asked for is xfs"):
        disk.stage(Capability(fs_type="xfs"))
    disk.stage()  # whichever it has
    assert content(disk.staging) == "content"


def test_a_device_that_cannot_be_read_is_not_blank(disk: World) -> None:
    device = loop.attach(disk.image())
    os.truncate(disk.base / "images/v", 8 * MIB)  # the device keeps its size: its tail cannot be read
    with pytest.raises(Unavailable, match="cannot be read"):
        disk.stage()
    assert head(disk) == bytes(MIB)
    assert disk.loops() == [device]  # not known: it stays connected for the repeat
    disk.image(16)
    disk.stage()
    assert disk.mounted() == [disk.staging]


def test_a_raw_device_is_not_looked_into(disk: World) -> None:
    put(disk, 0, b"\x01" * 4096)
    disk.stage(RAW, volume_context={})
    disk.publish(RAW)
    assert head(disk)[:4096] == b"\x01" * 4096


def cut_mkfs(monkeypatch: pytest.MonkeyPatch, then: Callable[..., None]) -> None:
    """The process is killed in mkfs, which gets as far as `then`."""

    def make(device: str, fs_type: str, *, intend: Callable[[], None], **words: Any) -> None:
        intend()
        then(device, fs_type)
        raise Killed

    monkeypatch.setattr(filesystems, "make", make)


@pytest.mark.parametrize("fs_type", SMALLEST)
@pytest.mark.parametrize("unstaged", [False, True])
@pytest.mark.parametrize("far", ["not begun", "half", "done"])
def test_a_killed_mkfs_is_finished(
    disk: World, monkeypatch: pytest.MonkeyPatch, fs_type: str, unstaged: bool, far: str
) -> None:
    disk.image(SMALLEST[fs_type])
    capability = Capability(fs_type=fs_type)
    real = filesystems.make

    def then(device: str, fs_type: str) -> None:
        if far != "not begun":
            real(device, fs_type, timeout=60)
        if far == "half" and fs_type == "xfs":
            put(disk, 126, b"\1")  # sb_inprogress, which mkfs.xfs takes back at its end
        elif far == "half":
            put(disk, {"ext4": 1024, "btrfs": 0x10000}[fs_type], bytes(1024))  # its superblock comes last
            if fs_type == "btrfs":
                put(disk, 0x4000000, bytes(4096))

    with monkeypatch.context() as patch:
        cut_mkfs(patch, then)
        with pytest.raises(Killed):
            disk.stage(capability)
    assert disk.mounted() == []
    if unstaged:
        disk.unstage()
        assert disk.loops() == []
    disk.stage(capability)
    fill(disk.staging)
    disk.unstage()
    assert disk.records() == []
    disk.stage(capability)
    assert content(disk.staging) == "content"


def test_an_intent_never_outlives_the_data_of_another_node(
    disk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This node is killed before its mkfs; another node formats the volume and fills it; it comes back here."""
    for fs_type in ("ext4", "xfs"):
        disk.image(0)
        disk.image(SMALLEST[fs_type])
        capability = Capability(fs_type=fs_type)
        with monkeypatch.context() as patch:
            cut_mkfs(patch, lambda device, fs_type: None)
            with pytest.raises(Killed):
                disk.stage(capability)
        here, disk.journal = disk.journal, MemoryJournal()
        disk.stage(capability)
        fill(disk.staging)
        disk.unstage()
        disk.journal = here
        disk.stage(capability)
        assert content(disk.staging) == "content"
        disk.unstage()


def test_an_intent_of_one_type_is_none_for_another(disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_mkfs(patch, lambda device, fs_type: None)
        with pytest.raises(Killed):
            disk.stage(Capability(fs_type="xfs"))
    device = disk.loops()[0]
    filesystems.make(device, "ext4", timeout=60)
    before = probe.probe(device).uuid
    with pytest.raises(NotBlank):
        disk.stage(Capability(fs_type="xfs"))
    disk.stage(Capability(fs_type="ext4"))
    assert probe.probe(disk.loops()[0]).uuid == before


@pytest.mark.parametrize("refused", ["too small", "read-only"])
def test_what_is_refused_before_mkfs_leaves_no_intent(
    disk: World, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Nobody calls unstage after it."""
    if refused == "too small":
        disk.image(1)
    else:
        monkeypatch.setattr("volkit.host._block.read_only", lambda descriptor: True)
    with pytest.raises((OutOfRange, FailedPrecondition)):
        disk.stage()
    assert disk.records() == []
    assert disk.loops() == []


def test_an_intent_that_another_type_is_refused_for_stays(
    disk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a killed mkfs.xfs: what is asked for as ext4 meanwhile is refused, and then xfs is finished, not mounted."""
    disk.image(SMALLEST["xfs"])
    real = filesystems.make

    def half(device: str, fs_type: str) -> None:
        real(device, fs_type, timeout=60)
        put(disk, 126, b"\1")

    with monkeypatch.context() as patch:
        cut_mkfs(patch, half)
        with pytest.raises(Killed):
            disk.stage(Capability(fs_type="xfs"))
    with pytest.raises(NotBlank):
        disk.stage(Capability(fs_type="ext4"))
    (record,) = disk.journal.scan("stage/")
    assert record.value["format"] == "xfs"
    disk.stage(Capability(fs_type="xfs"))
    assert not probe.is_half_made(disk.loops()[0], "xfs")


def test_zeros_are_not_taken_for_granted_after_a_killed_mkfs(
    disk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    real_connect, real_make = DiskNode.connect, filesystems.make

    def connect(self: DiskNode, request: r.ConnectRequest) -> Connection:
        made = real_connect(self, request)
        assert isinstance(made, BlockConnection)
        return BlockConnection(device=made.device, identity=made.identity, zeroed=True)

    def make(device: str, fs_type: str, *, zeroed: bool, **words: Any) -> None:
        said.append(zeroed)
        if len(said) == 1:
            words["intend"]()
            raise Killed
        real_make(device, fs_type, zeroed=zeroed, **words)

    monkeypatch.setattr(DiskNode, "connect", connect)
    monkeypatch.setattr(filesystems, "make", make)
    with pytest.raises(Killed):
        disk.stage()
    disk.stage()
    assert said == [True, False]


# -- cut short, or lost ------------------------------------------------------------------------------------------------


class CutJournal(Journal):
    """The process is killed at the n-th write from now, before or after it."""

    def __init__(self) -> None:
        self.inner = MemoryJournal()
        self.left = 0
        self.after = False

    def get(self, key: str) -> Entry | None:
        return self.inner.get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        return self.inner.scan(prefix, after=after, limit=limit)

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        self.inner.write(*changes, durable=durable)
        if self.left == 0:
            raise Killed

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["stage", "publish", "unpublish", "unstage"])
def test_a_kill_at_any_write_is_mended_by_a_repeat(
    any_world: tuple[World, Capability], step: str, after: bool
) -> None:
    world, capability = any_world
    journal = CutJournal()
    world.journal = journal
    steps: dict[str, Callable[[], None]] = {
        "stage": lambda: world.stage(capability),
        "publish": lambda: world.publish(capability),
        "unpublish": world.unpublish,
        "unstage": world.unstage,
    }
    cuts = 0
    for number in range(1, 9):
        for name, run in steps.items():
            if name == step:
                journal.left, journal.after = number, after
                try:
                    run()
                except Killed:
                    cuts += 1
                journal.left = 0
            run()
        assert world.mounted() == []
        assert world.loops() == []
        assert world.records() == []
        os.truncate(world.base / "images/v", 0)
        world.image()
    assert cuts == {
        "stage": {"raw": 2, "disk": 3, "files": 2},
        "publish": {},
        "unpublish": {},
        "unstage": {},
    }[step].get("raw" if capability is RAW else "disk" if world.backend is DiskBackend else "files", 1)


@pytest.mark.parametrize("name", ["mount", "bind"])
def test_a_kill_right_after_the_mount_is_mended(
    disk: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "bind":
        disk.stage()
    with monkeypatch.context() as patch:
        real = getattr(mounts, name)

        def cut(*values: Any, **words: Any) -> None:
            real(*values, **words)
            raise Killed

        patch.setattr(mounts, name, cut)
        with pytest.raises(Killed):
            disk.publish() if name == "bind" else disk.stage()
    for _ in range(2):
        disk.stage()
        disk.publish()
    assert disk.mounted() == sorted([disk.staging, disk.target])


@pytest.mark.parametrize("fs_type", SMALLEST)
def test_a_lost_journal_is_made_up_for(base: Path, fs_type: str) -> None:
    world = world_of(base, DiskBackend)
    world.image(SMALLEST[fs_type])
    capability = Capability(fs_type=fs_type, access_mode=AccessMode.SINGLE_NODE_MULTI_WRITER)
    second = f"{world.target}-2"
    world.stage(capability)
    world.publish(capability)
    world.publish(capability, target=second, readonly=True)
    fill(world.target)
    world.journal = MemoryJournal()
    for _ in range(2):
        world.stage(capability, volume_context={})
        world.publish(capability)
        world.publish(capability, target=second, readonly=True)
    assert world.mounted() == sorted([world.staging, world.target, second])
    assert content(world.target) == "content"
    assert world.expand() == SMALLEST[fs_type] * MIB
    with pytest.raises(InUse):
        world.unstage()
    world.unpublish()
    world.unpublish(second)
    world.unstage()
    assert world.mounted() == world.loops() == world.records() == []


def test_a_lost_journal_of_directories_and_devices(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    before = world.mounted()
    world.journal = MemoryJournal()
    world.stage(capability)
    world.publish(capability)
    assert world.mounted() == before
    world.unpublish()
    world.unstage()
    assert world.mounted() == world.loops() == world.records() == []


def test_with_a_lost_journal_everything_can_be_undone(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    world.journal = MemoryJournal()
    world.unpublish()
    world.unstage()
    assert world.mounted() == world.loops() == world.records() == []


def test_what_is_mounted_otherwise_is_not_taken_for_it(disk: World) -> None:
    """The journal is lost, and what is there is not what is asked for: it is said so, and nothing is touched."""
    disk.stage(Capability(fs_type="ext4"))
    disk.publish(readonly=True, capability=Capability(fs_type="ext4"))
    before = disk.mounted()
    disk.journal = MemoryJournal()
    for capability in (READER, Capability(fs_type="xfs")):
        with pytest.raises(FailedPrecondition, match="unstage"):
            disk.stage(capability)
    disk.stage()
    with pytest.raises(FailedPrecondition, match="no record of"):
        disk.publish()
    assert disk.mounted() == before
    assert len(disk.loops()) == 1


def test_what_somebody_else_mounted_at_the_staging_path_stays(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    os.makedirs(world.staging)
    mounts.mount("none", world.staging, "tmpfs", [])
    fill(world.staging)
    with pytest.raises(FailedPrecondition, match="something else is mounted"):
        world.stage(capability)
    assert world.mounted() == [world.staging]
    assert content(world.staging) == "content"


def test_what_somebody_else_mounted_at_the_target_stays(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    os.makedirs(world.target)
    mounts.mount("none", world.target, "tmpfs", [])
    before = world.mounted()
    with pytest.raises(FailedPrecondition, match="no record of"):
        world.publish(capability)
    with pytest.raises(FailedPrecondition, match="not volume 'v': it stays"):
        world.unpublish()
    assert world.mounted() == before


def test_a_target_without_its_record_is_ours_all_the_same(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    world.journal.write(*(Delete(name) for name in world.records("target/")))
    if capability is MOUNT:
        mounts.unmount(world.staging)
    world.unpublish()
    assert not os.path.exists(world.target)


def test_mounts_that_went_behind_our_back(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    world.stage(capability)
    world.publish(capability)
    mounts.unmount(world.target)
    world.publish(capability)
    assert mounts.is_mount_point(world.target)
    mounts.unmount(world.target)
    world.unpublish()
    if capability is MOUNT:
        mounts.unmount(world.staging)
        with pytest.raises(FailedPrecondition, match="not staged"):
            world.publish(capability)
        world.stage(capability)
        assert world.mounted() == [world.staging]
        mounts.unmount(world.staging)
    world.unstage()
    assert world.mounted() == world.loops() == world.records() == []


def test_a_device_that_went_behind_our_back(disk: World) -> None:
    disk.stage(RAW)
    loop.detach(disk.loops()[0])
    with pytest.raises(FailedPrecondition, match="not staged"):
        disk.publish(RAW)
    disk.stage(RAW)
    disk.publish(RAW)
    disk.unpublish()
    disk.unstage()


def swap(world: World) -> str:
    """Another file gets the loop device of the volume."""
    (device,) = world.loops()
    assert loop.detach(device)
    other = world.image(16, "other")
    subprocess.run(["losetup", device, other], check=True)
    return device


def test_another_disk_under_the_recorded_device_is_not_touched(
    disk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capability in (RAW, MOUNT):
        disk.stage(capability)
        if capability is MOUNT:
            mounts.unmount(disk.staging)
        device = swap(disk)
        with pytest.raises(FailedPrecondition, match="not staged"):
            disk.publish(capability)
        found = disk.journal.get("stage/v")
        assert found is not None
        stale = BlockConnection(device=device, identity=found.value["connection"]["identity"])
        with monkeypatch.context() as patch:
            patch.setattr(DiskNode, "connect", lambda self, request, stale=stale: stale)
            with pytest.raises(FailedPrecondition, match="another device than expected"):
                disk.stage(capability)
        assert Path(disk.image(16, "other")).read_bytes() == bytes(16 * MIB)
        with pytest.raises(NotFound):
            disk.expand(path=disk.staging)
        disk.stage(capability)
        assert disk.loops() != [device]
        disk.unstage()
        assert loop.find(disk.image(16, "other")) == [device]
        loop.detach(device)


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["link", "broken link", "file", "full", "directory", "file with content"])
def test_a_target_that_is_something_else(any_world: tuple[World, Capability], there: str) -> None:
    world, capability = any_world
    good = {"directory"} if capability is MOUNT else {"file"}
    world.stage(capability)
    before = world.mounted()
    target, elsewhere = Path(world.target), world.base / "elsewhere"
    target.parent.mkdir()
    elsewhere.mkdir()
    if "link" in there:
        target.symlink_to(elsewhere if there == "link" else world.base / "nothing")
    elif there.startswith("file"):
        target.write_text("content" if "content" in there else "")
    else:
        target.mkdir()
        if there == "full":
            fill(world.target)
    if there in good:
        world.publish(capability)
        world.unpublish()
        return
    with pytest.raises((InvalidArgument, FailedPrecondition), match=str(target)):
        world.publish(capability)
    assert world.mounted() == before
    assert os.listdir(elsewhere) == []
    assert world.records("target/") == []
    if there == "full":
        assert content(world.target) == "content"


def test_a_staging_path_that_is_a_link(disk: World, files: World) -> None:
    elsewhere = disk.base / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, disk.staging)
    for world in (disk, files):
        with pytest.raises(InvalidArgument, match="symbolic link"):
            world.stage()
    assert disk.mounted() == disk.loops() == disk.records() == []


MULTI = {
    AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.MULTI_NODE_READER_ONLY, AccessMode.MULTI_NODE_SINGLE_WRITER,
    AccessMode.MULTI_NODE_MULTI_WRITER,
}  # fmt: skip


@pytest.mark.parametrize("mode", AccessMode)
def test_a_second_target_where_the_mode_allows_it(files: World, mode: AccessMode) -> None:
    capability = Capability(access_mode=mode)
    second = f"{files.target}-2"
    files.stage(capability)
    files.publish(capability)
    if mode in MULTI:
        files.publish(capability, target=second, readonly=True)
        assert len(files.mounted()) == 3
        return
    with pytest.raises(FailedPrecondition, match="allows one target"):
        files.publish(capability, target=second)
    assert len(files.records("target/")) == 1
    mounts.unmount(files.target)  # gone behind our back: it counts for nothing
    files.publish(capability, target=second)


def test_a_raw_device_is_read_only_at_all_its_targets_or_at_none(disk: World) -> None:
    second = f"{disk.target}-2"
    disk.stage(SHARED_RAW)
    disk.publish(SHARED_RAW)
    with pytest.raises(FailedPrecondition, match="read-only at all its targets or at none"):
        disk.publish(SHARED_RAW, target=second, readonly=True)
    with open(disk.target, "r+b", buffering=0) as file:
        file.write(b"x" * 512)
    disk.publish(SHARED_RAW, target=second)
    disk.unpublish()
    disk.unpublish(second)
    disk.publish(SHARED_RAW, target=second, readonly=True)


@pytest.mark.parametrize("targets", [16, 1])
def test_many_publish_at_a_time(files: World, targets: int) -> None:
    capability = Capability(access_mode=AccessMode.MULTI_NODE_MULTI_WRITER)
    files.stage(capability)
    process = files.process()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        target = f"{files.target}-{number % targets}"
        try:
            for _ in range(3):
                request = r.NodePublishRequest(
                    volume_id="v",
                    target_path=target,
                    staging_target_path=files.staging,
                    capability=capability,
                )
                process.run("node_publish", request)
                if targets > 1:
                    process.run("node_unpublish", r.NodeUnpublishRequest(volume_id="v", target_path=target))
                    process.run("node_publish", request)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert not failed
    assert files.mounted() == sorted(
        [files.staging, *(f"{files.target}-{number}" for number in range(targets))]
    )


def test_many_stage_at_a_time(disk: World) -> None:
    process = disk.process()
    failed: list[BaseException] = []

    def work() -> None:
        request = r.NodeStageRequest(
            volume_id="v", staging_target_path=disk.staging, capability=MOUNT, volume_context=BLANK
        )
        try:
            process.run("node_stage", request)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert not failed
    assert disk.mounted() == [disk.staging]
    assert len(disk.loops()) == 1


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_final_failure_leaves_nothing_connected(disk: World) -> None:
    bad = Capability(mount_flags=("noatime", "password=hunter2"))
    with pytest.raises(InvalidArgument) as raised:
        disk.stage(bad)
    assert "hunter2" not in str(raised.value)
    assert disk.mounted() == disk.loops() == disk.records() == []
    disk.stage()


def test_no_secret_is_recorded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(base, MemoryBackend)
    share = FileConnection(source="none", fs_type="tmpfs", options=("mode=700", "uid=7"))
    monkeypatch.setattr(MemoryNode, "connect", lambda self, request: share)
    world.stage(Capability(mount_flags=("gid=4711",)))
    assert os.stat(world.staging).st_gid == 4711
    assert os.stat(world.staging).st_uid == 7
    world.publish()
    for entry in world.journal.scan(""):
        assert "4711" not in str(entry.value)
        assert "mode=700" not in str(entry.value)
    world.journal = MemoryJournal()
    world.stage()
    world.unpublish()
    world.unstage()
    assert world.mounted() == world.records() == []


def test_an_ambiguous_failure_is_resumed(disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = DiskNode.connect

    def connect(self: DiskNode, request: r.ConnectRequest) -> Connection:
        asked.append(request.resumed)
        made = real(self, request)
        if len(asked) < 3:
            raise Unavailable("the reply was lost")
        return made

    monkeypatch.setattr(DiskNode, "connect", connect)
    for _ in range(2):
        with pytest.raises(Unavailable):
            disk.stage()
    assert disk.records() == ["stage/v"]
    disk.stage()
    assert asked == [False, True, True]
    assert len(disk.loops()) == 1


def test_a_disconnect_that_fails_is_repeated(disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[r.DisconnectRequest] = []
    real = DiskNode.disconnect

    def disconnect(self: DiskNode, request: r.DisconnectRequest) -> None:
        seen.append(request)
        if len(seen) == 1:
            raise Unavailable("away")
        real(self, request)

    monkeypatch.setattr(DiskNode, "disconnect", disconnect)
    disk.stage()
    (device,) = disk.loops()
    with pytest.raises(Unavailable):
        disk.unstage()
    disk.unstage()
    disk.unstage()
    connections = [one.connection for one in seen]
    assert isinstance(connections[0], BlockConnection)
    assert connections[0].device == device
    assert connections == [connections[0], connections[0], None]


# -- connecting per pod ------------------------------------------------------------------------------------------------


@pytest.fixture
def pods(base: Path) -> World:
    return world_of(base, PodBackend)


def test_per_pod_there_and_back(pods: World) -> None:
    for _ in range(2):
        pods.publish(staging_target_path="")
    fill(pods.target)
    assert pods.stats().usage.total > 0
    for _ in range(2):
        pods.unpublish()
    assert pods.mounted() == pods.records() == []
    assert not os.path.exists(pods.target)


def test_per_pod_a_final_failure_is_undone(pods: World, monkeypatch: pytest.MonkeyPatch) -> None:
    undone: list[Connection | None] = []
    monkeypatch.setattr(PodNode, "disconnect", lambda self, request: undone.append(request.connection))
    os.makedirs(pods.target)
    fill(pods.target)
    with pytest.raises(FailedPrecondition, match="not empty"):
        pods.publish()
    assert len(undone) == 1
    device = BlockConnection(device="/dev/null")
    monkeypatch.setattr(PodNode, "connect", lambda self, request: device)
    with pytest.raises(UnsupportedVolume, match="not block devices"):
        pods.publish(target=f"{pods.target}-2")
    assert undone[1:] == [device]
    assert pods.records() == []


def test_per_pod_an_ambiguous_failure_is_resumed(pods: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def connect(self: PodNode, request: r.ConnectRequest) -> Connection:
            raise Unavailable("away")

        patch.setattr(PodNode, "connect", connect)
        with pytest.raises(Unavailable):
            pods.publish()
    assert len(pods.records()) == 1
    pods.publish()
    pods.unpublish()
    assert pods.records() == []


def test_per_pod_a_publish_is_cancelled_that_changes_its_record_just_then(
    pods: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker repeats no call, so an unpublish looks again."""
    journal, target_key, real = pods.journal, key("target", "v", pods.target), PodNode.connect
    get = journal.get

    def interrupted(wanted: str) -> Any:
        entry = get(wanted)
        if wanted == target_key:
            assert entry is not None
            monkeypatch.setattr(journal, "get", get)
            journal.write(Put(target_key, entry.value))
        return entry

    def connect(self: PodNode, request: r.ConnectRequest) -> Connection:
        monkeypatch.setattr(journal, "get", interrupted)
        unpublish = r.NodeUnpublishRequest(volume_id="v", target_path=pods.target)
        pods.process().publishing.node_unpublish(unpublish, Call())
        return real(self, request)

    monkeypatch.setattr(PodNode, "connect", connect)
    with pytest.raises(Aborted, match="was unpublished while it was connected"):
        pods.publish()
    assert pods.records() == pods.mounted() == []


# -- grow and measure --------------------------------------------------------------------------------------------------


def may_grow_ext() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, which a mounted ext4 takes to grow."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:\t")[2].split()[0], 16) & 1 << 24)


@pytest.mark.parametrize("fs_type", SMALLEST)
def test_a_mounted_file_system_grows(base: Path, fs_type: str) -> None:
    world = world_of(base, DiskBackend)
    world.image(SMALLEST[fs_type])
    capability = Capability(fs_type=fs_type)
    world.stage(capability)
    world.publish(capability)
    before = world.stats().usage.total
    size = (SMALLEST[fs_type] + 64) * MIB
    with pytest.raises(FailedPrecondition, match="expand the volume"):
        world.expand(size)
    world.image(size // MIB)
    if fs_type == "ext4" and not may_grow_ext():
        with pytest.raises(FailedPrecondition, match="CAP_SYS_RESOURCE"):
            world.expand(size)
        world.unpublish()
        world.unstage()
        world.stage(capability)
        world.publish(capability)
    for path in (world.staging, world.target):
        assert world.expand(size, path) == size
    assert world.stats().usage.total > before + 40 * MIB
    assert world.expand() == size
    with pytest.raises(OutOfRange, match="limit"):
        world.expand(1, limit=2)


@pytest.mark.parametrize("fs_type", SMALLEST)
def test_a_volume_that_grew_while_it_was_away_is_filled(base: Path, fs_type: str) -> None:
    world = world_of(base, DiskBackend)
    world.image(SMALLEST[fs_type])
    capability = Capability(fs_type=fs_type)
    world.stage(capability)
    fill(world.staging)
    before = filesystems.usage(world.staging).total
    world.unstage()
    world.image(SMALLEST[fs_type] + 64)
    world.stage(capability)
    assert filesystems.usage(world.staging).total > before + 40 * MIB
    assert content(world.staging) == "content"


def test_a_raw_device_grows(disk: World) -> None:
    disk.stage(RAW)
    disk.publish(RAW)
    assert disk.stats().usage.total == 16 * MIB
    disk.image(32)
    assert disk.expand(32 * MIB, disk.target) == 32 * MIB
    assert disk.stats().usage.total == 32 * MIB
    assert len(Path(disk.target).read_bytes()) == 32 * MIB


def test_a_directory_has_what_it_is_given(files: World) -> None:
    files.stage()
    assert files.expand(5 * MIB) == 5 * MIB
    assert files.expand() > 5 * MIB


def test_usage_of_a_file_system(disk: World) -> None:
    disk.stage()
    disk.publish()
    for path in (disk.staging, disk.target):
        usage = disk.stats(path).usage
        assert 8 * MIB < usage.total <= 16 * MIB
        assert usage.used + usage.available <= usage.total
        assert usage.total_inodes == usage.used_inodes + usage.available_inodes > 0
    used = disk.stats().usage.used
    Path(disk.target, "big").write_bytes(b"x" * 4 * MIB)
    os.sync()
    assert disk.stats().usage.used >= used + 4 * MIB
    assert not disk.stats().health.abnormal


def test_stats_and_growth_where_kubelet_bound_it(disk: World) -> None:
    """Kubelet binds the node of a raw volume once more, and asks there."""
    disk.stage(RAW)
    disk.publish(RAW)
    copy, foreign = disk.base / "pods/copy", disk.base / "pods/foreign"
    for place, node in ((copy, disk.target), (foreign, "/dev/loop-control")):
        place.touch()
        mounts.bind(node, str(place))
    assert disk.stats(str(copy)).usage.total == 16 * MIB
    disk.image(32)
    assert disk.expand(32 * MIB, path=str(copy)) == 32 * MIB
    for path in (foreign, disk.base / "pods/nothing"):
        with pytest.raises(NotFound):
            disk.stats(str(path))


def test_stats_where_somebody_bound_a_file_system(disk: World) -> None:
    disk.stage()
    disk.publish()
    copy, below = disk.base / "pods/copy", Path(disk.target, "below")
    for place in (copy, below):
        place.mkdir()
    mounts.bind(disk.target, str(copy))
    assert disk.stats(str(copy)).usage.total > 8 * MIB
    mounts.unmount(str(copy))
    mounts.bind(str(disk.base / "images"), str(copy))
    for path in (copy, below):
        with pytest.raises(NotFound):
            disk.stats(str(path))


def test_what_is_not_there_has_no_usage(any_world: tuple[World, Capability]) -> None:
    world, capability = any_world
    with pytest.raises(NotFound):
        world.stats()
    world.stage(capability)
    for path in (world.target, f"{world.staging}/x", "relative", "/" + "x" * 5000):
        with pytest.raises(NotFound):
            world.stats(path)
        with pytest.raises(NotFound):
            world.expand(1, path)
    world.publish(capability)
    world.stats()
    with pytest.raises(NotFound):
        world.stats(volume="other")
    mounts.unmount(world.target)
    with pytest.raises(NotFound):
        world.stats()


def test_a_dead_mount_is_abnormal(files: World) -> None:
    files.stage()
    files.publish()
    connection = os.open("/dev/fuse", os.O_RDWR)
    try:
        mounts.mount(
            "dead", files.target, "fuse", [f"fd={connection}", "rootmode=40000", "user_id=0", "group_id=0"]
        )
    finally:
        os.close(connection)
    found = files.stats()
    assert found.health.abnormal
    assert files.target in found.health.message
    files.unpublish()
    assert files.mounted() == [files.staging]


def test_a_fault_in_the_backends_own_usage_is_unavailable(
    files: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.stage()
    files.publish()

    def usage(self: MemoryNode, volume_id: str, connection: Connection) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryNode, "usage", usage)
    with pytest.raises(Unavailable, match="ZeroDivisionError"):
        files.stats()
    monkeypatch.setattr(MemoryNode, "usage", lambda self, volume_id, connection: 5)
    with pytest.raises(Unavailable, match="returned a int"):
        files.stats()


def test_the_volumes_of_the_tests_are_of_both_kinds() -> None:
    assert (DiskBackend.volume, MemoryBackend.volume) == (BlockVolume, FileVolume)
