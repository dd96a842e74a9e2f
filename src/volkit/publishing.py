"""Publish and unpublish: a staged volume, or one connected for a pod, at a target path."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from volkit import requests, validate
from volkit.errors import (
    Aborted,
    AlreadyExists,
    Ambiguous,
    FailedPrecondition,
    UnsupportedVolume,
    VolkitError,
)
from volkit.host import devices, mounts, ownership, paths
from volkit.journal import Conflict, Delete, Put, key
from volkit.journal.records import quarantined
from volkit.model import AccessMode, BlockConnection, Connection, FuseConnection
from volkit.node_state import (
    NodeState,
    from_record,
    is_mounted,
    is_raw,
    mount_remote,
    recorded_connection,
    recorded_flags,
    to_record,
    unmount,
)

_COMPARED = {
    "readonly": "another readonly",
    "capability": "another capability",
    "staging": "another staging_target_path",
    "flags": "other mount flags",
}
_USER = ("pod.name", "pod.namespace", "pod.uid", "serviceAccount.name")
_MAX_NAME = 256

_log = logging.getLogger("volkit.engine")


class Publishing:
    """The operations of the table that publish, each `(request, call)`."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def node_publish(self, request: requests.NodePublishRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        validate.check_path(request.target_path, "target_path")
        self._state.check_capability(request.capability)
        if request.staging_target_path:
            validate.check_path(request.staging_target_path, "staging_target_path")
        elif not self._state.per_pod:
            raise FailedPrecondition("staging_target_path is required: the volume has to be staged first")
        target_key = key("target", request.volume_id, request.target_path)
        wanted = {
            "path": request.target_path,
            "readonly": request.readonly,
            "capability": request.capability.record(),
            "flags": recorded_flags(request.capability),
            "staging": request.staging_target_path,
            "since": time.time(),
            **({"user": user} if (user := user_of(request.metadata)) else {}),
        }
        with self._state.locks.hold(target_key, wait=call.patience()):
            old = self._state.record(target_key)
            if old is not None and old.get("state") == "cancelled":  # and whoever hung in it is gone
                self._unpublish(target_key, old, request.volume_id, request.target_path)
                old = None
            if mounts.is_mount_point(request.target_path):
                self._settle_published(request, old, wanted)
                return
            if self._state.per_pod:
                self._publish_per_pod(target_key, wanted, request, resumed=old is not None)
                return
            # before it is seen, and without the volume's lock: a large volume takes its time, and its unstage is
            # refused meanwhile, as a directory of it is open
            self._give_to_group(self._staged_source(request), request)
            with self._state.locks.hold(key("volume", request.volume_id), wait=call.patience()):
                source = self._staged_source(request)
                self._refuse_second_target(request)
                self._state.journal.write(Put(target_key, wanted), durable=False)
                try:
                    _bind(source, request)
                except VolkitError as error:
                    if not isinstance(error, Ambiguous):  # nobody calls unpublish after it
                        self._state.journal.write(Delete(target_key), durable=False)
                    raise
                self._undo_if_cancelled(target_key, request)

    def _give_to_group(self, directory: str, request: requests.NodePublishRequest) -> None:
        group = request.capability.volume_mount_group
        if group and self._state.groups and not request.capability.block and not _read_only(request):
            ownership.give_to_group(directory, int(group))

    def _settle_published(
        self, request: requests.NodePublishRequest, old: Mapping[str, Any] | None, wanted: Mapping[str, Any]
    ) -> None:
        """Something is mounted at the target already: fine where it is what is asked for, recorded or not."""
        path = request.target_path
        if old is None and not self._state.per_pod and mounts.same_mount(self._staged_source(request), path):
            here = mounts.mount_at(path)
            if here is not None and here.read_only == _read_only(request):
                self._state.journal.write(Put(key("target", request.volume_id, path), wanted), durable=False)
                return
        if old is None:
            raise FailedPrecondition(
                f"something is mounted at {path} that volkit has no record of: unpublish it there first"
            )
        for part, called in _COMPARED.items():
            if old.get(part, wanted[part]) != wanted[part]:  # an older version recorded no flags
                raise AlreadyExists(
                    f"volume {request.volume_id!r} is published at {request.target_path} with {called}: "
                    "unpublish it there first"
                )
        if not self._state.per_pod and not mounts.same_mount(
            self._staged_source(request), request.target_path
        ):
            raise FailedPrecondition(
                f"something else is mounted at {request.target_path}: unpublish it there first"
            )

    def _publish_per_pod(
        self, target_key: str, wanted: dict[str, Any], request: requests.NodePublishRequest, *, resumed: bool
    ) -> None:
        self._refuse_second_target(request)
        self._state.journal.write(Put(target_key, wanted), durable=False)
        connection: Connection | None = None
        try:
            connection = self._state.connect(request, resumed=resumed)
            self._keep(target_key, connection)
            self._mount_per_pod(connection, request)
            self._refuse_second_target(request)  # again: each pod's publish has a lock of its own
        except VolkitError as error:
            if not isinstance(error, Ambiguous) or self._is_cancelled(
                target_key
            ):  # nobody calls unpublish after it
                unmount(request.target_path, connection)
                if connection is not None:
                    self._state.disconnect(request.volume_id, connection)
                self._state.journal.write(Delete(target_key), durable=False)
            raise
        self._undo_if_cancelled(target_key, request)

    def _keep(self, target_key: str, connection: Connection) -> None:
        """Record the connection of a publish. Raises Aborted where it was cancelled meanwhile."""
        entry = self._state.journal.get(target_key)
        if entry is None or entry.value.get("state") == "cancelled":
            raise Aborted("the volume was unpublished while it was connected: publish it again")
        record = {**entry.value, "connection": to_record(connection)}
        self._state.journal.write(Put(target_key, record, revision=entry.revision), durable=True)

    def _is_cancelled(self, target_key: str) -> bool:
        record = self._state.record(target_key)
        return record is None or record.get("state") == "cancelled"

    def _undo_if_cancelled(self, target_key: str, request: requests.NodePublishRequest) -> None:
        """After the mount: an unpublish that did not wait for it has won. Raises Aborted."""
        if self._is_cancelled(target_key):
            record = self._state.record(target_key)
            self._unpublish(target_key, record, request.volume_id, request.target_path)
            raise Aborted(
                f"volume {request.volume_id!r} was unpublished from {request.target_path} while its publish hung"
            )

    def _mount_per_pod(self, connection: Connection, request: requests.NodePublishRequest) -> None:
        if isinstance(connection, BlockConnection):
            raise UnsupportedVolume(
                "a backend that connects per pod gives file connections, not block devices"
            )
        if isinstance(connection, FuseConnection):
            paths.ensure_directory(request.target_path, empty=True)
            self._state.mount_program(connection, request.target_path, read_only=_read_only(request))
            return
        if connection.directory:
            self._give_to_group(connection.directory, request)
            _bind(connection.directory, request, request.capability.mount_flags)
            return
        paths.ensure_directory(request.target_path, empty=True)
        flags = [*request.capability.mount_flags, *(["ro"] if _read_only(request) else [])]
        mount_remote(connection, request.target_path, flags)

    def _staged_source(self, request: requests.NodePublishRequest) -> str:
        """What a publish binds: the staging path, or the device for raw block access. Raises
        FailedPrecondition.
        """
        record = self._state.stage_record(request.volume_id)
        if (
            not record
            or not self._state.really_staged(record)
            or record["path"] != request.staging_target_path
        ):
            raise FailedPrecondition(
                f"volume {request.volume_id!r} is not staged at {request.staging_target_path}: stage it first"
            )
        if AccessMode(record["capability"][0]).read_only and not _read_only(request):
            raise FailedPrecondition(
                f"volume {request.volume_id!r} is staged read-only on this node: it can be written once its readers end"
            )
        if is_raw(record) != request.capability.block:
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
        for other in self._state.targets(request.volume_id):
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
        held = False
        try:
            with self._state.locks.hold(target_key, wait=call.patience()):
                held = True
                record = self._state.record(target_key)
                if record is None and mounts.is_mount_point(request.target_path):
                    self._refuse_foreign(request)
                self._unpublish(
                    target_key, record, request.volume_id, request.target_path, keep=request.keep_target
                )
        except Aborted:
            if held or not self._cancel_publish(target_key, request):
                raise

    def _cancel_publish(self, target_key: str, request: requests.NodeUnpublishRequest) -> bool:
        """Unpublish without the lock, where it is a publish that holds it, and hangs: its record is marked, and it
        undoes itself when it goes on. A process that is killed meanwhile leaves the mark to the next call, or to
        `volkit recover`. False where another unpublish holds the lock.
        """
        if not self._mark_cancelled(target_key):
            return False
        _log.warning(
            "volume %r: a publish at %s hangs and is cancelled", request.volume_id, request.target_path
        )
        mounts.unmount(request.target_path)
        if not request.keep_target:
            paths.remove_target(request.target_path)
        return True

    def _mark_cancelled(self, target_key: str) -> bool:
        while True:
            entry = self._state.journal.get(target_key)
            if entry is None or entry.value.get("state") == "unpublishing":
                return False
            mark = {**entry.value, "state": "cancelled"}
            with suppress(Conflict):  # the publish has just recorded what it is connected to
                self._state.journal.write(Put(target_key, mark, revision=entry.revision), durable=True)
                return True

    def _unpublish(
        self,
        target_key: str,
        record: Mapping[str, Any] | None,
        volume_id: str,
        path: str,
        *,
        keep: bool = False,
    ) -> None:
        """Under the target's lock."""
        connection = recorded_connection(record) if self._state.per_pod else None
        if connection is not None:
            self._state.drain(volume_id, connection)
        unmount(path, connection)
        if not keep:
            paths.remove_target(path)
        if record is not None and self._state.per_pod:
            self._state.journal.write(Put(target_key, {**record, "state": "unpublishing"}), durable=False)
            self._state.disconnect(volume_id, connection)
        if record is not None or quarantined(self._state.journal, target_key):
            self._state.forget(target_key)

    def _refuse_foreign(self, request: requests.NodeUnpublishRequest) -> None:
        """A mount without a record is ours to remove only where it is this volume, or nothing is known of the
        volume at all.
        """
        self._state.refuse_anothers(request.volume_id, request.target_path)
        record = self._state.stage_record(request.volume_id)
        if not record or not record.get("connection"):
            return
        connection = from_record(record["connection"])
        path, here = request.target_path, mounts.mount_at(request.target_path)
        ours = here is not None and not is_raw(record) and is_mounted(connection, path, here)
        if isinstance(connection, BlockConnection) and is_raw(record):
            ours = mounts.same_mount(connection.device, path)
        if not ours:
            raise FailedPrecondition(
                f"what is mounted at {request.target_path} is not volume {request.volume_id!r}: it stays"
            )

    def undo_unfinished_publish(self, volume_id: str, path: str) -> bool:
        """Undo a publish whose mount is not there, or that was cancelled; as `undo_unfinished_stage`."""
        target_key = key("target", volume_id, path)
        with self._state.locks.hold(target_key, wait=0):
            record = self._state.record(target_key)
            if record is None or (record.get("state") != "cancelled" and mounts.is_mount_point(path)):
                return False
            self._unpublish(target_key, record, volume_id, path)
            return True


def user_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Whom a volume is published for, of what a platform tells besides: nothing else of it is recorded, since tokens
    are among it. CSI's `csi.storage.k8s.io/pod.name`, FlexVolume's `kubernetes.io/pod.name`.
    """
    told = {name.rpartition("/")[2]: value for name, value in metadata.items()}
    return {name: told[name][:_MAX_NAME] for name in _USER if told.get(name)}


def _read_only(request: requests.NodePublishRequest) -> bool:
    return request.readonly or request.capability.access_mode.read_only


def _bind(source: str, request: requests.NodePublishRequest, options: Sequence[str] = ()) -> None:
    readonly = _read_only(request)
    if request.capability.block:
        devices.set_read_only(source, readonly)  # a read-only bind of a device node keeps nobody from writing
        made = paths.ensure_file(request.target_path)
    else:
        # empty: what the mount would hide could not be removed after it
        made = paths.ensure_directory(request.target_path, empty=True)
    try:
        mounts.bind(source, request.target_path, read_only=readonly, options=options)
    except VolkitError:
        if made:  # nobody calls unpublish, and no record tells of it
            with suppress(VolkitError):
                paths.remove_target(request.target_path)
        raise
