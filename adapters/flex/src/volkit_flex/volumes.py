"""Which volume a call is about, how it is made where it is missing, and how it is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

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
    NotFound,
    Secrets,
    Volume,
)
from volkit.journal import key
from volkit.options import declared
from volkit.wanted import refuse_unknown
from volkit_flex import records, token
from volkit_flex.options import OWN, Options, read_options
from volkit_flex.records import Records
from volkit_flex.token import Attachment
from volkit_flex.wire import Callout

_WRITERS = (AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.SINGLE_NODE_WRITER)
_READERS = (AccessMode.MULTI_NODE_READER_ONLY, AccessMode.SINGLE_NODE_READER_ONLY)
_EVERYBODY = (AccessMode.MULTI_NODE_MULTI_WRITER, *_WRITERS)

_log = logging.getLogger("volkit.flex")


class Volumes:
    """The volumes of one driver; `attaches` is what its `init` said."""

    def __init__(self, engine: Engine, *, attaches: bool) -> None:
        self.engine = engine
        self.attaches = attaches
        self.node_records: Records = Records(engine.node_journal)
        self.controller_records: Records = Records(engine.journal)

    def options(self, call: Callout) -> Options:
        """The options of a call, read. Raises InvalidArgument."""
        options = read_options(call, self.engine.backend, attaches=self.attaches)
        if options.explicit or options.create:
            return options
        default = self.engine.backend.default_volume(self.engine.settings)
        return evolve(options, volume=default, inline=False) if default else options

    @property
    def publishes(self) -> bool:
        return "controller_publish" in self.engine.operations

    def resolve(self, options: Options, limits: Call) -> tuple[str, dict[str, str]]:
        """Its id and context; made where it does not exist and the options ask for it. Raises NotFound."""
        volume = None
        if self.engine.provisioning is not None:
            volume = self.find(options.volume, limits, options.secrets) or self._created(options, limits)
            if options.create and not options.ephemeral:
                self.controller_records.put(records.MADE, options.volume, id=volume.id)
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
        if self.controller_records.get(records.MADE, options.volume):
            raise NotFound(
                f"volume {options.volume!r} was there and is gone: is its storage mounted? To have it made anew, and "
                f"empty: `volkit journal --forget {key(records.MADE, options.volume)!r}`"
            )
        if options.inline:
            _log.warning(
                "volume %r is made for this pod alone: a PV needs the option 'volume'", options.volume
            )
        refuse_unknown(options.parameters, self.engine.backend, also=OWN)
        request: volkit.CreateVolumeRequest[Any] = volkit.CreateVolumeRequest(
            name=options.volume,
            parameters=options.parameters,
            capacity_range=options.wanted.capacity,
            capabilities=(self.capability(options, ""),),
            source=self._source(options, limits),
            secrets=options.secrets,
            metadata=options.metadata,
        )
        made: Volume = self.engine.run("create_volume", request, limits)
        return made

    def _source(self, options: Options, limits: Call) -> volkit.Source | None:
        source = options.wanted.source
        if isinstance(source, volkit.CloneSource):
            if not (found := self.id_of(source.volume_id, limits, options.secrets)):
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
            volume: Volume = entry.volume
            return volume
        return None

    def id_of(self, name: str, limits: Call, secrets: Secrets = NO_SECRETS) -> str:
        """Its id, "" where there is none; where no storage can be asked, a name is an id."""
        if self.engine.provisioning is None:
            return name
        found = self.find(name, limits, secrets)
        return found.id if found is not None else ""

    def of_call(self, call: Callout, limits: Call) -> str:
        """The volume of a call that has a path and options. Raises NotFound."""
        record = self.node_records.get(records.PATH, call.path)
        if record.get("volume"):
            return str(record["volume"])
        options = self.options(call)
        if not (found := self.id_of(options.volume, limits, options.secrets)):
            raise NotFound(f"there is no volume {options.volume!r}")
        return found

    def grow(self, volume_id: str, call: Callout, limits: Call) -> int:
        """In the backend. Returns its size in bytes."""
        request = volkit.ExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=CapacityRange(required=call.new_size),
            secrets=self.options(call).secrets,
        )
        size: int = self.engine.run("expand_volume", request, limits).capacity
        return size

    def attachment(self, call: Callout, options: Options, limits: Call) -> Attachment:
        """What attach answered; else, of a driver before this one, what the storage says. Nothing is made here."""
        attachment = token.decode(call.device)
        if attachment is not None:
            return attachment
        volume_id, context = self.resolve(evolve(options, create=False), limits)
        published = self.attach(volume_id, context, self.engine.node_id, options, limits)
        return Attachment(volume_id, options.volume, published, context)

    def attach(
        self, volume_id: str, context: Mapping[str, str], node: str, options: Options, limits: Call
    ) -> Mapping[str, str]:
        """Attached to a node, where the storage does that: what the node needs to find it."""
        if not self.publishes:
            return {}
        request = volkit.ControllerPublishRequest(
            volume_id=volume_id,
            node_id=self.node_id(node),
            capability=self.capability(options, volume_id),
            readonly=options.readonly,
            volume_context=context,
            secrets=options.secrets,
        )
        published: Mapping[str, str] = self.engine.run("controller_publish", request, limits).publish_context
        return published

    def node_id(self, node: str) -> str:
        """The node as the backend knows it: with what it told of itself, where the journal is shared."""
        return str(self.controller_records.get(records.NODE, node).get("node_id", node))

    def register(self, limits: Call) -> None:
        """Tell the controller's side what this node tells of itself (initiators), through a journal that is shared."""
        if self.engine.node is None:
            return
        told = self.engine.run("node_info", volkit.NodeInfoRequest(), limits).node_id
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
