"""The error table: what each of volkit's errors is on the wire, looked up along the class's MRO.

A vendor's own subclass so gets its parent's code. Nothing is ever INTERNAL or UNKNOWN (see `status`): an
error that says no more than that something failed is UNAVAILABLE, and the call is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import volkit
from volkit import VolkitError
from volkit_csi.status import Code

CODES: Final[Mapping[type[VolkitError], Code]] = MappingProxyType(
    {
        volkit.InvalidArgument: Code.INVALID_ARGUMENT,
        volkit.NotFound: Code.NOT_FOUND,
        volkit.AlreadyExists: Code.ALREADY_EXISTS,
        volkit.FailedPrecondition: Code.FAILED_PRECONDITION,
        volkit.ResourceExhausted: Code.RESOURCE_EXHAUSTED,
        volkit.OutOfRange: Code.OUT_OF_RANGE,
        volkit.Unauthenticated: Code.UNAUTHENTICATED,
        volkit.PermissionDenied: Code.PERMISSION_DENIED,
        volkit.Unsupported: Code.UNIMPLEMENTED,
        volkit.Aborted: Code.ABORTED,
        volkit.Unavailable: Code.UNAVAILABLE,
        volkit.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
        volkit.Ambiguous: Code.UNAVAILABLE,
        VolkitError: Code.UNAVAILABLE,
    }
)
"""The rule. UnsupportedVolume, InUse, NotBlank and InvalidToken have their parent's code."""

EXCEPTIONS: Final[Mapping[tuple[type[VolkitError], str], Code]] = MappingProxyType(
    {
        # CSI spec, "Exceeds capabilities": INVALID_ARGUMENT to expand, but to stage and publish this
        (volkit.UnsupportedVolume, "controller_publish"): Code.FAILED_PRECONDITION,
        (volkit.UnsupportedVolume, "node_stage"): Code.FAILED_PRECONDITION,
        (volkit.UnsupportedVolume, "node_publish"): Code.FAILED_PRECONDITION,
    }
)
"""Where one operation (a row of `volkit.OPERATIONS`) answers otherwise."""


def code_of(error: type[VolkitError], operation: str = "") -> Code:
    """The code of an error's class, raised by an operation."""
    for cls in error.__mro__:
        if issubclass(cls, VolkitError):
            if (code := EXCEPTIONS.get((cls, operation))) is not None:
                return code
            if (code := CODES.get(cls)) is not None:
                return code
    raise TypeError(f"{error!r} is not a VolkitError")
