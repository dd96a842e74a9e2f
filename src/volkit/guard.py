"""The one way into a vendor's code: what comes out is a value of the promised type or an error of
`volkit.errors`.
"""

from __future__ import annotations

import enum
import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import attrs

from volkit.errors import Unavailable, VolkitError
from volkit.model import FileConnection, Secrets
from volkit.redaction import flag_secrets, redact

T = TypeVar("T")

_log = logging.getLogger("volkit.backend")

_known: ContextVar[tuple[str, ...]] = ContextVar("secrets", default=())


def secrets_in_use() -> tuple[str, ...]:
    """The secrets of the backend calls that this thread is in, for whoever writes a log meanwhile."""
    return _known.get()


@contextmanager
def hiding(*secrets: str) -> Iterator[None]:
    """In here these are told by nobody, also by a backend's method whose own request does not carry them."""
    known = _known.set((*_known.get(), *filter(None, secrets)))
    try:
        yield
    finally:
        _known.reset(known)


def secrets_of(request: object) -> tuple[str, ...]:
    """Every secret value that a request carries: its secrets, the parameters declared secret, and the values in
    mount flags and options (`password=…`).
    """
    secrets = getattr(request, "secrets", None)
    values = list(secrets.values()) if isinstance(secrets, Secrets) else []
    capabilities = (getattr(request, "capability", None), *getattr(request, "capabilities", ()))
    for capability in filter(None, capabilities):
        values += flag_secrets(capability.mount_flags)
    connection = getattr(request, "connection", None)
    if isinstance(connection, FileConnection):
        values += flag_secrets(connection.options)
    return (*values, *declared_secrets(getattr(request, "parameters", None)))


def declared_secrets(options: Any) -> Iterator[str]:
    """The values, as text, of an instance of `Settings` or `Parameters` that its class declares to be secret."""
    for one in attrs.fields(type(options)) if attrs.has(type(options)) else ():
        if one.metadata.get("volkit", {}).get("secret"):
            yield from texts(getattr(options, one.name))


def texts(value: Any) -> Iterator[str]:
    """The texts in an option's value that can be secret: each of a list; none of a switch or of what is not set."""
    if isinstance(value, tuple | list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, enum.Enum):
        yield str(value.value)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def call_backend(
    method: Callable[[Any], T], request: object, expected: type | tuple[type, ...], *secrets: str
) -> T:
    """`method(request)`. The backend's own errors pass, with secrets masked; anything else it raises, or a
    result of another type, is logged and becomes Unavailable: what happened is not known, so the caller must
    look or repeat. `secrets` are those that the request does not declare itself.
    """
    name = getattr(method, "__qualname__", type(method).__name__)
    hidden = tuple(filter(None, (*secrets, *_known.get(), *_secrets_around(method, request))))
    known = _known.set((*_known.get(), *hidden))
    result: Any = None
    failure: VolkitError | None = None
    try:
        result = method(request)
    except (Exception, SystemExit) as error:  # a library's sys.exit() ends no driver
        failure = _harmless(error, name, hidden)
    finally:
        _known.reset(known)
    if failure is not None:
        raise failure  # here, and not where it was caught: nothing that tells a secret is chained to it
    if not isinstance(result, expected):
        _log.error("%s returned %s, not %s", name, type(result).__name__, expected)
        raise Unavailable(
            f"{name} returned a {type(result).__name__}: a fault of the backend, see the driver's log"
        )
    return cast("T", result)


def _harmless(error: BaseException, name: str, secrets: tuple[str, ...]) -> VolkitError:
    """What may be raised for an error of the backend: itself, or one that tells no secret."""
    if not isinstance(error, VolkitError):
        _log.error("%s failed unexpectedly\n%s", name, redact(_trace(error), *secrets))
        return Unavailable(f"{name} failed unexpectedly ({type(error).__name__}): see the driver's log")
    try:
        text = str(error)
    except Exception:  # of an error that cannot say what it is
        text = f"{name} failed ({type(error).__name__}, without a text)"
    else:
        told = "\n".join((_trace(error), *_hidden_parts(error))) if secrets else ""
        if redact(told, *secrets) == told:  # nothing in its text, a note, or an error behind it
            return error
    plain: type[VolkitError] = next(
        base for base in type(error).__mro__ if base.__module__ == VolkitError.__module__
    )
    return plain(redact(text, *secrets))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _hidden_parts(error: BaseException) -> Iterator[str]:
    """What a trace may leave out of an error and of those behind it, and `repr`, a debugger or a crash reporter shows:
    arguments, and notes of a context that is suppressed.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        for tell, value in ((repr, one.args), (str, one)):
            with suppress(Exception):  # of an error, or an argument, that cannot say what it is
                yield tell(value)
        yield from map(str, getattr(one, "__notes__", ()))


def _secrets_around(method: object, request: object) -> tuple[str, ...]:
    """The secrets that a method could have told: those of the request, and those of its driver's settings."""
    if isinstance(method, functools.partial):
        method = method.func
    settings = getattr(getattr(method, "__self__", None), "settings", None)
    return (*secrets_of(request), *declared_secrets(settings))
