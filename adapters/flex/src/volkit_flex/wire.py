"""The wire: what kubelet and the controller manager call, with which arguments, and what they are answered.

From Kubernetes' pkg/volume/flexvolume and a recording of a live kubelet 1.36, where the documents say otherwise. An
answer is one JSON object on stdout; the caller reads stderr with it, so nothing else is ever written. Imported by each
call: it needs nothing but `json`, and that only where there is some.
"""

from __future__ import annotations

from volkit import InvalidArgument, VolkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

    Answer = dict[str, Any]

SUCCESS: Final = "Success"
FAILURE: Final = "Failure"
NOT_SUPPORTED: Final = "Not supported"
"""Kubelet remembers it, and does not call again: only for what the driver never does."""

CALLS: Final[Mapping[str, tuple[str, ...]]] = {
    "init": (),
    "getvolumename": ("options",),
    "attach": ("options", "node"),
    "waitforattach": ("device", "options"),
    "isattached": ("options", "node"),
    "detach": ("name", "node"),  # the PV's name: what getvolumename answers is thrown away
    "mountdevice": ("path", "device", "options"),
    "unmountdevice": ("path",),
    "mount": ("path", "options"),
    "unmount": ("path",),
    "expandvolume": ("options", "path", "new_size", "old_size"),
    "expandfs": ("options", "device", "path", "new_size", "old_size"),
}
"""Every call-out and its arguments."""

ATTACHING: Final = frozenset(
    {"attach", "waitforattach", "isattached", "detach", "mountdevice", "unmountdevice"}
)
"""Called only of a driver whose `init` says `attach: true`."""

GROWING: Final = frozenset({"expandvolume", "expandfs"})
"""Done only where the backend's volumes grow."""

_KUBERNETES = "kubernetes.io/"
NAME: Final = f"{_KUBERNETES}pvOrVolumeName"
POD_UID: Final = f"{_KUBERNETES}pod.uid"
EXPLICIT: Final = ("volume", "volumeId", "volumeID", "volumeName", "volumeHandle", "id")
"""The options that name the volume, in the order in which they are looked for."""

_SHOWN = 64
_MAX_PATH = 4095


class Callout:
    """One call with its arguments read; those that it does not have are empty."""

    __slots__ = ("device", "name", "new_size", "node", "old_size", "operation", "options", "path")

    def __init__(self, operation: str, arguments: Mapping[str, Any]) -> None:
        self.operation: str = operation
        self.options: dict[str, str] = arguments.get("options", {})
        self.path: str = arguments.get("path", "")
        self.device: str = arguments.get("device", "")
        self.node: str = arguments.get("node", "")
        self.name: str = arguments.get("name", "")
        self.new_size: int = arguments.get("new_size", 0)
        self.old_size: int = arguments.get("old_size", 0)


def read(words: Sequence[str]) -> Callout:
    """The call that a command line makes. Raises InvalidArgument: one sentence, with no value that may be secret."""
    if not words:
        raise InvalidArgument(f"no call given: it is one of {', '.join(CALLS)}")
    operation, given = words[0], list(words[1:])
    fields = CALLS.get(operation)
    if fields is None:
        raise InvalidArgument(f"unknown call {operation[:_SHOWN]!r}: it is one of {', '.join(CALLS)}")
    if len(given) != len(fields):
        usage = " ".join((operation, *(field.upper() for field in fields)))
        raise InvalidArgument(f"{operation} takes {len(fields)} arguments and got {len(given)}: {usage}")
    if operation == "isattached" and given[1].lstrip().startswith("{"):
        given.reverse()  # Kubernetes before 1.7
    return Callout(
        operation, {field: _READERS[field](field, text) for field, text in zip(fields, given, strict=True)}
    )


def _text(field: str, text: str) -> str:
    if not text or "\0" in text:
        raise InvalidArgument(f"{field} is empty: give the {field}'s name")
    return _unicode(field, text)


def _unicode(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} is not valid UTF-8") from None
    return text


def _path(field: str, text: str) -> str:
    parts = text.split("/")
    if (
        not text.startswith("/")
        or "\0" in text
        or ".." in parts
        or not any(part not in ("", ".") for part in parts)
    ):
        raise InvalidArgument(f"{field} {text[:_SHOWN]!r} is not an absolute path without '..'")
    if len(_unicode(field, text).encode()) > _MAX_PATH:
        raise InvalidArgument(f"{field} has more than {_MAX_PATH} bytes")
    return text


def _number(field: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise InvalidArgument(f"{field} {text[:_SHOWN]!r} is not a number of bytes")
    return int(text)


def _size(field: str, text: str) -> int:
    if not (size := _number(field, text)):
        raise InvalidArgument(f"{field} is 0: say how many bytes the volume is to have")
    return size


def _options(field: str, text: str) -> dict[str, str]:
    import json

    try:
        found = json.loads(text)
    except ValueError as error:  # its text would repeat the options, which may hold secrets
        where = getattr(error, "pos", 0)
        raise InvalidArgument(
            f"{field} is not JSON: it breaks off or goes wrong at character {where}"
        ) from None
    except RecursionError:
        raise InvalidArgument(f"{field} is not a JSON object of texts") from None
    if found is None:  # Go's empty map
        return {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"{field} is a JSON {_sort(found)}: give an object of texts")
    for key, value in found.items():
        if not isinstance(value, str):
            raise InvalidArgument(
                f"option {key[:_SHOWN]!r} is a {_sort(value)}: FlexVolume options are texts, quote it"
            )
        if "\0" in value or "\0" in key or not key:
            raise InvalidArgument(f"option {key[:_SHOWN]!r} has a NUL character, or no name")
        _unicode(f"option {key[:_SHOWN]!r}", key + value)
    return found


def _sort(value: object) -> str:
    names = {dict: "object", list: "list", bool: "truth value", int: "number", float: "number", str: "text"}
    return names.get(type(value), "null")


_READERS = {
    "options": _options,
    "path": _path,
    "device": _unicode,
    "node": _text,
    "name": _text,
    "new_size": _size,
    "old_size": _number,
}


def identity(options: Mapping[str, str], *, inline: bool = False) -> str:
    """What the volume is called. An explicit option, else the PV's name; for an inline volume (`inline`: it may be
    one) the pod's uid and its own name for it, since pods of different namespaces use the same names.

    Raises InvalidArgument where nothing names it.
    """
    for key in EXPLICIT:
        if options.get(key):
            return options[key]
    name = options.get(NAME, "")
    if not name:
        raise InvalidArgument(f"nothing names the volume: give the option {EXPLICIT[0]!r}")
    uid = options.get(POD_UID, "")
    return f"{uid}-{name}" if inline and uid and not _is_provisioned(name) else name


def _is_provisioned(name: str) -> bool:
    """Is it the name that a provisioner gives to a PV, `pvc-` and a claim's uid?"""
    return len(name) == 40 and name.startswith("pvc-") and name.count("-") == 5


def failure(error: BaseException) -> Answer:
    """What is answered for an error: one sentence."""
    if isinstance(error, VolkitError):
        return {"status": FAILURE, "message": error.message}
    return {"status": FAILURE, "message": f"the driver failed ({type(error).__name__}): see its log"}


def unsupported(operation: str) -> Answer:
    """What is answered for a call that this driver never does."""
    return {"status": NOT_SUPPORTED, "message": f"this driver does not {operation}"}


def encode(answer: Answer) -> bytes:
    """The answer as one line."""
    import json

    return json.dumps(answer, separators=(",", ":")).encode("ascii") + b"\n"


def exit_code(answer: Answer) -> int:
    """Kubelet takes a status and an exit code that contradict each other for a broken driver."""
    return 0 if answer["status"] == SUCCESS else 1


def quick(call: Callout) -> Answer | None:
    """The answer to what takes no backend; None for the rest."""
    if call.operation == "getvolumename":
        return {"status": SUCCESS, "volumeName": identity(call.options)}
    return None
