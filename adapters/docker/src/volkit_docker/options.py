"""What `docker volume create -o key=value` may say: how large, how mounted, of what; the rest is the backend's."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

import volkit
from volkit import (
    Backend,
    CapacityRange,
    CloneSource,
    InvalidArgument,
    SnapshotSource,
    Source,
    parse_size,
)
from volkit.uses import Asked

_OWN = ("size", "fs-type", "mount-options", "readonly", "from-snapshot", "clone-of")
_SPELLED = {key: key for key in _OWN} | {
    "fsType": "fs-type",
    "fstype": "fs-type",
    "mountOptions": "mount-options",
    "o": "mount-options",
    "ro": "readonly",
}


@frozen(kw_only=True)
class Wanted:
    """A volume as its creator wants it. `parameters` are the backend's own, as they were given."""

    capacity: CapacityRange
    source: Source | None
    asked: Asked
    parameters: Mapping[str, str]


def read(given: Mapping[str, str], backend: type[Backend]) -> Wanted:  # type: ignore[type-arg]
    """Raises InvalidArgument for an option that nobody knows, with those that somebody does, and for a bad value."""
    own: dict[str, str] = {}
    parameters: dict[str, str] = {}
    theirs = {spelling for one in volkit.options.declared(backend.parameters) for spelling in one.spellings}
    for key, value in given.items():
        name = _SPELLED.get(key)
        if key in theirs or name is None:
            parameters[key] = value
        elif name in own:
            raise InvalidArgument(f"option {name!r} is given twice")
        else:
            own[name] = value
    if unknown := sorted(parameters.keys() - theirs):
        known = ", ".join([*_OWN, *sorted(one.key for one in volkit.options.declared(backend.parameters))])
        raise InvalidArgument(f"unknown option {unknown[0]!r}: valid are {known}")
    if own.get("from-snapshot") and own.get("clone-of"):
        raise InvalidArgument(
            "a volume is made from a snapshot or from a volume: give from-snapshot or clone-of"
        )
    flags = tuple(filter(None, own.get("mount-options", "").split(",")))
    return Wanted(
        capacity=CapacityRange(required=parse_size(own["size"]) if own.get("size") else 0),
        source=_source(own),
        asked=Asked(
            fs_type=own.get("fs-type", ""),
            mount_flags=tuple(flag for flag in flags if flag not in ("ro", "rw")),
            readonly=_switch(own["readonly"]) if "readonly" in own else "ro" in flags,
        ),
        parameters=parameters,
    )


def _source(own: Mapping[str, str]) -> Source | None:
    if snapshot := own.get("from-snapshot"):
        return SnapshotSource(snapshot)
    return CloneSource(volume) if (volume := own.get("clone-of")) else None


def _switch(text: str) -> bool:
    if text.lower() not in ("", "true", "false", "1", "0", "yes", "no"):
        raise InvalidArgument(f"option 'readonly' is {text!r}: write true or false")
    return text.lower() in ("", "true", "1", "yes")
