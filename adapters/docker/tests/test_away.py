"""A storage that does not answer, or has lost something, behind a plugin: Docker takes any error of Get for "there is
no such volume", and makes a local one of the name.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from volkit import Engine, FileVolume, InUse, Unavailable, uses
from volkit.doctor import examine
from volkit.host import loop, mounts
from volkit.recovery import records, recover
from volkit.sockets import UnixSocket
from volkit.testing.memory import ARRAYS, Array, MemoryBackend, Stored, memory_settings
from volkit_docker import service as module
from volkit_docker.server import App, Server
from volkit_docker.service import Service
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings

pytestmark = pytest.mark.root
PATIENCE = 60.0
MANY = 40


class Served:
    """A plugin in this process."""

    def __init__(self, home: Path) -> None:
        settings = memory_settings(root=home / "array")
        self.array: Array = ARRAYS[settings.array]
        self.engine = Engine(MemoryBackend, settings, state_dir=home / "state", node_id="n1")
        self.service = Service(self.engine, home / "mounts")
        self.server = Server(App(self.service), UnixSocket(str(home / "sock")), look_seconds=0.01)
        self.path = str(home / "sock")
        self.server.start()
        self.server.serve_in_background()

    def call(self, method: str, **request: Any) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("plugin", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(self.path)
        try:
            connection.request("POST", f"/{method}", json.dumps(request))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ok(self, method: str, **request: Any) -> dict[str, Any]:
        status, answer = self.call(f"VolumeDriver.{method}", **request)
        assert (status, answer.get("Err", "")) == (200, ""), answer
        return answer

    def refused(self, method: str, **request: Any) -> str:
        status, answer = self.call(f"VolumeDriver.{method}", **request)
        assert status >= 400
        return str(answer["Err"])

    def names(self) -> list[str]:
        return [one["Name"] for one in self.ok("List")["Volumes"]]


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.array.before = lambda method: None
    made.server.stop()
    made.engine.close(20)
    for one in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(one.mount_point, lazy=True)


def fail(method: str) -> None:
    raise Unavailable("the array is away")


def test_what_was_made_is_there_while_the_storage_is_away(plugin: Served) -> None:
    plugin.ok("Create", Name="v")
    path = plugin.ok("Mount", Name="v", ID="a")["Mountpoint"]
    plugin.array.before = fail
    shown = plugin.ok("Get", Name="v")["Volume"]
    assert (shown["Mountpoint"], shown["Status"]["state"]) == (path, "published")
    assert shown["Status"]["size"] == "not known: the array is away"
    assert plugin.names() == ["v"]
    assert plugin.ok("Path", Name="v")["Mountpoint"] == path
    assert plugin.refused("Get", Name="never made") == "the array is away"
    assert plugin.refused("Create", Name="v") == "the array is away"
    assert plugin.refused("Remove", Name="v")
    plugin.array.before = lambda method: None
    plugin.ok("Unmount", Name="v", ID="a")
    assert plugin.ok("Get", Name="v")["Volume"]["Status"]["size"] == "1Mi"
    plugin.ok("Remove", Name="v")
    assert plugin.names() == []


def test_a_volume_that_is_known_by_its_id_is_there_as_well(plugin: Served) -> None:
    plugin.array.volumes["vol-7"] = Stored(FileVolume(id="vol-7", capacity=1 << 20), "", "fast")
    assert plugin.ok("Get", Name="vol-7")["Volume"]["Status"]["size"] == "1Mi"
    plugin.array.before = fail
    assert plugin.ok("Get", Name="vol-7")["Volume"]["Status"]["size"] == "not known: the array is away"
    plugin.array.before = lambda method: None
    plugin.ok("Remove", Name="vol-7")
    assert plugin.refused("Get", Name="vol-7") == "no such volume: vol-7"
    plugin.array.before = fail
    assert plugin.refused("Get", Name="vol-7") == "the array is away"


def test_what_the_storage_has_lost_is_not_made_anew(plugin: Served) -> None:
    """As after a start with the wrong pool, or with one that is not mounted yet."""
    plugin.ok("Create", Name="v")
    away = dict(plugin.array.volumes)
    plugin.array.volumes.clear()
    for method, request in (("Create", {}), ("Mount", {"ID": "a"})):
        assert "the storage does not have it: is all of it there?" in plugin.refused(
            method, Name="v", **request
        )
    assert "not known: volume 'v' was made as" in plugin.ok("Get", Name="v")["Volume"]["Status"]["size"]
    assert plugin.names() == ["v"]
    plugin.array.volumes.update(away)
    assert plugin.ok("Get", Name="v")["Volume"]["Status"]["size"] == "1Mi"
    plugin.array.volumes.clear()
    plugin.ok("Remove", Name="v")  # it is gone for good
    assert plugin.refused("Get", Name="v") == "no such volume: v"
    plugin.ok("Create", Name="v")


def test_a_storage_that_hangs_holds_up_no_other_call_and_no_end(
    plugin: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls hang than there are threads in the beginning; what hangs is let go at the end of the test alone."""
    monkeypatch.setattr(module, "RECORDED_SECONDS", 0.2)
    for number in range(MANY):
        plugin.ok("Create", Name=f"v{number}")
    goes_on = threading.Event()

    def hang(method: str) -> None:
        goes_on.wait(PATIENCE)

    plugin.array.before = hang
    with ThreadPoolExecutor(MANY) as callers, ExitStack() as ending:
        ending.callback(goes_on.set)
        hung = [
            callers.submit(plugin.call, "VolumeDriver.Mount", Name=f"v{number}", ID="a")
            for number in range(MANY)
        ]
        assert plugin.call("Plugin.Activate")[0] == 200
        assert "not known" in plugin.ok("Get", Name="v7")["Volume"]["Status"]["size"]
        assert len(plugin.names()) == MANY
        assert not any(one.done() for one in hung)
        stopping = threading.Thread(target=plugin.server.stop)
        stopping.start()
        stopping.join(PATIENCE / 2)
        assert not stopping.is_alive()


def test_a_journal_that_is_away_is_remembered(plugin: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hosts share may be."""
    plugin.ok("Create", Name="v")
    plugin.ok("Get", Name="v")
    journal = plugin.engine.journal

    def away(*args: Any, **kwargs: Any) -> Any:
        raise Unavailable("etcd is away")

    for method in ("get", "scan", "write"):
        monkeypatch.setattr(journal, method, away)
    monkeypatch.setattr(plugin.service.uses, "path", lambda volume_id: "")
    monkeypatch.setattr(plugin.service.uses, "holders", lambda volume_id: {})
    monkeypatch.setattr(plugin.service.uses, "uses", list)  # these are the node's own
    assert plugin.ok("Get", Name="v")["Volume"]["Status"]["size"] == "not known: etcd is away"
    assert plugin.names() == ["v"]
    assert plugin.refused("Get", Name="never made") == "etcd is away"
    monkeypatch.undo()


def test_a_clone_is_made_once_also_where_its_source_is_gone(plugin: Served) -> None:
    plugin.ok("Create", Name="first")
    for _ in range(2):
        plugin.ok("Create", Name="copy", Opts={"clone-of": "first"})
    plugin.ok("Remove", Name="first")
    plugin.ok("Create", Name="copy", Opts={"clone-of": "first"})
    assert "was made from" in plugin.refused("Create", Name="copy", Opts={"clone-of": "another"})
    assert "there is no volume 'first'" in plugin.refused("Create", Name="other", Opts={"clone-of": "first"})


@pytest.mark.parametrize(
    ("option", "meant"),
    [("sise", "size"), ("mount-option", "mount-options"), ("replica", "replicas"), ("x", "")],
)
def test_the_option_that_was_meant_is_named(plugin: Served, option: str, meant: str) -> None:
    said = plugin.refused("Create", Name="v", Opts={option: "1"})
    assert "valid are size, fs-type, mount-options, readonly, from-snapshot, clone-of, replicas, tier" in said
    assert said.endswith(f"did you mean {meant!r}?") if meant else "mean" not in said


def test_no_error_shows_mount_options(plugin: Served) -> None:
    """A secret may be among them."""
    plugin.ok("Create", Name="v", Opts={"mount-options": "label=hidden"})
    said = plugin.refused("Create", Name="v", Opts={"mount-options": "label=another"})
    assert "made with another mount-options" in said
    assert "hidden" not in said


def test_a_secret_in_mount_options_is_not_stored(plugin: Served) -> None:
    for flags in ("password=hidden", "noatime,passwd=hidden", "SECRET=hidden"):
        said = plugin.refused("Create", Name="v", Opts={"mount-options": flags})
        assert "credentials=/FILE" in said
        assert "hidden" not in said
    plugin.refused("Get", Name="v")
    plugin.ok("Create", Name="v", Opts={"mount-options": "credentials=/etc/share,sec=krb5"})


def test_creates_of_one_name_with_different_options_at_once(plugin: Served) -> None:
    """One of them wins, and the others are told."""
    wanted = [{"mount-options": f"o{number}"} for number in range(8)]

    def create(options: dict[str, str]) -> str:
        status, answer = plugin.call("VolumeDriver.Create", Name="v", Opts=options)
        return "" if status == 200 else str(answer["Err"])

    with ThreadPoolExecutor(len(wanted)) as callers:
        said = list(callers.map(create, wanted))
    assert said.count("") == 1
    volume_id = plugin.ok("Get", Name="v")["Volume"]["Status"]["id"]
    assert plugin.service.uses.creations.asked(volume_id).mount_flags == (f"o{said.index('')}",)
    assert len(plugin.array.volumes) == 1


@pytest.mark.copies_mounts
@pytest.mark.needs("mkfs.ext4")
def test_a_copy_of_all_mounts_keeps_no_volume_from_its_next_user(tmp_path: Path) -> None:
    """As a container has one that shows the host's whole tree: the volume is not free, and it is the same one."""
    (tmp_path / "pool").mkdir()
    settings = LoopSettings(pool=tmp_path / "pool")
    engine = Engine(LoopBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    service = Service(engine, tmp_path / "mounts")
    service.create({"Name": "v", "Opts": {"size": "16Mi"}})
    path = Path(service.mount({"Name": "v", "ID": "a"})["Mountpoint"])
    (path / "first").write_text("kept")
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo ready && exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as copy:
        try:
            assert copy.stdout is not None
            assert copy.stdout.readline() == b"ready\n"
            service.unmount({"Name": "v", "ID": "a"})
            assert not path.exists()
            assert service.mount({"Name": "v", "ID": "b"})["Mountpoint"] == str(path)
            assert (path / "first").read_text() == "kept"
            (path / "second").write_text("kept too")
            service.unmount({"Name": "v", "ID": "b"})
            with pytest.raises(InUse, match="in the mount namespace of pid"):
                service.remove({"Name": "v"})
        finally:
            copy.kill()
    service.mount({"Name": "v", "ID": "c"})
    assert (path / "second").read_text() == "kept too"
    service.unmount({"Name": "v", "ID": "c"})
    end = time.monotonic() + PATIENCE
    while service.uses.uses():
        service.uses.settle()
        assert time.monotonic() < end
    service.remove({"Name": "v"})
    engine.close()


@pytest.mark.copies_mounts
@pytest.mark.needs("mkfs.ext4")
def test_a_container_outlives_the_mounts_of_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A managed plugin that is disabled takes its mounts along: the device stays as long as a container has it."""
    monkeypatch.setattr(uses, "GRACE_SECONDS", 0.0)
    (tmp_path / "pool").mkdir()
    settings, place = LoopSettings(pool=tmp_path / "pool"), tmp_path / "inside"
    engine = Engine(LoopBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    service = Service(engine, tmp_path / "mounts")
    service.create({"Name": "v", "Opts": {"size": "16Mi"}})
    path = service.mount({"Name": "v", "ID": "a"})["Mountpoint"]
    place.mkdir()
    command = f"mount --bind {path} {place} && umount {path} && echo ready && exec sleep 1000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE) as container:
        try:
            assert container.stdout is not None
            assert container.stdout.readline() == b"ready\n"
            for one in reversed(mounts.mounts(under=str(tmp_path))):
                mounts.unmount(one.mount_point)
            assert service.uses.settle() == 0
            with pytest.raises(InUse, match="is used by a"):
                service.remove({"Name": "v"})
            assert [backing for _, backing in loop.attached() if backing.startswith(str(tmp_path))]
        finally:
            container.kill()
    end = time.monotonic() + PATIENCE
    while not service.uses.settle():
        assert time.monotonic() < end
    assert not [backing for _, backing in loop.attached() if backing.startswith(str(tmp_path))]
    service.remove({"Name": "v"})
    engine.close()


def test_what_is_made_or_removed_meanwhile_is_not_listed_by_its_id(
    plugin: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker volume prune` would remove it by that name."""
    plugin.ok("Create", Name="old")
    listed = plugin.service._listed

    def meanwhile(call: Any) -> list[str]:
        plugin.ok("Create", Name="new")
        found = listed(call)
        plugin.ok("Remove", Name="old")
        return found

    monkeypatch.setattr(plugin.service, "_listed", meanwhile)
    assert plugin.names() == ["new"]


def test_what_is_being_made_is_not_listed_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage has it, and its name is recorded a moment later."""
    engine = Engine(LoopBackend, LoopSettings(pool=tmp_path), state_dir=tmp_path / "state", node_id="n1")
    service, seen = Service(engine, tmp_path / "mounts"), []
    volumes: Any = engine.provisioning
    settle = volumes.volumes._settle

    def late(*words: Any) -> None:
        seen.append(service.listing({})["Volumes"])
        settle(*words)

    monkeypatch.setattr(volumes.volumes, "_settle", late)
    service.create({"Name": "v", "Opts": {"size": "16Mi"}})
    assert seen == [[]]
    assert [one["Name"] for one in service.listing({})["Volumes"]] == ["v"]
    service.remove({"Name": "v"})
    assert engine.close() == 0


def test_a_volume_that_is_there_is_nothing_unfinished(plugin: Served) -> None:
    plugin.ok("Create", Name="v", Opts={"readonly": "true"})
    assert [one.key for one in records(plugin.engine.journal) if one.unfinished] == []
    assert list(examine(plugin.engine, min_age=0)) == []
    assert list(recover(plugin.engine, min_age=0)) == []
