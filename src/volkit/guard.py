"""The one way into a vendor's code: what comes out is a value of the promised type or an error of
`volkit.errors`.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import attrs

from volkit.errors import Unavailable, VolkitError
from volkit.model import Secrets

T = TypeVar("T")

_log = logging.getLogger("volkit.backend")


def redact(text: str, *secrets: str) -> str:
    """`text` with each of `secrets` replaced, also as they look in a repr, a JSON text or a URL; short ones too,
    since a short password is one.
    """
    spellings = {spelling for secret in filter(None, secrets) for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text


def _spellings(secret: str) -> tuple[str, ...]:
    return (
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
    )


def secrets_of(request: object) -> tuple[str, ...]:
    """Every secret value that a request carries: its secrets, the parameters declared secret, and the longer
    values in its mount flags (`password=…`).
    """
    secrets = getattr(request, "secrets", None)
    values = list(secrets.values()) if isinstance(secrets, Secrets) else []
    capabilities = (getattr(request, "capability", None), *getattr(request, "capabilities", ()))
    for capability in filter(None, capabilities):
        values += [value for flag in capability.mount_flags if len(value := flag.partition("=")[2]) > 3]
    return (*values, *_declared_secret(getattr(request, "parameters", None)))


def _declared_secret(options: Any) -> Iterator[str]:
    """The values of an instance of `Settings` or `Parameters` that its class declares to be secret."""
    for one in attrs.fields(type(options)) if attrs.has(type(options)) else ():
        if one.metadata.get("volkit", {}).get("secret"):
            yield str(getattr(options, one.name))


def call_backend(method: Callable[[Any], T], request: object, expected: type | tuple[type, ...]) -> T:
    """`method(request)`. The backend's own errors pass, with secrets masked; anything else it raises, or a
    result of another type, is logged and becomes Unavailable: what happened is not known, so the caller must
    look or repeat.
    """
    name = getattr(method, "__qualname__", repr(method))
    try:
        result = method(request)
    except VolkitError as error:
        secrets = _secrets_around(method, request)
        trace = "".join(traceback.format_exception(error)) if secrets else ""
        if redact(trace, *secrets) != trace:  # in its text, a note, or an error that caused it
            plain = next(base for base in type(error).__mro__ if base.__module__ == VolkitError.__module__)
            raise plain(redact(str(error), *secrets)) from None
        raise
    except Exception as error:
        trace = redact("".join(traceback.format_exception(error)), *_secrets_around(method, request))
        _log.error("%s failed unexpectedly\n%s", name, trace)
        raise Unavailable(
            f"{name} failed unexpectedly ({type(error).__name__}): see the driver's log"
        ) from None
    if not isinstance(result, expected):
        _log.error("%s returned %s, not %s", name, type(result).__name__, expected)
        raise Unavailable(
            f"{name} returned a {type(result).__name__}: a fault of the backend, see the driver's log"
        )
    return result


def _secrets_around(method: object, request: object) -> tuple[str, ...]:
    """The secrets that a method could have told: those of the request, and those of its driver's settings."""
    settings = getattr(getattr(method, "__self__", None), "settings", None)
    return tuple(filter(None, (*secrets_of(request), *_declared_secret(settings))))
