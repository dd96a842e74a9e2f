"""What kubelet calls: mount and unmount, and what belongs to them.

Kubelet does not come back for all that a call left undone. It asks to unmount only a path that is there, to unmount a
device only where one is mounted, and neither for a mount that failed. So a path stays until all is undone; what is
refused for good is undone at once; and what a killed call left at a path that has gone, the next call finishes.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import volkit
from volkit import (
    Aborted,
    Ambiguous,
    Call,
    CapacityRange,
    FailedPrecondition,
    InUse,
    Unavailable,
    VolkitError,
    carrying,
)
from volkit.digests import digest
from volkit.host import mounts, paths
from volkit.journal import key
from volkit_flex import records, token
from volkit_flex.wire import Callout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from volkit import Engine
    from volkit_flex.options import Options
    from volkit_flex.volumes import Volumes
    from volkit_flex.wire import Answer

_LEFT_SECONDS: Final = 5.0
"""How long a call may work on what another left."""

_LEFT_PAUSE: Final = 60.0
"""After which it is tried again."""

_REPEAT_SECONDS: Final = 180.0
"""Kubelet repeats what failed after two minutes at most."""

_MAX_NAME = 200

_log = logging.getLogger("volkit.flex")


class NodeCalls:
    """Each call a method that gives its answer."""

    def __init__(self, volumes: Volumes) -> None:
        self.volumes = volumes
        self.engine: Engine = volumes.engine
        self.records: records.Records = volumes.node_records
        self.staging: Path = volumes.engine.state_dir / "flex"

    def waitforattach(self, call: Callout, limits: Call) -> Answer:
        token.decode(call.device)
        return {"device": call.device}

    def mountdevice(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        attachment = self.volumes.attachment(call, options, limits)
        if attachment.wanted not in ("", options.volume):
            raise FailedPrecondition(
                f"{options.name!r} is volume {options.volume!r}, and {attachment.wanted!r} is attached by that name: "
                "end the pods that use it first"
            )
        request = volkit.NodeStageRequest(
            volume_id=attachment.volume_id,
            staging_target_path=call.path,
            capability=self.volumes.capability(options, attachment.volume_id),
            publish_context=attachment.publish_context,
            volume_context=attachment.volume_context,
            secrets=options.secrets,
        )
        with self._mounting(call.path, limits):
            self._begin(
                call.path, volume=attachment.volume_id, name=options.name, staging="", ephemeral=False
            )
            self.records.put(
                records.DEVICE,
                options.name,
                volume=attachment.volume_id,
                wanted=options.volume,
                path=call.path,
                publish_context=dict(attachment.publish_context),
                volume_context=dict(attachment.volume_context),
            )
            if "node_stage" in self.engine.operations:
                self.engine.run("node_stage", request, limits)
        return {}

    def mount(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        if self.volumes.attaches:
            self._publish(call, options, limits)
        else:
            self._carry(call, options, limits)
        return {}

    def _carry(self, call: Callout, options: Options, limits: Call) -> None:
        """All at once, where nobody attaches."""
        about = {"name": options.name, "ephemeral": options.ephemeral and options.inline}
        with self._mounting(call.path, limits):
            if about["ephemeral"] and not self.records.get(records.PATH, call.path):  # not made yet, perhaps
                self._begin(call.path, volume=options.volume, staging=self._staging(options.volume), **about)
            volume_id, context = self.volumes.resolve(options, limits)
            staging = self._staging(volume_id)
            self._begin(call.path, volume=volume_id, staging=staging, **about)
            with self._one_at_a_time(volume_id, limits):
                carrying.up(
                    self.engine,
                    volume_id,
                    target=call.path,
                    staging=staging,
                    capability=self.volumes.capability(options, volume_id),
                    readonly=options.readonly,
                    volume_context=context,
                    secrets=options.secrets,
                    metadata=options.metadata,
                    call=limits,
                )

    def _publish(self, call: Callout, options: Options, limits: Call) -> None:
        """Into the pod, from where mountdevice mounted it. Raises FailedPrecondition where that is another volume:
        kubelet knows an inline volume only by the pod's own name for it.
        """
        device = self.records.get(records.DEVICE, options.name) or self._remounted(call, options, limits)
        volume_id, wanted = str(device["volume"]), device.get("wanted", options.volume)
        if wanted != options.volume:
            raise FailedPrecondition(
                f"the pod wants volume {options.volume!r}, and what kubelet knows as {options.name!r} on this node is "
                f"{wanted!r}: give the pod's volume another name, or use a PersistentVolume"
            )
        request = volkit.NodePublishRequest(
            volume_id=volume_id,
            target_path=call.path,
            staging_target_path=device["path"] if "node_stage" in self.engine.operations else "",
            capability=self.volumes.capability(options, volume_id),
            readonly=options.readonly,
            publish_context=device["publish_context"],
            volume_context=device["volume_context"],
            secrets=options.secrets,
            metadata=options.metadata,
        )
        about = {"name": options.name, "staging": device["path"], "ephemeral": False}
        with self._mounting(call.path, limits):
            self._begin(call.path, volume=volume_id, **about)
            self.engine.run("node_publish", request, limits)

    def _remounted(self, call: Callout, options: Options, limits: Call) -> Mapping[str, Any]:
        """The record of mountdevice, made anew after the journal was lost. Raises FailedPrecondition."""
        path = device_mount_path(call.path)
        if not path or not mounts.is_mount_point(path):
            raise FailedPrecondition(
                f"volume {options.volume!r} is not mounted on this node: mountdevice comes first"
            )
        self.mountdevice(Callout("mountdevice", {"path": path, "options": call.options}), limits)
        return self.records.get(records.DEVICE, options.name)

    def unmount(self, call: Callout, limits: Call) -> Answer:
        self._unmount(call.path, "", limits)
        return {}

    def unmountdevice(self, call: Callout, limits: Call) -> Answer:
        self._unmount(call.path, os.path.basename(call.path), limits)
        return {}

    def expandfs(self, call: Callout, limits: Call) -> Answer:
        """The backend grows here too: a current controller manager never calls expandvolume."""
        volume_id = self.volumes.of_call(call, limits)
        if self.engine.provisioning is not None:
            self.volumes.grow(volume_id, call, limits)
        request = volkit.NodeExpandRequest(
            volume_id=volume_id,
            volume_path=call.path,
            capacity_range=CapacityRange(required=call.new_size),
        )
        return {"volumeNewSize": self.engine.run("node_expand", request, limits).capacity}

    # -- what has begun, and how it is undone

    def _path(self, path: str, wait: float) -> AbstractContextManager[None]:
        """A path is in one call's hands at a time."""
        return self.engine.locks.hold(key("flex-path", path), wait=wait)

    @contextmanager
    def _mounting(self, path: str, limits: Call) -> Iterator[None]:
        """In here `path` is mounted; of what is refused for good nothing is left."""
        with self._path(path, limits.patience()):
            try:
                yield
            except VolkitError as error:
                record = self.records.get(records.PATH, path)
                if record and not isinstance(error, Ambiguous) and not mounts.is_mount_point(path):
                    self._refused(path, record, limits)
                raise

    def _begin(self, path: str, **record: Any) -> None:
        old = self.records.get(records.PATH, path)
        if old and old["volume"] != record["volume"] and mounts.is_mount_point(path):
            raise FailedPrecondition(f"volume {old['volume']!r} is mounted at {path}: unmount it there first")
        self.records.begin(path, record)

    def _refused(self, path: str, record: Mapping[str, Any], limits: Call) -> None:
        """Undo what the engine did not: a stage that succeeded, or that it could not undo. An ephemeral volume is kept
        until its pod's directory is gone, since the pod may have used it before.
        """
        volume_id, staging, state = record["volume"], record["staging"], self.engine.node_state
        stage = state.stage_record(volume_id) if state is not None else None
        try:
            if self._is_own(staging):
                self._down(volume_id, path, staging, limits, keep_target=True)
            elif not staging and stage is not None and stage["path"] == path:
                self._unstage(volume_id, path, limits)
            if not record["ephemeral"]:
                self._forget(path, record)
        except VolkitError as error:
            _log.warning("%s: what was begun there is not undone: %s", path, error.message)

    def _unmount(self, path: str, device: str, limits: Call) -> None:
        """`device` is the name of one, "" of a pod's path."""
        with self._path(path, limits.patience()):
            record = self.records.get(records.PATH, path) or self._lost(path, device, limits)
            if record:
                with suppress(Unavailable):  # a full or read-only disk is no reason not to unmount
                    self.records.begin(path, record)
                self._undo(path, record, limits)
            else:
                self._take_away(path)

    def _undo(self, path: str, record: Mapping[str, Any], limits: Call) -> None:
        """What a path's record tells of. Raises what the engine raises."""
        volume_id, staging = record["volume"], record["staging"]
        if not staging:
            self._unstage(volume_id, path, limits)
        elif self._is_own(staging):
            self._down(volume_id, path, staging, limits)
        else:
            unpublish = volkit.NodeUnpublishRequest(volume_id=volume_id, target_path=path)
            self.engine.run("node_unpublish", unpublish, limits)
        # by its name, where the call was cut short before it was made
        if record["ephemeral"] and (found := self.volumes.id_of(volume_id, limits)):
            self.engine.run("delete_volume", volkit.DeleteVolumeRequest(volume_id=found), limits)
        self._forget(path, record)

    def _unstage(self, volume_id: str, path: str, limits: Call) -> None:
        if "node_stage" in self.engine.operations:
            request = volkit.NodeUnstageRequest(volume_id=volume_id, staging_target_path=path)
            self.engine.run("node_unstage", request, limits)
        else:
            self._take_away(path)

    def _down(
        self, volume_id: str, path: str, staging: str, limits: Call, *, keep_target: bool = False
    ) -> None:
        """Out of a pod, and off this node with its last pod. Raises InUse where anybody else has it."""
        with self._one_at_a_time(volume_id, limits):
            try:
                carrying.down(
                    self.engine, volume_id, target=path, staging=staging, keep_target=keep_target, call=limits
                )
            except InUse:
                state = self.engine.node_state
                if mounts.is_mount_point(path) or state is None or not state.mounted_target(volume_id):
                    raise
                if not keep_target:
                    paths.remove_target(path)

    def _forget(self, path: str, record: Mapping[str, Any]) -> None:
        if not record["staging"] and self.records.get(records.DEVICE, record["name"]).get("path") == path:
            self.records.forget(records.DEVICE, record["name"])
        self.records.unmounted(path)

    def heard(self, path: str) -> None:
        """Kubelet knows what is mounted at `path`."""
        with self._path(path, 0.0):
            if self.records.get(records.OPEN, path) and mounts.is_mount_point(path):
                self.records.mounted(path)

    def release(self, name: str, limits: Call) -> None:
        """Before a volume is detached from this node, since kubelet says that it is not in use: undo what it does not
        know of, as of a call that was killed after its mount and before its answer. A pod's stays if it was answered.
        """
        device, state = self.records.get(records.DEVICE, name), self.engine.node_state
        if not device or state is None:
            return
        for path in self.records.all(records.OPEN):
            if self.records.get(records.PATH, path).get("staging") == device["path"]:
                self._unmount(path, "", limits)
        if not state.mounted_target(device["volume"]):
            self._unmount(device["path"], name, limits)

    def finish_left(self) -> None:
        """Undo what calls began and nobody ends. Of what cannot be undone the log tells."""
        for path, mark in self.records.all(records.OPEN).items():
            if time.time() - mark["tried"] < _LEFT_PAUSE:
                continue
            try:
                with self._path(path, 0.0):
                    record = self.records.get(records.PATH, path)
                    if record and self._is_left(path, record):
                        self.records.tried(path)
                        self._undo(path, record, Call(deadline=time.monotonic() + _LEFT_SECONDS, wait=0.0))
                        _log.info("%s: undid what a call left there", path)
            except Aborted:
                continue  # in somebody's hands
            except VolkitError as error:
                _log.warning("%s: what a call left there is not undone: %s", path, error.message)

    def _is_left(self, path: str, record: Mapping[str, Any]) -> bool:
        """Under the path's lock: does nobody come back for it? What kubelet wants, it asks for again."""
        mark = self.records.get(records.OPEN, path)
        if not mark or not _is_there(path):
            return bool(mark)
        if record["ephemeral"] or mounts.is_mount_point(path):
            return False
        return bool(time.time() - mark["begun"] > _REPEAT_SECONDS)

    # -- places

    def _staging(self, volume_id: str) -> str:
        """Where a driver without attach mounts a volume for all pods of the node; the name tells the volume."""
        name = quote(volume_id, safe="")
        if len(name) > _MAX_NAME or name.startswith("."):  # "..", where an id is what a user wrote
            name = "." + digest(volume_id, 16).hex()
        return str(self.staging / name)

    def _is_own(self, staging: str) -> bool:
        return os.path.dirname(staging) == str(self.staging)

    def _one_at_a_time(self, volume_id: str, limits: Call) -> AbstractContextManager[None]:
        """Between the last unmount of a volume and its next mount nobody unstages what was staged."""
        return self.engine.locks.hold(key("flex", volume_id), wait=limits.patience())

    def _lost(self, path: str, device: str, limits: Call) -> Mapping[str, Any]:
        """The record of a mount that none tells of, as after a lost journal: by the PV's name, or by what is mounted;
        {} where nothing is known.
        """
        about = {"name": device, "ephemeral": False}
        if device and self.engine.provisioning is not None and (found := self.volumes.id_of(device, limits)):
            return {"volume": found, "staging": "", **about}
        if not mounts.is_mount_point(path):
            return {}
        for one in _entries(self.staging):
            if not one.name.startswith(".") and _same(str(one), path):
                # by pods that the lost journal knew: it stays for them
                staging = path if _mounted_elsewhere(str(one), path) else str(one)
                return {"volume": unquote(one.name), "staging": "" if device else staging, **about}
        return {}

    def _take_away(self, path: str) -> None:
        """Unmount what nothing is known of: kubelet says that it is a volume of this driver."""
        if mounts.is_mount_point(path):
            _log.warning(
                "%s: no volume is known that is mounted there; it is unmounted, see volkit doctor", path
            )
            mounts.unmount(path)
        paths.remove_target(path)


def device_mount_path(path: str) -> str:
    """Where kubelet has mountdevice mount what is mounted at a pod's `path`; "" for a path that is not kubelet's."""
    root, pods, rest = path.rpartition("/pods/")
    parts = rest.split("/")
    if not pods or len(parts) != 4 or parts[1] != "volumes":
        return ""
    return f"{root}/plugins/kubernetes.io/flexvolume/{parts[2].replace('~', '/')}/mounts/{parts[3]}"


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _mounted_elsewhere(staging: str, path: str) -> bool:
    """Is what is mounted at `staging` mounted at a third place too?"""
    here = mounts.mount_at(staging)
    own = (os.path.realpath(staging), os.path.realpath(path))
    return here is not None and any(
        one.device == here.device and one.mount_point not in own for one in mounts.mounts()
    )


def _same(staging: str, path: str) -> bool:
    with suppress(VolkitError, OSError):
        return mounts.is_mount_point(staging) and mounts.same_mount(staging, path)
    return False


def _is_there(path: str) -> bool:
    """Is there anything at `path`? Without touching it, since what is mounted there may hang."""
    try:
        return os.path.basename(path) in os.listdir(os.path.dirname(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
