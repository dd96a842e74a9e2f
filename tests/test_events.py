"""What is told of an operation: to listeners, to the log, to `volkit top`; and that it costs nothing else."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit import events, logs, status
from volkit import requests as r
from volkit.engine import Engine
from volkit.errors import ERRORS, Aborted, FailedPrecondition, NotFound, Unavailable, Unsupported
from volkit.events import Event, Listener, code_of, codes
from volkit.model import Capability, Secrets
from volkit.operations import OPERATIONS
from volkit.requests import Call
from volkit.testing.memory import MemoryBackend, MemorySettings


class Heard(Listener):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def ended(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    made = Engine(MemoryBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    yield made
    made.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    stream = io.StringIO()
    logs.configure_logging("debug", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def create(engine: Engine, name: str = "pvc-1", **more: Any) -> Any:
    wanted: r.CreateVolumeRequest[Any] = r.CreateVolumeRequest(
        name=name, parameters={}, capabilities=(Capability(),), **more
    )
    return engine.run("create_volume", wanted)


def test_every_operation_ends_once_with_what_it_was_about(engine: Engine) -> None:
    heard = Heard()
    engine.listen(heard)
    volume = create(engine)
    engine.run("list_volumes", r.ListRequest())
    with pytest.raises(NotFound):
        engine.run("get_volume", r.GetVolumeRequest(volume_id="nosuch"))
    assert engine.find("pvc-1") == volume
    made, listed, missing, found = heard.events
    assert (made.operation, made.subject, made.made, made.volume) == (
        "create_volume",
        "pvc-1",
        volume.id,
        volume.id,
    )
    assert (made.backend, made.node, made.code, made.message) == ("memory", "n1", "OK", "")
    assert (listed.operation, listed.subject, listed.code) == ("list_volumes", "", "OK")
    assert (missing.volume, missing.code) == ("nosuch", "NOT_FOUND")
    assert "nosuch" in missing.message
    assert (found.operation, found.subject) == ("find_volume", "pvc-1")
    assert all(one.seconds > 0 and one.began > 1e9 for one in heard.events)
    assert len({one.request for one in heard.events}) == 4, "each call from outside has an id of its own"
    assert events.request_id() == ""


def test_what_one_call_from_outside_does_has_one_id_also_in_the_backends_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, seen = Heard(), []
    engine.listen(heard)
    assert engine.controller is not None
    look = engine.controller.get_volume

    def looked(request: Any) -> Any:
        seen.append(events.request_id())
        return look(request)

    monkeypatch.setattr(engine.controller, "get_volume", looked)
    with events.request() as known:
        create(engine)
        engine.run("list_volumes", r.ListRequest())
    assert {one.request for one in heard.events} == {known}
    assert set(seen) == {known}


def test_where_nobody_listens_no_event_is_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "Event", None)
    assert create(engine).id
    assert engine.find("pvc-1") is not None
    engine.listen(Heard())
    with pytest.raises(TypeError):
        create(engine)


def test_a_refused_operation_ends_too(engine: Engine) -> None:
    heard = Heard()
    engine.listen(heard)
    engine._run.pop("get_capacity")
    with pytest.raises(Unsupported):
        engine.run("get_capacity", r.CapacityRequest(parameters={}))
    assert [one.code for one in heard.events] == ["UNSUPPORTED"]


def test_a_listener_that_fails_stops_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Listener):
        def begun(self, event: Event) -> None:
            raise ValueError

        def ended(self, event: Event) -> None:
            raise KeyError

    heard = Heard()
    engine.listen(Broken())
    engine.listen(heard)
    create(engine)
    assert len(heard.events) == 1
    assert "a listener failed with ValueError" in caplog.text
    assert "a listener failed with KeyError" in caplog.text


def test_every_error_has_a_code_of_its_own_and_a_vendors_has_its_parents() -> None:
    class Gone(NotFound):
        pass

    assert len({code_of(one) for one in ERRORS}) == len(ERRORS)
    assert [code_of(one) for one in (NotFound, FailedPrecondition, Gone, KeyError)] == [
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "NOT_FOUND",
        "FAULT",
    ]
    assert {code_of(one) for one in ERRORS} | {"OK", "FAULT"} == set(codes())


def test_an_error_tells_no_secret(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    engine.listen(heard)

    def fail(*_: object) -> None:
        raise Unavailable("no answer to hunter2")

    monkeypatch.setattr(engine.lanes, "run", lambda *_, **__: fail())
    with pytest.raises(Unavailable):
        create(engine, secrets=Secrets({"password": "hunter2"}))
    assert heard.events[0].message == "no answer to ***"


# -- the log -------------------------------------------------------------------------------------------------


def lines(log: io.StringIO, logger: str = "volkit.operation") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [one for one in found if one["logger"] == logger]


def test_the_log_has_one_line_for_each_operation(engine: Engine, log: io.StringIO) -> None:
    engine.listen(logs.OperationLog())
    volume = create(engine)
    engine.run("list_volumes", r.ListRequest())
    with pytest.raises(NotFound):
        engine.run("get_volume", r.GetVolumeRequest(volume_id="nosuch"))
    made, listed, missing = lines(log)
    assert made["message"].startswith(f"create_volume 'pvc-1' -> {volume.id!r} OK ")
    assert {name: made[name] for name in ("level", "operation", "volume", "node", "code", "backend")} == {
        "level": "info",
        "operation": "create_volume",
        "volume": volume.id,
        "node": "n1",
        "code": "OK",
        "backend": "memory",
    }
    assert made["ms"] > 0
    assert made["request"]
    assert listed["level"] == "debug", "a read is for debug"
    assert (missing["level"], missing["code"]) == ("info", "NOT_FOUND")
    assert "there is no volume" in missing["message"] or "nosuch" in missing["message"]


def test_what_may_have_happened_or_not_is_a_warning(
    engine: Engine, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.listen(logs.OperationLog())
    errors = iter([Unavailable("away"), Aborted("busy")])

    def fail(*_: object, **__: object) -> None:
        raise next(errors)

    monkeypatch.setattr(engine.lanes, "run", fail)
    for _ in range(2):
        with pytest.raises((Unavailable, Aborted)):
            engine.run("delete_volume", r.DeleteVolumeRequest(volume_id="v"))
    away, busy = lines(log)
    assert (away["level"], busy["level"]) == ("warning", "info")


def test_a_line_for_people_names_the_call_and_an_id_cannot_fake_one(engine: Engine, log: io.StringIO) -> None:
    stream = io.StringIO()
    logs.configure_logging("info", "text", stream)
    engine.listen(logs.OperationLog())
    with events.request("a1-7"):
        engine.run("node_unpublish", r.NodeUnpublishRequest(volume_id="v\nERROR x", target_path="/nowhere/t"))
    text = stream.getvalue()
    assert " INFO volkit.operation [a1-7]: " in text
    assert len(text.splitlines()) == 1


# -- what runs now -------------------------------------------------------------------------------------------


def test_another_process_of_the_user_is_told_what_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.watch()
    sockets = list((engine.state_dir / "status").iterdir())
    assert [one.name for one in sockets] == [f"{os.getpid()}.sock"]
    assert stat.S_IMODE(sockets[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(sockets[0].parent.stat().st_mode) == 0o700
    assert engine.controller is not None
    begun, go = threading.Event(), threading.Event()
    make = engine.controller.create_volume

    def slow(request: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return make(request)

    monkeypatch.setattr(engine.controller, "create_volume", slow)
    working = threading.Thread(target=create, args=(engine,))
    working.start()
    assert begun.wait(60)
    [told] = status.running(engine.state_dir)
    [call] = told["calls"]
    assert (call["operation"], call["subject"], call["left"]) == ("create_volume", "pvc-1", False)
    assert (told["pid"], told["backend"], told["node"]) == (os.getpid(), "memory", "n1")
    go.set()
    working.join(60)
    with pytest.raises(NotFound):
        engine.run("get_volume", r.GetVolumeRequest(volume_id="nosuch"), Call())
    [told] = status.running(engine.state_dir)
    assert told["calls"] == []
    assert told["operations"]["create_volume"]["ended"] == 1
    assert told["operations"]["get_volume"]["failed"] == 1
    assert [one["code"] for one in told["recent"]] == ["OK", "NOT_FOUND"]
    assert told["recent"][0]["request"] == call["request"]
    engine.close()
    assert list((engine.state_dir / "status").iterdir()) == []
    assert status.running(engine.state_dir) == []


def test_a_socket_of_a_driver_that_was_killed_is_none(engine: Engine) -> None:
    directory = engine.state_dir / "status"
    directory.mkdir()
    status._bound(directory / "1.sock").close()
    assert status.running(engine.state_dir) == []


def test_a_state_directory_with_a_long_name_has_a_status_too(tmp_path: Path) -> None:
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    made = Engine(MemoryBackend, settings, state_dir=tmp_path / ("d" * 120), node_id="n1")
    try:
        made.watch()
        assert len(status.running(made.state_dir)) == 1
    finally:
        made.close()


def test_the_kinds_of_operations_that_metrics_know_are_those_of_the_table() -> None:
    from volkit.metrics import OPERATION_KINDS

    assert set(OPERATIONS) < set(OPERATION_KINDS)
