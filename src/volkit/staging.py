"""The node's side of the engine: from a connection to a staged and published volume. Where engine, journal
and host meet.

What is recorded, and what is believed: a record says what was asked for and what the backend returned;
whether something is mounted, and which device it is, is asked of the kernel each time. A record is written
before the act it stands for:

    stage/<volume>            {"path", "capability", "state": "connecting" | "connected", "connection", "format",
                               "fs_type", "since"}
    target/<volume>/<path>    {"path", "readonly", "capability", "staging", "connection", "since"}

`format` is the recorded intent to make a file system. It is durable before mkfs runs and durably gone after
it, so that a killed mkfs is finished and a file system with data on it is never made anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from volkit import formatting, requests, validate
from volkit.backend import Backend
from volkit.errors import (
    AlreadyExists,
    Ambiguous,
    FailedPrecondition,
    InUse,
    NotFound,
    OutOfRange,
    UnsupportedVolume,
    VolkitError,
)
from volkit.guard import call_backend
from volkit.host import devices, filesystems, mounts, paths, process
from volkit.interfaces import ConnectsPerPod, Node, ReportsTopology
from volkit.journal import Delete, Journal, Put, key
from volkit.journal.records import QUARANTINE, parts, quarantined
from volkit.locks import Locks
from volkit.model import (
    BlockConnection,
    BlockVolume,
    Capability,
    Connection,
    FileConnection,
    Usage,
    VolumeHealth,
)
from volkit.node_ids import encode_node_id

_log = logging.getLogger("volkit.engine")

MOUNT_SECONDS = 60.0
"""How long a mount program of a network file system may take."""

_CONNECTIONS = {"block": BlockConnection, "file": FileConnection}


class Staging:
    """One method per operation of the table's node side, each `(request, call)`."""

    def __init__(
        self, node: Node[Any], backend: type[Backend[Any, Any]], journal: Journal, locks: Locks, node_id: str
    ) -> None:
        self._node = node
        self._backend = backend
        self._journal = journal
        self._locks = locks
        self._node_id = node_id
        self._per_pod = isinstance(node, ConnectsPerPod)

    # -- stage
    # ---------------------------------------------------------------------------------------------------------

    def node_stage(self, request: requests.NodeStageRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.staging_target_path, "staging_target_path")
        self._check_capability(request.capability)
        stage_key = key("stage", request.volume_id)
        with self._locks.hold(key("volume", request.volume_id), wait=call.patience()):
            old = self._record(stage_key)
            if old and self._is_staged(old):
                _same_stage(request, old)
                return
            record = {
                "path": request.staging_target_path,
                "capability": request.capability.record(),
                "state": "connecting",
                "since": time.time(),
                **{part: old[part] for part in ("connection", "format", "since") if old and old.get(part)},
            }
            self._journal.write(Put(stage_key, record), durable=False)
            connection = self._connected(stage_key, request, old)
            if isinstance(connection, BlockConnection):
                devices.verify(connection.device, connection.identity)
            record = {**record, "state": "connected", "connection": _to_record(connection)}
            mounted = mounts.is_mount_point(request.staging_target_path)
            settle = self._adopt if mounted else self._settle_stage
            try:
                settle(stage_key, record, request, connection)
            except VolkitError as error:
                if not isinstance(error, Ambiguous):
                    self._undo_stage(stage_key, request, connection, unmount=not mounted)
                raise

    def _connected(
        self, stage_key: str, request: requests.NodeStageRequest, old: Mapping[str, Any] | None
    ) -> Connection:
        """What connect returns; after its final refusal nobody calls unstage, so nothing stays recorded."""
        try:
            return self._connect(request, resumed=old is not None)
        except VolkitError as error:
            if old is None and not isinstance(error, Ambiguous):
                self._journal.write(Delete(stage_key), durable=False)
            raise

    def _connect(
        self, request: requests.NodeStageRequest | requests.NodePublishRequest, *, resumed: bool
    ) -> Connection:
        readonly = request.capability.access_mode.read_only or getattr(request, "readonly", False)
        wanted = requests.ConnectRequest(
            volume_id=request.volume_id,
            node_id=self._node_id,
            capability=request.capability,
            readonly=readonly,
            publish_context=request.publish_context,
            volume_context=request.volume_context,
            secrets=request.secrets,
            metadata=getattr(request, "metadata", {}),
            resumed=resumed,
        )
        connection: Connection = call_backend(self._node.connect, wanted, (BlockConnection, FileConnection))
        if request.capability.block and not isinstance(connection, BlockConnection):
            self._disconnect(request.volume_id, connection)
            raise UnsupportedVolume(f"volume {request.volume_id!r} is no block device: mount it")
        return connection

    def _settle_stage(
        self,
        stage_key: str,
        record: dict[str, Any],
        request: requests.NodeStageRequest,
        connection: Connection,
    ) -> None:
        """Record the connection, and mount what it leads to at the staging path."""
        fs_type = ""
        if isinstance(connection, BlockConnection) and not request.capability.access_mode.read_only:
            devices.set_read_only(connection.device, False)  # a device number keeps what its last user set
        if isinstance(connection, BlockConnection) and not request.capability.block:
            fs_type = formatting.ensure_file_system(
                request,
                connection,
                fs_types=self._backend.limits.fs_types,
                unfinished=record.get("format") or "",
                intend=lambda wanted: self._journal.write(Put(stage_key, {**record, "format": wanted})),
            )
        record = {**record, "fs_type": fs_type, "format": None}
        self._journal.write(Put(stage_key, record), durable=True)
        if not request.capability.block:
            self._mount(connection, fs_type, request)

    def _adopt(
        self,
        stage_key: str,
        record: dict[str, Any],
        request: requests.NodeStageRequest,
        connection: Connection,
    ) -> None:
        """A mount at the staging path that no record tells of, since the journal was lost: it is the wanted one, or
        it stays untouched. Raises FailedPrecondition.
        """
        path, capability = request.staging_target_path, request.capability
        here = mounts.mount_at(path)
        if (
            here is None
            or capability.block
            or not _is_mounted(connection, path, here)
            or here.read_only != capability.access_mode.read_only
            or capability.fs_type not in ("", here.fs_type)
        ):
            raise FailedPrecondition(
                f"something else is mounted at {path}, or in another way: unstage {request.volume_id!r} there first"
            )
        fs_type = here.fs_type if isinstance(connection, BlockConnection) else ""
        self._journal.write(Put(stage_key, {**record, "fs_type": fs_type, "format": None}), durable=True)

    def _mount(self, connection: Connection, fs_type: str, request: requests.NodeStageRequest) -> None:
        path, capability = request.staging_target_path, request.capability
        paths.ensure_directory(path)
        flags = [*capability.mount_flags, *(["ro"] if capability.access_mode.read_only else [])]
        if isinstance(connection, BlockConnection):
            read_only = capability.access_mode.read_only
            formatting.mount_device(connection.device, path, fs_type, flags, read_only=read_only)
        elif connection.directory:
            mounts.bind(connection.directory, path, read_only=capability.access_mode.read_only)
        else:
            _mount_remote(connection, path, flags)

    def _undo_stage(
        self, stage_key: str, request: requests.NodeStageRequest, connection: Connection, *, unmount: bool
    ) -> None:
        """After a final failure nobody calls unstage: leave nothing connected. What fails here stays
        recorded.
        """
        try:
            if unmount:
                mounts.unmount(request.staging_target_path)
            self._disconnect(request.volume_id, connection)
        except VolkitError as error:
            _log.warning(
                "volume %r stays connected after a failed stage: %s", request.volume_id, error.message
            )
            return
        if not (self._record(stage_key) or {}).get("format"):
            self._journal.write(Delete(stage_key), durable=False)

    def _is_staged(self, record: Mapping[str, Any]) -> bool:
        """Is it so in reality: the right device, and mounted where it is said to be?"""
        if record.get("state") != "connected" or record.get("format"):
            return False
        connection = _from_record(record["connection"])
        if not isinstance(connection, BlockConnection):
            return mounts.is_mount_point(record["path"])
        if not _is_block(record):  # a mount holds its device: nothing else can have got its number
            return mounts.mounted_from(connection.device, record["path"])
        try:
            devices.verify(connection.device, connection.identity)
        except VolkitError:
            return False
        return True

    def node_unstage(self, request: requests.NodeUnstageRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.staging_target_path, "staging_target_path")
        stage_key = key("stage", request.volume_id)
        with self._locks.hold(key("volume", request.volume_id), wait=call.patience()):
            record = self._record(stage_key)
            if record and record["path"] != request.staging_target_path and self._is_staged(record):
                return  # staged, but not here
            self._unstage(request.volume_id, request.staging_target_path, record)

    def _unstage(self, volume_id: str, staging: str, record: Mapping[str, Any] | None) -> None:
        """Under the volume's lock. Raises InUse where it is published."""
        if target := self._mounted_target(volume_id):
            raise InUse(f"volume {volume_id!r} is published at {target}: unpublish it first")
        if not record or record["path"] != staging:
            self._refuse_anothers(volume_id, staging)
        for path in {staging, record["path"] if record else staging}:
            mounts.unmount(path)
        recorded = record.get("connection") if record else None
        self._disconnect(volume_id, _from_record(recorded) if recorded else None)
        stage_key = key("stage", volume_id)
        if record and record.get("format"):  # the next stage has to know of a half-made file system
            left = {**record, "state": "connecting", "connection": None}
            self._journal.write(Put(stage_key, left), durable=False)
        else:
            self._forget(stage_key)

    def _forget(self, record_key: str) -> None:
        """Remove a record, also one that could not be read."""
        self._journal.write(Delete(record_key), Delete(key(QUARANTINE, record_key)), durable=False)

    def is_staged(self, volume_id: str) -> bool:
        """Is the volume staged in reality, as its record says?"""
        record = self._record(key("stage", volume_id))
        return record is not None and self._is_staged(record)

    def undo_unfinished_stage(self, volume_id: str) -> bool:
        """Undo a stage that was cut short, or whose mount or device is gone: True where there was one.

        Nobody is waited for: raises Aborted while another operation holds the volume, InUse where it is published.
        """
        with self._locks.hold(key("volume", volume_id), wait=0):
            record = self._record(key("stage", volume_id))
            if record is None or self._is_staged(record):
                return False
            if mounts.is_mount_point(record["path"]) and not record.get("connection"):
                raise FailedPrecondition(
                    f"what is mounted at {record['path']} is not known to be volkit's: it stays"
                )
            self._unstage(volume_id, record["path"], record)
            return True

    def undo_unfinished_publish(self, volume_id: str, path: str) -> bool:
        """Undo a publish whose mount is not there; as `undo_unfinished_stage`."""
        target_key = key("target", volume_id, path)
        with self._locks.hold(target_key, wait=0):
            record = self._record(target_key)
            if record is None or mounts.is_mount_point(path):
                return False
            self._unpublish(target_key, record, volume_id, path)
            return True

    def _disconnect(self, volume_id: str, connection: Connection | None) -> None:
        request = requests.DisconnectRequest(
            volume_id=volume_id, node_id=self._node_id, connection=connection
        )
        with suppress(NotFound):
            call_backend(self._node.disconnect, request, type(None))

    # -- publish
    # -------------------------------------------------------------------------------------------------------

    def node_publish(self, request: requests.NodePublishRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.target_path, "target_path")
        self._check_capability(request.capability)
        if request.staging_target_path:
            validate.check_path(request.staging_target_path, "staging_target_path")
        elif not self._per_pod:
            raise FailedPrecondition("staging_target_path is required: the volume has to be staged first")
        target_key = key("target", request.volume_id, request.target_path)
        wanted = {
            "path": request.target_path,
            "readonly": request.readonly,
            "capability": request.capability.record(),
            "staging": request.staging_target_path,
            "since": time.time(),
        }
        with self._locks.hold(target_key, wait=call.patience()):
            old = self._record(target_key)
            if mounts.is_mount_point(request.target_path):
                self._settle_published(request, old, wanted)
                return
            if self._per_pod:
                self._publish_per_pod(target_key, wanted, request, resumed=old is not None)
                return
            with self._locks.hold(key("volume", request.volume_id), wait=call.patience()):
                source = self._staged_source(request)
                self._refuse_second_target(request)
                self._journal.write(Put(target_key, wanted), durable=False)
                try:
                    _bind(source, request)
                except VolkitError as error:
                    if not isinstance(error, Ambiguous):  # nobody calls unpublish after it
                        self._journal.write(Delete(target_key), durable=False)
                    raise

    def _settle_published(
        self, request: requests.NodePublishRequest, old: Mapping[str, Any] | None, wanted: Mapping[str, Any]
    ) -> None:
        """Something is mounted at the target already: fine where it is what is asked for, recorded or not."""
        path = request.target_path
        if old is None and not self._per_pod and mounts.same_mount(self._staged_source(request), path):
            here = mounts.mount_at(path)
            if here is not None and here.read_only == _read_only(request):
                self._journal.write(Put(key("target", request.volume_id, path), wanted), durable=False)
                return
        if old is None:
            raise FailedPrecondition(
                f"something is mounted at {path} that volkit has no record of: unpublish it there first"
            )
        for part in ("readonly", "capability", "staging"):
            if old[part] != wanted[part]:
                raise AlreadyExists(
                    f"volume {request.volume_id!r} is published at {request.target_path} with another {part}"
                )
        if not self._per_pod and not mounts.same_mount(self._staged_source(request), request.target_path):
            raise FailedPrecondition(
                f"something else is mounted at {request.target_path}: unpublish it there first"
            )

    def _publish_per_pod(
        self, target_key: str, wanted: dict[str, Any], request: requests.NodePublishRequest, *, resumed: bool
    ) -> None:
        self._refuse_second_target(request)
        self._journal.write(Put(target_key, wanted), durable=False)
        connection: Connection | None = None
        try:
            connection = self._connect(request, resumed=resumed)
            record = {**wanted, "connection": _to_record(connection)}
            self._journal.write(Put(target_key, record), durable=True)
            self._mount_per_pod(connection, request)
        except VolkitError as error:
            if not isinstance(error, Ambiguous):  # nobody calls unpublish after it
                if connection is not None:
                    self._disconnect(request.volume_id, connection)
                self._journal.write(Delete(target_key), durable=False)
            raise

    @staticmethod
    def _mount_per_pod(connection: Connection, request: requests.NodePublishRequest) -> None:
        if isinstance(connection, BlockConnection):
            raise UnsupportedVolume(
                "a backend that connects per pod gives file connections, not block devices"
            )
        if connection.directory:
            _bind(connection.directory, request)
            return
        paths.ensure_directory(request.target_path, empty=True)
        flags = [*request.capability.mount_flags, *(["ro"] if _read_only(request) else [])]
        _mount_remote(connection, request.target_path, flags)

    def _staged_source(self, request: requests.NodePublishRequest) -> str:
        """What a publish binds: the staging path, or the device for raw block access. Raises
        FailedPrecondition.
        """
        record = self._record(key("stage", request.volume_id))
        if not record or not self._is_staged(record) or record["path"] != request.staging_target_path:
            raise FailedPrecondition(
                f"volume {request.volume_id!r} is not staged at {request.staging_target_path}: stage it first"
            )
        if _is_block(record) != request.capability.block:
            raise FailedPrecondition(
                f"volume {request.volume_id!r} is staged as {record['capability'][1]}: publish it so"
            )
        if request.capability.block:
            return str(record["connection"]["device"])
        return request.staging_target_path

    def _refuse_second_target(self, request: requests.NodePublishRequest) -> None:
        """CSI spec, NodePublishVolume: a second target only for the modes that allow it, raw devices only
        read-only together.
        """
        for other in self._targets(request.volume_id):
            if other["path"] == request.target_path or not mounts.is_mount_point(other["path"]):
                continue
            if not request.capability.access_mode.multi_target:
                raise FailedPrecondition(
                    f"volume {request.volume_id!r} is published at {other['path']} already, "
                    f"and access mode {request.capability.access_mode.name} allows one target"
                )
            if request.capability.block and other["readonly"] != request.readonly:
                raise FailedPrecondition(
                    f"volume {request.volume_id!r} is a raw device, read-only at all its targets or at none"
                )

    def node_unpublish(self, request: requests.NodeUnpublishRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.target_path, "target_path")
        target_key = key("target", request.volume_id, request.target_path)
        with self._locks.hold(target_key, wait=call.patience()):
            record = self._record(target_key)
            if record is None and mounts.is_mount_point(request.target_path):
                self._refuse_foreign(request)
            self._unpublish(target_key, record, request.volume_id, request.target_path)

    def _unpublish(
        self, target_key: str, record: Mapping[str, Any] | None, volume_id: str, path: str
    ) -> None:
        """Under the target's lock."""
        mounts.unmount(path)
        paths.remove_target(path)
        if record is not None and self._per_pod:
            recorded = record.get("connection")
            self._disconnect(volume_id, _from_record(recorded) if recorded else None)
        if record is not None or quarantined(self._journal, target_key):
            self._forget(target_key)

    def _refuse_foreign(self, request: requests.NodeUnpublishRequest) -> None:
        """A mount without a record is ours to remove only where it is this volume, or nothing is known of the
        volume at all.
        """
        self._refuse_anothers(request.volume_id, request.target_path)
        record = self._record(key("stage", request.volume_id))
        if not record or not record.get("connection"):
            return
        connection = _from_record(record["connection"])
        path, here = request.target_path, mounts.mount_at(request.target_path)
        ours = here is not None and not _is_block(record) and _is_mounted(connection, path, here)
        if isinstance(connection, BlockConnection) and _is_block(record):
            ours = mounts.same_mount(connection.device, path)
        if not ours:
            raise FailedPrecondition(
                f"what is mounted at {request.target_path} is not volume {request.volume_id!r}: it stays"
            )

    def _refuse_anothers(self, volume_id: str, path: str) -> None:
        """A mount that the records give to another volume stays. Raises FailedPrecondition."""
        if not mounts.is_mount_point(path):
            return
        own = (key("stage", volume_id), key("target", volume_id, path))
        for entry in (*self._journal.scan(key("stage", "")), *self._journal.scan(key("target", ""))):
            if entry.value.get("path") == path and entry.key not in own:
                raise FailedPrecondition(f"what is mounted at {path} is another volume's: it stays")

    # -- grow, look
    # ----------------------------------------------------------------------------------------------------

    def node_expand(
        self, request: requests.NodeExpandRequest, call: requests.Call
    ) -> requests.NodeExpandResult:
        validate.check_id(request.volume_id)
        validate.check_capacity_range(request.capacity_range)
        required = request.capacity_range.required
        with self._locks.hold(key("volume", request.volume_id), wait=call.patience()):
            record = self._known(request.volume_id, request.volume_path)
            connection = _from_record(record["connection"])
            resize = requests.ResizeRequest(volume_id=request.volume_id, connection=connection, size=required)
            call_backend(self._node.resize, resize, type(None))
            if not isinstance(connection, BlockConnection):
                return requests.NodeExpandResult(
                    capacity=required or filesystems.usage(request.volume_path).total
                )
            devices.verify(connection.device, connection.identity)
            size = devices.size(connection.device)
            if size < required:
                raise FailedPrecondition(
                    f"{connection.device} has {size} bytes, asked for are {required}: expand the volume first"
                )
            if request.capacity_range.limit and size > request.capacity_range.limit:
                raise OutOfRange(
                    f"{connection.device} has {size} bytes, the limit is {request.capacity_range.limit}"
                )
            if record.get("fs_type"):
                filesystems.grow(connection.device, record["fs_type"], record["path"])
            return requests.NodeExpandResult(capacity=size)

    def node_stats(self, request: requests.NodeStatsRequest, call: requests.Call) -> requests.NodeStats:
        validate.check_id(request.volume_id)
        record = self._known(request.volume_id, request.volume_path)
        connection = _from_record(record["connection"])
        usage: Usage | None = call_backend(
            lambda _: self._node.usage(request.volume_id, connection), request, (Usage, type(None))
        )
        try:
            if usage is None and _is_block(record):
                usage = Usage(total=devices.size(str(record["connection"]["device"])))
            usage = usage or filesystems.usage(request.volume_path)
        except VolkitError as error:
            return requests.NodeStats(
                usage=Usage(total=0), health=VolumeHealth(abnormal=True, message=error.message)
            )
        return requests.NodeStats(usage=usage)

    def _known(self, volume_id: str, path: str) -> Mapping[str, Any]:
        """The record that has the volume's connection, where the volume really is at `path`. Raises
        NotFound.
        """
        if not path:
            raise validate.missing("volume_path")
        staged, published = (
            self._record(key("stage", volume_id)),
            self._record(key("target", volume_id, path)),
        )
        record = published if self._per_pod else staged
        at_stage = bool(staged and staged["path"] == path and self._is_staged(staged))
        if (
            not record
            or not record.get("connection")
            or not (at_stage or (published and mounts.is_mount_point(path)))
        ):
            raise NotFound(f"volume {volume_id!r} is not at {path!r} on this node")
        return record

    def node_info(self, request: requests.NodeInfoRequest, call: requests.Call) -> requests.NodeInfo:
        info: requests.NodeInfo = call_backend(lambda _: self._node.info(), request, requests.NodeInfo)
        place = self._node.topology() if isinstance(self._node, ReportsTopology) else None
        return attrs.evolve(info, node_id=encode_node_id(self._node_id, info.facts), topology=place)

    def in_use(self, volume_id: str) -> str:
        """Where on this node the volume is mounted or attached in reality, or ""; a stale record counts for
        nothing, one that could not be read for a use.
        """
        if target := self._mounted_target(volume_id):
            return target
        record = self._record(key("stage", volume_id))
        if record and self._is_staged(record):
            return str(record["path"])
        unread = key("stage", volume_id) in quarantined(self._journal, key("stage", volume_id))
        return "a place that only a record in the quarantine tells of" if unread else ""

    def _mounted_target(self, volume_id: str) -> str:
        targets = [str(one["path"]) for one in self._targets(volume_id)]
        unread = [parts(one)[2] for one in quarantined(self._journal, key("target", volume_id, ""))]
        return next((path for path in (*targets, *unread) if mounts.is_mount_point(path)), "")

    def _targets(self, volume_id: str) -> list[Mapping[str, Any]]:
        return [entry.value for entry in self._journal.scan(key("target", volume_id, ""))]

    def _record(self, record_key: str) -> Mapping[str, Any] | None:
        entry = self._journal.get(record_key)
        return entry.value if entry else None

    def _check_capability(self, capability: Capability) -> None:
        limits = self._backend.limits
        kind = (
            self._backend.volume
            if issubclass(self._backend.volume, BlockVolume) or not capability.block
            else BlockVolume
        )
        validate.check_capability(capability, kind, modes=limits.access_modes, fs_types=limits.fs_types)


def _read_only(request: requests.NodePublishRequest) -> bool:
    return request.readonly or request.capability.access_mode.read_only


def _is_mounted(connection: Connection, path: str, here: mounts.Mount) -> bool:
    """Whether the mount `here` at `path` is of this connection."""
    if isinstance(connection, BlockConnection):
        return mounts.mounted_from(connection.device, path)
    return (
        mounts.same_mount(connection.directory, path)
        if connection.directory
        else here.source == connection.source
    )


def _bind(source: str, request: requests.NodePublishRequest) -> None:
    readonly = _read_only(request)
    if request.capability.block:
        devices.set_read_only(source, readonly)  # a read-only bind of a device node keeps nobody from writing
        paths.ensure_file(request.target_path)
    else:
        # empty: what the mount would hide could not be removed after it
        paths.ensure_directory(request.target_path, empty=True)
    mounts.bind(source, request.target_path, read_only=readonly)


def _mount_remote(connection: FileConnection, path: str, flags: list[str]) -> None:
    """Mount by the kernel alone, or by the type's own program (mount.nfs, …) where it has one, as mount(8)
    would.
    """
    options = [*connection.options, *flags]
    program = mounts.mount_program(connection.fs_type)
    if program is None:
        mounts.mount(connection.source, path, connection.fs_type, options)
        return
    words = ["-o", ",".join(options)] if options else []
    process.run([program, connection.source, path, *words], timeout=MOUNT_SECONDS, secrets=options)


def _same_stage(request: requests.NodeStageRequest, old: Mapping[str, Any]) -> None:
    if old["path"] != request.staging_target_path:
        raise AlreadyExists(
            f"volume {request.volume_id!r} is staged at {old['path']}: unstage it there first"
        )
    if old["capability"] != request.capability.record():
        raise AlreadyExists(
            f"volume {request.volume_id!r} is staged with another capability: unstage it first"
        )


def _is_block(record: Mapping[str, Any]) -> bool:
    return bool(record["capability"][1] == "block")


def _to_record(connection: Connection) -> dict[str, Any]:
    if isinstance(connection, BlockConnection):
        return {"kind": "block", "device": connection.device, "identity": dict(connection.identity)}
    # options may carry credentials: what is needed to undo a mount is its path
    return {
        "kind": "file",
        "source": connection.source,
        "fs_type": connection.fs_type,
        "directory": connection.directory,
    }


def _from_record(record: Mapping[str, Any]) -> Connection:
    values = {name: value for name, value in record.items() if name != "kind"}
    connection: Connection = _CONNECTIONS[record["kind"]](**values)
    return connection
