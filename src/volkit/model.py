"""The nouns: volumes and their kinds, snapshots, capabilities, sizes, topology, secrets. Frozen values, no
behaviour.

Sizes are bytes. Every mapping handed in is copied and made read-only, so that a value never changes under its
reader.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from attrs import field, fields, frozen

if TYPE_CHECKING:
    from datetime import datetime

MAX_BYTES: Final = 2**63 - 1
"""The largest size there is: the wire's and the kernel's sizes are signed 64-bit."""

FIRST_FORMAT: Final = "firstFormat"
"""The key of a volume's context that says "true" where volkit may make a file system on it. The engine sets it on
volumes made blank, a backend on a clone of one that it knows to be blank still, an administrator on a static volume
that is to be formatted."""

NODE_SEGMENT: Final = "volkit.io/node"
"""The topology segment of what can be used on one node alone."""

EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


def _read_only(mapping: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(mapping)) if mapping else EMPTY


def _tuple(values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise TypeError(f"{values!r} is one text where several values are due: write ({values!r},)")
    return tuple(values)


class Value:
    """Equality, hash and repr of frozen attrs classes, once for all. attrs would write them for each, which is half the
    time that it takes to make one: a FlexVolume call is a process, and pays for fifty.
    """

    __slots__ = ()

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, one.name) for one in fields(cast("Any", type(self))) if one.eq)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or other.__class__ is not self.__class__:
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.__class__, self._values()))

    def __repr__(self) -> str:
        shown = (
            f"{one.name}={(one.repr if callable(one.repr) else repr)(getattr(self, one.name))}"
            for one in fields(cast("Any", type(self)))
            if one.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class Secrets(Mapping[str, str]):
    """Credentials that came with one call. A mapping that shows its keys to nobody and its values only when
    asked by key.

    `repr`, `str` and `format` print `Secrets(***)`; it refuses to be pickled or copied into a record.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Secrets(***)" if self._values else "Secrets()"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("secrets are not serialised: pass them along, or read the one value you need")


NO_SECRETS: Final = Secrets()


class AccessMode(enum.Enum):
    """Who may use a volume at the same time (CSI spec, VolumeCapability.AccessMode)."""

    SINGLE_NODE_WRITER = "single-node-writer"
    SINGLE_NODE_READER_ONLY = "single-node-reader-only"
    MULTI_NODE_READER_ONLY = "multi-node-reader-only"
    MULTI_NODE_SINGLE_WRITER = "multi-node-single-writer"
    MULTI_NODE_MULTI_WRITER = "multi-node-multi-writer"
    SINGLE_NODE_SINGLE_WRITER = "single-node-single-writer"
    SINGLE_NODE_MULTI_WRITER = "single-node-multi-writer"

    @property
    def multi_node(self) -> bool:
        """May be published on more than one node."""
        return self.value.startswith("multi-node")

    @property
    def read_only(self) -> bool:
        """Nobody may write."""
        return self.value.endswith("reader-only")

    @property
    def multi_target(self) -> bool:
        """May be published at more than one target of one node (CSI spec, NodePublishVolume, second call
        table).
        """
        return self.multi_node or self is AccessMode.SINGLE_NODE_MULTI_WRITER


class AccessType(enum.Enum):
    """How a volume is seen by its user: as a mounted file system, or as a raw block device."""

    MOUNT = "mount"
    BLOCK = "block"


@frozen(kw_only=True, eq=False, repr=False)
class Capability(Value):
    """What a user wants of a volume: how it is seen, by how many, and with which mount flags.

    `fs_type` is "" for "the backend's default". `mount_flags` may carry credentials (a CIFS password) and are
    not shown. `volume_mount_group` is a gid in decimal that files shall belong to, or "" (see `MountsForGroup`).
    """

    access_mode: AccessMode = AccessMode.SINGLE_NODE_WRITER
    access_type: AccessType = AccessType.MOUNT
    fs_type: str = ""
    mount_flags: tuple[str, ...] = field(
        default=(), converter=_tuple, repr=lambda flags: "(***)" if flags else "()"
    )
    volume_mount_group: str = ""

    @property
    def block(self) -> bool:
        """Wanted as a raw block device."""
        return self.access_type is AccessType.BLOCK

    def record(self) -> list[str]:
        """What a record keeps of it, to compare a repeated call with: all but the mount flags, which may be
        secret (`volkit.node_state.recorded_flags`).
        """
        return [self.access_mode.value, self.access_type.value, self.fs_type, self.volume_mount_group]


@frozen(kw_only=True, eq=False, repr=False)
class CapacityRange(Value):
    """A size in bytes: at least `required`, at most `limit`; 0 says nothing (CSI spec, CapacityRange)."""

    required: int = 0
    limit: int = 0

    def __contains__(self, size: int) -> bool:
        return size >= self.required and (not self.limit or size <= self.limit)


@frozen
class Topology:
    """Where something is: segments such as `{"volkit.io/node": "n1"}`. All of one topology's segments hold
    together.
    """

    segments: Mapping[str, str] = field(factory=dict, converter=_read_only, hash=False)

    def __hash__(self) -> int:
        return hash(frozenset(self.segments.items()))

    @classmethod
    def of_node(cls, node_id: str) -> Topology:
        """The place that is one node. A segment's value has at most 63 characters (CSI spec, Topology): a longer name
        ends in its hash.
        """
        if len(node_id) > 63:
            import hashlib

            node_id = f"{node_id[:46]}-{hashlib.sha256(node_id.encode()).hexdigest()[:16]}"
        return cls({NODE_SEGMENT: node_id})

    def within(self, place: Topology) -> bool:
        """True when every segment of this topology is the same at `place`; keys compare without case (CSI
        spec, Topology).
        """
        here = {key.lower(): value for key, value in place.segments.items()}
        return all(here.get(key.lower()) == value for key, value in self.segments.items())


@frozen(kw_only=True, eq=False, repr=False)
class TopologyRequirement(Value):
    """Where a volume must be reachable from: one of `requisite`; `preferred` in order of preference (CSI
    spec, TopologyRequirement).
    """

    requisite: tuple[Topology, ...] = field(default=(), converter=_tuple)
    preferred: tuple[Topology, ...] = field(default=(), converter=_tuple)

    def candidates(self) -> tuple[Topology, ...]:
        """Every place that will do, best first."""
        return tuple(dict.fromkeys((*self.preferred, *self.requisite)))

    def met_by(self, topology: Iterable[Topology]) -> bool:
        """Whether a volume that can be used from `topology` (none: from everywhere) is reachable where it must be."""
        wanted, offered = self.requisite or self.preferred, tuple(topology)
        return not wanted or not offered or any(place.within(one) for place in wanted for one in offered)

    def __str__(self) -> str:
        """The first few places."""
        places = self.requisite or self.preferred
        return ", ".join(str(dict(place.segments)) for place in places[:3]) or "any place"


@frozen(eq=False, repr=False)
class SnapshotSource(Value):
    """The content comes from this snapshot."""

    snapshot_id: str


@frozen(eq=False, repr=False)
class CloneSource(Value):
    """The content comes from this volume."""

    volume_id: str


Source = SnapshotSource | CloneSource


@frozen(kw_only=True, eq=False, repr=False)
class Volume(Value):
    """One volume, complete: the record that every operation speaks of. Make a `BlockVolume`, `FileVolume` or
    `ObjectVolume`.

    `id` is the backend's own and opaque to volkit. `capacity` is bytes, 0 where it is unbounded or unknown.
    `context` goes to the node with every call; no secrets in it. `topology` names the places it can be used
    from, none means everywhere. `source` is what it was made from.
    """

    id: str
    capacity: int = 0
    context: Mapping[str, str] = field(factory=dict, converter=_read_only)
    topology: tuple[Topology, ...] = field(default=(), converter=_tuple)
    source: Source | None = None

    kind: ClassVar[str] = ""

    def __attrs_post_init__(self) -> None:
        if type(self) is Volume:
            raise TypeError("Volume is abstract: return a BlockVolume, a FileVolume or an ObjectVolume")


class BlockVolume(Volume):
    """A block device: raw, or with a file system that volkit makes on it."""

    __slots__ = ()
    kind = "block"


class FileVolume(Volume):
    """A directory or a share of a file system."""

    __slots__ = ()
    kind = "file"


class ObjectVolume(Volume):
    """A bucket, or a prefix in one."""

    __slots__ = ()
    kind = "object"


@frozen(kw_only=True, eq=False, repr=False)
class VolumeHealth(Value):
    """Whether a volume is fit for use, as its storage sees it; `message` says why in one sentence."""

    abnormal: bool = False
    message: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class Snapshot(Value):
    """A point in time of one volume. `size` is the bytes a volume made from it needs, `created_at` is aware
    (UTC).

    `ready` is False while the cut is made but not yet usable: the caller repeats the call until it is.
    """

    id: str
    source_volume_id: str
    created_at: datetime
    size: int = 0
    ready: bool = True


@frozen(kw_only=True, eq=False, repr=False)
class Usage(Value):
    """How much of a volume is used. Bytes; inodes are 0 where a file system does not count them. `available`
    is what a user may still take.
    """

    total: int
    used: int = 0
    available: int = 0
    total_inodes: int = 0
    used_inodes: int = 0
    available_inodes: int = 0


@frozen(kw_only=True, eq=False, repr=False)
class BlockConnection(Value):
    """A block device on this node. `identity` is what `volkit.host.devices.read_identity` must say of it
    before every use.

    `device` is an absolute path such as `/dev/loop3`; paths are hints, the identity (serial, wwid, backing
    inode) is the proof, so give at least one attribute that another volume's device cannot have
    (aws-ebs-csi-driver #1224: a stale by-id link mounted the wrong disk). `zeroed` is True where all of it is
    known to read as zeros still, which makes the first format cheaper; to be only likely is not enough.
    """

    device: str
    identity: Mapping[str, str] = field(factory=dict, converter=_read_only)
    zeroed: bool = False


@frozen(kw_only=True, eq=False, repr=False)
class FileConnection(Value):
    """A file system that can be mounted (`source`, `fs_type`, `options`), or a directory that is there
    already (`directory`).

    `options` are mount(8) words and may carry credentials; they are not shown and not recorded.
    """

    source: str = ""
    fs_type: str = ""
    options: tuple[str, ...] = field(
        default=(), converter=_tuple, repr=lambda words: "(***)" if words else "()"
    )
    directory: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class FuseConnection(Value):
    """A file system that a program serves (FUSE), which volkit runs, watches and ends (`volkit.host.fuse`).

    `argv` runs in the foreground; in it and in `environment` `{target}` stands for the mount point, `{files}` for the
    directory in which `files` (content by name, secrets as a rule) are put for it alone, `{cache}` for a directory of
    its own on a disk.
    Secrets belong into `files`: every user can read `argv` and `environment`. `source` and `fs_type` are what the
    mount table will show. `ready` is how many seconds it may take until it answers.

    What a connect returned comes back to disconnect, `Node.usage` and `Node.pending` without `files`, with `directory`
    and `cache`: its own directory, in which `files/` has them now, and the one on the disk.
    """

    argv: tuple[str, ...] = field(converter=_tuple)
    files: Mapping[str, str] = field(
        factory=dict, converter=_read_only, repr=lambda files: f"{sorted(files)}"
    )
    environment: Mapping[str, str] = field(factory=dict, converter=_read_only)
    source: str = ""
    fs_type: str = "fuse"
    ready: float = 30.0
    directory: str = ""
    cache: str = ""


Connection = BlockConnection | FileConnection | FuseConnection
