"""The one way into a vendor's code: what comes out is a value of the promised type or an error of
`volkit.errors`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from volkit.errors import Unavailable, VolkitError
from volkit.model import Secrets

T = TypeVar("T")

_log = logging.getLogger("volkit.backend")


def redact(text: str, *secrets: str) -> str:
    """`text` with each of `secrets` replaced; short ones too, since a short password is one."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def secrets_of(request: object) -> tuple[str, ...]:
    """Every secret value that a request carries: its secrets, and the longer values in its mount flags
    (`password=…`).
    """
    secrets = getattr(request, "secrets", None)
    values = list(secrets.values()) if isinstance(secrets, Secrets) else []
    capabilities = (getattr(request, "capability", None), *getattr(request, "capabilities", ()))
    for capability in filter(None, capabilities):
        values += [value for flag in capability.mount_flags if len(value := flag.partition("=")[2]) > 3]
    return tuple(values)


def call_backend(method: Callable[[Any], T], request: object, expected: type | tuple[type, ...]) -> T:
    """`method(request)`. The backend's own errors pass, with secrets masked; anything else it raises, or a
    result of another type, is logged and becomes Unavailable: what happened is not known, so the caller must
    look or repeat.
    """
    name = getattr(method, "__qualname__", repr(method))
    secrets = secrets_of(request)
    try:
        result = method(request)
    except VolkitError as error:
        if any(secret in str(error) for secret in secrets):
            plain = next(base for base in type(error).__mro__ if base.__module__ == VolkitError.__module__)
            raise plain(redact(str(error), *secrets)) from None
        raise
    except Exception as error:
        trace = redact("".join(traceback.format_exception(error)), *secrets)
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
