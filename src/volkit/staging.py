"""Stage and unstage: from a connection to a mounted volume, and back. Where engine, journal and host meet."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from volkit import formatting, requests, validate
from volkit.errors import AlreadyExists, Ambiguous, FailedPrecondition, InUse, VolkitError
from volkit.host import devices, mounts, paths
from volkit.journal import Delete, Put, key
from volkit.model import BlockConnection, Connection, FuseConnection
from volkit.node_state import (
    NodeState,
    is_mounted,
    is_of,
    mount_remote,
    recorded_connection,
    recorded_flags,
    to_record,
    unmount,
)

_log = logging.getLogger("volkit.engine")


class Staging:
    """The operations of the table that stage, each `(request, call)`."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def node_stage(self, request: requests.NodeStageRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.staging_target_path, "staging_target_path")
        self._state.check_capability(request.capability)
        stage_key = key("stage", request.volume_id)
        with self._state.locks.hold(key("volume", request.volume_id), wait=call.patience()):
            old = self._state.record(stage_key)
            if old and self._state.really_staged(old):
                _same_stage(request, old)
                return
            record = {
                "path": request.staging_target_path,
                "capability": request.capability.record(),
                "flags": recorded_flags(request.capability),
                "state": "connecting",
                "since": time.time(),
                **{part: old[part] for part in ("connection", "format", "since") if old and old.get(part)},
            }
            self._state.journal.write(Put(stage_key, record), durable=False)
            if isinstance(dead := recorded_connection(old), FuseConnection):  # or half made
                unmount(request.staging_target_path, dead)
            connection = self._connected(stage_key, request, old)
            if isinstance(connection, BlockConnection):
                devices.verify(connection.device, connection.identity)
            record = {**record, "state": "connected", "connection": to_record(connection)}
            mounted = mounts.is_mount_point(request.staging_target_path)
            settle = self._adopt if mounted else self._settle_stage
            try:
                settle(stage_key, record, request, connection)
            except VolkitError as error:
                if not isinstance(error, Ambiguous):
                    self._undo_stage(stage_key, request, connection, mounted_here=not mounted)
                raise

    def _connected(
        self, stage_key: str, request: requests.NodeStageRequest, old: Mapping[str, Any] | None
    ) -> Connection:
        """What connect returns; after its final refusal nobody calls unstage, so nothing stays recorded."""
        try:
            return self._state.connect(request, resumed=old is not None)
        except VolkitError as error:
            if old is None and not isinstance(error, Ambiguous):
                self._state.journal.write(Delete(stage_key), durable=False)
            raise

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
                fs_types=self._state.fs_types,
                unfinished=record.get("format") or "",
                intend=lambda wanted: self._state.journal.write(Put(stage_key, {**record, "format": wanted})),
            )
        record = {**record, "fs_type": fs_type, "format": None}
        self._state.journal.write(Put(stage_key, record), durable=True)
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
            or not is_mounted(connection, path, here)
            or here.read_only != capability.access_mode.read_only
            or capability.fs_type not in ("", here.fs_type)
        ):
            raise FailedPrecondition(
                f"something else is mounted at {path}, or in another way: unstage {request.volume_id!r} there first"
            )
        fs_type = here.fs_type if isinstance(connection, BlockConnection) else ""
        self._state.journal.write(
            Put(stage_key, {**record, "fs_type": fs_type, "format": None}), durable=True
        )

    def _mount(self, connection: Connection, fs_type: str, request: requests.NodeStageRequest) -> None:
        path, capability = request.staging_target_path, request.capability
        paths.ensure_directory(path)
        flags = [*capability.mount_flags, *(["ro"] if capability.access_mode.read_only else [])]
        if isinstance(connection, BlockConnection):
            read_only = capability.access_mode.read_only
            formatting.mount_device(connection, path, fs_type, flags, read_only=read_only)
        elif isinstance(connection, FuseConnection):
            self._state.mount_program(connection, path, read_only=capability.access_mode.read_only)
        elif connection.directory:
            mounts.bind(connection.directory, path, options=flags)
        else:
            mount_remote(connection, path, flags)

    def _undo_stage(
        self,
        stage_key: str,
        request: requests.NodeStageRequest,
        connection: Connection,
        *,
        mounted_here: bool,
    ) -> None:
        """After a final failure nobody calls unstage: leave nothing connected. What fails here stays
        recorded.
        """
        try:
            if mounted_here:
                unmount(request.staging_target_path, connection)
            self._state.disconnect(request.volume_id, connection)
        except VolkitError as error:
            _log.warning(
                "volume %r stays connected after a failed stage: %s", request.volume_id, error.message
            )
            return
        if not (self._state.record(stage_key) or {}).get("format"):
            self._state.journal.write(Delete(stage_key), durable=False)

    def node_unstage(self, request: requests.NodeUnstageRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.staging_target_path, "staging_target_path")
        stage_key = key("stage", request.volume_id)
        with self._state.locks.hold(key("volume", request.volume_id), wait=call.patience()):
            record = self._state.record(stage_key)
            if record and record["path"] != request.staging_target_path and self._state.really_staged(record):
                return  # staged, but not here
            self._unstage(request.volume_id, request.staging_target_path, record)

    def _unstage(self, volume_id: str, staging: str, record: Mapping[str, Any] | None) -> None:
        """Under the volume's lock. Raises InUse where it is published."""
        if target := self._state.mounted_target(volume_id):
            raise InUse(f"volume {volume_id!r} is published at {target}: unpublish it first")
        if not record or record["path"] != staging:
            self._state.refuse_anothers(volume_id, staging)
        connection = recorded_connection(record)
        self._state.drain(volume_id, connection)
        for path in {staging, record["path"] if record else staging}:
            unmount(path, connection)
        self._state.disconnect(volume_id, connection)
        stage_key = key("stage", volume_id)
        if record and record.get("format"):  # the next stage has to know of a half-made file system
            left = {**record, "state": "connecting", "connection": None}
            self._state.journal.write(Put(stage_key, left), durable=False)
        else:
            self._state.forget(stage_key)

    def undo_unfinished_stage(self, volume_id: str) -> bool:
        """Undo a stage that was cut short, or whose mount or device is gone: True where there was one.

        Nobody is waited for: raises Aborted while another operation holds the volume, InUse where it is published.
        """
        with self._state.locks.hold(key("volume", volume_id), wait=0):
            record = self._state.stage_record(volume_id)
            if record is None or self._state.really_staged(record):
                return False
            here, connection = mounts.mount_at(record["path"]), recorded_connection(record)
            if here is not None and not (connection and is_of(connection, record["path"], here)):
                raise FailedPrecondition(
                    f"what is mounted at {record['path']} is not known to be volkit's: it stays"
                )
            self._unstage(volume_id, record["path"], record)
            return True


def _same_stage(request: requests.NodeStageRequest, old: Mapping[str, Any]) -> None:
    if old["path"] != request.staging_target_path:
        raise AlreadyExists(
            f"volume {request.volume_id!r} is staged at {old['path']}: unstage it there first"
        )
    # the group is a pod's: it is given at publish
    if old["capability"][:-1] != request.capability.record()[:-1]:
        raise AlreadyExists(
            f"volume {request.volume_id!r} is staged with another capability: unstage it first"
        )
    flags = recorded_flags(request.capability)
    if old.get("flags", flags) != flags:  # none in a record of an older version
        raise AlreadyExists(
            f"volume {request.volume_id!r} is staged with other mount flags: unstage it first"
        )
