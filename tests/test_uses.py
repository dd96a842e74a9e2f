"""Who uses a volume: told by an orchestrator, and seen in mount tables; on one node, and on two."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import field, frozen

from volkit import carrying
from volkit import requests as r
from volkit import uses as module
from volkit.backend import Limits
from volkit.engine import Engine
from volkit.errors import AlreadyExists, InUse, ResourceExhausted, Unavailable
from volkit.host import mounts
from volkit.journal import Delete, Journal, Lease, Put, SharedJournal, key
from volkit.journal.memory import MemoryJournal
from volkit.model import AccessMode, Volume
from volkit.testing.memory import ARRAYS, MemoryBackend, MemorySettings, memory_settings
from volkit.uses import Uses
from volkit.wanted import Asked

pytestmark = pytest.mark.root
CALL = r.Call(wait=5.0)


class ForOneNode(MemoryBackend):
    limits: ClassVar[Limits] = Limits(
        granularity=1, default_size=1 << 20, access_modes=frozenset({AccessMode.SINGLE_NODE_WRITER})
    )


@frozen
class _Lease(Lease):
    key: str
    lock: threading.Lock = field(eq=False)
    revision: int = 1

    @property
    def lost(self) -> bool:
        return False

    def release(self) -> None:
        self.lock.release()


class Etcd(MemoryJournal, SharedJournal):
    """A journal of two hosts, in one process."""

    def __init__(self) -> None:
        super().__init__()
        self.locks: dict[str, threading.Lock] = {}
        self.away = False

    def lease(self, key: str, *, wait: float) -> Lease | None:
        lock = self.locks.setdefault(key, threading.Lock())
        return _Lease(key, lock) if lock.acquire(timeout=wait) else None

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        if self.away:
            raise Unavailable("etcd is away")
        super().write(*changes, durable=durable)


class Host:
    """One node: an engine, and the uses of its volumes."""

    def __init__(
        self, home: Path, name: str, backend: type[MemoryBackend], settings: Any, journal: Any = None
    ) -> None:
        self.engine = Engine(
            backend,
            settings,
            state_dir=home / name / "state",
            journal=journal or MemoryJournal(),
            node_journal=MemoryJournal() if journal else None,
            node_id=name,
        )
        self.uses = Uses(self.engine, home / name / "mounts")

    def create(self, name: str = "v") -> Volume:
        request: r.CreateVolumeRequest[Any] = r.CreateVolumeRequest(
            name=name, parameters={}, capabilities=(self.uses.capability(Asked()),)
        )
        made: Volume = self.engine.run("create_volume", request)
        return made

    def begin(self, volume: Volume, who: str = "a") -> str:
        return self.uses.begin(volume, "v", who, Asked(), CALL)

    def remove(self, volume: Volume) -> None:
        with self.uses.removing("v", volume.id, CALL):
            self.engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=volume.id))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for one in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(one.mount_point, lazy=True)


@pytest.fixture
def settings(home: Path) -> MemorySettings:
    return memory_settings(root=home / "array")


def pair(home: Path, settings: MemorySettings, backend: type[MemoryBackend]) -> list[Host]:
    journal = Etcd()
    return [Host(home, name, backend, settings, journal) for name in ("n1", "n2")]


@pytest.fixture(params=[ForOneNode, MemoryBackend], ids=["one node", "many nodes"])
def hosts(home: Path, settings: MemorySettings, request: pytest.FixtureRequest) -> list[Host]:
    return pair(home, settings, request.param)


@pytest.fixture
def rivals(home: Path, settings: MemorySettings) -> list[Host]:
    """Two hosts, of which one at a time has a volume."""
    return pair(home, settings, ForOneNode)


@contextmanager
def inside(path: str, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A container that has at `place` what is mounted at `path`."""
    command = f"mount --bind {path} {place} && umount {path} && echo ready && exec sleep 1000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE) as container:
        try:
            assert container.stdout is not None
            assert container.stdout.readline() == b"ready\n"
            yield container
        finally:
            container.kill()


def claims(host: Host) -> list[str]:
    return [entry.key for entry in host.engine.journal.scan(key("node-of", ""))]


def test_a_volume_that_another_host_uses_is_not_removed(hosts: list[Host]) -> None:
    one, two = hosts
    volume = one.create()
    path = Path(one.begin(volume))
    (path / "file").write_text("kept")
    with pytest.raises(InUse, match=r"in use on node 'n1'.*`volkit journal --forget 'node-of/"):
        two.remove(volume)
    assert (path / "file").read_text() == "kept"
    one.uses.end(volume.id, "a", CALL)
    assert claims(one) == []
    two.remove(volume)
    assert claims(one) == []


def test_hosts_that_may_share_a_volume_each_keep_it(home: Path, settings: MemorySettings) -> None:
    """What one ends, the other still has."""
    journal = Etcd()
    one, two, three = (Host(home, name, MemoryBackend, settings, journal) for name in ("n1", "n2", "n3"))
    volume = one.create()
    for host in (one, two):
        host.begin(volume)
    two.uses.end(volume.id, "a", CALL)
    with pytest.raises(InUse, match="in use on node 'n1'"):
        three.remove(volume)
    one.uses.end(volume.id, "a", CALL)
    three.remove(volume)


def test_a_removal_that_is_refused_leaves_the_claim_as_it_was(home: Path, settings: MemorySettings) -> None:
    """Of a node that died with it: as one that removes, it would keep all the others from the volume."""
    journal = Etcd()
    one, two = (Host(home, name, MemoryBackend, settings, journal) for name in ("n1", "n2"))
    volume = one.create()
    two.begin(volume)
    stale = {"node": "n1", "name": "v", "alone": False}
    journal.write(Put(key("node-of", volume.id, "n1"), stale))
    with pytest.raises(InUse, match="in use on node 'n2'"):
        one.remove(volume)
    entry = journal.get(key("node-of", volume.id, "n1"))
    assert entry is not None
    assert entry.value == stale
    two.begin(volume)


def test_a_volume_that_is_removed_is_not_begun_elsewhere(hosts: list[Host]) -> None:
    one, two = hosts
    volume = one.create()
    with one.uses.removing("v", volume.id, CALL):
        with pytest.raises(InUse, match="is removed on node 'n1'"):
            two.begin(volume)
        one.engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=volume.id))
    assert claims(one) == []


def test_a_claim_without_a_use_is_given_back_at_the_next_start(hosts: list[Host]) -> None:
    """The plugin was killed between the two."""
    one, two = hosts
    volume, used = one.create(), one.create("w")
    one.begin(volume)
    one.uses.begin(used, "w", "a", Asked(), CALL)
    one.uses.end(volume.id, "a", CALL)
    kept = claims(one)
    for stale in kept:
        entry = one.engine.journal.get(stale)
        assert entry is not None
        one.engine.journal.write(Put(stale.replace(used.id, volume.id), entry.value))
    assert len(claims(one)) == 2
    one.uses.watch()
    end = time.monotonic() + 60
    while claims(one) != kept:
        assert time.monotonic() < end
        time.sleep(0.02)
    one.uses.close()
    two.begin(volume)


def test_a_claim_that_cannot_be_given_back_yet_is_given_back_later(hosts: list[Host]) -> None:
    one, _ = hosts
    volume = one.create()
    one.begin(volume)
    journal = one.engine.journal
    assert isinstance(journal, Etcd)
    journal.away = True
    one.uses.end(volume.id, "a", CALL)
    assert len(claims(one)) == 1
    assert len(one.uses.uses()) == 1
    journal.away = False
    assert one.uses.settle() == 1
    assert claims(one) == []
    assert one.uses.uses() == []


def test_a_begin_that_fails_leaves_nothing(hosts: list[Host], settings: MemorySettings) -> None:
    """Nobody ends it, and the orchestrator goes to another node."""
    one, two = hosts
    volume = one.create()

    def fail(method: str) -> None:
        if method == "controller_publish":
            raise ResourceExhausted("no port is left")

    ARRAYS[settings.array].before = fail
    with pytest.raises(ResourceExhausted):
        one.begin(volume)
    ARRAYS[settings.array].before = lambda method: None
    assert one.uses.uses() == []
    two.begin(volume)


@pytest.fixture
def host(home: Path, settings: MemorySettings) -> Host:
    return Host(home, "n1", MemoryBackend, settings)


def test_the_time_of_day_decides_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set while a machine starts, which is when containers start."""
    volume = host.create()
    path = host.begin(volume)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert host.uses.settle() == 0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert host.uses.settle() == 0
    assert mounts.is_mount_point(path)
    entry = host.engine.node_journal.get(key("use", volume.id))
    assert entry is not None
    host.engine.node_journal.write(Put(entry.key, {**entry.value, "boot": "an earlier one"}))
    assert host.uses.settle() == 1
    assert not mounts.is_mount_point(path)


@pytest.mark.copies_mounts
def test_who_has_ended_and_still_has_it_keeps_it_from_being_removed(host: Host, tmp_path: Path) -> None:
    volume = host.create()
    path, place = host.begin(volume), tmp_path / "inside"
    place.mkdir()
    with inside(path, place) as container:
        host.uses.end(volume.id, "a", CALL)
        seen = rf"is used by somebody who said to have ended, seen as pid {container.pid} \(sleep\)"
        with pytest.raises(InUse, match=seen):
            host.remove(volume)
        container.kill()
    host.remove(volume)
    assert mounts.mounts(under=str(tmp_path / "n1")) == []


def test_what_is_half_taken_down_is_no_directory_to_write_to(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that starts now would lose what it writes."""
    volume = host.create()
    path = host.begin(volume)

    def busy(engine: Engine, volume_id: str, *, target: str, staging: str, call: r.Call) -> None:
        mounts.unmount(target)
        raise InUse(f"{staging} is busy")

    with monkeypatch.context() as patched:
        patched.setattr(carrying, "down", busy)
        host.uses.end(volume.id, "a", CALL)
    assert not Path(path).exists()
    assert host.begin(volume) == path
    assert mounts.is_mount_point(path)


def test_who_counts_by_itself_is_believed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman mounts once, restarts containers without a word, and unmounts once; it may forget that it mounted."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    volume = host.create()
    path = host.begin(volume, "other")
    for _ in range(3):
        assert host.uses.begin(volume, "v", "podman", Asked(), CALL, keeps=True) == path
    assert host.uses.settle() == 0
    host.uses.end(volume.id, "podman", CALL)
    assert host.uses.settle() == 1
    host.uses.begin(volume, "v", "podman", Asked(), CALL, keeps=True)
    mounts.unmount(path)  # as a reboot does
    assert host.uses.settle() == 1
    host.uses.begin(volume, "v", "podman", Asked(), CALL, keeps=True)
    host.remove(volume)


def test_a_claim_whose_record_is_lost_stays_with_its_mount(hosts: list[Host]) -> None:
    one, two = hosts
    volume = one.create()
    one.begin(volume)
    one.engine.node_journal.write(Delete(key("use", volume.id)))
    one.uses.watch()
    one.uses.close()
    with pytest.raises(InUse):
        two.remove(volume)


def test_what_was_asked_for_goes_with_its_volume(host: Host) -> None:
    """Also where the plugin is killed in between: the storage gives the same id again, to something else."""
    _recorded(host.engine.journal)
    with host.uses.creations.remembered("v", Asked(readonly=True)) as made:
        made("id-1")
    with (
        pytest.raises(AlreadyExists, match="another mount-options") as refused,
        host.uses.creations.remembered("v", Asked(readonly=True, mount_flags=("label=hidden",))) as made,
    ):
        made("id-1")
    assert "hidden" not in str(refused.value)
    with pytest.raises(KeyboardInterrupt), host.uses.removing("v", "id-1", CALL):
        raise KeyboardInterrupt  # killed
    with host.uses.creations.remembered("v", Asked(fs_type="xfs")) as made:
        made("id-1")
    assert host.uses.creations.asked("id-1") == Asked(fs_type="xfs")
    with pytest.raises(InUse), host.uses.removing("v", "id-1", CALL):
        raise InUse("refused")
    with (
        pytest.raises(AlreadyExists, match="another fs-type"),
        host.uses.creations.remembered("v", Asked()) as made,
    ):
        made("id-1")


def _recorded(journal: Journal, *, there: bool = True) -> None:
    """That a volume v was made as id-1, or removed."""
    volume, name = key("volume", "id-1"), key("volume-name", "v")
    if there:
        journal.write(Put(volume, {"name": "v"}), Put(name, {"id": "id-1"}))
    else:
        journal.write(Delete(volume), Delete(name))


def _create(host: Host, asked: Asked) -> None:
    with host.uses.creations.remembered("v", asked) as made:
        _recorded(host.engine.journal)
        made("id-1")


def _remove(host: Host) -> None:
    with host.uses.creations.removing("v", "id-1"):
        _recorded(host.engine.journal, there=False)


def _between(journal: Journal, looked_at: str, act: Any, patch: pytest.MonkeyPatch) -> None:
    """What somebody else does once, right after the record was read."""
    get = journal.get

    def interrupted(wanted: str) -> Any:
        entry = get(wanted)
        if wanted == looked_at:
            patch.setattr(journal, "get", get)
            act()
        return entry

    patch.setattr(journal, "get", interrupted)


@pytest.mark.parametrize(("asked", "refused"), [(Asked(), False), (Asked(readonly=True), True)])
def test_of_creations_at_once_the_first_is_kept(
    host: Host, asked: Asked, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _between(host.engine.journal, key("asked", "id-1"), lambda: _create(host, Asked()), monkeypatch)
    with pytest.raises(AlreadyExists, match="another readonly") if refused else nullcontext():
        _create(host, asked)
    assert host.uses.creations.asked("id-1") == Asked()
    assert host.engine.journal.get(key("asked-of", "v")) is None


def test_a_removal_leaves_what_another_host_made_anew(host: Host) -> None:
    _create(host, Asked())
    with host.uses.removing("v", "id-1", CALL):
        _recorded(host.engine.journal, there=False)
        _create(host, Asked(readonly=True))
    assert host.uses.creations.asked("id-1") == Asked(readonly=True)


def test_a_removal_that_fails_leaves_what_another_host_made_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made between the removal's mark and its second look."""
    _create(host, Asked())
    write = host.engine.journal.write

    def marked(*changes: Put | Delete, durable: bool = True) -> None:
        write(*changes, durable=durable)
        monkeypatch.setattr(host.engine.journal, "write", write)
        _create(host, Asked(readonly=True))

    with pytest.raises(InUse), host.uses.creations.removing("v", "id-1"):
        raise InUse("refused")
    monkeypatch.setattr(host.engine.journal, "write", marked)
    with pytest.raises(InUse), host.uses.creations.removing("v", "id-1"):
        raise InUse("refused")
    assert host.uses.creations.asked("id-1") == Asked(readonly=True)


@pytest.mark.parametrize("looked_at", [key("asked", "id-1"), key("volume-name", "v")])
def test_what_was_asked_for_is_not_kept_where_the_volume_was_removed_since(
    host: Host, looked_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next volume of this id would be refused as another one."""
    _between(host.engine.journal, looked_at, lambda: _remove(host), monkeypatch)
    _create(host, Asked(readonly=True))
    assert [one.key for one in host.engine.journal.scan("asked")] == []
    _create(host, Asked())


def test_a_removal_takes_what_a_creation_kept_just_before_it(host: Host) -> None:
    """It found the volume that is being removed."""
    _create(host, Asked())
    with host.uses.creations.removing("v", "id-1"):
        _create(host, Asked())
        _recorded(host.engine.journal, there=False)
    assert [one.key for one in host.engine.journal.scan("asked")] == []


def test_a_claim_that_was_forgotten_by_hand_is_another_nodes(
    rivals: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends his use then is told nothing of it, and the other one keeps it."""
    one, two = rivals
    volume, journal = one.create(), one.engine.journal
    claim = key("node-of", volume.id)

    def forgotten() -> None:
        journal.write(Delete(claim))
        for name in ("other", "n2"):  # its revision is not what it was
            journal.write(Put(claim, {"node": name, "name": "v", "alone": False}))

    with one.uses.removing("v", volume.id, CALL):
        _between(journal, claim, forgotten, monkeypatch)
    entry = journal.get(claim)
    assert entry is not None
    assert entry.value["node"] == "n2"
    two.begin(volume)


def test_two_nodes_claim_at_once(rivals: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one is told who has it, not to repeat the call."""
    one, two = rivals
    volume, journal = one.create(), one.engine.journal
    _between(journal, key("node-of", volume.id), lambda: one.begin(volume), monkeypatch)
    with pytest.raises(InUse, match="in use on node 'n1'"):
        two.begin(volume)
