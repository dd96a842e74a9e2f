"""Faults on purpose: a backend whose every call is watched, and can be made to fail before, inside or after;
a journal that fails at a write; a child process that is killed.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from attrs import define, field, frozen

from volkit import model, requests
from volkit.backend import Backend
from volkit.errors import Ambiguous, DeadlineExceeded, ResourceExhausted, Unavailable, VolkitError
from volkit.journal import Delete, Entry, Journal, Lease, Put, SharedJournal
from volkit.journal.memory import MemoryJournal

METHODS: dict[str, tuple[type, ...]] = {
    "create_volume": (model.Volume,),
    "delete_volume": (type(None),),
    "get_volume": (model.Volume,),
    "controller_publish": (requests.ControllerPublishResult,),
    "controller_unpublish": (type(None),),
    "list_volumes": (requests.Page,),
    "list_published": (requests.ListPublishedResult,),
    "expand_volume": (requests.ExpandVolumeResult,),
    "modify_volume": (type(None),),
    "get_capacity": (requests.CapacityResult,),
    "create_snapshot": (model.Snapshot,),
    "delete_snapshot": (type(None),),
    "get_snapshot": (model.Snapshot,),
    "list_snapshots": (requests.Page,),
    "volume_health": (model.VolumeHealth,),
    "connect": (model.BlockConnection, model.FileConnection, model.FuseConnection),
    "disconnect": (type(None),),
    "resize": (type(None),),
}
"""Every method of a backend that takes a request, and what it may return."""

_QUIET = frozenset({"acquire", "release", "__enter__", "__exit__"})
"""C functions that an exception must not cut: a killed process has no locks, a failed thread keeps them."""


_APART = frozenset({__name__, "weakref", "_weakrefset"})
"""Modules whose frames are not the backend's: one method calls another through the spy; callbacks of dead objects."""


class Killed(BaseException):
    """The process ends here, for a storage that lives in it: nothing catches this but the kit."""


@frozen
class Point:
    """Where: the `number`-th call of a method or write of the journal (`place`); `when` is before, after, or
    the n-th event inside.
    """

    place: str
    number: int
    when: str | int = "before"

    def __str__(self) -> str:
        when = self.when if isinstance(self.when, str) else f"inside (event {self.when} of)"
        return f"{when} {self.place} #{self.number}"


@frozen
class Failure:
    """What happens there. `final` is one after which the caller takes it that nothing was made."""

    name: str
    make: Callable[[], BaseException]
    final: bool = False


KILL = Failure("kill", lambda: Killed("killed"))
POWER_CUT = Failure("power cut", lambda: Killed("no power"))
FAILURES = (
    KILL,
    POWER_CUT,
    Failure("exception", lambda: RuntimeError("injected")),
    Failure("lost reply", lambda: Unavailable("injected: the reply is lost")),
    Failure("timeout", lambda: DeadlineExceeded("injected: no reply in time")),
    Failure("disk full", lambda: OSError(errno.ENOSPC, "injected: no space left")),
    Failure("refusal", lambda: ResourceExhausted("injected: no room"), final=True),
)
JOURNAL_FAILURES = (
    KILL,
    POWER_CUT,
    Failure("disk full", lambda: Unavailable("injected: the journal's disk is full")),
)


@define(eq=False)
class Spy:
    """Sees every call of a backend's method: what it does wrong by itself, and where it can be made to fail."""

    wrong: list[str] = field(factory=list)
    reached: list[Point] = field(factory=list)
    events: dict[tuple[str, int], int] = field(factory=dict)
    count_events: bool = False
    fired: bool = False
    _armed: tuple[Point, Callable[[], None]] | None = None
    _counts: dict[str, int] = field(factory=dict)
    _lock: Any = field(factory=threading.RLock)

    def begin(self, point: Point | None = None, act: Callable[[], None] = lambda: None) -> None:
        """Count from here on, and `act` once at `point`."""
        self._counts, self.reached, self.events, self.fired = {}, [], {}, False
        self._armed = (point, act) if point else None

    def next(self, place: str) -> int:
        """The number of this call of `place`, from 1."""
        with self._lock:
            self._counts[place] = number = self._counts.get(place, 0) + 1
        return number

    def at(self, point: Point) -> None:
        """Here we are: act where that is armed."""
        self.reached.append(point)
        with self._lock:
            armed = self._armed
            if armed is None or armed[0] != point:
                return
            self._armed, self.fired = None, True
        armed[1]()

    def call(self, name: str, method: Callable[[Any], Any], request: Any) -> Any:
        """`method(request)`, watched."""
        number = self.next(name)
        self.at(Point(name, number))
        armed = self._armed
        inside = (
            armed is not None
            and isinstance(armed[0].when, int)
            and (armed[0].place, armed[0].number) == (name, number)
        )
        try:
            if inside or self.count_events:
                with self._events(name, number):
                    result = method(request)
            else:
                result = method(request)
        except (VolkitError, Killed):
            raise
        except Exception as error:
            if not self.fired:
                self.wrong.append(
                    f"{name} raised {type(error).__name__} ({error}): raise an error of volkit.errors"
                )
            raise
        self._judge(name, result)
        self.at(Point(name, number, "after"))
        return result

    def _judge(self, name: str, result: Any) -> None:
        allowed = METHODS[name]
        if not isinstance(result, allowed):
            expected = " or ".join(one.__name__ for one in allowed).replace("NoneType", "None")
            self.wrong.append(f"{name} returned a {type(result).__name__}: return {expected}")
        elif isinstance(result, requests.Page):
            entry = model.Volume if name == "list_volumes" else model.Snapshot
            for one in result.entries:
                if not isinstance(one, entry):
                    self.wrong.append(f"{name} lists a {type(one).__name__}: list {entry.__name__}s")

    @contextmanager
    def _events(self, name: str, number: int) -> Iterator[None]:
        """Count the C functions that are called in here, and act at the one that is armed."""
        count = 0

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal count
            if frame.f_globals.get("__name__") in _APART:
                return
            if event in ("c_call", "c_return") and getattr(arg, "__name__", "") not in _QUIET:
                count += 1
                self.at(Point(name, number, count))

        before = sys.getprofile()
        length = len(self.reached)
        collecting = gc.isenabled()
        gc.disable()  # or an exception ends up in the finaliser of somebody else's object
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            if collecting:
                gc.enable()
            self.events[name, number] = count
            self.reached[length:] = [one for one in self.reached[length:] if isinstance(one.when, str)]


def watched(backend: type[Backend[Any, Any]], spy: Spy) -> type[Backend[Any, Any]]:
    """The same backend, with `spy` around every method of its controller and its node."""

    def controller_class(cls: type, settings: Any) -> type | None:
        return _watched_class(backend.controller_class(settings), spy)

    body: dict[str, Any] = {
        "controller_class": classmethod(controller_class),
        "node": _watched_class(backend.node, spy),
        "__module__": backend.__module__,
    }
    make: Any = type(backend)
    made: type[Backend[Any, Any]] = make(backend.__name__, (backend,), body)
    return made


def _watched_class(cls: type | None, spy: Spy) -> type | None:
    if cls is None:
        return None
    body = {name: _watched_method(cls, name, spy) for name in METHODS if hasattr(cls, name)}
    make: Any = type(cls)
    made: type = make(cls.__name__, (cls,), {**body, "__module__": cls.__module__})
    return made


def _watched_method(cls: type, name: str, spy: Spy) -> Callable[[Any, Any], Any]:
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self: Any, request: Any) -> Any:
        return spy.call(name, functools.partial(original, self), request)

    return method


class Volatile(MemoryJournal):
    """A journal in memory that forgets, when the power is cut, what was written after its last durable write."""

    def __init__(self) -> None:
        super().__init__()
        self._synced: dict[str, tuple[str, int]] = {}

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        super().write(*changes, durable=durable)
        if durable:
            with self._lock:
                self._synced = dict(self._records)

    def cut_power(self) -> None:
        with self._lock:
            self._records = dict(self._synced)

    def sync(self) -> None:
        """As time does."""
        with self._lock:
            self._synced = dict(self._records)


def watch(inner: Journal, spy: Spy) -> WatchedJournal:
    """`inner` with its writes as points of a spy; shared where it is."""
    return (
        WatchedSharedJournal(inner, spy) if isinstance(inner, SharedJournal) else WatchedJournal(inner, spy)
    )


class WatchedJournal(Journal):
    """A journal whose writes are points of a spy. Closing leaves `inner` open: it outlives its process."""

    def __init__(self, inner: Journal, spy: Spy) -> None:
        self.inner = inner
        self._spy = spy

    def get(self, key: str) -> Entry | None:
        return self.inner.get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        return self.inner.scan(prefix, after=after, limit=limit)

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        number = self._spy.next("journal")
        self._spy.at(Point("journal", number))
        self.inner.write(*changes, durable=durable)
        self._spy.at(Point("journal", number, "after"))

    def close(self) -> None:
        """Nothing: the next process goes on with it."""

    def fence(self) -> None:
        self.inner.fence()


class WatchedSharedJournal(WatchedJournal, SharedJournal):
    """The same of a journal that has leases."""

    def lease(self, key: str, *, wait: float) -> Lease | None:
        assert isinstance(self.inner, SharedJournal)
        return self.inner.lease(key, wait=wait)


# -- a process that is really killed


_SYSTEM = frozenset({"posix", "fcntl", "sqlite3", "_sqlite3", "_posixsubprocess", "shutil"})


def in_child(work: Callable[[], Any], *, kill_at: int = 0, seconds: float = 60.0) -> tuple[int, bool]:
    """Run `work` in a child process; SIGKILL it at its `kill_at`-th system call (0: never).

    Returns how many system calls it began or ended, and whether it was killed. Its errors of volkit are its
    own affair. Raises TimeoutError where it takes longer than `seconds`.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads: the child starts afresh
        pid = os.fork()
    if pid == 0:
        _child(work, kill_at, seconds, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise TimeoutError(f"the child process did not end in {seconds:.0f} s")
    if os.WIFSIGNALED(status):
        return kill_at, True
    count, error = pickle.loads(answer)
    if error:
        raise RuntimeError(f"in the child process: {error}")
    return int(count), False


def _child(work: Callable[[], Any], kill_at: int, seconds: float, writer: int) -> None:
    count, error = 0, ""
    gc.disable()  # it would copy all the memory that is shared with the parent

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        if event in ("c_call", "c_return"):
            module = getattr(arg, "__module__", None) or type(getattr(arg, "__self__", None)).__module__
            if module not in _SYSTEM:
                return
        elif event not in ("call", "return") or frame.f_globals.get("__name__") != "volkit.host._syscalls":
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    except Ambiguous:
        pass
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        os.write(writer, pickle.dumps((count, error)))
        os._exit(0)
