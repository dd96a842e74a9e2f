"""What is mounted on this node, by the mount table alone, and which volume it shows."""

from __future__ import annotations

import functools
import os
import select
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from volkit.errors import DeadlineExceeded, VolkitError
from volkit.host import apart, devices, fuse, mounts
from volkit.host.mounts import Mount
from volkit.journal import Entry, Journal, key
from volkit.journal.records import parts
from volkit.model import BlockConnection, Connection, FileConnection, FuseConnection
from volkit.node_state import is_raw, recorded_connection

_RESOLVE_SECONDS = 5.0
_MOST_LATE = 3
_LEAST_DEPTH = 3
_NODES = ("devtmpfs", "tmpfs")
_LOCAL = frozenset({"bcachefs", "btrfs", "devtmpfs", "overlay", "ramfs", "tmpfs", "zfs"})


class Spelling:
    """Paths as the mount table has them, links in their parents resolved. They are walked in a process apart; where
    that hangs again and again, no more are.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._late = 0

    def of(self, path: str) -> str:
        if path not in self._known:
            self._known[path] = path
            if self._late < _MOST_LATE:
                try:
                    (self._known[path],) = apart.call(mounts.spelled, [path], timeout=_RESOLVE_SECONDS)
                except DeadlineExceeded:
                    self._late += 1
                except VolkitError:
                    pass
        return self._known[path]


class _Changes:
    """Tells whether anything was mounted or unmounted since it was made (proc(5): mountinfo can be polled)."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLPRI)
        self._seen = False

    def __bool__(self) -> bool:
        self._seen = self._seen or bool(self._poll.poll(0))  # which tells of a change once
        return self._seen

    def __del__(self) -> None:
        os.close(self._descriptor)


class Table:
    """The mount table as it was at one moment. Nothing is waited for, whatever hangs behind a mount."""

    def __init__(self, spelling: Spelling | None = None) -> None:
        self._changes = _Changes()
        self.all: list[Mount] = mounts.mounts()
        self._at: dict[str, list[Mount]] = {}
        for one in self.all:
            self._at.setdefault(one.mount_point, []).append(one)
        self._spelling = spelling or Spelling()

    def again(self) -> Table:
        """The table as it is now."""
        return Table(self._spelling) if self._changes else self

    def is_mounted(self, path: str) -> bool:
        return self.spelled(path) in self._at

    def top(self, path: str) -> Mount | None:
        """What is seen at a path: the topmost mount of those that are stacked there."""
        here = self._at.get(self.spelled(path), [])
        below = {one.parent_id for one in here}
        return next((one for one in here if one.id not in below), None)

    def spelled(self, path: str) -> str:
        """The path as the table has it; unchanged where it cannot be walked in time."""
        return path if path in self._at else self._spelling.of(path)

    def showing(self, connection: Connection) -> list[Mount]:
        """The mounts and binds of a block device."""
        if not isinstance(connection, BlockConnection):
            return []
        device = connection.device
        keys = (devices.number(device), device, os.path.realpath(device), _node(device))
        maybe = sorted({at for one in keys for at in self._of.get(one, ())})
        return [
            one for one in map(self.all.__getitem__, maybe) if is_on(one, device) or is_node_of(one, device)
        ]

    @functools.cached_property
    def _of(self) -> dict[object, list[int]]:
        """Where in the table a device may be found: by its number, its name as a source, or its node. One look-up a
        device, also with thousands of mounts.
        """
        found: dict[object, list[int]] = {}
        for at, one in enumerate(self.all):
            keys: set[object] = {one.device, one.source}
            if one.device[0] == 0 and one.source.startswith("/dev/"):
                keys.add(devices.number(one.source))
            if one.fs_type in _NODES:
                keys.add(one.root)
            for key_ in keys:
                found.setdefault(key_, []).append(at)
        return found

    def around(self, path: str) -> Mount | None:
        """The mount that a directory is in, by its spelling."""
        place = self.spelled(path)
        while place not in self._at and place != "/":
            place = os.path.dirname(place)
        return self.top(place)


@frozen
class Place:
    """A path that a record names, and the volume that should be there."""

    entry: Entry
    volume_id: str
    path: str
    connection: Connection | None
    raw: bool

    @property
    def kind(self) -> str:
        return self.entry.key.partition("/")[0]

    @property
    def settled(self) -> bool:
        """Is the record one of a call that came to its end?"""
        value = self.entry.value
        done = value.get("state") == ("connected" if self.kind == "stage" else None)
        return done and not value.get("format") and self.connection is not None

    def shown_by(self, mount: Mount, table: Table) -> bool:
        """Is it this volume, or a part of it, that a mount shows?"""
        connection = self.connection
        if isinstance(connection, BlockConnection):
            return (is_node_of if self.raw else is_on)(mount, connection.device)
        if isinstance(connection, FileConnection) and connection.directory:
            around = table.around(connection.directory)
            if around is None:
                return False
            spelling = table.spelled(connection.directory)
            root = around.root.rstrip("/") + spelling.removeprefix(around.mount_point.rstrip("/"))
            return mount.device == around.device and f"{mount.root}/".startswith(root.rstrip("/") + "/")
        if isinstance(connection, FuseConnection) and mount.fs_type.startswith("fuse"):
            target = fuse.target_of(connection.directory)
            served = table.top(target) if target else None
            if served is not None and served.device == mount.device:  # whatever its source is called
                return True
        return connection is not None and mount.source == connection.source


class Places:
    """All paths that a node's records name, targets before stages: what is to be undone first."""

    def __init__(self, journal: Journal) -> None:
        stages = {parts(one.key)[1]: one for one in journal.scan(key("stage", ""))}
        self.targets: list[Place] = [self._target(one, stages) for one in journal.scan(key("target", ""))]
        self.stages: list[Place] = [_place(one, one.value) for one in stages.values()]

    @staticmethod
    def _target(entry: Entry, stages: Mapping[str, Entry]) -> Place:
        stage = stages.get(parts(entry.key)[1])
        return _place(entry, entry.value if entry.value.get("connection") or stage is None else stage.value)

    def __iter__(self) -> Iterator[Place]:
        yield from self.targets
        yield from self.stages

    def spelled(self, table: Table) -> dict[str, Place]:
        """The places by their paths in the mount table."""
        return {table.spelled(one.path): one for one in self}


def _place(entry: Entry, connected: Mapping[str, Any]) -> Place:
    return Place(
        entry=entry,
        volume_id=parts(entry.key)[1],
        path=entry.value["path"],
        connection=recorded_connection(connected),
        raw=is_raw(entry.value),
    )


def is_remote(mount: Mount) -> bool:
    """May whoever answers for this mount cease to: a server, a FUSE program?"""
    return mount.device[0] == 0 and mount.fs_type not in _LOCAL


def is_on(mount: Mount, device: str) -> bool:
    """Does it show the file system on this device? By the device number; of btrfs and the like, whose number is no
    device's, and of a device that is gone, by the name of the source.
    """
    where = devices.number(device)
    if where is not None and mount.device == where:
        return True
    if mount.source in (device, os.path.realpath(device)):
        return mount.device[0] == 0 or where is None
    return mount.device[0] == 0 and mount.source.startswith("/dev/") and devices.number(mount.source) == where


def is_node_of(mount: Mount, device: str) -> bool:
    """Is it a bind of the device's node?"""
    return mount.fs_type in _NODES and mount.root == _node(device)


def _node(device: str) -> str:
    return os.path.realpath(device).removeprefix("/dev")


class Exclusive:
    """Finds the staged volume that a mount shows, of those that nobody else has a reason to mount: on block devices,
    and served by programs of ours. One look-up a mount, also with thousands of volumes.
    """

    def __init__(self, places: Places, table: Table) -> None:
        self._numbers: dict[tuple[int, int], Place] = {}
        self._sources: dict[str, Place] = {}
        self._nodes: dict[str, Place] = {}
        for one in places.stages:
            if not one.settled:
                continue
            if isinstance(one.connection, BlockConnection):
                device = one.connection.device
                if where := devices.number(device):
                    self._numbers[where] = one
                self._sources.update({device: one, os.path.realpath(device): one})
                self._nodes[_node(device)] = one
            elif isinstance(one.connection, FuseConnection) and (top := table.top(one.path)):
                self._numbers[top.device] = one

    def shown(self, mount: Mount) -> Place | None:
        found = self._numbers.get(mount.device)
        if found is None and mount.device[0] == 0:
            found = (self._nodes if mount.fs_type in _NODES else self._sources).get(
                mount.root if mount.fs_type in _NODES else mount.source
            )
        return found


class Siblings:
    """Tells a path that differs from a recorded staging path in one component alone, as …/ID and …/HASH/globalmount
    do.
    """

    def __init__(self, places: Places, table: Table) -> None:
        self._patterns = {
            pattern for one in places.stages for pattern in self._patterns_of(table.spelled(one.path))
        }

    def __contains__(self, path: str) -> bool:
        return any(pattern in self._patterns for pattern in self._patterns_of(path))

    @staticmethod
    def _patterns_of(path: str) -> Iterator[tuple[str, ...]]:
        words = path.split("/")[1:]
        if len(words) >= _LEAST_DEPTH:
            yield from ((*words[:n], "", *words[n + 1 :]) for n in range(len(words)))
