"""Calls that are left behind: bounded, counted, shown, and nobody else's trouble."""

from __future__ import annotations

import contextvars
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from volkit.errors import Aborted, DeadlineExceeded, InUse, Unavailable
from volkit.lanes import MAX_LEFT, PER_VOLUME, Lanes

PATIENCE = 60.0


@define
class Gate:
    """Work that hangs until it is opened."""

    opened: threading.Event = field(factory=threading.Event)
    begun: threading.Semaphore = field(factory=lambda: threading.Semaphore(0))
    threads: list[threading.Thread] = field(factory=list)

    def work(self) -> str:
        self.begun.release()
        assert self.opened.wait(PATIENCE)
        return "done"

    def hang(self, lanes: Lanes, number: int, subject: str = "v", **words: Any) -> None:
        """Callers that wait, each in a thread of its own, all begun."""
        for _ in range(number):
            work: Callable[[], Any] = lambda: lanes.run("node_stage", subject, self.work, **words)  # noqa: E731
            self.threads.append(threading.Thread(target=work))
            self.threads[-1].start()
            assert self.begun.acquire(timeout=PATIENCE)

    def leave(self, lanes: Lanes, number: int, subject: str = "v") -> None:
        """Calls that were left behind."""
        for _ in range(number):
            with pytest.raises(DeadlineExceeded):
                lanes.run("node_stage", subject, self.work, until=time.monotonic())

    def open(self) -> None:
        self.opened.set()
        for one in self.threads:
            one.join(PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


def settle(lanes: Lanes) -> None:
    deadline = time.monotonic() + PATIENCE
    while lanes.running:
        assert time.monotonic() < deadline, lanes.left_behind
        time.sleep(0.005)


def test_results_and_errors_pass() -> None:
    lanes = Lanes()
    assert lanes.run("get_volume", "v", lambda: 5) == 5
    error = InUse("in use")

    def fail() -> None:
        raise error

    for _ in range(2):
        with pytest.raises(InUse) as caught:
            lanes.run("delete_volume", "v", fail)
        assert caught.value is error
    with pytest.raises(KeyboardInterrupt):
        lanes.run("delete_volume", "v", lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_the_caller_s_context_is_there() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("set by the caller")
    assert Lanes().run("get_volume", "v", variable.get) == "set by the caller"


def test_threads_are_used_again() -> None:
    lanes = Lanes()
    seen = {lanes.run("get_volume", "v", threading.get_ident) for _ in range(50)}
    assert len(seen) == 1


def test_a_thread_that_cannot_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the limit of processes is reached: the call fails, and nothing waits for it for ever."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lanes = Lanes()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        for _ in range(PER_VOLUME + 1):
            with pytest.raises(Unavailable, match="no thread can be started"):
                lanes.run("node_stage", "v", lambda: "done")
    assert lanes.run("node_stage", "v", lambda: "done") == "done"
    assert lanes.close(PATIENCE) == 0


def test_a_deadline_ends_the_wait_and_not_the_work(gate: Gate, tmp_path: Path) -> None:
    report = tmp_path / "left-behind" / "1.json"
    lanes = Lanes(report)
    with pytest.raises(DeadlineExceeded, match="node_stage of 'v' has not ended"):
        lanes.run("node_stage", "v", gate.work, until=time.monotonic() + 0.05)
    (left,) = lanes.left_behind
    assert (left.operation, left.subject) == ("node_stage", "v")
    shown = json.loads(report.read_text())
    assert shown["calls"] == [{"operation": "node_stage", "subject": "v", "since": left.since}]
    gate.open()
    settle(lanes)
    assert lanes.left_behind == ()
    assert not report.exists()


def test_one_volume_takes_its_share_and_no_more(gate: Gate) -> None:
    lanes = Lanes()
    gate.hang(lanes, PER_VOLUME)
    with pytest.raises(Aborted, match=f"{PER_VOLUME} calls of 'v' run already"):
        lanes.run("node_stats", "v", lambda: 1, patience=0.05)
    assert lanes.run("node_stats", "another", lambda: 1) == 1
    assert lanes.run("node_unpublish", "v", lambda: 1, undoes=True) == 1
    waiter: list[int] = []
    waits = threading.Thread(
        target=lambda: waiter.append(lanes.run("node_stats", "v", lambda: 1, patience=PATIENCE))
    )
    waits.start()
    gate.open()
    waits.join(PATIENCE)
    assert waiter == [1]


def test_what_is_left_behind_is_bounded(gate: Gate) -> None:
    lanes = Lanes()
    for number in range(MAX_LEFT):
        gate.leave(lanes, 1, f"v{number}")
    with pytest.raises(Unavailable, match=f"{MAX_LEFT} calls hang, the oldest is node_stage of 'v0'"):
        lanes.run("node_stage", "another", lambda: 1)
    assert lanes.run("node_unpublish", "another", lambda: 1, undoes=True) == 1
    gate.open()
    settle(lanes)
    assert lanes.run("node_stage", "another", lambda: 1) == 1


def test_what_is_left_behind_ends_with_a_word_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lanes = Lanes()
    opened = threading.Event()

    def fail() -> None:
        assert opened.wait(PATIENCE)
        raise InUse("it is in use")

    with pytest.raises(DeadlineExceeded):
        lanes.run("delete_volume", "v", fail, until=time.monotonic())
    opened.set()
    settle(lanes)
    deadline = time.monotonic() + PATIENCE
    while "left behind, has ended" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert "InUse: it is in use" in caplog.text


def test_close_waits_and_tells(gate: Gate, tmp_path: Path) -> None:
    report = tmp_path / "left-behind" / "1.json"
    lanes = Lanes(report)
    gate.leave(lanes, 2)
    assert report.exists()
    assert lanes.close(0.01) == 2
    assert not report.exists()
    gate.open()
    assert lanes.close(PATIENCE) == 0


def test_a_request_is_not_kept(gate: Gate) -> None:
    """Neither by the thread that served it nor by the error that it ended with."""

    class Request:
        secret = "hunter2"

    lanes = Lanes()

    def call() -> weakref.ref[Request]:
        request = Request()

        def work() -> None:
            raise InUse(f"{type(request).__name__}")

        with pytest.raises(InUse):
            lanes.run("delete_volume", "v", work)
        return weakref.ref(request)

    seen = call()
    gc.collect()
    assert seen() is None


def test_many_at_once() -> None:
    lanes = Lanes()
    answers: list[int] = []

    def call(number: int) -> None:
        answers.extend(
            lanes.run("get_volume", f"v{n % 7}", lambda: number, patience=PATIENCE) for n in range(200)
        )

    threads = [threading.Thread(target=call, args=(number,)) for number in range(32)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
    assert sorted(answers) == sorted(list(range(32)) * 200)
    assert lanes.running == 0
