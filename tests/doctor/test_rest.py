"""A storage that hangs, sockets of dead drivers, and files that nobody needs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit.doctor import Finding
from volkit.errors import Unavailable
from volkit.journal import Put
from volkit.journal.memory import MemoryJournal
from volkit.testing.memory import MemoryController

from .world import World, directory_world, until

pytestmark = pytest.mark.root


@pytest.fixture
def array(tmp_path: Path) -> Iterator[World]:
    """A node whose volumes are directories, of an array in memory."""
    made = directory_world(tmp_path, tmp_path / "data")
    yield made
    made.close()


@pytest.mark.parametrize("method", ["list_volumes", "get_volume"])
def test_a_storage_that_does_not_answer(array: World, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    for name in "abc":
        array.create(name)
    hanging = True

    def hang(self: object, request: object) -> Any:
        while hanging:
            time.sleep(0.02)
        return alive(self, request)

    alive = getattr(MemoryController, method)
    monkeypatch.setattr("volkit.doctor.finding.STORAGE_SECONDS", 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryController, method, hang)
        if method == "get_volume":
            patch.setattr("volkit.doctor.storage._listed", lambda engine, controller: iter(()))
        found = array.one()
        hanging = False
    assert (found.sort, found.repair) == ("stuck", None)
    assert found.what.startswith("the storage has not answered within")
    until(lambda: array.engine.lanes.running == 0)
    assert array.findings() == []


def test_what_cannot_be_looked_at_hides_nothing_else(array: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: object) -> Iterator[Finding]:
        raise Unavailable("away")

    stale = stale_socket(array)
    monkeypatch.setattr("volkit.doctor.examine_devices", fail)
    assert {one.what for one in array.findings()} == {
        "devices cannot be looked at: away",
        f"nobody listens on {stale}: its driver was killed",
    }


def test_a_controllers_journal_that_is_away_hides_nothing_of_the_nodes(array: World) -> None:
    away = MemoryJournal()
    away.close()
    array.engine.node_journal.write(Put("stage/x", {}))
    array.engine.journal = away
    found = [one.what for one in array.findings()]
    assert "records cannot be looked at: the journal in memory is closed" in found
    assert any(one.startswith("the record stage/x cannot be read") for one in found), found


def stale_socket(world: World) -> Path:
    """What a driver leaves that is killed: its socket, and the note of it."""
    path = world.base / "csi.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    listening = world.engine.listening(str(path))
    listening.__enter__()
    _kept.append(listening)  # and never left, as by kill -9
    return path


_kept: list[object] = []


def test_a_socket_that_nobody_listens_on_is_leaked(array: World) -> None:
    path = stale_socket(array)
    found = array.one()
    assert (found.sort, found.command) == ("leaked", f"rm {path}")
    assert found.repair
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink()
        listener.bind(str(path))
        listener.listen()
        assert array.findings() == []
        assert found.repair() == "it was settled meanwhile"
        assert path.exists()
    assert found.repair() == "it is removed"
    assert not path.exists()
    assert array.findings() == []
    assert not list((array.engine.state_dir / "sockets").iterdir())


def test_a_file_in_a_sockets_place_stays(array: World) -> None:
    path = stale_socket(array)
    path.unlink()
    path.write_text("somebody's")
    assert array.findings() == []


def test_a_driver_that_ends_leaves_no_note(array: World) -> None:
    with array.engine.listening("/run/x.sock"):
        (note,) = (array.engine.state_dir / "sockets").iterdir()
        assert note.read_text() == "/run/x.sock"
    assert not note.exists()


def test_a_journal_that_was_set_aside_is_shown(array: World) -> None:
    aside = array.engine.state_dir / "journal.db.damaged-20261127T000000Z"
    aside.touch()
    aside.with_name(f"{aside.name}-wal").touch()
    found = array.one()
    assert (found.sort, found.repair) == ("stuck", None)
    assert found.command.startswith(f"rm {aside}*")


def test_what_a_program_left(array: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLKIT_RUN_DIR", str(array.base / "run"))
    left = array.base / "run" / "memory" / "3f2a"
    (left / "files").mkdir(parents=True)
    cache = array.engine.state_dir / "cache" / "3f2a"
    cache.mkdir(parents=True)
    found = array.one()  # the cache is this program's
    assert (found.sort, found.command) == ("leaked", f"rm -r {left}")
    assert found.repair
    found.repair()
    assert not left.exists()
    found = array.one()
    assert (found.sort, found.command, found.repair) == ("leaked", f"rm -r {cache}", None)
