"""What can go wrong, in words that know no wire.

A vendor raises one of these, or a subclass of one; every adapter maps them to its own codes along the class's
MRO.

```text
VolkitError
├── InvalidArgument        the request is wrong by itself                      never retried as it is
│   └── UnsupportedVolume  a well-formed request this volume can never satisfy
├── NotFound               the volume, snapshot, node or path is not there
├── AlreadyExists          it is there, and is not what was asked for
├── FailedPrecondition     right request, wrong moment or state
│   ├── InUse              still attached, mounted, or a source of something
│   └── NotBlank           a file system would have to be made over something
├── ResourceExhausted      no room, no slot, quota reached
├── OutOfRange             a size or an offset that cannot be had
├── Unauthenticated        credentials missing or wrong
├── PermissionDenied       credentials right, not allowed
├── Unsupported            the backend has no such capability (raised by the engine alone)
└── Ambiguous              it may have happened, may still happen: the caller must repeat the call
    ├── Aborted            another operation holds the volume
    │   └── InvalidToken   a paging token that is not (or no longer) known: start again
    ├── Unavailable        the storage, the node or the journal is away
    └── DeadlineExceeded   no answer in time
```

The split that matters is `Ambiguous` against the rest. An orchestrator takes the rest as final: the
Kubernetes provisioner forgets a volume after INTERNAL or UNKNOWN, and so leaks it when the create went
through after all (external-provisioner, `checkError`). An exception that is none of these, raised by a
backend, is therefore turned by the engine into `Unavailable` after it looked at what really happened.

The text of an error is read by users and lands in events and logs: never put a secret in it.
"""

from __future__ import annotations


class VolkitError(Exception):
    """The root of all errors that volkit and its backends raise on purpose. `str(error)` is one helpful
    sentence.
    """

    @property
    def message(self) -> str:
        """The text for the caller, on one line."""
        return " ".join(str(self).split()) or type(self).__name__


class InvalidArgument(VolkitError):
    """A field is missing, malformed or contradicts another one; names the field, the value and what is
    allowed.
    """


class UnsupportedVolume(InvalidArgument):
    """Well-formed, but beyond what this volume or its kind can do, such as to mount an object volume as a raw
    block device.

    Expand answers this as an invalid argument, stage and publish as a failed precondition (CSI spec, "exceeds
    capabilities").
    """


class NotFound(VolkitError):
    """The named volume, snapshot, node or path does not exist."""


class AlreadyExists(VolkitError):
    """The thing asked for exists and is incompatible with the request; says in which field."""


class FailedPrecondition(VolkitError):
    """The request is right but the state is not; says what to do first."""


class InUse(FailedPrecondition):
    """Refused because it is attached, mounted or the source of something else; says by what."""


class NotBlank(FailedPrecondition):
    """A device that should be blank is not, or could not be read to prove it; nothing was written."""


class ResourceExhausted(VolkitError):
    """No space, no free slot, or a quota is reached."""


class OutOfRange(VolkitError):
    """The size (or the place) asked for cannot be provided."""


class Unauthenticated(VolkitError):
    """The storage does not accept the credentials."""


class PermissionDenied(VolkitError):
    """The credentials are good and do not allow this."""


class Unsupported(VolkitError):
    """The backend's class does not have the capability. Only the engine raises it: a backend leaves the mixin
    away.
    """


class Ambiguous(VolkitError):
    """It is not known whether it happened. The same call, repeated, finishes it."""


class Aborted(Ambiguous):
    """Another operation on the same volume is under way; repeat the call a little later."""


class InvalidToken(Aborted):
    """A paging token that this listing does not know; begin again without one (CSI spec, ListVolumes:
    ABORTED).
    """


class Unavailable(Ambiguous):
    """The storage or a part of the way to it is away, or its reply was lost."""


class DeadlineExceeded(Ambiguous):
    """No answer in time; the work may still be going on."""


def quoted(value: object, limit: int = 64) -> str:
    """A value as the text of an error shows it: on one line, and cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):  # never cut within an escape
        return repr(value) if len(value) <= limit else f"{value[:limit]!r}…"
    text = repr(value)
    return text if len(text) <= 8 * limit else f"{text[: 8 * limit]}…"


def error_of_status(status: int) -> type[VolkitError]:
    """The class that a storage's answer over HTTP stands for, where its status is all that it says (RFC 9110, 15).

    Unavailable for a status that tells nothing, so that the call is repeated.
    """
    return _OF_STATUS.get(status, Unavailable)


_OF_STATUS: dict[int, type[VolkitError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: FailedPrecondition,
    409: FailedPrecondition,
    412: FailedPrecondition,
    501: FailedPrecondition,
    507: ResourceExhausted,
}

ERRORS: tuple[type[VolkitError], ...] = (
    VolkitError,
    InvalidArgument,
    UnsupportedVolume,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    InUse,
    NotBlank,
    ResourceExhausted,
    OutOfRange,
    Unauthenticated,
    PermissionDenied,
    Unsupported,
    Ambiguous,
    Aborted,
    InvalidToken,
    Unavailable,
    DeadlineExceeded,
)
"""Every class above: an adapter's table must answer for each."""
