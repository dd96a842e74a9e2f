"""Field rules: what a request must be before anything is looked up or touched. Pure functions that raise
InvalidArgument.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from volkit.errors import InvalidArgument, NotFound, OutOfRange, UnsupportedVolume, quoted
from volkit.model import MAX_BYTES, AccessMode, BlockVolume, Capability, CapacityRange, Volume

# CSI spec, "Size Limits" and CreateVolumeRequest.name: any Unicode but these
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PLATFORM = re.compile(r"(?:[a-z0-9-]+\.)*(?:csi\.storage\.k8s\.io|storage\.kubernetes\.io|kubernetes\.io)/")

_GROUP = re.compile(r"[0-9]{1,10}", re.ASCII)

MAX_GID = 2**32 - 2
MAX_NAME_BYTES = 255
MAX_ID_BYTES = 4096


def split_metadata(mapping: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(the backend's own parameters, the platform's own keys): `csi.storage.k8s.io/…`,
    `storage.kubernetes.io/…`, `kubernetes.io/…`.
    """
    own: dict[str, str] = {}
    platform: dict[str, str] = {}
    for key, value in mapping.items():
        (platform if _PLATFORM.match(key) else own)[key] = value
    return own, platform


def missing(field: str) -> InvalidArgument:
    """The error for a required field that is empty; to be raised."""
    return InvalidArgument(f"{field} is required")


def check_name(name: str, field: str = "name") -> None:
    """A name from outside: 1 to 255 bytes of any characters but control characters."""
    _check_text(name, field, MAX_NAME_BYTES)


def check_id(id_: str, field: str = "volume_id") -> None:
    """An id, opaque: not empty, no control characters, at most 4096 bytes."""
    _check_text(id_, field, MAX_ID_BYTES)


def _check_text(text: object, field: str, limit: int) -> None:
    if text is None or text == "":
        raise missing(field)
    if not isinstance(text, str):
        raise InvalidArgument(f"{field} is a {type(text).__name__}, not a text")
    if _CONTROL.search(text):
        raise InvalidArgument(f"{field} {quoted(text)} has a control character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} {quoted(text)} is not Unicode text") from None
    if size > limit:
        raise InvalidArgument(f"{field} has {size} bytes, at most {limit} are allowed")


def file_name(id_: str) -> str:
    """`id_`, where it can be the name of one file: for backends that keep a volume under its id.

    Raises NotFound for any other: nothing can have been made under it, and no path may be built from it.
    """
    try:
        size = len(os.fsencode(id_))
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 255 or "/" in id_ or "\0" in id_ or id_ in (".", ".."):
        raise NotFound(f"there is nothing with the id {quoted(id_)}")
    return id_


def check_path(path: str, field: str) -> None:
    """An absolute path of at most 4095 bytes, without `..`, and not the root itself."""
    _check_text(path, field, 4095)
    if not path.startswith("/"):
        raise InvalidArgument(f"{field} {quoted(path)} is not an absolute path")
    parts = path.split("/")
    if ".." in parts or not any(part not in ("", ".") for part in parts):
        raise InvalidArgument(
            f"{field} {quoted(path)} must not contain '..' and must not be the root directory"
        )


def check_capacity_range(capacity: CapacityRange) -> None:
    """Neither bound negative or over 2**63 - 1, and the limit not below what is required."""
    for field in ("required", "limit"):
        value = getattr(capacity, field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_BYTES:
            raise InvalidArgument(
                f"capacity_range.{field}_bytes is {quoted(value)}: give 0 to {MAX_BYTES} bytes"
            )
    if capacity.limit and capacity.limit < capacity.required:
        raise InvalidArgument(
            f"capacity_range: the limit of {capacity.limit} bytes is below the {capacity.required} bytes required"
        )


def check_limit(limit: int) -> None:
    """Of a page's entries. Raises InvalidArgument for a negative one."""
    if limit < 0:
        raise InvalidArgument(f"max_entries is {limit}: give 0 (no limit) or more")


def choose_size(
    capacity: CapacityRange, *, minimum: int, maximum: int, default: int, granularity: int
) -> int:
    """The size to make, in bytes: what is required (else `default`), rounded up to `granularity` where the
    limit allows it.

    Raises OutOfRange where what is asked for and what the backend can make do not meet.
    """
    low, high = max(capacity.required, minimum), min(capacity.limit or maximum, maximum)
    size = low if capacity.required else min(max(default, low), high)
    size = -(-size // granularity) * granularity
    if size > high:
        size = high // granularity * granularity
    if size < low:
        limit = f"at most {capacity.limit}" if capacity.limit else "any number of"
        raise OutOfRange(
            f"at least {capacity.required} and {limit} bytes are asked for: volumes have {minimum} to {maximum} bytes "
            f"in steps of {granularity}"
        )
    return size


def check_capabilities(
    capabilities: Collection[Capability],
    kind: type[Volume],
    *,
    modes: frozenset[AccessMode],
    fs_types: Iterable[str],
    mount_flags: frozenset[str] | None = None,
) -> None:
    """Could a volume of this kind be used so? At least one capability, and each of them possible.

    Raises UnsupportedVolume where the kind forbids it: raw block access to files or objects, an access mode
    that the storage does not have, or a file system that is not made for it on a block device that several
    nodes write to. `mount_flags` are those that are allowed, by their key; None allows all.
    """
    if not capabilities:
        raise InvalidArgument("volume_capabilities is required: give at least one")
    for capability in capabilities:
        check_capability(capability, kind, modes=modes, fs_types=fs_types, mount_flags=mount_flags)


def _anything(value: object) -> object:
    """What a caller without a type checker may have given."""
    return value


def check_group(group: str, field: str = "volume_mount_group") -> None:
    """A gid in decimal, or "" for none."""
    if group and not (_GROUP.fullmatch(group) and int(group) <= MAX_GID):
        raise InvalidArgument(f"{field} {quoted(group)} is no group: give a number from 0 to {MAX_GID}")


def check_capability(
    capability: Capability,
    kind: type[Volume],
    *,
    modes: frozenset[AccessMode],
    fs_types: Iterable[str],
    mount_flags: frozenset[str] | None = None,
) -> None:
    """As `check_capabilities`, for one."""
    mode = capability.access_mode
    for flag in map(_anything, capability.mount_flags):
        if not isinstance(flag, str) or not flag or _CONTROL.search(flag) or len(flag) > 4096:
            raise InvalidArgument(
                "mount_flags has an empty, an over-long or an unprintable flag"
            )  # never shown: may be a secret
        if mount_flags is not None and flag.partition("=")[0] not in mount_flags:
            raise InvalidArgument(
                f"mount_flags has a flag that is not allowed: allowed are {', '.join(sorted(mount_flags)) or 'none'}"
            )
    check_group(capability.volume_mount_group)
    if mode not in modes:
        raise UnsupportedVolume(
            f"access mode {mode.name} is not possible here; possible are {', '.join(sorted(m.name for m in modes))}"
        )
    if not issubclass(kind, BlockVolume):
        if capability.block:
            raise UnsupportedVolume(f"a {kind.kind} volume cannot be used as a raw block device")
        return
    if capability.block:
        return
    if capability.fs_type and capability.fs_type not in fs_types:
        raise InvalidArgument(
            f"file-system type {quoted(capability.fs_type)} is unknown; known are {', '.join(fs_types)}"
        )
    if mode.multi_node and not mode.read_only:
        raise UnsupportedVolume(
            f"access mode {mode.name} with a file system on a block device: two nodes writing would destroy it; "
            "use it as a raw block device, or a file volume"
        )
