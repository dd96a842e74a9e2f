"""Faults on purpose: what fails, and where; a backend whose every call is watched, and can be made to fail before,
inside or after.
"""

from __future__ import annotations

import errno
import functools
import gc
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from attrs import define, field, frozen

from volkit import model, requests
from volkit.backend import Backend
from volkit.errors import DeadlineExceeded, ResourceExhausted, Unavailable, VolkitError

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


@frozen(kw_only=True)
class Failure:
    """What happens there. `final` is one after which the caller takes it that nothing was made; after one that
    `ends` the process is gone; what `lasts` is away until the next one is started. In a `power_cut` the machine is
    gone: what it had mounted, and the last `lost` records that were not durable (None: all of them).
    """

    name: str
    make: Callable[[], BaseException]
    final: bool = False
    ends: bool = False
    lasts: bool = False
    power_cut: bool = False
    lost: int | None = None


def _killed() -> Killed:
    return Killed("killed")


KILL = Failure(name="kill", make=_killed, ends=True)
POWER_CUT = Failure(name="power cut", make=_killed, ends=True, power_cut=True)
TORN_LOG = Failure(name="torn log", make=_killed, ends=True, power_cut=True, lost=1)
EXCEPTION = Failure(name="exception", make=lambda: RuntimeError("injected"))
AWAY = Failure(name="store away", make=lambda: Unavailable("injected: the store is away"), lasts=True)
FAILURES = (
    KILL,
    POWER_CUT,
    TORN_LOG,
    EXCEPTION,
    Failure(name="lost reply", make=lambda: Unavailable("injected: the reply is lost")),
    Failure(name="timeout", make=lambda: DeadlineExceeded("injected: no reply in time")),
    Failure(name="disk full", make=lambda: OSError(errno.ENOSPC, "injected: no space left")),
    AWAY,
    Failure(name="refusal", make=lambda: ResourceExhausted("injected: no room"), final=True),
)
"""At a call of the backend."""
JOURNAL_FAILURES = (
    KILL,
    POWER_CUT,
    TORN_LOG,
    Failure(name="disk full", make=lambda: Unavailable("injected: the journal's disk is full")),
    AWAY,
)
"""At a write of the journal."""
INSIDE_FAILURES = (KILL, EXCEPTION)
"""At an event inside a call of the backend."""


@define(eq=False)
class Spy:
    """Sees every call of a backend's method: what it does wrong by itself, and where it can be made to fail.

    `away` is "backend" or "journal" where that answers no call any more; `secrets` must not be told.
    """

    wrong: list[str] = field(factory=list)
    reached: list[Point] = field(factory=list)
    events: dict[tuple[str, int], int] = field(factory=dict)
    count_events: bool = False
    fired: bool = False
    away: str = ""
    secrets: tuple[str, ...] = ()
    _armed: tuple[Point, Callable[[], None]] | None = None
    _counts: dict[str, int] = field(factory=dict)
    _lock: Any = field(factory=threading.RLock)

    def begin(self, point: Point | None = None, act: Callable[[], None] = lambda: None) -> None:
        """Count from here on, and `act` once at `point`."""
        self._counts, self.reached, self.events, self.fired, self.away = {}, [], {}, False, ""
        self._armed = (point, act) if point else None

    def fail(self, point: Point, failure: Failure) -> None:
        """Count from here on, and have `failure` once at `point`, or from there on."""

        def act() -> None:
            if failure.lasts:
                self.away = "journal" if point.place == "journal" else "backend"
            raise failure.make()

        self.begin(point, act)

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
        if self.away == "backend":
            raise AWAY.make()
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
                result = self._counted(name, number, lambda: method(request))
            else:
                result = method(request)
        except Killed:
            raise
        except VolkitError as error:
            self.listen(f"the error of {name}", "".join(traceback.format_exception(error)))
            raise
        except (Exception, SystemExit) as error:
            if not self.fired:
                self.wrong.append(
                    f"{name} raised {type(error).__name__} ({error}): raise an error of volkit.errors"
                )
            raise
        self._judge(name, result)
        self.at(Point(name, number, "after"))
        return result

    def listen(self, what: str, text: str) -> None:
        """Is there a secret in it?"""
        if any(secret in text for secret in self.secrets):
            self.wrong.append(f"{what} tells a secret: leave it out")

    def _judge(self, name: str, result: Any) -> None:
        self.listen(f"the result of {name}", repr(result))
        allowed = METHODS[name]
        if not isinstance(result, allowed):
            expected = " or ".join(one.__name__ for one in allowed).replace("NoneType", "None")
            self.wrong.append(f"{name} returned a {type(result).__name__}: return {expected}")
        elif isinstance(result, requests.Page):
            entry = model.Volume if name == "list_volumes" else model.Snapshot
            for one in result.entries:
                if not isinstance(one, entry):
                    self.wrong.append(f"{name} lists a {type(one).__name__}: list {entry.__name__}s")

    def _counted(self, name: str, number: int, work: Callable[[], Any]) -> Any:
        """`work`, with the C functions counted that it calls, and what is armed done at one. No context manager: where
        contextlib is cut, what it has to end is kept by the exception.
        """
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
        try:
            gc.disable()  # or an exception ends up in the finaliser of somebody else's object
            sys.setprofile(profile)
            return work()
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

    def node_class(cls: type, settings: Any) -> type | None:
        return _watched_class(backend.node_class(settings), spy)

    body: dict[str, Any] = {
        "controller_class": classmethod(controller_class),
        "node_class": classmethod(node_class),
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
