"""A thread for every call, which its caller can leave behind: a deadline ends the wait, not the work.

What hangs in a storage's client or in the kernel cannot be stopped. It goes on under the lock that it holds, so
that nobody begins the same thing beside it, while its caller gets an answer in time, and while it takes no
more than its volume's share of the threads.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from attrs import frozen

from volkit.errors import Aborted, DeadlineExceeded, Unavailable, VolkitError
from volkit.events import request_id
from volkit.model import Value

T = TypeVar("T")

CALL_SECONDS: Final = 120.0
"""How long a call is waited for that names no deadline: as long as kubelet and Docker wait."""

PER_VOLUME: Final = 16
"""Calls that may run at once for one volume; as many again for those that undo something."""

MAX_LEFT: Final = 128
"""Calls left behind, of all volumes, after which no more are begun; twice as many before nothing is undone
either.
"""

_IDLE_SECONDS: Final = 60.0
_A_MOMENT: Final = 0.05  # what has an answer at once gives it, also after the deadline

_log = logging.getLogger("volkit.engine")


@frozen(eq=False, repr=False)
class LeftBehind(Value):
    """A call that goes on though nobody waits for it any more. `since` is when it began, in Unix seconds."""

    operation: str
    subject: str
    since: float


@frozen(eq=False, repr=False)
class Running(Value):
    """A call that runs; `left` behind or not. `request` is the call from outside that it belongs to."""

    operation: str
    subject: str
    since: float
    left: bool
    request: str


class _Task:
    """One call: what it does, how it ended, and whether its caller still waits."""

    __slots__ = (
        "begun",
        "context",
        "done",
        "error",
        "left",
        "operation",
        "request",
        "result",
        "share",
        "subject",
        "work",
    )

    def __init__(
        self, operation: str, subject: str, share: tuple[str, bool], work: Callable[[], Any]
    ) -> None:
        self.operation = operation
        self.subject = subject
        self.share = share
        self.work = work
        self.context = contextvars.copy_context()
        self.request = request_id()
        self.begun = time.time()
        self.done = threading.Lock()
        self.done.acquire()
        self.left = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.context.run(self.work)
        except BaseException as error:
            self.error = error

    def outcome(self) -> Any:
        error, self.error = self.error, None  # a traceback that holds itself would keep the request in memory
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error


_Inbox = SimpleQueue["_Task | None"]


class Lanes:
    """The threads of one engine. They are daemons: what hangs keeps no process from ending.

    `rejected` counts the calls that were not begun: since too many of their volume ran, or too many hung.

    `report` is a file that lists what was left behind as long as there is any, for `volkit doctor`.
    """

    def __init__(self, report: Path | None = None) -> None:
        self._report = report
        self._room = threading.Condition()
        self._running: dict[tuple[str, bool], int] = {}
        self._waiting = 0
        self._tasks: set[_Task] = set()
        self._left: set[_Task] = set()
        self.rejected: dict[str, int] = {"volume": 0, "hung": 0}
        self._idle: list[_Inbox] = []
        self._closed = False

    def run(
        self,
        operation: str,
        subject: str,
        work: Callable[[], T],
        *,
        until: float | None = None,
        patience: float = 0.0,
        undoes: bool = False,
    ) -> T:
        """`work()`, on a thread of its own; `subject` is the volume (or what else is operated on).

        `until` is when the caller wants its answer (time.monotonic() seconds; None: CALL_SECONDS from now),
        `patience` how many seconds it waits for a place among its volume's calls; `undoes` lets it through
        where only what takes something away still is.

        Raises what `work` raises; DeadlineExceeded where it is left behind; Aborted where too many calls of
        this volume run, Unavailable where too many of all volumes were left behind, or no thread can be started.
        """
        now = time.monotonic()
        until = now + CALL_SECONDS if until is None else until
        share = (subject, undoes)
        self._enter(share, operation, min(now + patience, until))
        task = _Task(operation, subject, share, work)
        self._give(task)
        if task.done.acquire(timeout=min(max(_A_MOMENT, until - now), threading.TIMEOUT_MAX)):
            return task.outcome()  # type: ignore[no-any-return]
        with self._room:
            if task.done.acquire(blocking=False):
                return task.outcome()  # type: ignore[no-any-return]
            task.left = True
            self._left.add(task)
            self._tell()
        seconds = time.time() - task.begun
        _log.warning("%s of %r still runs after %.1f s and is left behind", operation, subject, seconds)
        raise DeadlineExceeded(
            f"{operation} of {subject!r} has not ended in {seconds:.1f} s and goes on: repeat the call later"
        )

    @property
    def left_behind(self) -> tuple[LeftBehind, ...]:
        """The calls that were left behind and still run, the oldest first."""
        with self._room:
            return self._listed()

    @property
    def running(self) -> int:
        """How many calls run, those left behind among them."""
        with self._room:
            return sum(self._running.values())

    @property
    def calls(self) -> tuple[Running, ...]:
        """The calls that run, the oldest first."""
        with self._room:
            tasks = list(self._tasks)
        tasks.sort(key=lambda one: one.begun)
        return tuple(Running(one.operation, one.subject, one.begun, one.left, one.request) for one in tasks)

    @property
    def threads(self) -> tuple[int, int, int]:
        """How many calls run, how many wait for a place among their volume's, and how many threads are idle."""
        with self._room:
            return sum(self._running.values()), self._waiting, len(self._idle)

    def close(self, grace: float = 0.0) -> int:
        """Let idle threads end, wait at most `grace` seconds for calls that run, and return how many still do."""
        with self._room:
            self._closed = True
            for inbox in self._idle:
                inbox.put(None)
            self._idle.clear()
            self._waiting += 1
            self._room.wait_for(lambda: not self._running, grace)
            self._waiting -= 1
            if self._report and self._left:
                self._left.clear()
                self._tell()
            return sum(self._running.values())

    def _listed(self) -> tuple[LeftBehind, ...]:
        tasks = sorted(self._left, key=lambda one: one.begun)
        return tuple(LeftBehind(one.operation, one.subject, one.begun) for one in tasks)

    def _enter(self, share: tuple[str, bool], operation: str, until: float) -> None:
        subject, undoes = share
        with self._room:
            if len(self._left) >= MAX_LEFT * (1 + undoes):
                self.rejected["hung"] += 1
                raise Unavailable(
                    f"{len(self._left)} calls hang, the oldest is {self._listed()[0].operation} of "
                    f"{self._listed()[0].subject!r}: the storage does not answer"
                )
            if self._running.get(share, 0) >= PER_VOLUME:
                self._waiting += 1
                try:
                    free = self._room.wait_for(
                        lambda: self._running.get(share, 0) < PER_VOLUME, max(0.0, until - time.monotonic())
                    )
                finally:
                    self._waiting -= 1
                if not free:
                    self.rejected["volume"] += 1
                    raise Aborted(
                        f"{operation}: {PER_VOLUME} calls of {subject!r} run already: repeat it in a moment"
                    )
            self._running[share] = self._running.get(share, 0) + 1

    def _give(self, task: _Task) -> None:
        with self._room:
            self._tasks.add(task)
            inbox = self._idle.pop() if self._idle else None  # the last one, whose memory is warm
        if inbox is None:  # never through the thread's arguments, which it keeps
            inbox = SimpleQueue()
            thread = threading.Thread(target=self._work, args=(inbox,), name="volkit-lane", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                with self._room:
                    self._forget(task)
                raise Unavailable(
                    f"{task.operation}: no thread can be started ({error}): the host has no memory or no processes left"
                ) from None
        inbox.put(task)

    def _work(self, inbox: _Inbox) -> None:
        task = inbox.get()
        while task is not None:
            task.run()
            stays = self._end(task, inbox)
            task = None  # a request may be large or secret: hold nothing of it while waiting for the next
            task = self._next(inbox) if stays else None

    def _end(self, task: _Task, inbox: _Inbox) -> bool:
        """Tell that it has ended; False where its thread is to end too."""
        with self._room:
            stays = not self._closed
            if stays:
                self._idle.append(inbox)
            self._forget(task)
            task.done.release()
            if not task.left:
                return stays
            if task in self._left:
                self._left.remove(task)
                self._tell()
        how = type(task.error).__name__ if task.error else "well"
        if isinstance(task.error, VolkitError):
            how = f"{how}: {task.error.message}"
        seconds = time.time() - task.begun
        text = "%s of %r, left behind, has ended after %.1f s: %s"
        task.context.run(_log.warning, text, task.operation, task.subject, seconds, how)
        return stays

    def _forget(self, task: _Task) -> None:
        """It takes no place any more."""
        self._tasks.discard(task)
        number = self._running.pop(task.share) - 1
        if number:
            self._running[task.share] = number
        if self._waiting:
            self._room.notify_all()

    def _next(self, inbox: _Inbox) -> _Task | None:
        """The next call for the thread that owns `inbox`; None when it is to end."""
        try:
            return inbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            with self._room:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
            return inbox.get()  # handed over just now

    def _tell(self) -> None:
        """Bring the report up to date. It is for people: that it cannot be written stops nothing."""
        if self._report is None:
            return
        with suppress(OSError):
            if not self._left:
                self._report.unlink(missing_ok=True)
                return
            lines = [
                {"operation": one.operation, "subject": one.subject, "since": one.since}
                for one in self._listed()
            ]
            self._report.parent.mkdir(mode=0o700, exist_ok=True)
            draft = self._report.with_suffix(".new")
            draft.write_text(json.dumps({"pid": os.getpid(), "calls": lines}))
            draft.replace(self._report)
