"""Crash points: whatever is cut short wherever, a repeat of the call gives one thing, or none."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import define, field, frozen

from volkit import requests as r
from volkit.backend import Backend
from volkit.engine import Engine
from volkit.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InUse,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VolkitError,
)
from volkit.interfaces import Controller, FindsByName, Snapshots, TakesIds, TakesTokens
from volkit.journal import Delete, Entry, Journal, Put
from volkit.journal.memory import MemoryJournal
from volkit.journal.sqlite import SqliteJournal
from volkit.model import Capability, CapacityRange, FileVolume, Snapshot, Volume
from volkit.options import NoOptions


class Killed(BaseException):
    """The process ends here: nothing after it runs, save that its locks go."""


@define(eq=False)
class Storage:
    """What is there, and what a crash leaves. `at` is called before and after each side effect."""

    things: dict[str, tuple[str, str, Any]] = field(factory=dict)
    forgets_tokens: bool = True
    tokens: dict[str, Any] = field(factory=dict)
    numbers: Iterator[int] = field(factory=itertools.count)
    at: Callable[[str], None] = lambda point: None

    def make(self, name: str, token: str, id_: str, build: Callable[[str], Any]) -> Any:
        self.at("before create")
        if id_ in self.things:
            raise AlreadyExists(f"{id_} is there")
        if token and token in self.tokens:
            thing = self.tokens[token]
        else:
            thing = build(id_ or f"made-{next(self.numbers)}")
            self.things[thing.id] = (name, token, thing)
            if token:
                self.tokens[token] = thing
        self.at("after create")
        return thing

    def remove(self, id_: str) -> None:
        self.at("before delete")
        if id_ not in self.things:
            raise NotFound(id_)
        _, token, _ = self.things.pop(id_)
        if self.forgets_tokens:
            self.tokens.pop(token, None)
        self.at("after delete")

    def look(self, id_: str, name: str) -> Any:
        self.at("before look")
        for other, _, thing in self.things.values():
            if thing.id == id_ or (name and other == name):
                return thing
        raise NotFound(id_ or name)

    def named(self, name: str) -> list[Any]:
        return [thing for other, _, thing in self.things.values() if other == name]


STORAGES: dict[str, Storage] = {}


@frozen
class Settings:
    where: str

    @property
    def storage(self) -> Storage:
        return STORAGES[self.where]


class Base(Controller[Settings, NoOptions], Snapshots, abstract=True):
    """Knows nothing of idempotency: asked twice, it makes two."""

    def create_volume(self, request: r.CreateVolumeRequest[NoOptions]) -> Volume:
        def build(id_: str) -> Volume:
            return FileVolume(id=id_, capacity=request.size)

        made = self.settings.storage.make(request.name, request.token, request.volume_id, build)
        assert isinstance(made, Volume)
        return made

    def delete_volume(self, request: r.DeleteVolumeRequest) -> None:
        self.settings.storage.remove(request.volume_id)

    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        found = self.settings.storage.look(request.volume_id, request.name)
        assert isinstance(found, Volume)
        return found

    def create_snapshot(self, request: r.CreateSnapshotRequest) -> Snapshot:
        def build(id_: str) -> Snapshot:
            return Snapshot(id=id_, source_volume_id=request.source_volume_id, created_at=datetime.now(UTC))

        made = self.settings.storage.make(request.name, request.token, request.snapshot_id, build)
        assert isinstance(made, Snapshot)
        return made

    def delete_snapshot(self, request: r.DeleteSnapshotRequest) -> None:
        self.settings.storage.remove(request.snapshot_id)

    def get_snapshot(self, request: r.GetSnapshotRequest) -> Snapshot:
        found = self.settings.storage.look(request.snapshot_id, request.name)
        assert isinstance(found, Snapshot)
        return found


class Names(Base, FindsByName):
    pass


class Ids(Base, TakesIds):
    pass


class Tokens(Base, TakesTokens):
    pass


class Nothing(Base):
    pass


def backend_of(controller_: type[Base]) -> type[Backend[Settings, NoOptions]]:
    class Made(Backend[Settings, NoOptions]):
        name = controller_.__name__.lower()
        settings = Settings
        controller = controller_
        volume = FileVolume

    return Made


BACKENDS: dict[type[Base], type[Backend[Settings, NoOptions]]] = {
    cls: backend_of(cls) for cls in (Names, Ids, Tokens, Nothing)
}
SAFE = [Names, Ids, Tokens]


class FailingJournal(Journal):
    """Does `failure` at the n-th write, before or after it really happens."""

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.writes = 0
        self.at = 0
        self.after = False
        self.failure: BaseException = Killed()

    def get(self, key: str) -> Entry | None:
        return self.inner.get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        return self.inner.scan(prefix, after=after, limit=limit)

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        self.writes += 1
        if self.writes == self.at and not self.after:
            raise self.failure
        self.inner.write(*changes, durable=durable)
        if self.writes == self.at:
            raise self.failure

    def close(self) -> None:
        self.inner.close()


@define
class World:
    """One storage, and the journal of the process that serves it; both outlive a crash of the process."""

    controller: type[Base]
    journal: Journal
    state: Path
    storage: Storage = field(factory=Storage)

    def engine(self) -> Engine:
        """A new process."""
        where = str(id(self.storage))
        STORAGES[where] = self.storage
        return Engine(
            BACKENDS[self.controller],
            Settings(where),
            state_dir=self.state,
            journal=self.journal,
            services=["controller"],
        )

    def create(self, name: str = "pvc", **words: Any) -> Volume:
        request = r.CreateVolumeRequest(
            name=name, **{"parameters": {}, "capabilities": (Capability(),), **words}
        )
        volume = self.engine().run("create_volume", request)
        assert isinstance(volume, Volume)
        return volume

    def delete(self, id_: str) -> None:
        self.engine().run("delete_volume", r.DeleteVolumeRequest(volume_id=id_))

    def cut(self, name: str = "shot") -> Snapshot:
        request = r.CreateSnapshotRequest(name=name, source_volume_id="source")
        snapshot = self.engine().run("create_snapshot", request)
        assert isinstance(snapshot, Snapshot)
        return snapshot


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[FailingJournal]:
    with closing(FailingJournal(SqliteJournal(f"{tmp_path}/journal.db"))) as journal:
        yield journal


@pytest.fixture(params=[*SAFE, Nothing], ids=lambda cls: cls.__name__)
def world(request: pytest.FixtureRequest, kept: FailingJournal, tmp_path: Path) -> World:
    return World(request.param, kept, tmp_path)


@pytest.fixture(params=[Names, Ids], ids=lambda cls: cls.__name__)
def findable(request: pytest.FixtureRequest, kept: FailingJournal, tmp_path: Path) -> World:
    """One whose storage can be asked what is there."""
    return World(request.param, kept, tmp_path)


def failing_once(point: str, failure: BaseException) -> Callable[[str], None]:
    left = [failure]

    def at(here: str) -> None:
        if here == point and left:
            raise left.pop()

    return at


def repeat(call: Callable[[], Any], times: int = 4) -> Any:
    """As an orchestrator does: until it is done, or refused."""
    for _ in range(times - 1):
        with suppress(VolkitError):
            return call()
    return call()


FAILURES = [
    Killed(),
    Unavailable("away"),
    DeadlineExceeded("late"),
    ZeroDivisionError("a fault"),
    ConnectionResetError("lost"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("point", ["before create", "after create"])
@pytest.mark.parametrize("journal", ["kept", "lost"])
def test_a_create_that_is_cut_short_is_finished_by_its_repeat(
    world: World, point: str, failure: Any, journal: str
) -> None:
    world.storage.at = failing_once(point, failure)
    try:
        first = world.create()
    except (Killed, Unavailable, DeadlineExceeded):
        if journal == "lost" and world.controller in SAFE:
            world.journal = MemoryJournal()
        if world.controller is Nothing:
            with pytest.raises(
                Unavailable, match=r"not known whether volume 'pvc' was made.*look for it there"
            ):
                repeat(world.create)
            assert len(world.storage.named("pvc")) == (point == "after create")
            return
        first = repeat(world.create)
    else:  # found by looking: the reply was lost, not the volume
        assert point == "after create"
        assert world.controller in (Names, Ids)
    assert world.storage.named("pvc") == [first]
    assert world.create() == first
    world.delete(first.id)
    assert world.storage.things == {}
    assert world.journal.scan("") == []


FINAL = [ResourceExhausted("no room"), InvalidArgument("no such tier"), NotFound("no pool")]


@pytest.mark.parametrize("error", FINAL, ids=lambda one: type(one).__name__)
def test_a_final_refusal_is_told_and_leaves_no_record(world: World, error: VolkitError) -> None:
    world.storage.at = failing_once("before create", error)
    with pytest.raises(type(error)):
        world.create()
    assert world.storage.things == {}
    assert world.journal.scan("") == []
    assert [world.create()] == world.storage.named("pvc")


@pytest.mark.parametrize("error", FINAL, ids=lambda one: type(one).__name__)
def test_what_a_final_refusal_left_half_made_is_removed(findable: World, error: VolkitError) -> None:
    findable.storage.at = failing_once("after create", error)
    with pytest.raises(type(error)):
        findable.create()
    assert findable.storage.things == {}
    assert findable.journal.scan("") == []
    assert [findable.create()] == findable.storage.named("pvc")


def test_what_is_half_made_and_stays_is_ambiguous(findable: World) -> None:
    """To tell a final error would leak it: the orchestrator would forget the name."""

    def at(point: str) -> None:
        if point == "after create":
            raise ResourceExhausted("no room")
        if point == "before delete":
            raise Unavailable("away")

    findable.storage.at = at
    with pytest.raises(Unavailable, match="no room; whether something was made is not known"):
        findable.create()
    findable.storage.at = lambda point: None
    assert [findable.create()] == findable.storage.named("pvc")


@pytest.mark.parametrize(
    "error", [ResourceExhausted("no room"), Unavailable("away")], ids=lambda one: type(one).__name__
)
def test_a_failure_and_no_way_to_look_is_ambiguous(findable: World, error: VolkitError) -> None:
    begun = False

    def at(point: str) -> None:
        nonlocal begun
        if point == "after create":
            begun = True
            raise error
        if begun and point == "before look":
            raise Unavailable("away")

    findable.storage.at = at
    with pytest.raises(Unavailable):
        findable.create()
    findable.storage.at = lambda point: None
    assert [findable.create()] == findable.storage.named("pvc")


def test_another_controller_took_the_name_meanwhile(tmp_path: Path) -> None:
    """Two replicas, two journals, one storage that keeps names unique: the second finds what the first made."""
    world = World(Names, MemoryJournal(), tmp_path)
    theirs = FileVolume(id="theirs", capacity=1 << 30)

    def at(point: str) -> None:
        if point == "before create":
            world.storage.things["theirs"] = ("pvc", "", theirs)
            raise AlreadyExists("the name is taken")

    world.storage.at = at
    assert world.create() == theirs
    with pytest.raises(AlreadyExists, match="asked for are"):
        world.create(capacity_range=CapacityRange(required=2 << 30))


def test_another_controller_made_it_before(findable: World) -> None:
    first = findable.create()
    findable.journal = MemoryJournal()
    assert findable.create() == first


def journal_points(world: World, call: Callable[[], Any]) -> int:
    """How many writes a call makes when nothing fails."""
    journal = world.journal
    assert isinstance(journal, FailingJournal)
    before = journal.writes
    call()
    return journal.writes - before


@pytest.mark.parametrize(
    "failure", [Killed(), Unavailable("the journal is away")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_journal_that_fails_at_a_create_doubles_nothing(
    world: World, number: int, after: bool, failure: Any
) -> None:
    journal = world.journal
    assert isinstance(journal, FailingJournal)
    assert journal_points(world, lambda: world.create("other")) == 2
    journal.at, journal.after, journal.failure = journal.writes + number, after, failure
    with pytest.raises((Killed, Unavailable)):
        world.create()
    known = (number, after) in ((1, False), (2, True))  # nothing has begun, or all is recorded
    if world.controller is Nothing and not known:
        with pytest.raises(Unavailable, match="not known"):
            repeat(world.create)
    else:
        first = repeat(world.create)
        assert world.storage.named("pvc") == [first]
    assert len(world.storage.named("pvc")) <= 1
    assert world.create("other").id


def test_the_intent_is_durable_before_anything_is_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = world.journal.write

    def write(*changes: Put | Delete, durable: bool = True) -> None:
        order.append("durable" if durable else "not")
        real(*changes, durable=durable)

    monkeypatch.setattr(world.journal, "write", write)
    world.storage.at = order.append
    volume = world.create()
    kept = [one for one in order if one != "before look"]
    settled = "not" if world.controller in (Names, Ids) else "durable"  # the id can be found again, or cannot
    assert kept == ["durable", "before create", "after create", settled]
    order.clear()
    world.delete(volume.id)
    assert order == ["durable", "before delete", "after delete", "not"]


def test_a_backend_that_fails_over_what_is_gone_is_believed_by_looking(world: World) -> None:
    volume = world.create()
    world.delete(volume.id)
    world.storage.at = failing_once("before delete", FileNotFoundError("gone"))
    world.delete(volume.id)
    assert world.journal.scan("") == []


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("point", ["before delete", "after delete"])
@pytest.mark.parametrize("then", ["delete", "create"])
def test_a_delete_that_is_cut_short_is_finished(world: World, point: str, failure: Any, then: str) -> None:
    first = world.create()
    world.storage.at = failing_once(point, failure)
    if point == "after delete" and not isinstance(failure, Killed):
        world.delete(first.id)  # the reply was lost, and looking proves that it is gone
        assert world.journal.scan("") == []
    else:
        with pytest.raises((Killed, Unavailable, DeadlineExceeded)):
            world.delete(first.id)
    if then == "delete":
        world.delete(first.id)
        assert world.storage.things == {}
        assert world.journal.scan("") == []
    second = world.create()
    assert world.storage.named("pvc") == [second]
    assert world.create() == second
    if world.controller is not Ids:
        assert second.id != first.id


@pytest.mark.parametrize(
    "failure", [Killed(), Unavailable("the journal is away")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_journal_that_fails_at_a_delete_leaks_nothing(
    world: World, number: int, after: bool, failure: Any
) -> None:
    journal = world.journal
    assert isinstance(journal, FailingJournal)
    first = world.create()
    journal.at, journal.after, journal.failure = journal.writes + number, after, failure
    with pytest.raises((Killed, Unavailable)):
        world.delete(first.id)
    world.delete(first.id)
    assert world.storage.things == {}
    assert world.journal.scan("") == []
    assert [world.create()] == world.storage.named("pvc")


def test_a_delete_that_was_cut_short_and_is_refused_now(world: World) -> None:
    """Something began to use it meanwhile: it is as any volume again, and a create of its name does not remove it."""
    first = world.create()
    world.storage.at = failing_once("before delete", Killed())
    with pytest.raises(Killed):
        world.delete(first.id)
    world.storage.at = failing_once("before delete", InUse("it has a snapshot"))
    with pytest.raises(InUse):
        world.delete(first.id)
    world.storage.at = lambda point: None
    assert world.create() == first


def test_a_name_is_free_after_its_volume_went(world: World) -> None:
    for number in range(5):
        volume = world.create(capacity_range=CapacityRange(required=(number + 1) << 20))
        assert volume.capacity == (number + 1) << 20
        world.delete(volume.id)
    assert world.storage.things == {}
    assert world.journal.scan("") == []


def test_a_storage_that_remembers_tokens_gives_no_volume_that_is_gone(tmp_path: Path) -> None:
    """It answers a token with what it made once, deleted or not (a client token of a cloud, for a day)."""
    world = World(Tokens, MemoryJournal(), tmp_path, Storage(forgets_tokens=False))
    seen = set()
    for _ in range(4):
        volume = world.create()
        assert world.storage.named("pvc") == [volume]
        world.journal = MemoryJournal()  # and without any memory of our own
        assert world.create() == volume
        world.delete(volume.id)
        seen.add(volume.id)
    assert len(seen) == 4
    assert world.storage.things == {}


@pytest.mark.parametrize("controller", SAFE)
def test_an_id_or_a_token_is_the_same_each_time_and_its_own(
    controller: type[Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, str]] = []
    real = Storage.make

    def make(self: Storage, name: str, token: str, id_: str, build: Any) -> Any:
        given.append((id_, token))
        return real(self, name, token, id_, build)

    monkeypatch.setattr(Storage, "make", make)
    for name in ("a", "b", "a", "ü/%\U0010ffff"):
        World(controller, MemoryJournal(), tmp_path).create(name)
    ids, tokens = zip(*given, strict=True)
    assert all(ids) == (controller is Ids)
    assert all(tokens) == (controller is Tokens)
    for values in (ids, tokens):
        if values[0]:
            assert len(set(values)) == 3
    if controller is Ids:
        assert all(len(id_) == 34 and id_.startswith("v-") for id_ in ids)


@pytest.mark.parametrize("failure", [Killed(), Unavailable("away")], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("point", ["before create", "after create"])
def test_snapshots_are_made_as_safely(world: World, point: str, failure: Any) -> None:
    world.storage.things["source"] = ("source", "", FileVolume(id="source", capacity=1))
    world.storage.at = failing_once(point, failure)
    try:
        made = world.cut()
    except (Killed, Unavailable):
        if world.controller is Nothing:
            with pytest.raises(Unavailable, match="not known whether snapshot 'shot' was made"):
                repeat(world.cut)
            return
        world.journal = MemoryJournal()
        made = repeat(world.cut)
    assert world.storage.named("shot") == [made]
    assert world.cut() == made
    world.engine().run("delete_snapshot", r.DeleteSnapshotRequest(snapshot_id=made.id))
    assert world.storage.named("shot") == []


def test_a_backend_that_ignores_the_id_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Storage.make
    monkeypatch.setattr(
        Storage, "make", lambda self, name, token, id_, build: real(self, name, token, "", build)
    )
    with pytest.raises(Unavailable, match="fault of the backend"):
        World(Ids, MemoryJournal(), tmp_path).create()


def test_nothing_that_was_attached_outlives_its_volume(tmp_path: Path) -> None:
    """With ids made of names, the next volume of the name has the same: it starts detached."""
    from volkit.testing.memory import MemoryBackend, memory_settings

    settings = memory_settings()
    engine = Engine(
        MemoryBackend, settings, state_dir=tmp_path, journal=MemoryJournal(), services=["controller"]
    )
    array: Any = engine.controller
    request = r.CreateVolumeRequest[Any](name="pvc", parameters={}, capabilities=(Capability(),))
    volume = engine.run("create_volume", request)
    attach = r.ControllerPublishRequest(volume_id=volume.id, node_id="n1", capability=Capability())
    engine.run("controller_publish", attach)
    array.array.volumes[volume.id].nodes.clear()  # detached by hand
    engine.run("controller_publish", attach)
    assert array.array.volumes[volume.id].nodes == {"n1"}
    array.array.volumes[volume.id].nodes.clear()
    engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=volume.id))
    assert engine.journal.scan("") == []


# -- a real process, really killed -------------------------------------------------------------------------------------

CHILD = '''
import os, signal, sys
from pathlib import Path
from attrs import frozen
from volkit import requests as r
from volkit.backend import Backend
from volkit.engine import Engine
from volkit.errors import NotFound
from volkit.interfaces import Controller, FindsByName, TakesIds
from volkit.model import Capability, FileVolume
from volkit.options import NoOptions

@frozen
class Settings:
    place: Path

class Base(Controller[Settings, NoOptions], abstract=True):
    """A volume is a file: its name is its id, its content the name that it was made for."""
    def die(self, point):
        if point == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
    def create_volume(self, request):
        self.die("before create")
        id_ = request.volume_id or f"made-{os.getpid()}"
        with open(self.settings.place / id_, "x") as file:
            file.write(request.name)
        self.die("after create")
        return FileVolume(id=id_, capacity=request.size)
    def delete_volume(self, request):
        self.die("before delete")
        (self.settings.place / request.volume_id).unlink(missing_ok=True)
        self.die("after delete")
    def get_volume(self, request):
        for file in self.settings.place.iterdir():
            if file.name == request.volume_id or (request.name and file.read_text() == request.name):
                return FileVolume(id=file.name, capacity=1 << 30)
        raise NotFound("no file")

class Names(Base, FindsByName): pass
class Ids(Base, TakesIds): pass

class Files(Backend[Settings, NoOptions]):
    name = "files"
    settings = Settings
    controller = {"names": Names, "ids": Ids}[sys.argv[2]]
    volume = FileVolume

base = Path(sys.argv[1])
engine = Engine(Files, Settings(base / "volumes"), state_dir=base / "state", services=["controller"])
if sys.argv[4] == "create":
    request = r.CreateVolumeRequest(name="pvc", parameters={}, capabilities=(Capability(),))
    print(engine.run("create_volume", request).id)
else:
    engine.run("delete_volume", r.DeleteVolumeRequest(volume_id=sys.argv[5]))
print([entry.key for entry in engine.journal.scan("")])
'''


@pytest.mark.parametrize("kind", ["names", "ids"])
def test_a_killed_process_doubles_and_leaks_nothing(tmp_path: Path, kind: str) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()

    def run(point: str, *words: str) -> tuple[int, list[str]]:
        argv = [sys.executable, "-c", CHILD, str(tmp_path), kind, point, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode in (0, -9), done.stderr
        return done.returncode, done.stdout.splitlines()

    assert run("before create", "create")[0] == -9
    assert os.listdir(volumes) == []
    assert run("after create", "create")[0] == -9
    assert len(os.listdir(volumes)) == 1
    code, (id_, _) = run("", "create")
    assert code == 0
    assert os.listdir(volumes) == [id_]
    assert run("before delete", "delete", id_)[0] == -9
    assert os.listdir(volumes) == [id_]
    assert run("after delete", "delete", id_)[0] == -9
    assert os.listdir(volumes) == []
    assert run("", "delete", id_) == (0, ["[]"])
    code, (again, _) = run("", "create")
    assert os.listdir(volumes) == [again]
    assert (again == id_) == (kind == "ids")


def test_the_variants_are_what_they_say() -> None:
    assert [issubclass(cls, FindsByName | TakesIds | TakesTokens) for cls in (*SAFE, Nothing)] == [
        True,
        True,
        True,
        False,
    ]
    assert attrs.has(Settings)
