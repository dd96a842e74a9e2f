"""The call-outs on an engine: each a method that takes the call and gives its answer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import volkit
from volkit import (
    Call,
    CapacityRange,
    Engine,
    Expands,
    FailedPrecondition,
    InUse,
    NotFound,
    VolkitError,
    carrying,
    events,
)
from volkit.digests import digest
from volkit.guard import hiding
from volkit.host import mounts, paths
from volkit.journal import key
from volkit.redaction import redact
from volkit_flex import records, token, wire
from volkit_flex.options import Options, secret_values
from volkit_flex.token import Attachment
from volkit_flex.volumes import Volumes
from volkit_flex.wire import Callout

if TYPE_CHECKING:
    from volkit_flex.wire import Answer

CALL_SECONDS: Final = 110.0
"""After which a call is answered, whatever hangs: kubelet itself waits for ever."""

WAIT_SECONDS: Final = 5.0
"""How long another operation on the volume is waited for; kubelet repeats what fails."""

_MAX_NAME = 200

_log = logging.getLogger("volkit.flex")


def capabilities(
    backend: type[volkit.Backend[Any, Any]], *, attaches: bool, expands: bool, per_pod: bool
) -> dict[str, bool]:
    """What `init` answers, every key of Kubernetes' DriverCapabilities written out; `per_pod`: its node connects
    anew for each pod.
    """
    objects = backend.volume.kind == "object"
    return {
        "attach": attaches,
        "selinuxRelabel": not objects,
        "supportsMetrics": not objects,  # kubelet asks statfs, which means nothing there
        "fsGroup": not (objects or per_pod),  # kubelet's recursive chown; else the backend is told the group
        "requiresFSResize": expands,  # expandfs is the only call of which a volume can grow
    }


def attaches_by_itself(backend: type[volkit.Backend[Any, Any]], settings: Any) -> bool:
    """Does the storage attach volumes to nodes, so that the controller manager has to call?"""
    controller = backend.controller_class(settings)
    return controller is not None and issubclass(controller, volkit.Publishes)


class Service:
    """One engine as a FlexVolume driver; `attaches` is what its `init` said. Thread-safe."""

    def __init__(self, engine: Engine, *, attaches: bool) -> None:
        self.engine = engine
        self.attaches = attaches
        self.staging: Path = engine.state_dir / "flex"
        self.volumes: Volumes = Volumes(engine, attaches=attaches)
        self.node_records: records.Records = self.volumes.node_records
        self.controller_records: records.Records = self.volumes.controller_records

    def handle(self, words: list[str]) -> Answer:
        """The answer to a command line. Never raises, and never tells a secret."""
        with events.request():
            return self._handle(words)

    def _handle(self, words: list[str]) -> Answer:
        secrets: tuple[str, ...] = ()
        try:
            call = wire.read(words)
            secrets = secret_values(call.options)
            with hiding(*secrets):
                answer = self.answered(call)
        except VolkitError as error:
            answer = wire.failure(error)
        except Exception as error:
            with hiding(*secrets):
                _log.exception("%s failed unexpectedly", words[0] if words else "a call")
            answer = wire.failure(error)
        if "message" in answer:
            answer["message"] = redact(answer["message"], *secrets)
        return answer

    def answered(self, call: Callout) -> Answer:
        """The answer to a call. Raises what is wrong with it, and what the engine raises."""
        if not self.does(call.operation):
            return wire.unsupported(call.operation)
        begun = time.monotonic()
        try:
            method = getattr(self, call.operation)
            answer: Answer = {"status": wire.SUCCESS, **method(call, self.limits())}
        except VolkitError as error:
            _log.warning("%s failed after %.3f s: %s", _named(call), time.monotonic() - begun, error.message)
            raise
        _log.info("%s: done in %.3f s", _named(call), time.monotonic() - begun)
        return answer

    def does(self, operation: str) -> bool:
        """Does this driver ever do that? Kubelet remembers a no, so no single failure may say it."""
        if operation in wire.ATTACHING:
            return self.attaches
        return operation not in wire.GROWING or self.engine.has(Expands)

    @staticmethod
    def limits() -> Call:
        """What a call may take."""
        return Call(deadline=time.monotonic() + CALL_SECONDS, wait=WAIT_SECONDS)

    # -- the driver

    def init(self, call: Callout, limits: Call) -> Answer:
        can = capabilities(
            self.engine.backend,
            attaches=self.attaches,
            expands=self.engine.has(Expands),
            per_pod=self.engine.has(volkit.ConnectsPerPod),
        )
        return {"capabilities": can}

    def getvolumename(self, call: Callout, limits: Call) -> Answer:
        return {"volumeName": wire.identity(call.options)}

    # -- attach and detach: the controller manager

    def attach(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        old = self.controller_records.get(records.PV, options.name)
        nodes = sorted({*old.get("nodes", ()), call.node})
        if not old:  # what was begun for this PV is known, also where there is no volume yet
            self.controller_records.put(records.PV, options.name, volume=options.volume, nodes=[])
        volume_id, context = self.volumes.resolve(options, limits)
        self.controller_records.put(records.PV, options.name, volume=volume_id, nodes=nodes)
        published = self.volumes.attach(volume_id, context, call.node, options, limits)
        return {"device": token.encode(Attachment(volume_id, published, context))}

    def isattached(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        record = self.controller_records.get(records.PV, options.name)
        volume_id = str(record.get("volume", "")) or self.volumes.id_of(
            options.volume, limits, options.secrets
        )
        if not volume_id:
            return {"attached": False}
        if self.volumes.publishes and self.engine.provisioning is not None:
            nodes = self.engine.provisioning.attaching.nodes_of(volume_id)
            return {"attached": call.node in nodes}
        return {"attached": call.node in record.get("nodes", ())}

    def detach(self, call: Callout, limits: Call) -> Answer:
        record = self.controller_records.get(records.PV, call.name)
        volume_id = str(record.get("volume", "")) or self.volumes.id_of(call.name, limits)
        if not volume_id:
            _log.warning(
                "detach of %r: no volume is known by that name, so there is nothing to detach", call.name
            )
            return {}
        if self.volumes.publishes:
            request = volkit.ControllerUnpublishRequest(
                volume_id=volume_id, node_id=self.volumes.node_id(call.node)
            )
            with suppress(NotFound):
                self.engine.run("controller_unpublish", request, limits)
        left = [node for node in record.get("nodes", ()) if node != call.node]
        if left:
            self.controller_records.put(records.PV, call.name, volume=volume_id, nodes=left)
        else:
            self.controller_records.forget(records.PV, call.name)
        return {}

    def waitforattach(self, call: Callout, limits: Call) -> Answer:
        token.decode(call.device)
        return {"device": call.device}

    # -- mount and unmount: kubelet

    def mountdevice(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        attachment = self.volumes.attachment(call, options, limits)
        self.node_records.put(
            records.DEVICE,
            options.name,
            volume=attachment.volume_id,
            path=call.path,
            publish_context=dict(attachment.publish_context),
            volume_context=dict(attachment.volume_context),
        )
        self.node_records.put(
            records.PATH,
            call.path,
            volume=attachment.volume_id,
            name=options.name,
            staging="",
            ephemeral=False,
        )
        if "node_stage" in self.engine.operations:
            request = volkit.NodeStageRequest(
                volume_id=attachment.volume_id,
                staging_target_path=call.path,
                capability=self.volumes.capability(options, attachment.volume_id),
                publish_context=attachment.publish_context,
                volume_context=attachment.volume_context,
                secrets=options.secrets,
            )
            self.engine.run("node_stage", request, limits)
        return {}

    def unmountdevice(self, call: Callout, limits: Call) -> Answer:
        record = self.node_records.get(records.PATH, call.path)
        name = str(record.get("name", "")) or os.path.basename(call.path)
        volume_id = str(record.get("volume", "")) or self._lost(call.path, name, limits)
        if volume_id and "node_unstage" in self.engine.operations:
            request = volkit.NodeUnstageRequest(volume_id=volume_id, staging_target_path=call.path)
            self.engine.run("node_unstage", request, limits)
        else:
            self._take_away(call.path)
        if self.node_records.get(records.DEVICE, name).get("path") == call.path:
            self.node_records.forget(records.DEVICE, name)
        self.node_records.forget(records.PATH, call.path)
        return {}

    def mount(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        if self.attaches:
            return self._publish(call, options, limits)
        with self._one_at_a_time(options.volume, limits):
            volume_id, context = self.volumes.resolve(options, limits)
            staging = self._staging(volume_id)
            self.node_records.put(
                records.PATH,
                call.path,
                volume=volume_id,
                name=options.volume,
                staging=staging,
                ephemeral=options.ephemeral and options.inline,
            )
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
        return {}

    def _publish(self, call: Callout, options: Options, limits: Call) -> Answer:
        """The last step of a driver with attach: into the pod, from where mountdevice mounted it."""
        device = self.node_records.get(records.DEVICE, options.name) or self._remounted(call, options, limits)
        volume_id = str(device["volume"])
        self.node_records.put(
            records.PATH,
            call.path,
            volume=volume_id,
            name=options.name,
            staging=device["path"],
            ephemeral=False,
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
        self.engine.run("node_publish", request, limits)
        return {}

    def _remounted(self, call: Callout, options: Options, limits: Call) -> Mapping[str, Any]:
        """The record of mountdevice, made anew after the journal was lost. Raises FailedPrecondition."""
        path = device_mount_path(call.path)
        if not path or not mounts.is_mount_point(path):
            raise FailedPrecondition(
                f"volume {options.volume!r} is not mounted on this node: mountdevice comes first"
            )
        self.mountdevice(Callout("mountdevice", {"path": path, "options": call.options}), limits)
        return self.node_records.get(records.DEVICE, options.name)

    def unmount(self, call: Callout, limits: Call) -> Answer:
        record = self.node_records.get(records.PATH, call.path)
        volume_id = str(record.get("volume", "")) or self._lost(call.path, "", limits)
        if not volume_id:
            self._take_away(call.path)
            return {}
        if self.attaches:
            request = volkit.NodeUnpublishRequest(volume_id=volume_id, target_path=call.path)
            self.engine.run("node_unpublish", request, limits)
        else:
            self._down(volume_id, call.path, record, limits)
        self.node_records.forget(records.PATH, call.path)
        return {}

    def _down(self, volume_id: str, path: str, record: Mapping[str, Any], limits: Call) -> None:
        with self._one_at_a_time(str(record.get("name") or volume_id), limits):
            staging = str(record.get("staging") or self._staging(volume_id))
            if not record and _mounted_elsewhere(staging, path):  # by pods that the lost journal knew
                request = volkit.NodeUnpublishRequest(volume_id=volume_id, target_path=path)
                self.engine.run("node_unpublish", request, limits)
                return
            try:
                carrying.down(self.engine, volume_id, target=path, staging=staging, call=limits)
            except InUse:
                if mounts.is_mount_point(path):
                    raise
                return  # by another pod: the last one takes it down
            if record.get("ephemeral"):
                delete = volkit.DeleteVolumeRequest(volume_id=volume_id)
                self.engine.run("delete_volume", delete, limits)

    # -- grow

    def expandvolume(self, call: Callout, limits: Call) -> Answer:
        volume_id = self.volumes.of_call(call, limits)
        return {"volumeNewSize": self._grow(volume_id, call, limits)}

    def expandfs(self, call: Callout, limits: Call) -> Answer:
        """The backend grows here too: a current controller manager never calls expandvolume."""
        volume_id = self.volumes.of_call(call, limits)
        if self.engine.provisioning is not None:
            self._grow(volume_id, call, limits)
        request = volkit.NodeExpandRequest(
            volume_id=volume_id,
            volume_path=call.path,
            capacity_range=CapacityRange(required=call.new_size),
        )
        return {"volumeNewSize": self.engine.run("node_expand", request, limits).capacity}

    def _grow(self, volume_id: str, call: Callout, limits: Call) -> int:
        request = volkit.ExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=CapacityRange(required=call.new_size),
            secrets=self.volumes.options(call).secrets,
        )
        size: int = self.engine.run("expand_volume", request, limits).capacity
        return size

    # -- places

    def _staging(self, volume_id: str) -> str:
        """Where a driver without attach mounts a volume for all pods of the node; the name tells the volume."""
        name = quote(volume_id, safe="")
        if len(name) > _MAX_NAME:
            name = "." + digest(volume_id, 16).hex()
        return str(self.staging / name)

    @contextmanager
    def _one_at_a_time(self, volume: str, limits: Call) -> Iterator[None]:
        """Between the last unmount of a volume and its next mount nobody unstages what was staged."""
        with self.engine.locks.hold(key("flex", volume), wait=limits.patience()):
            yield

    def _lost(self, path: str, name: str, limits: Call) -> str:
        """The volume of a mount that no record tells of, as after a lost journal: by the PV's name, or by what is
        mounted; "" where nothing is known.
        """
        if name and self.engine.provisioning is not None and (found := self.volumes.id_of(name, limits)):
            return found
        if not mounts.is_mount_point(path):
            return ""
        staged = [one for one in _entries(self.staging) if not one.name.startswith(".")]
        return next((unquote(one.name) for one in staged if _same(str(one), path)), "")

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


def _named(call: Callout) -> str:
    """A call for the log: what it is about, and no option."""
    about = call.path or call.name or call.options.get(wire.NAME, "")
    return f"{call.operation} {about}" + (f" on {call.node}" if call.node else "")


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
