"""Object volumes on a store in memory: what any backend of an object store gets from volkit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import frozen

from volkit import (
    AccessKey,
    AlreadyExists,
    Backend,
    Capability,
    CloneSource,
    CreateVolumeRequest,
    Endpoints,
    Engine,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    Limits,
    NotFound,
    ObjectVolume,
    PermissionDenied,
    Size,
    Unavailable,
    Usage,
    UsageCache,
    Volume,
    option,
    requests,
)
from volkit.objects import (
    RESERVED,
    Bucket,
    Location,
    Object,
    ObjectController,
    ObjectNode,
    ObjectParameters,
    ObjectSettings,
    name_of,
    tagged,
)

ALLOWED = Endpoints("https://own.example", ("https://friend.example:8443",))


class Held:
    """A bucket in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.frozen = False


@frozen(kw_only=True)
class MemorySettings(ObjectSettings):
    pass


@frozen(kw_only=True)
class MemoryParameters(ObjectParameters):
    frozen: bool = option(default=False, mutable=True, help="nothing more is taken")
    part_size: Size = option(default="8Mi", help="bytes of a part")


class MemoryBucket(Bucket[MemorySettings]):
    """Few objects to a page, so that pages are seen."""

    held: ClassVar[dict[str, Held]] = {}
    keeps_tags: ClassVar[bool] = True
    deletes_left: ClassVar[int] = 1 << 30
    page: ClassVar[int] = 2
    lock: ClassVar[threading.Lock] = threading.Lock()

    @property
    def mine(self) -> Held:
        if self.name not in self.held:
            raise NotFound(f"no bucket {self.name}")
        return self.held[self.name]

    @classmethod
    def names(cls, settings: MemorySettings, endpoint: str, key: AccessKey | None) -> list[str]:
        return list(cls.held)

    def create(self) -> None:
        if self.name in self.held:
            raise AlreadyExists("somebody else has it")
        self.held[self.name] = Held()

    def delete(self) -> None:
        if self.mine.objects:
            raise FailedPrecondition("not empty")
        del self.held[self.name]

    def tags(self) -> dict[str, str]:
        return dict(self.mine.tags)

    def put_tags(self, tags: Mapping[str, str]) -> None:
        if self.keeps_tags:
            self.mine.tags = dict(tags)

    def has(self, begin: str) -> bool:
        return any(key.startswith(begin) for key in self.mine.objects)

    def pages(self, begin: str, most: int | None = None) -> Iterator[Sequence[Object]]:
        found = sorted(key for key in self.mine.objects if key.startswith(begin))[:most]
        for at in range(0, len(found), self.page):
            yield [Object(key, len(self.mine.objects.get(key, b""))) for key in found[at : at + self.page]]

    def get(self, key: str) -> bytes:
        if key not in self.mine.objects:
            raise NotFound(f"no object {key}")
        return self.mine.objects[key]

    def put(self, key: str, content: bytes) -> None:
        self.mine.objects[key] = content

    def copy(self, key: str, source: Bucket[Any], source_key: str) -> None:
        self.put(key, source.get(source_key))

    def delete_objects(self, objects: Sequence[Object]) -> None:
        with self.lock:
            if not self.deletes_left:
                raise Unavailable("the store is away")
            type(self).deletes_left -= 1
        for one in objects:
            self.mine.objects.pop(one.key, None)

    def configure(self, parameters: ObjectParameters) -> None:
        assert isinstance(parameters, MemoryParameters)
        self.mine.frozen = parameters.frozen

    def modify(self, fields: Mapping[str, Any]) -> None:
        self.mine.frozen = fields["frozen"]


class MemoryController(ObjectController[MemorySettings, MemoryParameters]):
    bucket = MemoryBucket


class MemoryNode(ObjectNode[MemorySettings]):
    bucket = MemoryBucket


class Memory(Backend[MemorySettings, MemoryParameters]):
    name = "memory-objects"
    settings = MemorySettings
    parameters = MemoryParameters
    controller = MemoryController
    node = MemoryNode
    volume = ObjectVolume
    limits = Limits(fs_types=())


class World:
    """A driver on buckets of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.settings = MemorySettings(endpoint="https://own.example", bucket="shared")
        MemoryBucket.held.clear()
        MemoryBucket.held["shared"] = Held()
        self.engine = Engine(Memory, self.settings, state_dir=state, services=("controller",))

    def create(self, name: str, source: str = "", **parameters: str) -> Volume:
        request: CreateVolumeRequest[Any] = CreateVolumeRequest(
            name=name,
            parameters=parameters,
            capabilities=(Capability(),),
            source=CloneSource(source) if source else None,
        )
        made: Volume = self.engine.run("create_volume", request)
        return made

    def delete(self, id_: str) -> None:
        self.engine.run("delete_volume", requests.DeleteVolumeRequest(volume_id=id_))

    def modify(self, id_: str, **parameters: str) -> None:
        self.engine.run("modify_volume", requests.ModifyVolumeRequest(volume_id=id_, parameters=parameters))

    def objects(self, id_: str) -> dict[str, bytes]:
        """Where a volume's objects are put."""
        return MemoryBucket.held[id_.partition("/")[0]].objects

    def put(self, id_: str, *keys: str) -> None:
        begin = f"{id_.partition('/')[2]}/" if "/" in id_ else ""
        self.objects(id_).update({f"{begin}{key}": b"x" for key in keys})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(MemoryBucket, "deletes_left", 1 << 30)
    made = World(tmp_path)
    yield made
    made.engine.close()


MODES = pytest.mark.parametrize("mode", ["bucket", "prefix"])


@MODES
def test_a_volume_is_made_found_copied_and_deleted(world: World, mode: str) -> None:
    made = world.create("Claim/1 ü", mode=mode, onDelete="purge")
    world.put(made.id, "a", "b", "c")
    copy = world.create("copy", made.id, mode=mode, onDelete="purge")
    begin = f"{copy.id.partition('/')[2]}/" if mode == "prefix" else ""
    assert {f"{begin}{key}" for key in "abc"} <= set(world.objects(copy.id))
    listed = world.engine.run("list_volumes", requests.ListRequest())
    assert {one.volume.id for one in listed.entries} == {made.id, copy.id}
    (world.state / "journal.db").unlink()
    world.engine = Engine(Memory, world.settings, state_dir=world.state, services=("controller",))
    assert world.create("Claim/1 ü", mode=mode, onDelete="purge").id == made.id
    again = world.create("copy", made.id, mode=mode, onDelete="purge")
    assert (again.id, again.source) == (copy.id, CloneSource(made.id))
    for volume in (made, copy):
        world.delete(volume.id)
        world.delete(volume.id)
    assert list(MemoryBucket.held) == ["shared"]
    assert not world.objects("shared")


@MODES
def test_what_holds_objects_is_deleted_only_where_that_was_said(world: World, mode: str) -> None:
    made = world.create("v", mode=mode)
    world.put(made.id, "file")
    with pytest.raises(FailedPrecondition, match="holds objects"):
        world.delete(made.id)
    world.modify(made.id, onDelete="keep")
    world.delete(made.id)
    assert [key for key in world.objects(made.id) if key.endswith("file")]
    with pytest.raises(FailedPrecondition, match="it is always kept"):
        world.modify(made.id, onDelete="purge")


def test_a_delete_that_was_cut_short_is_finished(world: World) -> None:
    made = world.create("v", onDelete="purge")
    world.put(made.id, *"abcde")
    MemoryBucket.deletes_left = 1
    with pytest.raises(Unavailable):
        world.delete(made.id)
    assert len(world.objects(made.id)) in (3, 4)
    MemoryBucket.deletes_left = 1 << 30
    world.delete(made.id)
    assert made.id not in MemoryBucket.held


def test_many_objects_are_deleted_and_copied_by_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBucket, "page", 1000)
    made = world.create("v", mode="prefix", onDelete="purge")
    world.put(made.id, *(f"{number:05}" for number in range(10_000)))
    copy = world.create("copy", made.id, onDelete="purge")
    assert len(world.objects(copy.id)) == 10_000
    MemoryBucket.deletes_left = 14  # ten pages and one, and the mark
    world.delete(made.id)
    assert not world.objects("shared")


def test_a_bucket_that_was_there_is_kept(world: World) -> None:
    MemoryBucket.held["precious"] = Held()
    MemoryBucket.held["precious"].tags["mine"] = "1"
    assert world.create("adopted", bucket="precious").id == "precious"
    with pytest.raises(AlreadyExists, match="is volume 'adopted' already"):
        world.create("another", bucket="precious")
    with pytest.raises(FailedPrecondition, match="of a bucket that was made"):
        world.modify("precious", frozen="true")
    for asked in ({"frozen": "true"}, {"tags": "a=b"}):
        with pytest.raises(InvalidArgument, match="is for a bucket that is made"):
            world.create("new", bucket="precious", **asked)
        with pytest.raises(InvalidArgument, match="is for a bucket that is made"):
            world.create("new", mode="prefix", **asked)
    with pytest.raises(NotFound):
        world.create("nothing", bucket="no-such-bucket")
    world.delete("precious")
    assert MemoryBucket.held["precious"].tags == {"mine": "1"}


def test_a_bucket_with_volumes_in_it_is_not_deleted(world: World) -> None:
    world.create("around", bucket="shared", onDelete="purge")
    world.create("inside", mode="prefix")
    with pytest.raises(InUse, match="holds other volumes"):
        world.delete("shared")


def test_somebody_elses_bucket_stays(world: World) -> None:
    MemoryBucket.held[name_of("taken", "volkit-")] = held = Held()
    held.objects["mine"] = b"x"
    with pytest.raises(AlreadyExists, match="no mark that volkit made it"):
        world.create("taken")
    assert held.objects == {"mine": b"x"}


def test_parameters_of_the_backends_own(world: World) -> None:
    made = world.create("v", frozen="true", tags="team=a")
    assert MemoryBucket.held[made.id].frozen
    assert MemoryBucket.held[made.id].tags["team"] == "a"
    world.modify(made.id, frozen="false")
    assert not MemoryBucket.held[made.id].frozen
    for tag in ("nothing", "volkit.io/name=x"):
        with pytest.raises(InvalidArgument, match="is not KEY=VALUE"):
            world.create("w", tags=tag)


def test_a_store_without_tags_is_refused_whole_buckets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBucket, "keeps_tags", False)
    with pytest.raises(FailedPrecondition, match=r"keeps no tags .* use mode: prefix"):
        world.create("v")
    assert list(MemoryBucket.held) == ["shared"]


# -- where a volume is


@pytest.mark.parametrize(
    "text",
    [
        *("ftp://own.example", "https://", "https://own.example/path", "https://user:hunter2@own.example"),
        *("https://own.example?x=1", "https://own.example:99999", "https://own.example:0", "https://a b"),
        *("https://-a", "https://own.example#x", "//own.example", "file:///etc/passwd", "https://[::1"),
        "https://own.example\n",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    for call in (lambda: ALLOWED.resolve(text), lambda: Endpoints(text), lambda: Endpoints("", (text,))):
        with pytest.raises(InvalidArgument) as error:
            call()
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *("http://own.example", "https://169.254.169.254", "https://own.example.evil.example"),
        *("https://own.example:1", "http://friend.example:8443", "https://friend.example"),
    ],
)
def test_a_server_that_nobody_allowed(text: str) -> None:
    with pytest.raises(PermissionDenied):
        Location.checked("bucket", "", text, ALLOWED)
    with pytest.raises(PermissionDenied):
        Location.read(f"{text}/bucket", ALLOWED)


def test_endpoints_are_compared_as_they_are_meant() -> None:
    assert ALLOWED.resolve("") == "https://own.example"
    assert ALLOWED.resolve("FRIEND.example:08443/") == "https://friend.example:8443"
    assert Endpoints("").resolve("") == ""
    assert Endpoints("http://[::1]:9000", insecure_http=True).own == "http://[::1]:9000"
    with pytest.raises(PermissionDenied, match="insecureHttp"):
        Endpoints("http://own.example")


def test_a_location_and_its_id() -> None:
    for id_ in ("bucket", "bucket/a/b", "https://friend.example:8443/bucket/a ü"):
        assert Location.read(id_, ALLOWED).id == id_
    assert Location.read("https://OWN.example/bucket", ALLOWED).id == "bucket"
    assert Location.read("bucket/a/", ALLOWED).id == "bucket/a"


@pytest.mark.parametrize(
    "id_",
    [
        *("", "ab", "a..b", "Bucket", "-bucket", "bucket-", "10.0.0.1", "xn--bucket", "b" * 64, "bu_cket"),
        *("bucket\n", "bucket//", "bucket/../x", "bucket//a", "bucket/./a", "bucket/a\x00b"),
        *("bucket/" + "x" * 301, "bucket/a\ud800", "/bucket", "https://own.example", "https://own.example/"),
    ],
)
def test_what_is_no_volume(id_: str) -> None:
    with pytest.raises(NotFound):
        Location.read(id_, ALLOWED)


def test_volkits_own_keys_are_nobodys_prefix() -> None:
    for id_ in ("bucket/.volkit", f"bucket/{RESERVED}x"):
        with pytest.raises(PermissionDenied):
            Location.read(id_, ALLOWED)


def test_names_are_told_apart_and_fit() -> None:
    names = ["A", "a", "a/b", "ü", "日本", "n" * 255, "", "-", "a'b"]
    made = [name_of(one, "volkit-") for one in names]
    assert len(set(made)) == len(names)
    for one in made:
        assert Location.checked(one, "", "", ALLOWED).bucket == one


def test_tags_hold_any_name() -> None:
    assert tagged("pvc-1/a") == "pvc-1/a"
    assert tagged("a=b%") == "a=3Db=25"
    assert len(tagged("ü" * 255)) == 64


# -- how full it is


def test_a_count_is_bounded_and_kept_for_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counted: list[str] = []

    def count(id_: str) -> Usage:
        counted.append(id_)
        return Usage(total=len(counted))

    cache = UsageCache(60, most=2)
    assert [cache.get("a", lambda: count("a")).total for _ in range(3)] == [1, 1, 1]
    now[0] = 61.0
    assert cache.get("a", lambda: count("a")).total == 2
    for id_ in "bc":  # b takes the second place, c takes that of a
        cache.get(id_, partial(count, id_))
    assert cache.get("a", lambda: count("a")).total == 5
    assert counted == ["a", "a", "b", "c", "a"]
    with pytest.raises(Unavailable):
        cache.get("d", fail)
    assert cache.get("d", lambda: Usage(total=9)).total == 9


def fail() -> Usage:
    raise Unavailable("the store is away")
