"""One declaration of a backend's options: an attrs class, read from the strings that StorageClasses, Flex and
Docker bring.

```python
@frozen
class Parameters:
    pool: Path                                             # required, an absolute path
    preallocate: bool = False
    stripe: Size = option(default="64Ki", help="bytes per stripe")
    tier: Tier = option(default=Tier.SILVER, mutable=True)  # an enum; may be changed later (CSI ModifyVolume)
    token: str = option(secret=True)                       # never shown
```

The annotation says how a string is read: `str`, `int`, `float`, `bool`, `Path` (absolute), `Size` (bytes), `Mode`
(octal permissions), an `Enum` (by value), `tuple[str, ...]` (comma-separated), each also as `… | None`. A field
`access_key` is spelled `accessKey`; `access-key` and `access_key` are taken too.
"""

from __future__ import annotations

import enum
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NewType, TypeVar

import attrs
from attrs import frozen

from volkit.errors import InvalidArgument, quoted
from volkit.model import MAX_BYTES, Value

T = TypeVar("T")

Size = NewType("Size", int)
"""Bytes, written `10Gi`, `500M` or plain."""

Mode = NewType("Mode", int)
"""Permissions, written in octal: `0755`, `1777`."""

VARIABLE = "VOLKIT_OPTION_"
"""What the names of the settings' variables begin with."""

_MODE = re.compile(r"[0-7]{3,4}", re.ASCII)
_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?([KMGTPE]i?|k)?B?", re.ASCII)
_UNITS = {
    "k": 1000,
    **{u: 1000**i for i, u in enumerate("KMGTPE", 1)},
    **{f"{u}i": 1024**i for i, u in enumerate("KMGTPE", 1)},
}
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


def parse_size(text: str) -> int:
    """Bytes in a text such as `10Gi`, `1.5G`, `500M` or `4096` (binary with `i`, else decimal; a fraction is
    rounded up).

    Raises InvalidArgument for anything else, for a negative size and for one beyond 2**63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidArgument(
            f"{quoted(text)} is not a size: write bytes, or a number with Ki, Mi, Gi, Ti (binary) "
            "or k, M, G, T (decimal)"
        )
    whole, fraction, unit = match.groups()
    factor = _UNITS[unit] if unit else 1
    size = int(whole) * factor
    if fraction:
        size += -(-int(fraction) * factor // 10 ** len(fraction))
    if size > MAX_BYTES:
        raise InvalidArgument(f"{quoted(text)} is beyond the largest size, 2^63 - 1 bytes")
    return size


def format_size(size: int) -> str:
    """Bytes for people, in the unit that `parse_size` takes back exactly where there is one, such as `10Gi`
    or `1500`.
    """
    for unit in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def option(
    *,
    default: Any = attrs.NOTHING,
    help: str = "",
    mutable: bool = False,
    secret: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    aliases: Iterable[str] = (),
) -> Any:
    """A field with more to say than its type: help text, bounds, other names, whether it can be modified
    later or must not be shown.

    A default may be given as the text that a user would write.
    """
    metadata = {
        "help": help,
        "mutable": mutable,
        "secret": secret,
        "at_least": at_least,
        "at_most": at_most,
        "aliases": tuple(aliases),
    }
    shown = (lambda value: "***") if secret else True
    return attrs.field(default=default, repr=shown, metadata={"volkit": metadata})


@frozen(eq=False, repr=False)
class NoOptions(Value):
    """For a backend that takes none."""


@frozen(kw_only=True, eq=False, repr=False)
class Option(Value):
    """One declared option, as a CLI or a page of documentation shows it."""

    field: str
    key: str
    type: str
    required: bool
    default: Any
    help: str
    mutable: bool
    secret: bool
    path: bool
    spellings: frozenset[str]
    read: Callable[[str], Any] = attrs.field(repr=False)

    @property
    def variable(self) -> str:
        """The variable of the environment that a driver takes it from, where it is a setting."""
        return f"{VARIABLE}{self.field.upper()}"


def declared(cls: type) -> tuple[Option, ...]:
    """The options that an attrs class declares, in its order. Raises TypeError for a type that no string can
    be read as.
    """
    return _options(cls)


@cache
def _options(cls: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(cls)
    options = tuple(_declared(cls, one, hints[one.name]) for one in attrs.fields(cls) if one.init)
    spelled: dict[str, str] = {}
    for option in options:
        for spelling in option.spellings:
            if (other := spelled.setdefault(spelling, option.field)) != option.field:
                raise TypeError(f"{cls.__name__}: {other} and {option.field} are both spelled {spelling!r}")
    return options


def _declared(cls: type, attribute: attrs.Attribute[Any], hint: Any) -> Option:
    extra = attribute.metadata.get("volkit", {})
    if attribute.name.startswith("_"):
        raise TypeError(f"{cls.__name__}.{attribute.name}: an option's name begins with a letter")
    words = attribute.name.split("_")
    key = words[0] + "".join(word.capitalize() for word in words[1:])
    reader = _reader(hint)
    if reader is None:
        raise TypeError(
            f"{cls.__name__}.{attribute.name}: an option cannot be a {hint}; see volkit.options for the types"
        )
    low, high = extra.get("at_least"), extra.get("at_most")

    def read(text: str) -> Any:
        value = reader(text)
        if (low is not None and value < low) or (high is not None and value > high):
            raise InvalidArgument(f"{quoted(text)} is not {' and '.join(_bounds(low, high))}")
        return value

    return Option(
        field=attribute.name,
        key=key,
        type=getattr(hint, "__name__", str(hint)),
        required=attribute.default is attrs.NOTHING,
        default=None if attribute.default is attrs.NOTHING else attribute.default,
        help=extra.get("help", ""),
        mutable=extra.get("mutable", False),
        secret=extra.get("secret", False),
        path=reader is _read_path,
        spellings=frozenset(
            {key, attribute.name, attribute.name.replace("_", "-"), *extra.get("aliases", ())}
        ),
        read=read,
    )


def _bounds(low: float | None, high: float | None) -> Iterable[str]:
    if low is not None:
        yield f"at least {low:g}"
    if high is not None:
        yield f"at most {high:g}"


def _reader(hint: Any) -> Callable[[str], Any] | None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _reader(inner[0]) if len(inner) == 1 else None
    if hint == tuple[str, ...]:
        return lambda text: tuple(word.strip() for word in text.split(",") if word.strip())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return lambda text: _read_enum(hint, text)
    return _READERS.get(hint)


def _read_enum(cls: type[enum.Enum], text: str) -> enum.Enum:
    by_value = {str(member.value): member for member in cls}
    lowered = {value.lower(): member for value, member in by_value.items()}
    found = by_value.get(text, lowered.get(text.lower()))
    if found is not None:  # a member may be false: an IntEnum's 0
        return found
    raise InvalidArgument(f"{quoted(text)} is not one of {', '.join(str(member.value) for member in cls)}")


def _read_bool(text: str) -> bool:
    if (word := text.strip().lower()) not in _TRUE | _FALSE:
        raise InvalidArgument(f"{quoted(text)} is not true or false")
    return word in _TRUE


def _read_number(cls: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = cls(text.strip())
            if not text.isascii() or "_" in text:  # Python's own spellings of a number
                raise ValueError
        except ValueError:
            value = float("nan")
        if value != value or value in (float("inf"), float("-inf")) or len(text) > 40:
            raise InvalidArgument(f"{text[:40]!r} is not a{'n integer' if cls is int else ' number'}")
        return value

    return read


def _read_mode(text: str) -> int:
    if not _MODE.fullmatch(text.strip()):
        raise InvalidArgument(f"{quoted(text)} is not octal permissions such as 0755")
    return int(text, 8)


def _read_path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/") or not _is_encodable(text):
        raise InvalidArgument(f"{quoted(text)} is not an absolute path without '..'")
    return Path(text)


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


_READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _read_number(int),
    float: _read_number(float),
    bool: _read_bool,
    Path: _read_path,
    Size: parse_size,
    Mode: _read_mode,
}


def read_fields(cls: type, values: Mapping[str, str], what: str = "parameter") -> dict[str, Any]:
    """The typed values of those options that `values` names, by field name; the first step of `read`, and all
    of a modify.

    Raises InvalidArgument for an unknown key (with the valid ones, and a near miss suggested), a key given
    twice in two spellings, or a text that the option's type cannot be read from. The value of a secret option
    is never repeated.
    """
    options = declared(cls)
    by_spelling = {spelling: one for one in options for spelling in one.spellings}
    fields: dict[str, Any] = {}
    for key, text in values.items():
        one = by_spelling.get(key)
        if one is None:
            raise InvalidArgument(unknown_option(key, sorted(o.key for o in options), by_spelling, what))
        if one.field in fields:
            raise InvalidArgument(f"{what} {one.key!r} is given twice, once as {key!r}")
        try:
            fields[one.field] = one.read(text)
            continue
        except InvalidArgument as error:
            reason = "its value cannot be read" if one.secret else str(error)
        raise InvalidArgument(f"{what} {key!r}: {reason}")  # here: what shows the value is not chained to it
    return fields


def read(cls: type[T], values: Mapping[str, str], what: str = "parameter") -> T:
    """An instance of the attrs class `cls` out of `values`. Raises InvalidArgument as `read_fields` and
    `complete` do.
    """
    return complete(cls, read_fields(cls, values, what), what)


def complete(cls: type[T], fields: Mapping[str, Any], what: str = "parameter") -> T:
    """An instance out of typed values by field name. Raises InvalidArgument where a required one is
    missing.
    """
    values = dict(fields)
    for one in declared(cls):
        if one.field in values:
            continue
        if one.required:
            raise InvalidArgument(f"{what} {one.key!r} is required" + (f": {one.help}" if one.help else ""))
        if isinstance(one.default, str):  # a default may be written as a user writes it
            values[one.field] = one.read(one.default)
    try:
        return cls(**values)
    except Exception as error:  # a validator or a converter of the class
        secret = any(one.secret and one.field in values for one in declared(cls))
        reason = error.args[0] if error.args else type(error).__name__
    shown = "; not shown, since one is secret" if secret else f": {reason}"
    raise InvalidArgument(
        f"{what}s refused by {cls.__name__}{shown}"
    )  # here: the error itself is not chained to it


def unknown_option(key: str, keys: list[str], spellings: Iterable[str], what: str) -> str:
    """What to say of an option that nobody knows: the known ones are `keys`, the nearest of `spellings` was meant."""
    import difflib

    near = difflib.get_close_matches(key[:128], spellings, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    valid = f"valid are {', '.join(keys)}" if keys else "it takes none"
    return f"unknown {what} {key[:128]!r}: {valid}{hint}"
