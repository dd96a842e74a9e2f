"""What records look like, and what becomes of one that cannot be read: it is moved aside, under
`quarantine/<its key>`, where `volkit journal` shows it, and the rest goes on without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from volkit.journal.base import Conflict, Delete, Entry, Put, key

if TYPE_CHECKING:
    from volkit.journal.base import Journal

QUARANTINE = "quarantine"

_log = logging.getLogger("volkit.journal")

_ACCESS = ("parameters", "access")
_CUT = ("source", "parameters")


def read(journal: Journal, record_key: str, text: str | bytes, revision: int) -> Entry | None:
    """The stored record, or None where it cannot be read and was moved to the quarantine now. What is not UTF-8 in its
    key is surrogates there (`surrogateescape`), as the journal gives and takes it.

    Raises Unavailable where it could not be moved.
    """
    value: Any = None
    try:
        record_key.encode()
        value = json.loads(text if isinstance(text, str) else text.decode())
        why = fault(record_key, value)
    except UnicodeError:
        why = "not UTF-8"
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}"
    if not why:
        return Entry(record_key, value, revision)
    _log.error("record %a cannot be read (%s): moved to the quarantine", record_key, why)
    shown = text if isinstance(text, str) else text.decode(errors="backslashreplace")
    kept = {"text": shown, "why": why, "since": time.time()}
    aside = key(QUARANTINE, record_key.encode(errors="backslashreplace").decode())
    try:
        journal.write(Put(aside, kept), Delete(record_key, revision=revision))
    except Conflict:  # somebody else moved it, or wrote a good one
        _log.info("record %a was changed meanwhile", record_key)
    return None


def quarantined(journal: Journal, prefix: str) -> list[str]:
    """The keys that begin with `prefix` of the records in the quarantine."""
    return [unquoted(entry.key) for entry in journal.scan(key(QUARANTINE, prefix))]


def unquoted(quarantine_key: str) -> str:
    """The key that a record in the quarantine had."""
    return parts(quarantine_key)[1]


def parts(record_key: str) -> list[str]:
    """The parts that `key` made a record's key of."""
    return [part.replace("%2F", "/").replace("%25", "%") for part in record_key.split("/")]


def fault(record_key: str, value: Any) -> str:
    """Why this is not what a record of its kind looks like; "" where it is, or nobody knows its kind."""
    if not isinstance(value, dict):
        return "not an object"
    kind, _, rest = record_key.partition("/")
    check = _KINDS.get(kind) if rest else None
    return check(value) if check else ""


def _wrong(value: Mapping[str, Any], **types: type | tuple[type, ...]) -> str:
    for name, wanted in types.items():
        if not isinstance(value.get(name), wanted):
            return f"{name!r} is {value.get(name)!r}"
    return ""


_NONE = type(None)


def _name(asked: tuple[str, ...]) -> Callable[[Mapping[str, Any]], str]:
    def check(value: Mapping[str, Any]) -> str:
        if value.get("id"):
            return _wrong(value, id=str)
        return _request(value, asked) if value.get("state") == "creating" else "neither an id nor a state"

    return check


def _made(asked: tuple[str, ...]) -> Callable[[Mapping[str, Any]], str]:
    def check(value: Mapping[str, Any]) -> str:
        if value.get("state") not in (None, "deleting"):
            return f"'state' is {value['state']!r}"
        return _wrong(value, name=(str, _NONE)) or _request(value, asked)

    return check


def _request(value: Mapping[str, Any], asked: tuple[str, ...]) -> str:
    request = value.get("request")
    if request is None:
        return ""
    if not isinstance(request, dict) or any(name not in request for name in asked):
        return "'request' is of another shape"
    return _wrong(request, parameters=dict)


def _capability(value: Mapping[str, Any]) -> str:
    capability = value.get("capability")
    good = isinstance(capability, list) and len(capability) == 4
    return "" if good and all(isinstance(one, str) for one in capability or ()) else "'capability' is wrong"


def _connection(value: Mapping[str, Any]) -> str:
    connection = value.get("connection")
    if connection is None:
        return ""
    if not isinstance(connection, dict):
        return "'connection' is no object"
    if connection.get("kind") == "block":
        return _wrong(connection, device=str, identity=dict)
    if connection.get("kind") == "file":
        return _wrong(connection, source=str, fs_type=str, directory=str)
    if connection.get("kind") == "fuse":
        return _wrong(connection, argv=list, environment=dict, source=str, fs_type=str, directory=str)
    return f"the kind of 'connection' is {connection.get('kind')!r}"


def _stage(value: Mapping[str, Any]) -> str:
    if value.get("state") not in ("connecting", "connected"):
        return f"'state' is {value.get('state')!r}"
    if value["state"] == "connected" and not value.get("connection"):
        return "'connection' is missing"
    return (
        _wrong(value, path=str, format=(str, _NONE), fs_type=(str, _NONE))
        or _capability(value)
        or _connection(value)
    )


def _target(value: Mapping[str, Any]) -> str:
    if value.get("state") not in (None, "cancelled", "unpublishing"):
        return f"'state' is {value['state']!r}"
    return (
        _wrong(value, path=str, readonly=bool, staging=str, user=(dict, _NONE))
        or _capability(value)
        or _connection(value)
    )


def _attach(value: Mapping[str, Any]) -> str:
    return _wrong(value, node=str, readonly=bool, context=(dict, _NONE)) or _capability(value)


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "volume-name": _name(_ACCESS),
    "volume": _made(_ACCESS),
    "snapshot-name": _name(_CUT),
    "snapshot": _made(_CUT),
    "stage": _stage,
    "target": _target,
    "attach": _attach,
}
