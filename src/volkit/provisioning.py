"""The controller's side of the engine: every operation on volumes, around the backend's own methods."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from volkit import interfaces, model, options, requests, validate
from volkit.attaching import Attaching
from volkit.backend import Backend
from volkit.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    OutOfRange,
    Unavailable,
)
from volkit.guard import call_backend, texts
from volkit.interfaces import Controller
from volkit.journal import Journal, key
from volkit.journal.records import parts
from volkit.locks import Locks
from volkit.making import Found, Making, gone
from volkit.model import Volume
from volkit.snapshotting import Snapshotting

if TYPE_CHECKING:
    from volkit.node_state import NodeState

T = TypeVar("T")


class Provisioning:
    """One method per operation of the table's controller side, each `(request, call)`."""

    def __init__(
        self,
        controller: Controller[Any, Any],
        backend: type[Backend[Any, Any]],
        journal: Journal,
        locks: Locks,
        node_state: NodeState | None,
    ) -> None:
        self._controller: Any = (
            controller  # Any: a capability's method is there when its operation is (see operations)
        )
        self._backend = backend
        self._limits = backend.limits
        self._journal = journal
        self._locks = locks
        self._node_state = node_state
        self.volumes: Making[Volume] = Making(
            "volume",
            controller,
            journal,
            locks,
            look=self._look_volume,
            remove=self._remove_volume,
            refuse=self._refuse_if_in_use,
        )
        self.snapshotting: Snapshotting = Snapshotting(controller, journal, locks, self.volumes)
        self.attaching: Attaching = Attaching(controller, backend.limits, journal, self.volumes)

    def _has(self, mixin: type[interfaces.Mixin]) -> bool:
        return isinstance(self._controller, mixin)

    # -- volumes
    # -------------------------------------------------------------------------------------------------------

    def create_volume(
        self, request: requests.CreateVolumeRequest[Mapping[str, str]], call: requests.Call
    ) -> Volume:
        validate.check_name(request.name)
        validate.check_capacity_range(request.capacity_range)
        request, kind, asked = self._prepared(request)
        with self.volumes.lock_to_create(request.name, request.secrets, call.patience()):
            found = self.volumes.find(request.name, request.secrets)
            if found is None:
                request = attrs.evolve(request, size=self._size_for(request, kind))
                make = functools.partial(self._make, request)
                volume = self.volumes.create(request.name, request.secrets, asked, make)
                found = Found(volume, asked)
            if reason := _incompatible(found, request, kind, asked):
                raise AlreadyExists(f"volume {request.name!r} exists and is another one: {reason}")
            return _allow_first_format(found.thing)

    def _prepared(
        self, request: requests.CreateVolumeRequest[Mapping[str, str]]
    ) -> tuple[requests.CreateVolumeRequest[Any], type[Volume], dict[str, Any]]:
        """The request with typed parameters, checked as far as it can be without asking anybody; the kind;
        what the record keeps.
        """
        declared = options.declared(self._backend.parameters)
        if request.mutable_parameters:
            self._check_mutable(request.mutable_parameters)
        fields = options.read_fields(self._backend.parameters, request.parameters)
        fields |= options.read_fields(
            self._backend.parameters, request.mutable_parameters, "mutable parameter"
        )
        typed: Any = options.complete(self._backend.parameters, fields)
        kind = self._backend.kind(typed)
        self._check_capabilities(request.capabilities, kind)
        self._check_source_allowed(request.source)
        asked = {
            "parameters": {one.key: str(getattr(typed, one.field)) for one in declared if not one.secret},
            "access": sorted({capability.access_type.value for capability in request.capabilities}),
        }
        return attrs.evolve(request, parameters=typed, mutable_parameters=model.EMPTY), kind, asked

    def _check_mutable(self, values: Mapping[str, str]) -> dict[str, Any]:
        fields = options.read_fields(self._backend.parameters, values, "mutable parameter")
        fixed = [
            one.key
            for one in options.declared(self._backend.parameters)
            if one.field in fields and not one.mutable
        ]
        if fixed:
            raise InvalidArgument(
                f"parameter {fixed[0]!r} cannot be changed later: give it as an ordinary parameter"
            )
        return fields

    def _check_capabilities(self, capabilities: tuple[model.Capability, ...], kind: type[Volume]) -> None:
        limits = self._limits
        modes, flags = limits.access_modes, limits.mount_flags
        validate.check_capabilities(
            capabilities, kind, modes=modes, fs_types=limits.fs_types, mount_flags=flags
        )

    def _check_source_allowed(self, source: model.Source | None) -> None:
        if isinstance(source, model.SnapshotSource):
            validate.check_id(source.snapshot_id, "volume_content_source.snapshot_id")
            if not self._has(interfaces.Snapshots):
                raise InvalidArgument(f"backend {self._backend.name!r} makes no volumes from snapshots")
        elif source is not None:
            validate.check_id(source.volume_id, "volume_content_source.volume_id")
            if not self._has(interfaces.Clones):
                raise InvalidArgument(f"backend {self._backend.name!r} makes no volumes from volumes")

    def _size_for(self, request: requests.CreateVolumeRequest[Any], kind: type[Volume]) -> int:
        """Bytes to make: what is asked for, and no less than the source holds, or the file system takes. Raises
        NotFound for the source, OutOfRange.
        """
        limits = self._limits
        minimum = max(limits.min_size, 0 if request.source else self._file_system_takes(request, kind))
        if isinstance(request.source, model.SnapshotSource):
            snapshot = self.snapshotting.snapshots.look(
                id=request.source.snapshot_id, secrets=request.secrets
            )
            if not snapshot.ready:
                raise Unavailable(f"snapshot {snapshot.id!r} is not ready yet: repeat the call when it is")
            minimum = max(minimum, snapshot.size)
        elif request.source is not None:
            minimum = max(
                minimum, self._look_volume(id=request.source.volume_id, secrets=request.secrets).capacity
            )
        capacity = request.capacity_range
        if (
            request.source is not None
            and capacity.required
            and capacity.required < minimum
            and minimum not in capacity
        ):
            raise OutOfRange(f"the source has {minimum} bytes, the limit is {capacity.limit}")
        return validate.choose_size(
            capacity,
            minimum=minimum,
            maximum=limits.max_size,
            default=minimum if request.source is not None else limits.default_size,
            granularity=limits.granularity,
        )

    def _file_system_takes(self, request: requests.CreateVolumeRequest[Any], kind: type[Volume]) -> int:
        """The least bytes of a device for the file system that is to be made on it; 0 where none is."""
        if kind.kind != "block":
            return 0
        from volkit.host.filesystems import SUPPORTED

        mounted = (one for one in request.capabilities if one.access_type is model.AccessType.MOUNT)
        default = next(iter(self._limits.fs_types), "")
        wanted = (SUPPORTED.get(one.fs_type or default) for one in mounted)
        return max((one.smallest for one in wanted if one), default=0)

    def _make(self, request: requests.CreateVolumeRequest[Any], id_: str, token: str) -> Volume:
        wanted = attrs.evolve(request, volume_id=id_, token=token)
        volume: Volume = call_backend(self._controller.create_volume, wanted, Volume)
        return volume

    def delete_volume(self, request: requests.DeleteVolumeRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        with self.volumes.lock_id(request.volume_id, call.patience()):
            self.remove_volume(request.volume_id, request.secrets)

    def remove_volume(self, volume_id: str, secrets: model.Secrets) -> None:
        """Delete it and all that is recorded of it; the caller holds its id. Raises InUse."""
        self._refuse_if_in_use(volume_id)
        self.volumes.delete(volume_id, secrets)
        self.attaching.forget(volume_id)  # what is left was detached behind our back
        if self._node_state:
            self._node_state.forget_format(volume_id)

    def _refuse_if_in_use(self, volume_id: str) -> None:
        if self._node_state and (where := self._node_state.in_use(volume_id)):
            raise InUse(
                f"volume {volume_id!r} is in use at {where} on this node: unpublish and unstage it first"
            )
        if nodes := self.attaching.nodes_of(volume_id):
            raise InUse(f"volume {volume_id!r} is attached to node {nodes[0]!r}: unpublish it there first")

    def _look_volume(
        self, *, id: str = "", name: str = "", secrets: model.Secrets = model.NO_SECRETS
    ) -> Volume:
        volume: Volume = call_backend(
            self._controller.get_volume,
            requests.GetVolumeRequest(volume_id=id, name=name, secrets=secrets),
            Volume,
        )
        return volume

    def _remove_volume(self, id_: str, secrets: model.Secrets) -> None:
        request = requests.DeleteVolumeRequest(volume_id=id_, secrets=secrets)
        gone(lambda: call_backend(self._controller.delete_volume, request, type(None)))

    def get_volume(self, request: requests.GetVolumeRequest, call: requests.Call) -> requests.VolumeEntry:
        validate.check_id(request.volume_id)
        volume = self._look_volume(id=request.volume_id, secrets=request.secrets)
        (entry,) = self._entries((volume,))
        return entry

    def find_volume(
        self,
        name: str,
        call: requests.Call,
        secrets: model.Secrets = model.NO_SECRETS,
        *,
        keep: bool = False,
    ) -> Volume | None:
        """What was made under this name, by whomever; None where the storage proves that there is nothing. `keep`: see
        `Making.find`.
        """
        validate.check_name(name)
        with self.volumes.lock_name(name, call.patience()):
            found = self.volumes.find(name, secrets, keep=keep)
        return _allow_first_format(found.thing) if found else None

    def name_of(self, volume_id: str) -> str:
        """The name that a volume was made under, or "" where that is not recorded."""
        entry = self._journal.get(key("volume", volume_id))
        return str(entry.value.get("name") or "") if entry else ""

    def id_of(self, name: str) -> str:
        """The id of what was made under this name, or "" where that is not recorded."""
        entry = self._journal.get(key("volume-name", name))
        return str(entry.value.get("id") or "") if entry else ""

    def names(self) -> list[tuple[str, str]]:
        """Every recorded name with the id that it stands for."""
        return list(self.named()[0].items())

    def named(self) -> tuple[dict[str, str], set[str]]:
        """Every recorded name with the id that it stands for; and the ids of what is being made right now, or was begun
        and cut short, where the backend takes ids.
        """
        found = {
            parts(one.key)[1]: str(one.value.get("id") or "")
            for one in self._journal.scan(key("volume-name", ""))
        }
        begun = {self.volumes.id_for(name) for name, id_ in found.items() if not id_}
        return {name: id_ for name, id_ in found.items() if id_}, begun - {""}

    def list_volumes(
        self, request: requests.ListRequest, call: requests.Call
    ) -> requests.Page[requests.VolumeEntry]:
        validate.check_limit(request.limit)
        page: requests.Page[Volume] = call_backend(self._controller.list_volumes, request, requests.Page)
        return requests.Page(entries=self._entries(page.entries), next_token=page.next_token)

    def _entries(self, volumes: tuple[Volume, ...]) -> tuple[requests.VolumeEntry, ...]:
        """The volumes with the nodes they are attached to and their health, where the backend tells them."""
        nodes = (
            self.attaching.listed(tuple(one.id for one in volumes))
            if volumes and self._has(interfaces.ListsPublished)
            else {}
        )
        return tuple(
            requests.VolumeEntry(
                volume=one,
                published_node_ids=self.attaching.wire_ids(one.id, nodes.get(one.id, ())),
                health=self._health(one.id),
            )
            for one in volumes
        )

    def _health(self, volume_id: str) -> model.VolumeHealth | None:
        if not self._has(interfaces.ReportsHealth):
            return None
        request = requests.GetVolumeRequest(volume_id=volume_id)
        health: model.VolumeHealth = call_backend(self._controller.volume_health, request, model.VolumeHealth)
        return health

    def validate_capabilities(
        self, request: requests.ValidateCapabilitiesRequest, call: requests.Call
    ) -> requests.ValidateCapabilitiesResult:
        validate.check_id(request.volume_id)
        if not request.capabilities:
            raise InvalidArgument("volume_capabilities is required: give at least one")
        volume = self._look_volume(id=request.volume_id, secrets=request.secrets)
        try:
            self._check_capabilities(request.capabilities, type(volume))
        except InvalidArgument as error:
            return requests.ValidateCapabilitiesResult(confirmed=False, message=error.message)
        for name, value in volume.context.items():
            if request.context.get(name, value) != value:
                return requests.ValidateCapabilitiesResult(
                    confirmed=False, message=f"volume_context {name!r} differs"
                )
        return requests.ValidateCapabilitiesResult(confirmed=True)

    def expand_volume(
        self, request: requests.ExpandVolumeRequest, call: requests.Call
    ) -> requests.ExpandVolumeResult:
        validate.check_id(request.volume_id)
        validate.check_capacity_range(request.capacity_range)
        if not request.capacity_range.required and not request.capacity_range.limit:
            raise InvalidArgument("capacity_range is required: say how large the volume is to be")
        with self.volumes.lock_id(request.volume_id, call.patience()):
            volume = self._look_volume(id=request.volume_id, secrets=request.secrets)
            if request.capability is not None:
                self._check_capabilities((request.capability,), type(volume))
            node_part = issubclass(type(volume), model.BlockVolume)
            if volume.capacity >= max(request.capacity_range.required, 1):
                if request.capacity_range.limit and volume.capacity > request.capacity_range.limit:
                    raise OutOfRange(
                        f"the volume has {volume.capacity} bytes already and is never made smaller"
                    )
                return requests.ExpandVolumeResult(
                    capacity=volume.capacity, node_expansion_required=node_part
                )
            limits = self._limits
            size = validate.choose_size(
                request.capacity_range,
                minimum=max(limits.min_size, volume.capacity),
                maximum=limits.max_size,
                default=volume.capacity,
                granularity=limits.granularity,
            )
            if self._has(interfaces.ExpandsOffline):
                self._refuse_if_in_use(request.volume_id)
            result: requests.ExpandVolumeResult = call_backend(
                self._controller.expand_volume, attrs.evolve(request, size=size), requests.ExpandVolumeResult
            )
            return result

    def modify_volume(self, request: requests.ModifyVolumeRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        fields = self._check_mutable(request.parameters)
        with self.volumes.lock_id(request.volume_id, call.patience()):
            self._look_volume(id=request.volume_id, secrets=request.secrets)
            if fields:
                declared = options.declared(self._backend.parameters)
                secrets = [one for o in declared if o.secret for one in texts(fields.get(o.field))]
                change = attrs.evolve(request, parameters=fields)
                call_backend(self._controller.modify_volume, change, type(None), *secrets)

    def get_capacity(
        self, request: requests.CapacityRequest[Mapping[str, str]], call: requests.Call
    ) -> requests.CapacityResult:
        typed: Any = options.read(self._backend.parameters, request.parameters)
        if request.capabilities:
            self._check_capabilities(request.capabilities, self._backend.kind(typed))
        result: requests.CapacityResult = call_backend(
            self._controller.get_capacity, attrs.evolve(request, parameters=typed), requests.CapacityResult
        )
        return result


def _allow_first_format(volume: Volume) -> Volume:
    """A block volume made from nothing is blank: its context says that it may be formatted once."""
    if not isinstance(volume, model.BlockVolume) or volume.source is not None:
        return volume
    return attrs.evolve(volume, context={**volume.context, model.FIRST_FORMAT: "true"})


def _incompatible(
    found: Found[Volume],
    request: requests.CreateVolumeRequest[Any],
    kind: type[Volume],
    asked: Mapping[str, Any],
) -> str:
    """Why an existing volume is not what is asked for, or "". CSI spec, CreateVolume: by compatibility, not
    by equality.
    """
    volume = found.thing
    if volume.capacity and volume.capacity not in request.capacity_range:
        wanted = request.capacity_range
        return f"it has {volume.capacity} bytes, asked for are {wanted.required} to {wanted.limit or 'any number'}"
    if request.source != volume.source:
        return f"it was made from {volume.source}, asked for is {request.source}"
    if not isinstance(volume, kind):
        return f"it is a {volume.kind} volume, asked for is a {kind.kind} volume"
    places = request.topology.candidates() if request.topology else ()
    if places and volume.topology and not any(t.within(place) for t in volume.topology for place in places):
        return "it cannot be reached from where it is asked for"
    if found.asked is None:
        return ""
    for name, value in asked["parameters"].items():
        if found.asked["parameters"].get(name, value) != value:
            return f"parameter {name!r} is {found.asked['parameters'][name]!r}, asked for is {value!r}"
    if found.asked["access"] != asked["access"]:
        made, asked_access = (" and ".join(one["access"]) for one in (found.asked, asked))
        return f"it was made for access by {made}, asked for is {asked_access}"
    return ""
