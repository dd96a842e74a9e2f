"""Volumes that a program serves: through the whole engine, with kill -9 of the driver and of the program."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit import requests as r
from volkit.doctor import examine
from volkit.engine import Engine
from volkit.errors import FailedPrecondition, Unavailable
from volkit.host import apart, fuse, mounts
from volkit.interfaces import ConnectsPerPod, MountsByProgram
from volkit.journal import Delete
from volkit.mending import Mending
from volkit.model import Capability, Connection, FileConnection, FuseConnection
from volkit.testing.memory import MemoryBackend, MemoryNode, memory_settings

pytestmark = [pytest.mark.root, pytest.mark.needs("bindfs")]
PATIENCE = 60.0
pending: dict[str, int] = {}


class ServingNode(MemoryNode, MountsByProgram):
    """Serves a volume's directory with bindfs."""

    def connect(self, request: r.ConnectRequest) -> Connection:
        made = super().connect(request)
        assert isinstance(made, FileConnection)
        argv = ("bindfs", "-f", made.directory, "{target}")
        return FuseConnection(argv=argv, files={"key": "hunter2"}, source="bindfs", fs_type="fuse")

    def pending(self, volume_id: str, connection: Connection) -> int:
        assert isinstance(connection, FuseConnection)
        assert Path(connection.directory, "files", "key").read_text() == "hunter2"
        return pending.get(volume_id, 0)


class PodNode(ServingNode, ConnectsPerPod):
    """The same for each pod."""


class ServingBackend(MemoryBackend):
    name = "serving"
    node = ServingNode


class PodBackend(MemoryBackend):
    name = "serving-pods"
    node = PodNode


class World:
    """An engine, and a volume's places."""

    def __init__(self, base: Path, backend: type[MemoryBackend]) -> None:
        self.base = base
        self.backend = backend
        self.per_pod = backend is PodBackend
        self.data = base / "data"
        (self.data / "v").mkdir(parents=True)
        self.settings = memory_settings(root=self.data)
        self.staging, self.target = str(base / "staging"), str(base / "pods" / "target")
        self.engine = self.process()

    def process(self) -> Engine:
        self.engine = Engine(self.backend, self.settings, state_dir=self.base / "state", node_id="n1")
        return self.engine

    def publish(self, *, readonly: bool = False, volume: str = "v") -> None:
        os.makedirs(self.staging, exist_ok=True)
        os.makedirs(os.path.dirname(self.target), exist_ok=True)
        words: dict[str, Any] = {"volume_id": volume, "capability": Capability()}
        if not self.per_pod:
            self.engine.run("node_stage", r.NodeStageRequest(staging_target_path=self.staging, **words))
            words["staging_target_path"] = self.staging
        self.engine.run(
            "node_publish", r.NodePublishRequest(target_path=self.target, readonly=readonly, **words)
        )

    def unpublish(self, volume: str = "v") -> None:
        self.engine.run("node_unpublish", r.NodeUnpublishRequest(volume_id=volume, target_path=self.target))
        if not self.per_pod:
            self.engine.run(
                "node_unstage", r.NodeUnstageRequest(volume_id=volume, staging_target_path=self.staging)
            )

    def stats(self) -> r.NodeStats:
        found = self.engine.run("node_stats", r.NodeStatsRequest(volume_id="v", volume_path=self.target))
        assert isinstance(found, r.NodeStats)
        return found

    def mending(self) -> Mending:
        assert self.engine.node_state
        return Mending(self.engine.node_state)

    def directories(self) -> list[Path]:
        below = self.base / "run" / self.backend.name
        return sorted(below.iterdir()) if below.exists() else []

    def kill_program(self) -> None:
        (directory,) = self.directories()
        os.kill(int((directory / "pid").read_text().split()[0]), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while fuse.is_running(str(directory)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(params=[ServingBackend, PodBackend])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("VOLKIT_RUN_DIR", str(tmp_path / "run"))
    made = World(tmp_path, request.param)
    yield made
    pending.clear()
    made.engine.close()
    subprocess.run(["pkill", "-9", "-f", str(tmp_path)], check=False)
    for one in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(one.mount_point, lazy=True)


def test_a_volume_is_served_and_goes_without_a_trace(world: World) -> None:
    world.publish()
    world.publish()
    Path(world.target, "file").write_text("content")
    assert (world.data / "v" / "file").read_text() == "content"
    assert world.stats().usage.total
    assert b"hunter2" not in (world.base / "state" / "journal.db").read_bytes()
    assert b"hunter2" not in (world.base / "state" / "journal.db-wal").read_bytes()
    world.unpublish()
    world.unpublish()
    assert world.directories() == []
    assert not mounts.mounts(under=str(world.base))
    assert world.engine.node_journal.scan("") == []


def test_read_only(world: World) -> None:
    world.publish(readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        Path(world.target, "file").touch()
    world.unpublish()


def test_it_outlives_its_driver(world: World) -> None:
    world.publish()
    Path(world.target, "file").write_text("content")
    world.process()
    assert Path(world.target, "file").read_text() == "content"
    (directory,) = world.directories()
    pid = (directory / "pid").read_text()
    world.publish()
    assert (directory / "pid").read_text() == pid
    world.unpublish()
    assert not mounts.mounts(under=str(world.base))


def test_a_program_that_died_is_reported_and_mended(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.publish()
    Path(world.target, "file").write_text("content")
    assert world.mending().mend() == 0
    world.kill_program()
    health = world.stats().health
    assert health is not None
    assert health.abnormal
    assert "died" in health.message
    with caplog.at_level(logging.WARNING):
        assert world.mending().mend() == 1
    assert "was started again" in caplog.text
    assert Path(world.target, "file").read_text() == "content"
    assert world.stats().usage.total
    world.unpublish()
    assert not mounts.mounts(under=str(world.base))


def test_the_daemon_mends_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volkit.mending.MEND_SECONDS", 0.05)
    monkeypatch.setattr(Mending.watch, "__defaults__", (0.05,))
    world.publish()
    Path(world.target, "file").write_text("content")
    world.engine.watch()
    world.kill_program()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            assert Path(world.target, "file").read_text() == "content"
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    world.unpublish()


def test_a_repeat_of_the_call_mends_too(world: World) -> None:
    world.publish()
    world.kill_program()
    world.unpublish()
    world.publish()
    Path(world.target, "file").write_text("content")
    world.unpublish()
    assert not mounts.mounts(under=str(world.base))
    assert world.directories() == []


def test_what_cannot_be_mended_is_tried_less_and_less(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.publish()
    world.kill_program()
    (world.data / "v").rename(world.data / "away")
    mending = world.mending()
    for _ in range(3):
        assert mending.mend() == 0
    assert caplog.text.count("cannot be started again") == 1
    (world.data / "away").rename(world.data / "v")
    assert world.mending().mend() == 1
    world.unpublish()


def test_a_volume_that_is_worked_on_is_left_alone(world: World) -> None:
    world.publish()
    world.kill_program()
    (entry,) = [one for one in world.engine.node_journal.scan("") if "connection" in one.value]
    lock = entry.key if world.per_pod else "volume/v"
    with world.engine.locks.hold(lock, wait=0):
        assert world.mending().mend() == 0
    assert world.mending().mend() == 1
    world.unpublish()


def test_nothing_is_unmounted_before_it_is_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volkit.node_state.DRAIN_SECONDS", 0.1)
    world.publish()
    pending["v"] = 4096
    with pytest.raises(Unavailable, match="4096 bytes are not in the storage yet"):
        world.unpublish()
    (mount,) = {one.source for one in mounts.mounts(under=str(world.base))}
    assert mount == str(world.data / "v")
    pending.clear()
    world.unpublish()
    assert not mounts.mounts(under=str(world.base))


def test_a_start_that_was_cut_short_is_begun_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after kill -9 in the middle: the program serves, and nobody knows."""

    class Killed(BaseException):
        """The process ends here."""

    def killed(*args: object, **words: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(apart, "call", killed)
        with pytest.raises(Killed):
            world.publish()
    assert fuse.is_running(str(world.directories()[0]))
    world.process()
    world.publish()
    Path(world.target, "file").write_text("content")
    world.unpublish()
    assert not mounts.mounts(under=str(world.base))
    assert world.directories() == []


def test_a_driver_that_could_not_keep_programs_alive_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise FailedPrecondition("it would die with this container")

    monkeypatch.setattr(fuse, "supervisor", refuse)
    with pytest.raises(FailedPrecondition, match="die with this container"):
        world.process()


def findings(world: World) -> list[tuple[str, str]]:
    return [(one.sort, one.what) for one in examine(world.engine, min_age=0)]


def test_the_doctor_finds_a_program_that_died_and_repairs_it(world: World) -> None:
    world.publish()
    Path(world.target, "file").write_text("content")
    assert not [one for one in findings(world) if "program" in one[1]]
    world.kill_program()
    (found,) = [one for one in examine(world.engine, min_age=0) if "has died" in one.what]
    assert found.sort == "stuck"
    assert found.repair
    assert found.repair() == "it is started again"
    assert Path(world.target, "file").read_text() == "content"
    world.unpublish()


def test_the_doctor_finds_a_program_that_is_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish()
    (directory,) = world.directories()
    pid = int((directory / "pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr("volkit.doctor.finding.ANSWER_SECONDS", 1.0)
        shown = [one for one in examine(world.engine, min_age=0) if "does not answer" in one.what]
    assert {one.command for one in shown} == {f"kill -CONT {pid}"}
    assert len(shown) == (1 if world.per_pod else 2)
    assert f"(its program is pid {pid}, state T)" in shown[0].what
    subprocess.run(shown[0].command.split(), check=True)
    assert not [one for one in findings(world) if "does not answer" in one[1]]
    world.unpublish()


def test_the_doctor_finds_a_program_whose_mount_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives on, since somebody has a file open that it serves."""
    monkeypatch.setattr(fuse, "STOP_SECONDS", 1.0)
    world.publish()
    (directory,) = world.directories()
    held = os.open(f"{world.target}/file", os.O_RDWR | os.O_CREAT)
    try:
        for one in reversed(mounts.mounts(under=str(world.base))):
            mounts.unmount(one.mount_point, lazy=True)
        assert fuse.is_running(str(directory))
        for found in examine(world.engine, min_age=0):
            assert (found.sort, found.command) == ("stuck", "volkit recover")
            assert found.repair
            assert found.repair() == "what was begun is undone"
    finally:
        with suppress(OSError):  # its program is gone
            os.close(held)
    assert world.directories() == []
    assert not [one for one in findings(world) if one[0] != "foreign"]


def test_the_doctor_finds_a_program_that_no_record_tells_of(world: World) -> None:
    world.publish()
    for entry in world.engine.node_journal.scan(""):
        world.engine.node_journal.write(Delete(entry.key))
    if not world.per_pod:
        mounts.unmount(world.target)
    (found,) = [one for one in examine(world.engine, min_age=0) if "no record tells of it" in one.what]
    assert found.sort == "leaked"
    assert found.repair
    found.repair()
    assert not mounts.mounts(under=str(world.base))
    assert world.directories() == []


def test_the_doctor_shows_calls_that_hang_and_forgets_dead_drivers(world: World) -> None:
    directory = world.base / "state" / "left-behind"
    directory.mkdir()
    call = {"operation": "node_stage", "subject": "v", "since": time.time() - 70}
    (directory / f"{os.getpid()}.json").write_text(json.dumps({"pid": os.getpid(), "calls": [call]}))
    (directory / "1.json").write_text(json.dumps({"pid": 1, "calls": [call]}))
    (hung,) = (what for sort, what in findings(world) if sort == "stuck")
    assert re.fullmatch(rf"node_stage of v hangs for \d\d+ s in the driver \(pid {os.getpid()}\)", hung)
    (dead,) = [one for one in examine(world.engine, min_age=0) if "is of a driver that is gone" in one.what]
    assert dead.repair
    dead.repair()
    assert not (directory / "1.json").exists()
    (directory / f"{os.getpid()}.json").unlink()
