"""A backend broken on purpose for every promise: the suite catches each. A suite that cannot fail is worth nothing."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from volkit import requests as r
from volkit.errors import NotFound, ResourceExhausted
from volkit.interfaces import ListsConnections
from volkit.model import Connection, FileConnection, Snapshot, Volume
from volkit.requests import Page
from volkit.testing import BackendSuite, Storage, Witness
from volkit.testing.kit import Fault, Kit
from volkit.testing.memory import (
    ARRAYS,
    Array,
    MemoryBackend,
    MemoryController,
    MemoryNode,
    MemoryParameters,
    memory_settings,
)
from volkit.testing.suite import CASES, broken_rules

RELEASE = threading.Event()


class ArrayWitness(Witness):
    def __init__(self, array: Array) -> None:
        self.array = array

    def volumes(self) -> list[str]:
        return list(self.array.volumes)

    def snapshots(self) -> list[str]:
        return list(self.array.snapshots)

    def attachments(self) -> list[tuple[str, str]]:
        return [(id_, node) for id_, stored in self.array.volumes.items() for node in stored.nodes]

    def capacity(self, volume_id: str) -> int | None:
        return self.array.volumes[volume_id].volume.capacity


class LeaksOnACrash(MemoryController):
    """Makes room under a name of its own first: what is cut short in between stays."""

    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        volume = super().create_volume(request)
        stored = self.array.volumes[volume.id]
        stored.name = ""
        len(request.name)
        stored.name = request.name
        return volume


class LiesAboutCapacity(MemoryController):
    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        volume = super().get_volume(request)
        return attrs.evolve(volume, capacity=volume.capacity + 1)


class LiesAboutRoom(MemoryController):
    def get_capacity(self, request: r.CapacityRequest[MemoryParameters]) -> r.CapacityResult:
        return r.CapacityResult(available=1 << 30)


class MakesLess(MemoryController):
    """Says that it made what was asked for, and made less."""

    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        made = super().create_volume(request)
        self.array.volumes[made.id].volume = attrs.evolve(made, capacity=made.capacity // 2)
        return made


class ForgetsItsId(MemoryController):
    """Answers with another id than it keeps the volume under."""

    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        volume = super().create_volume(request)
        return attrs.evolve(volume, id=f"{volume.id}-x")


class ReturnsAText(MemoryController):
    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        return super().create_volume(request).id  # type: ignore[return-value]


class ListsTexts(MemoryController):
    def list_snapshots(self, request: r.ListSnapshotsRequest) -> Page[Snapshot]:
        page = super().list_snapshots(request)
        return Page(entries=[one.id for one in page.entries], next_token=page.next_token)


class RaisesKeyError(MemoryController):
    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        if request.volume_id and request.volume_id not in self.array.volumes:
            raise KeyError(request.volume_id)
        return super().get_volume(request)


class RefusesWhatItDid(MemoryController):
    """A delete that works and says that it did not."""

    def delete_volume(self, request: r.DeleteVolumeRequest) -> None:
        super().delete_volume(request)
        raise ResourceExhausted("too busy")


class Hangs(MemoryController):
    def expand_volume(self, request: r.ExpandVolumeRequest) -> r.ExpandVolumeResult:
        RELEASE.wait(20)
        return super().expand_volume(request)


class HangsEverybody(MemoryController):
    """One lock around all it does, held while it waits for the storage."""

    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        with self.array.lock:
            if request.name.endswith("-2"):
                RELEASE.wait(20)
            return super().create_volume(request)


class DoublesNames(MemoryController):
    """Does not find by name what it says it does."""

    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        if request.name:
            raise NotFound(f"no volume is named {request.name!r}")
        return super().get_volume(request)


class CutsNames(MemoryController):
    """Keeps eight characters of a name."""

    def get_volume(self, request: r.GetVolumeRequest) -> Volume:
        for stored in self.array.volumes.values():
            if request.name and stored.name[:8].lower() == request.name[:8].lower():
                return stored.volume
        return super().get_volume(request)


class PagesByPlace(MemoryController):
    """Its token is a place in the list: what goes meanwhile hides another one."""

    def list_volumes(self, request: r.ListRequest) -> Page[Volume]:
        ids = sorted(self.array.volumes)
        start = int(request.token or 0) if request.token.isdecimal() or not request.token else 0
        end = start + (request.limit or len(ids))
        volumes = [self.array.volumes[id_].volume for id_ in ids[start:end]]
        return Page(entries=volumes, next_token=str(end) if end < len(ids) else "")


class PagesWithoutEnd(MemoryController):
    def list_snapshots(self, request: r.ListSnapshotsRequest) -> Page[Snapshot]:
        page = super().list_snapshots(attrs.evolve(request, token=""))
        return Page(entries=page.entries, next_token="more")


class LosesSnapshots(MemoryController):
    """Keeps the last two."""

    def create_snapshot(self, request: r.CreateSnapshotRequest) -> Snapshot:
        snapshot = super().create_snapshot(request)
        for id_ in sorted(self.array.snapshots)[:-2]:
            del self.array.snapshots[id_]
        return snapshot


class ForgetsTheSource(MemoryController):
    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        volume = attrs.evolve(super().create_volume(request), source=None)
        self.array.volumes[volume.id].volume = volume
        return volume


class DoesNotDelete(MemoryController):
    def delete_volume(self, request: r.DeleteVolumeRequest) -> None:
        self._stored(request.volume_id)


class DoesNotGrow(MemoryController):
    def expand_volume(self, request: r.ExpandVolumeRequest) -> r.ExpandVolumeResult:
        return r.ExpandVolumeResult(capacity=request.size)


class DoesNotDetach(MemoryController):
    def controller_unpublish(self, request: r.ControllerUnpublishRequest) -> None:
        if request.node_id:
            super().controller_unpublish(request)


class KeepsAttachmentsToItself(MemoryController):
    def list_published(self, request: r.ListPublishedRequest) -> r.ListPublishedResult:
        return r.ListPublishedResult(node_ids={})


class LogsSecrets(MemoryController):
    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        logging.getLogger("acme").info("logging in with %s", dict(request.secrets))
        return super().create_volume(request)


class PutsSecretsIntoTheContext(MemoryController):
    def create_volume(self, request: r.CreateVolumeRequest[MemoryParameters]) -> Volume:
        return attrs.evolve(super().create_volume(request), context=dict(request.secrets))


class FormatsTwice(MemoryNode):
    """Makes the volume blank each time it is connected."""

    def connect(self, request: r.ConnectRequest) -> Connection:
        assert self.settings.root
        shutil.rmtree(self.settings.root / request.volume_id, ignore_errors=True)
        return super().connect(request)


class ForgetsToDisconnect(MemoryNode):
    """Does not keep a read-only volume from being written: gives another directory each time."""

    def connect(self, request: r.ConnectRequest) -> Connection:
        assert self.settings.root
        directory = self.settings.root / f"{request.volume_id}-{len(list(self.settings.root.iterdir()))}"
        directory.mkdir()
        super().connect(request)
        return FileConnection(directory=str(directory))


BROKEN: dict[type[MemoryController], str] = {
    LeaksOnACrash: "test_faults_in_create",
    LiesAboutCapacity: "test_create_makes_one_complete_volume",
    LiesAboutRoom: "test_capacity_is_true",
    MakesLess: "test_create_makes_one_complete_volume",
    ForgetsItsId: "test_create_makes_one_complete_volume",
    ReturnsAText: "test_create_makes_one_complete_volume",
    ListsTexts: "test_snapshot_list",
    RaisesKeyError: "test_a_volume_that_is_not_there",
    RefusesWhatItDid: "test_delete_removes_it_and_may_be_repeated",
    Hangs: "test_expand_grows_and_may_be_repeated",
    HangsEverybody: "test_creates_of_several_names_at_once",
    DoublesNames: "test_create_repeated_without_a_journal_is_the_same_volume",
    CutsNames: "test_odd_names_are_volumes_of_their_own",
    PagesByPlace: "test_a_page_is_stable_while_others_go",
    PagesWithoutEnd: "test_snapshot_list",
    LosesSnapshots: "test_snapshots_stay",
    ForgetsTheSource: "test_clone",
    DoesNotDelete: "test_delete_removes_it_and_may_be_repeated",
    DoesNotGrow: "test_expand_grows_and_may_be_repeated",
    DoesNotDetach: "test_a_single_node_volume_is_not_attached_twice",
    KeepsAttachmentsToItself: "test_the_nodes_of_a_volume_are_told",
    LogsSecrets: "test_no_secret_is_told",
    PutsSecretsIntoTheContext: "test_no_secret_is_told",
}

BROKEN_NODES: dict[type[MemoryNode], str] = {
    FormatsTwice: "test_stage_and_publish",
    ForgetsToDisconnect: "test_stage_and_publish",
}


class TellsConnections(MemoryNode, ListsConnections):
    """The good one."""

    told: ClassVar[dict[tuple[Path | None, str], Connection]] = {}

    def connect(self, request: r.ConnectRequest) -> Connection:
        made = super().connect(request)
        self.told[self.settings.root, request.volume_id] = made
        return made

    def disconnect(self, request: r.DisconnectRequest) -> None:
        self.told.pop((self.settings.root, request.volume_id), None)

    def list_connections(self) -> list[tuple[str, Connection]]:
        return [(id_, one) for (root, id_), one in self.told.items() if root == self.settings.root]


class TellsOfNone(TellsConnections):
    def list_connections(self) -> list[tuple[str, Connection]]:
        return []


class StaysConnected(TellsConnections):
    def disconnect(self, request: r.DisconnectRequest) -> None: ...


def suite_of(
    controller_: type[MemoryController] = MemoryController, node_: type[MemoryNode] = MemoryNode
) -> BackendSuite:
    class Broken(MemoryBackend):
        controller = controller_
        node = node_

    class Suite(BackendSuite):
        backend = Broken
        patience: ClassVar[float] = 1.0

        def storage(self, directory: Path) -> Storage:
            settings = memory_settings(root=directory)
            return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)

    return Suite()


def run_case(suite: BackendSuite, name: str, directory: Path) -> None:
    kit = Kit(suite, directory)
    try:
        getattr(suite, name)(kit)
    except BaseException:
        kit.close(judge=False)
        raise
    kit.close()


@pytest.fixture
def released() -> Iterator[None]:
    """Lets go of what hangs, when the test ends."""
    RELEASE.clear()
    yield
    RELEASE.set()


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(("controller", "case"), BROKEN.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_backend_is_caught(controller: type[MemoryController], case: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    run_case(suite_of(MemoryController), case, tmp_path / "good")
    with pytest.raises(Exception) as caught:
        run_case(suite_of(controller), case, tmp_path)
    assert isinstance(caught.value, Fault) or caught.type.__module__ == "volkit.errors", caught.value


@pytest.mark.root
@pytest.mark.parametrize(("node", "case"), BROKEN_NODES.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_node_is_caught(node: type[MemoryNode], case: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    run_case(suite_of(), case, tmp_path / "good")
    with pytest.raises(Exception) as caught:
        run_case(suite_of(node_=node), case, tmp_path)
    assert isinstance(caught.value, Fault | OSError) or caught.type.__module__ == "volkit.errors", (
        caught.value
    )


@pytest.mark.root
@pytest.mark.parametrize("node", [TellsOfNone, StaysConnected])
def test_a_node_that_hides_its_connections_is_caught(node: type[MemoryNode], tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    run_case(suite_of(MemoryController, TellsConnections), "test_connections_are_told", tmp_path / "good")
    with pytest.raises(Fault, match="connected"):
        run_case(suite_of(MemoryController, node), "test_connections_are_told", tmp_path)


class Deleted(BackendSuite):
    test_clone: Any = None


class Replaced(BackendSuite):
    def test_clone(self, volkit_kit: Kit) -> None: ...


class Reasonless(BackendSuite):
    @pytest.mark.xfail
    def test_clone(self, volkit_kit: Kit) -> None: ...


class Skipped(BackendSuite):
    @pytest.mark.skip(reason="slow")
    @pytest.mark.xfail(reason="slow")
    def test_clone(self, volkit_kit: Kit) -> None: ...


@pytest.mark.skip(reason="later")
class SkippedAsAWhole(BackendSuite):
    pass


@pytest.mark.parametrize("suite", [Deleted, Replaced, Reasonless, Skipped, SkippedAsAWhole])
def test_a_case_cannot_be_left_out(suite: type[BackendSuite]) -> None:
    (fault,) = broken_rules(suite)
    assert "xfail" in fault


def test_an_expected_failure_needs_a_reason_and_has_one() -> None:
    class Known(BackendSuite):
        @pytest.mark.xfail(reason="ticket 12: the array forgets the source of a clone")
        def test_clone(self, volkit_kit: Kit) -> None: ...

    assert broken_rules(Known) == []


def test_the_suite_has_its_cases() -> None:
    assert len(CASES) > 50
    assert broken_rules(BackendSuite) == []


def test_a_witness_has_to_see_what_the_backend_makes(tmp_path: Path) -> None:
    class Blind(Witness):
        def volumes(self) -> list[str]:
            return []

    class Suite(BackendSuite):
        backend = MemoryBackend

        def storage(self, directory: Path) -> Storage:
            return Storage(settings=memory_settings(), witness=Blind(), outlives=False)

    with pytest.raises(Fault, match=r"Blind has no snapshots\(\)"):
        Kit(Suite(), tmp_path)


def test_what_a_case_leaves_behind_is_a_fault(tmp_path: Path) -> None:
    kit = Kit(suite_of(MemoryController), tmp_path)
    kit.run("create_volume", kit.request())
    with pytest.raises(Fault, match="the witness sees 1 volumes, not 0"):
        kit.close()
