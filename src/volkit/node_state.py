"""What this node has: the records of its volumes, and what of them is real. The node's operations stand on it.

What is recorded, and what is believed: a record says what was asked for and what the backend returned;
whether something is mounted, and which device it is, is asked of the kernel each time. A record is written
before the act it stands for:

    stage/<volume>            {"path", "capability", "flags", "state": "connecting" | "connected", "connection",
                               "format", "fs_type", "since"}
    target/<volume>/<path>    {"path", "readonly", "capability", "flags", "staging", "connection", "since", "user" (the
                               pod, where the platform names it), and "state": "cancelled" where it was unpublished
                               while its publish hung, "unpublishing" while its backend disconnects}

`flags` are the mount flags without what may be secret in them.

`format` is the recorded intent to make a file system. It is durable before mkfs runs and durably gone after
it, so that a killed mkfs is finished and a file system with data on it is never made anew. After an unstage nothing
else is left of such a stage (`is_only_format`), until the volume is staged again or deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from volkit import requests, validate
from volkit.backend import Backend
from volkit.digests import digest
from volkit.errors import FailedPrecondition, NotFound, Unavailable, UnsupportedVolume, VolkitError
from volkit.guard import call_backend
from volkit.host import apart, devices, fuse, mounts, process
from volkit.interfaces import ConnectsPerPod, MountsByProgram, MountsForGroup, Node
from volkit.journal import Delete, Journal, key
from volkit.journal.records import QUARANTINE, parts, quarantined
from volkit.locks import Locks
from volkit.model import BlockConnection, BlockVolume, Capability, Connection, FileConnection, FuseConnection

DRAIN_SECONDS = 30.0
"""How long an unmount waits for a write-back cache."""

MOUNT_SECONDS = 60.0
"""How long the mount of a network file system may take."""

_CONNECTIONS = {"block": BlockConnection, "file": FileConnection, "fuse": FuseConnection}


class NodeState:
    """One backend's volumes on this node. Below `caches` are the directories in which its programs keep data."""

    def __init__(
        self,
        node: Node[Any],
        backend: type[Backend[Any, Any]],
        journal: Journal,
        locks: Locks,
        node_id: str,
        caches: str = "",
    ) -> None:
        self.node = node
        self.journal = journal
        self.locks = locks
        self.node_id = node_id
        self.per_pod: bool = isinstance(node, ConnectsPerPod)
        self.fs_types: tuple[str, ...] = backend.limits.fs_types
        self.groups: bool = isinstance(node, MountsForGroup)
        self.programs: bool = isinstance(node, MountsByProgram)
        self._connections = (BlockConnection, FileConnection, *((FuseConnection,) if self.programs else ()))
        self._caches = caches
        self._backend = backend

    # -- records

    def record(self, record_key: str) -> Mapping[str, Any] | None:
        entry = self.journal.get(record_key)
        return entry.value if entry else None

    def stage_record(self, volume_id: str) -> Mapping[str, Any] | None:
        return self.record(key("stage", volume_id))

    def targets(self, volume_id: str) -> list[Mapping[str, Any]]:
        return [entry.value for entry in self.journal.scan(key("target", volume_id, ""))]

    def forget(self, record_key: str) -> None:
        """Remove a record, also one that could not be read."""
        self.journal.write(Delete(record_key), Delete(key(QUARANTINE, record_key)), durable=False)

    def forget_format(self, volume_id: str) -> None:
        """Of a volume that was deleted: what would have told its next stage of a half-made file system."""
        record = self.stage_record(volume_id)
        if record is not None and is_only_format(record):
            self.forget(key("stage", volume_id))

    # -- reality

    def is_staged(self, volume_id: str) -> bool:
        """Is the volume staged in reality, as its record says?"""
        record = self.stage_record(volume_id)
        return record is not None and self.really_staged(record)

    def really_staged(self, record: Mapping[str, Any]) -> bool:
        """Is it as this record of a stage says: the right device, and mounted where it is said to be?"""
        if record.get("state") != "connected" or record.get("format"):
            return False
        connection = from_record(record["connection"])
        if isinstance(connection, FuseConnection):
            return mounts.is_mount_point(record["path"]) and fuse.is_running(connection.directory)
        if not isinstance(connection, BlockConnection):
            return mounts.is_mount_point(record["path"])
        if not is_raw(record):  # a mount holds its device: nothing else can have got its number
            return mounts.mounted_from(connection.device, record["path"])
        try:
            devices.verify(connection.device, connection.identity)
        except VolkitError:
            return False
        return True

    def in_use(self, volume_id: str) -> str:
        """Where on this node the volume is mounted or attached in reality, or ""; a stale record counts for
        nothing, one that could not be read for a use.
        """
        if target := self.mounted_target(volume_id):
            return target
        record = self.stage_record(volume_id)
        if record and self.really_staged(record):
            return str(record["path"])
        unread = key("stage", volume_id) in quarantined(self.journal, key("stage", volume_id))
        return "a place that only a record in the quarantine tells of" if unread else ""

    def mounted_target(self, volume_id: str) -> str:
        """A path at which the volume is published in reality, or ""."""
        targets = [str(one["path"]) for one in self.targets(volume_id)]
        unread = [parts(one)[2] for one in quarantined(self.journal, key("target", volume_id, ""))]
        return next((path for path in (*targets, *unread) if mounts.is_mount_point(path)), "")

    def refuse_anothers(self, volume_id: str, path: str) -> None:
        """A mount that the records give to another volume stays. Raises FailedPrecondition."""
        if not mounts.is_mount_point(path):
            return
        own = (key("stage", volume_id), key("target", volume_id, path))
        for entry in (*self.journal.scan(key("stage", "")), *self.journal.scan(key("target", ""))):
            if entry.value.get("path") == path and entry.key not in own:
                raise FailedPrecondition(f"what is mounted at {path} is another volume's: it stays")

    # -- the backend

    def check_capability(self, capability: Capability) -> None:
        kind = (
            self._backend.volume
            if issubclass(self._backend.volume, BlockVolume) or not capability.block
            else BlockVolume
        )
        limits = self._backend.limits
        modes, flags = limits.access_modes, limits.mount_flags
        validate.check_capability(capability, kind, modes=modes, fs_types=self.fs_types, mount_flags=flags)

    def connect(
        self, request: requests.NodeStageRequest | requests.NodePublishRequest, *, resumed: bool
    ) -> Connection:
        """Have the backend make the volume reachable here; `resumed` after an attempt that was cut short."""
        readonly = request.capability.access_mode.read_only or getattr(request, "readonly", False)
        wanted = requests.ConnectRequest(
            volume_id=request.volume_id,
            node_id=self.node_id,
            capability=request.capability,
            readonly=readonly,
            publish_context=request.publish_context,
            volume_context=request.volume_context,
            secrets=request.secrets,
            metadata=getattr(request, "metadata", {}),
            resumed=resumed,
        )
        connection: Connection = call_backend(self.node.connect, wanted, self._connections)
        if isinstance(connection, FuseConnection):
            path = getattr(request, "target_path", "") or request.staging_target_path
            run = f"{fuse.run_directory()}/{self._backend.name}"
            cache = f"{self._caches}/{_short(path)}"
            connection = attrs.evolve(connection, directory=f"{run}/{_short(path)}", cache=cache)
        if request.capability.block and not isinstance(connection, BlockConnection):
            self.disconnect(request.volume_id, connection)
            raise UnsupportedVolume(f"volume {request.volume_id!r} is no block device: mount it")
        return connection

    def mount_program(self, connection: FuseConnection, path: str, *, read_only: bool) -> None:
        """Have the program of a connection serve `path`."""
        places = {"directory": connection.directory, "cache": connection.cache}
        fuse.start(connection, path, read_only=read_only, **places)

    def drain(self, volume_id: str, connection: Connection | None) -> None:
        """Wait until what was written is in the storage; a program that died with some of it is started again. Raises
        Unavailable.
        """
        if not isinstance(connection, FuseConnection) or not fuse.target_of(connection.directory):
            return
        until = time.monotonic() + DRAIN_SECONDS
        while left := call_backend(lambda _: self.node.pending(volume_id, connection), None, int):
            if fuse.has_died(connection.directory):
                fuse.restart(connection.directory)
            if time.monotonic() > until:
                raise Unavailable(
                    f"volume {volume_id!r}: {left} bytes are not in the storage yet: repeat the call later"
                )
            time.sleep(0.05)

    def disconnect(self, volume_id: str, connection: Connection | None) -> None:
        request = requests.DisconnectRequest(volume_id=volume_id, node_id=self.node_id, connection=connection)
        with suppress(NotFound):
            call_backend(self.node.disconnect, request, type(None))


def unmount(path: str, connection: Connection | None) -> None:
    """Unmount, apart from this process where the connection leads to something that may not answer."""
    if connection is None:
        mounts.unmount(path)
    elif isinstance(connection, FuseConnection):
        fuse.stop(path, directory=connection.directory, timeout=fuse.STOP_SECONDS)
    else:
        apart.reach(connection, mounts.unmount, path)


def _short(path: str) -> str:
    """A file's name that stands for a path."""
    return digest(path, 8).hex()


def is_only_format(record: Mapping[str, Any]) -> bool:
    """Is nothing connected any more, and this record of a stage there only since a file system is half made?"""
    return bool(record.get("format")) and record.get("connection", "") is None


def recorded_flags(capability: Capability) -> list[str]:
    """What a record keeps of the mount flags, to compare a repeated call with: no value that may be secret."""
    if not capability.mount_flags:
        return []
    from volkit.redaction import plain_flags

    return plain_flags(capability.mount_flags)


def is_raw(record: Mapping[str, Any]) -> bool:
    """Is it raw block access that was asked for?"""
    return bool(record["capability"][1] == "block")


def to_record(connection: Connection) -> dict[str, Any]:
    if isinstance(connection, BlockConnection):
        return {"kind": "block", "device": connection.device, "identity": dict(connection.identity)}
    if isinstance(connection, FuseConnection):
        return {
            "kind": "fuse",
            "argv": list(connection.argv),
            "environment": dict(connection.environment),
            "source": connection.source,
            "fs_type": connection.fs_type,
            "directory": connection.directory,
            "cache": connection.cache,
        }
    # options may carry credentials: what is needed to undo a mount is its path
    return {
        "kind": "file",
        "source": connection.source,
        "fs_type": connection.fs_type,
        "directory": connection.directory,
    }


def from_record(record: Mapping[str, Any]) -> Connection:
    values = {name: value for name, value in record.items() if name != "kind"}
    connection: Connection = _CONNECTIONS[record["kind"]](**values)
    return connection


def recorded_connection(record: Mapping[str, Any] | None) -> Connection | None:
    """The connection that a record tells of; None where the record or the connection in it is lost."""
    recorded = record.get("connection") if record else None
    return from_record(recorded) if recorded else None


def is_mounted(connection: Connection, path: str, here: mounts.Mount) -> bool:
    """Whether the mount `here` at `path` is of this connection."""
    if isinstance(connection, BlockConnection):
        return mounts.mounted_from(connection.device, path)
    if isinstance(connection, FuseConnection):
        return here.source == connection.source and fuse.is_running(connection.directory)
    return (
        mounts.same_mount(connection.directory, path)
        if connection.directory
        else here.source == connection.source
    )


def is_of(connection: Connection, path: str, here: mounts.Mount) -> bool:
    """As `is_mounted`, of a device that is gone and of a program that died too."""
    if isinstance(connection, BlockConnection) and not os.path.exists(connection.device):
        return here.source in (connection.device, os.path.realpath(connection.device))
    if isinstance(connection, FuseConnection):
        return here.source == connection.source
    return is_mounted(connection, path, here)


def mount_remote(connection: FileConnection, path: str, flags: list[str]) -> None:
    """Mount by the kernel alone, or by the type's own program (mount.nfs, …) where it has one, as mount(8)
    would.
    """
    options = [*connection.options, *flags]
    program = mounts.mount_program(connection.fs_type)
    if program is None:
        apart.call(mounts.mount, connection.source, path, connection.fs_type, options, timeout=MOUNT_SECONDS)
        return
    told, environment = _without_password(connection.fs_type, options)
    words = ["-o", ",".join(told)] if told else []
    argv, secrets = [program, connection.source, path, *words], [*options, *environment.values()]
    process.run(argv, timeout=MOUNT_SECONDS, env=environment, secrets=secrets)


def _without_password(fs_type: str, options: list[str]) -> tuple[list[str], dict[str, str]]:
    """The options, and in the environment what only root may read: the arguments of a program everybody can, and
    mount.cifs(8) takes a password from PASSWD too.
    """
    passwords = [one for one in options if one.partition("=")[0] in ("password", "pass")]
    if fs_type not in ("cifs", "smb3") or not passwords:
        return options, {}
    return [one for one in options if one not in passwords], {"PASSWD": passwords[-1].partition("=")[2]}
