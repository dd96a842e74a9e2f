"""The call-outs on an engine: each a method that takes the call and gives its answer."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from attrs import evolve

import volkit
from volkit import (
    FIRST_FORMAT,
    NO_SECRETS,
    AccessMode,
    Call,
    Capability,
    CapacityRange,
    Engine,
    Expands,
    FailedPrecondition,
    InUse,
    NotFound,
    Secrets,
    VolkitError,
    Volume,
    carrying,
    events,
)
from volkit.guard import hiding
from volkit.host import mounts, paths
from volkit.journal import key
from volkit.options import declared
from volkit.redaction import redact
from volkit_flex import records, token, wire
from volkit_flex.options import Options, read_options, secret_values
from volkit_flex.records import Records
from volkit_flex.token import Attachment
from volkit_flex.wire import Callout

if TYPE_CHECKING:
    from volkit_flex.wire import Answer

CALL_SECONDS: Final = 110.0
"""After which a call is answered, whatever hangs: kubelet itself waits for ever."""

WAIT_SECONDS: Final = 5.0
"""How long another operation on the volume is waited for; kubelet repeats what fails."""

_WRITERS = (AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.SINGLE_NODE_WRITER)
_READERS = (AccessMode.MULTI_NODE_READER_ONLY, AccessMode.SINGLE_NODE_READER_ONLY)
_EVERYBODY = (AccessMode.MULTI_NODE_MULTI_WRITER, *_WRITERS)
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
        self.staging = engine.state_dir / "flex"
        self.node_records = Records(engine.node_journal)
        self.controller_records = Records(engine.journal)

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
        options = self.options(call)
        old = self.controller_records.get(records.PV, options.name)
        nodes = sorted({*old.get("nodes", ()), call.node})
        if not old:  # what was begun for this PV is known, also where there is no volume yet
            self.controller_records.put(records.PV, options.name, volume=options.volume, nodes=[])
        volume_id, context = self._volume(options, limits)
        self.controller_records.put(records.PV, options.name, volume=volume_id, nodes=nodes)
        published = self._attached(volume_id, context, call.node, options, limits)
        return {"device": token.encode(Attachment(volume_id, published, context))}

    def isattached(self, call: Callout, limits: Call) -> Answer:
        options = self.options(call)
        record = self.controller_records.get(records.PV, options.name)
        volume_id = str(record.get("volume", "")) or self._found_id(options.volume, limits, options.secrets)
        if not volume_id:
            return {"attached": False}
        if self._publishes and self.engine.provisioning is not None:
            nodes = self.engine.provisioning.attaching.nodes_of(volume_id)
            return {"attached": call.node in nodes}
        return {"attached": call.node in record.get("nodes", ())}

    def detach(self, call: Callout, limits: Call) -> Answer:
        record = self.controller_records.get(records.PV, call.name)
        volume_id = str(record.get("volume", "")) or self._found_id(call.name, limits)
        if not volume_id:
            _log.warning(
                "detach of %r: no volume is known by that name, so there is nothing to detach", call.name
            )
            return {}
        if self._publishes:
            request = volkit.ControllerUnpublishRequest(volume_id=volume_id, node_id=self._node_id(call.node))
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
        options = self.options(call)
        attachment = self._attachment(call, options, limits)
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
                capability=self.capability(options, attachment.volume_id),
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
        options = self.options(call)
        if self.attaches:
            return self._publish(call, options, limits)
        with self._one_at_a_time(options.volume, limits):
            volume_id, context = self._volume(options, limits)
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
                capability=self.capability(options, volume_id),
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
            capability=self.capability(options, volume_id),
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
        volume_id = self._known_id(call, limits)
        return {"volumeNewSize": self._grow(volume_id, call, limits)}

    def expandfs(self, call: Callout, limits: Call) -> Answer:
        """The backend grows here too: a current controller manager never calls expandvolume."""
        volume_id = self._known_id(call, limits)
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
            secrets=self.options(call).secrets,
        )
        size: int = self.engine.run("expand_volume", request, limits).capacity
        return size

    # -- which volume

    def options(self, call: Callout) -> Options:
        """The options of a call, read. Raises InvalidArgument."""
        options = read_options(call, self.engine.backend, attaches=self.attaches)
        if options.explicit or options.create:
            return options
        default = self.engine.backend.default_volume(self.engine.settings)
        return evolve(options, volume=default, inline=False) if default else options

    @property
    def _publishes(self) -> bool:
        return "controller_publish" in self.engine.operations

    def _volume(self, options: Options, limits: Call) -> tuple[str, dict[str, str]]:
        """Its id and context; made where it does not exist and the options ask for it. Raises NotFound."""
        volume = None
        if self.engine.provisioning is not None:
            volume = self.find(options.volume, limits, options.secrets) or self._created(options, limits)
        theirs = {spelling for one in declared(self.engine.backend.parameters) for spelling in one.spellings}
        context = {name: value for name, value in options.parameters.items() if name not in theirs}
        context.update(volume.context if volume is not None else {})
        if options.first_format:
            context[FIRST_FORMAT] = "true"
        return (volume.id if volume is not None else options.volume), context

    def _created(self, options: Options, limits: Call) -> Volume:
        if not options.create:
            raise NotFound(
                f"there is no volume {options.volume!r}: make it first, name another one by the option 'volume', or "
                "ask for it to be made by the option 'size' or 'create: \"true\"'"
            )
        if options.inline:
            _log.warning(
                "volume %r is made for this pod alone: a PV needs the option 'volume'", options.volume
            )
        request: volkit.CreateVolumeRequest[Any] = volkit.CreateVolumeRequest(
            name=options.volume,
            parameters=options.parameters,
            capacity_range=options.wanted.capacity,
            capabilities=(self.capability(options, ""),),
            source=self._source(options, limits),
            secrets=options.secrets,
            metadata=options.metadata,
        )
        return self.engine.run("create_volume", request, limits)  # type: ignore[no-any-return]

    def _source(self, options: Options, limits: Call) -> volkit.Source | None:
        source = options.wanted.source
        if isinstance(source, volkit.CloneSource):
            if not (found := self._found_id(source.volume_id, limits, options.secrets)):
                raise NotFound(f"there is no volume {source.volume_id!r} to clone")
            return volkit.CloneSource(found)
        return source

    def find(self, name: str, limits: Call, secrets: Secrets = NO_SECRETS) -> Volume | None:
        """The volume of this name, or of this id; None where it is proven that there is none."""
        found = self.engine.find(name, limits, secrets)
        if found is not None:
            return found
        with suppress(NotFound):
            request = volkit.GetVolumeRequest(volume_id=name, secrets=secrets)
            entry = self.engine.run("get_volume", request, limits)
            return entry.volume  # type: ignore[no-any-return]
        return None

    def _found_id(self, name: str, limits: Call, secrets: Secrets = NO_SECRETS) -> str:
        """Its id, "" where there is none; where no storage can be asked, a name is an id."""
        if self.engine.provisioning is None:
            return name
        found = self.find(name, limits, secrets)
        return found.id if found is not None else ""

    def _known_id(self, call: Callout, limits: Call) -> str:
        """The volume of a call that has a path and options. Raises NotFound."""
        record = self.node_records.get(records.PATH, call.path)
        if record.get("volume"):
            return str(record["volume"])
        options = self.options(call)
        if not (found := self._found_id(options.volume, limits, options.secrets)):
            raise NotFound(f"there is no volume {options.volume!r}")
        return found

    def _attachment(self, call: Callout, options: Options, limits: Call) -> Attachment:
        """What attach answered; else, of a driver before this one, what the storage says."""
        attachment = token.decode(call.device)
        if attachment is not None:
            return attachment
        volume_id, context = self._volume(options, limits)
        published = self._attached(volume_id, context, self.engine.node_id, options, limits)
        return Attachment(volume_id, published, context)

    def _attached(
        self, volume_id: str, context: Mapping[str, str], node: str, options: Options, limits: Call
    ) -> Mapping[str, str]:
        """Attached to a node, where the storage does that: what the node needs to find it."""
        if not self._publishes:
            return {}
        request = volkit.ControllerPublishRequest(
            volume_id=volume_id,
            node_id=self._node_id(node),
            capability=self.capability(options, volume_id),
            readonly=options.readonly,
            volume_context=context,
            secrets=options.secrets,
        )
        published: Mapping[str, str] = self.engine.run("controller_publish", request, limits).publish_context
        return published

    def _node_id(self, node: str) -> str:
        """The node as the backend knows it: with what it told of itself, where the journal is shared."""
        return str(self.controller_records.get(records.NODE, node).get("node_id", node))

    def register(self) -> None:
        """Tell the controller's side what this node tells of itself (initiators), through a journal that is shared."""
        if self.engine.node is None:
            return
        told = self.engine.run("node_info", volkit.NodeInfoRequest(), self.limits()).node_id
        if told != self.engine.node_id:
            self.controller_records.put(records.NODE, self.engine.node_id, node_id=told)

    def capability(self, options: Options, volume_id: str) -> Capability:
        """How the volume is made and mounted: writable by all pods of a node, or of all nodes where it is no disk.

        Read-only disks are mounted so on many nodes; on a node that has one mounted for writing already, a pod that
        only reads gets a read-only view of that mount.
        """
        backend = self.engine.backend
        block = backend.volume.kind == "block"
        modes: tuple[AccessMode, ...] = _WRITERS if block else _EVERYBODY
        if block and options.readonly and not self._is_written_here(volume_id):
            modes = _READERS
        possible = backend.limits.access_modes
        mode = next(
            (one for one in modes if one in possible), next(iter(sorted(possible, key=lambda one: one.value)))
        )
        told = self.engine.has(volkit.ConnectsPerPod)
        return Capability(
            access_mode=mode,
            fs_type=options.fs_type if block else "",
            mount_flags=options.wanted.asked.mount_flags,
            volume_mount_group=options.fs_group if told else "",
        )

    def _is_written_here(self, volume_id: str) -> bool:
        state = self.engine.node_state
        record = state.stage_record(volume_id) if state is not None and volume_id else None
        return record is not None and not AccessMode(record["capability"][0]).read_only

    # -- places

    def _staging(self, volume_id: str) -> str:
        """Where a driver without attach mounts a volume for all pods of the node; the name tells the volume."""
        name = quote(volume_id, safe="")
        if len(name) > _MAX_NAME:
            name = "." + hashlib.blake2b(volume_id.encode(), digest_size=16).hexdigest()
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
        if name and self.engine.provisioning is not None and (found := self._found_id(name, limits)):
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
