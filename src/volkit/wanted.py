"""What a user asks of a volume where a platform has nothing but options (Docker's `-o`, FlexVolume): how large, how
mounted, of what; the rest is the backend's.

| Option | Spelled too | |
|---|---|---|
| `size` | | `10Gi`, `500M` or bytes |
| `fs-type` | `fsType`, `fstype` | a file system's name |
| `mount-options` | `mountOptions`, `o` | mount(8) words: `noatime,nodev` |
| `readonly` | `ro` | `true` or `false` |
| `from-snapshot` | `fromSnapshot` | a snapshot's id |
| `clone-of` | `cloneOf` | a volume |

A spelling that the backend declares for a parameter of its own is the backend's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from volkit.backend import Backend
from volkit.errors import InvalidArgument
from volkit.model import CapacityRange, CloneSource, SnapshotSource, Source, Value
from volkit.options import declared, parse_size, unknown_option

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from typing import Any

OPTIONS = ("size", "fs-type", "mount-options", "readonly", "from-snapshot", "clone-of")
"""What every backend's volumes can be asked."""

_SPELLED = {key: key for key in OPTIONS} | {
    "fsType": "fs-type",
    "fstype": "fs-type",
    "mountOptions": "mount-options",
    "o": "mount-options",
    "ro": "readonly",
    "fromSnapshot": "from-snapshot",
    "cloneOf": "clone-of",
}


@frozen(kw_only=True, eq=False, repr=False)
class Asked(Value):
    """How a volume is to be mounted: what its creator asked for."""

    fs_type: str = ""
    mount_flags: tuple[str, ...] = ()
    readonly: bool = False


@frozen(kw_only=True, eq=False, repr=False)
class Wanted(Value):
    """A volume as its user wants it. `parameters` is what is left: the backend's own, as they were given."""

    capacity: CapacityRange
    source: Source | None
    asked: Asked
    parameters: Mapping[str, str]


def read(given: Mapping[str, str], backend: type[Backend[Any, Any]]) -> Wanted:
    """Raises InvalidArgument for a bad value, for an option that is given twice, and for two sources. What nobody
    knows is left to `refuse_unknown`: a volume that exists is used whatever its options say.
    """
    own: dict[str, str] = {}
    parameters: dict[str, str] = {}
    theirs = _spellings(backend)
    for key, value in given.items():
        name = _SPELLED.get(key)
        if key in theirs or name is None:
            parameters[key] = value
        elif name in own:
            raise InvalidArgument(f"option {name!r} is given twice")
        else:
            own[name] = value
    if own.get("from-snapshot") and own.get("clone-of"):
        raise InvalidArgument(
            "a volume is made from a snapshot or from a volume: give from-snapshot or clone-of"
        )
    flags = tuple(filter(None, own.get("mount-options", "").split(",")))
    return Wanted(
        capacity=CapacityRange(required=_size(own["size"]) if own.get("size") else 0),
        source=_source(own),
        asked=Asked(
            fs_type=own.get("fs-type", ""),
            mount_flags=tuple(flag for flag in flags if flag not in ("ro", "rw")),
            readonly=read_switch("readonly", own["readonly"]) if "readonly" in own else "ro" in flags,
        ),
        parameters=parameters,
    )


def refuse_unknown(
    parameters: Mapping[str, str], backend: type[Backend[Any, Any]], *, also: Iterable[str] = ()
) -> None:
    """Raises InvalidArgument for an option that nobody knows, with those that somebody does (`also` are the platform's
    own), and the one that was probably meant.
    """
    spellings = _spellings(backend)
    if unknown := sorted(parameters.keys() - spellings):
        own = [*OPTIONS, *also]
        known = [*own, *sorted(one.key for one in declared(backend.parameters))]
        every = sorted({*own, *_SPELLED, *spellings})
        raise InvalidArgument(unknown_option(unknown[0], known, every, "option"))


def read_switch(name: str, text: str) -> bool:
    """A switch that may be given without a value. Raises InvalidArgument."""
    if text.lower() not in ("", "true", "false", "1", "0", "yes", "no"):
        raise InvalidArgument(f"option {name!r} is {text[:64]!r}: write true or false")
    return text.lower() in ("", "true", "1", "yes")


def _spellings(backend: type[Backend[Any, Any]]) -> frozenset[str]:
    return frozenset(spelling for one in declared(backend.parameters) for spelling in one.spellings)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"option 'size': {error}") from None


def _source(own: Mapping[str, str]) -> Source | None:
    if snapshot := own.get("from-snapshot"):
        return SnapshotSource(snapshot)
    return CloneSource(volume) if (volume := own.get("clone-of")) else None
