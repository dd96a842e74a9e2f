"""The one place where every operation is seen to begin and to end: logs, metrics and traces are listeners of it.

```python
class Slow(Listener):
    def ended(self, event: Event) -> None:
        if event.seconds > 10:
            print(event.operation, event.volume, event.code)

engine.listen(Slow())
```

Without a listener the engine makes no event at all.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final

from attrs import define, field

from volkit.errors import ERRORS, VolkitError
from volkit.guard import secrets_of
from volkit.redaction import redact

OK: Final = "OK"
FAULT: Final = "FAULT"
"""The code of an exception that is no error of `volkit.errors`: a fault of volkit's own."""

_SUBJECTS: Final = ("volume_id", "name", "snapshot_id")
_PATHS: Final = ("target_path", "staging_target_path", "volume_path")

_log = logging.getLogger("volkit.engine")

# -- which call from outside it is ---------------------------------------------------------------------------

_request: ContextVar[str] = ContextVar("volkit-request", default="")
_process: Final = os.urandom(3).hex()
_number = itertools.count(1)


def request_id() -> str:
    """The id of the call from outside that this thread works on; "" where there is none."""
    return _request.get()


Headers = Callable[[], Mapping[str, str]]
_headers: ContextVar[Headers | None] = ContextVar("volkit-headers", default=None)


def headers() -> Mapping[str, str]:
    """What came with the call from outside besides its request, by names in small letters: `traceparent`, say."""
    found = _headers.get()
    return found() if found is not None else {}


class request:  # noqa: N801 (reads as a function)
    """For an adapter: what is done in here is one call from outside, known by `id` (default: a new one). `headers`
    gives what the wire carries besides; it is asked only by who wants it.
    """

    __slots__ = ("_headers", "_tokens", "id")

    def __init__(self, id: str = "", headers: Headers | None = None) -> None:
        self.id: str = id or _new_id()
        self._headers = headers

    def __enter__(self) -> str:
        self._tokens = _request.set(self.id), _headers.set(self._headers)
        return self.id

    def __exit__(self, *error: object) -> None:
        call, headers = self._tokens
        _request.reset(call)
        _headers.reset(headers)


def _new_id() -> str:
    return f"{_process}-{next(_number):x}"


# -- events --------------------------------------------------------------------------------------------------


@define(kw_only=True, eq=False)
class Event:
    """One operation. Until it has ended `code` is "".

    `subject` is what it is about as the caller named it (a volume or a snapshot, by id or by name), `volume` the
    id of the volume where that is known, `path` where on the node; `made` is the id of what a create made. `began`
    is in Unix seconds. `code` is OK, FAULT or the name of the error (NOT_FOUND, IN_USE …), one of `codes()`;
    `message` is what the error says, without secrets. `kept` is the listeners' own, by their names.
    """

    operation: str
    backend: str
    node: str
    request: str
    subject: str
    volume: str
    path: str
    began: float
    seconds: float = 0.0
    code: str = ""
    message: str = ""
    made: str = ""
    kept: dict[str, Any] = field(factory=dict)


class Listener:
    """What is told of operations, in the thread of each call's caller. It must not wait; an exception is logged."""

    def begun(self, event: Event) -> None:
        """An operation begins. Only what overrides it is called."""

    def ended(self, event: Event) -> None:
        """It has ended, or its caller's deadline has (DEADLINE_EXCEEDED: the work may go on)."""


def codes() -> tuple[str, ...]:
    """Every code that an event can end with."""
    return (OK, FAULT, *_CODES.values())


_CODES: Final = {
    one: re.sub("(?<!^)(?=[A-Z])", "_", one.__name__.removeprefix("Volkit")).upper() for one in ERRORS
}


def code_of(error: type[BaseException]) -> str:
    """The code of an error's class: the nearest of `volkit.errors`, in capitals (NOT_FOUND)."""
    return next((_CODES[one] for one in error.__mro__ if one in _CODES), FAULT)


class Telling:
    """The listeners of one engine, which is on `node` and serves `backend`."""

    def __init__(self, backend: str, node: str) -> None:
        self._backend = backend
        self._node = node
        self.listeners: tuple[Listener, ...] = ()
        self._begin: tuple[Listener, ...] = ()

    def listen(self, listener: Listener) -> None:
        self.listeners = (*self.listeners, listener)
        self._begin = tuple(one for one in self.listeners if type(one).begun is not Listener.begun)

    def begin(self, operation: str, subject: str, request: object) -> tuple[Event, Token[str] | None, float]:
        """What `end` is to be given."""
        known = _request.get()
        volume = getattr(request, "volume_id", "") or getattr(request, "source_volume_id", "")
        path = ""
        for name in _PATHS:
            if path := getattr(request, name, ""):
                break
        event = Event(
            operation=operation,
            backend=self._backend,
            node=self._node,
            request=known or _new_id(),
            subject=subject,
            volume=volume,
            path=path,
            began=time.time(),
        )
        token = None if known else _request.set(event.request)
        for listener in self._begin:
            _told(listener.begun, event)
        return event, token, time.monotonic()

    def end(
        self,
        begun: tuple[Event, Token[str] | None, float],
        request: object,
        result: object = None,
        error: BaseException | None = None,
    ) -> None:
        event, token, since = begun
        event.seconds = time.monotonic() - since
        if error is None:
            event.code = OK
            if event.operation in ("create_volume", "create_snapshot"):
                event.made = str(getattr(result, "id", ""))
                event.volume = event.volume or event.made
        else:
            event.code = code_of(type(error))
            text = error.message if isinstance(error, VolkitError) else type(error).__name__
            event.message = redact(text, *secrets_of(request))
        try:
            for listener in self.listeners:
                _told(listener.ended, event)
        finally:
            if token is not None:
                _request.reset(token)


def _told(tell: Any, event: Event) -> None:
    try:
        tell(event)
    except Exception as error:  # a listener's fault is no fault of the operation
        _log.error("a listener failed with %s", type(error).__name__, exc_info=True)


def subject_of(request: object) -> str:
    """What a request is about: a volume or a snapshot, by id or by name; "" for all of them."""
    for part in _SUBJECTS:
        if value := getattr(request, part, ""):
            return str(value)
    return ""


# -- a listener of the engine's own --------------------------------------------------------------------------


@define(eq=False)
class Sum:
    """What became of one operation since the start: how many ended well and badly, and their seconds."""

    ended: int = 0
    failed: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


class Tally(Listener):
    """Sums by operation, and the last operations, for `volkit top`."""

    def __init__(self, recent: int = 50) -> None:
        self._sums: dict[str, Sum] = {}
        self.recent: deque[Event] = deque(maxlen=recent)

    def ended(self, event: Event) -> None:
        one = self._sums.get(event.operation) or self._sums.setdefault(event.operation, Sum())
        one.ended += 1  # of two threads that count at the same moment one may be lost: it is for people
        one.failed += event.code != OK
        one.seconds += event.seconds
        one.slowest = max(one.slowest, event.seconds)
        self.recent.append(event)

    @property
    def sums(self) -> Mapping[str, Sum]:
        return dict(self._sums)
