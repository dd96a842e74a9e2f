"""The conformance suite through the wire: what the engine gives, the CSI driver must give too.

```python
class TestAcmeOverCsi(CsiSuite):
    backend = Acme
    def storage(self, directory): ...
```

A case talks to a real server on a real socket. What the wire does not tell apart (an `InUse` is FAILED_PRECONDITION, as
others are) is raised as an error of all the classes that it may be. A child process that a case kills talks to the
engine itself: gRPC does not survive a fork, and what is killed is the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

import volkit
from volkit import (
    Backend,
    Capability,
    CapacityRange,
    CloneSource,
    Engine,
    InvalidArgument,
    Journal,
    Snapshot,
    SnapshotSource,
    Topology,
    Usage,
    Volume,
    VolumeHealth,
    requests,
)
from volkit.testing import BackendSuite, Driver
from volkit_csi import answers
from volkit_csi.client import CallError, Client
from volkit_csi.codes import CODES, code_of
from volkit_csi.endpoint import Endpoint
from volkit_csi.server import Server
from volkit_csi.services import CONTROLLER_RPCS, NODE_RPCS, Plugin, handlers
from volkit_csi.wire import csi_pb2 as pb

_METHODS: Final = {row.operation: row for row in (*CONTROLLER_RPCS, *NODE_RPCS)}


class CsiSuite(BackendSuite):
    """The suite, with a CSI server between its cases and the engine."""

    longest_name: ClassVar[int] = 128
    """CSI spec, "Size Limits"."""
    _served_by: ClassVar[int] = os.getpid()

    def serve(
        self, backend: type[Backend[Any, Any]], settings: Any, state_dir: Path, journal: Journal
    ) -> Driver:
        engine = super().serve(backend, settings, state_dir, journal)
        assert isinstance(engine, Engine)
        return engine if os.getpid() != self._served_by else CsiDriver(engine)


class CsiDriver:
    """An engine behind a CSI server: takes and gives what the engine does, by way of the wire."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._directory = tempfile.mkdtemp(prefix="volkit-")  # a socket's path has at most 107 characters
        endpoint = f"unix://{self._directory}/csi.sock"
        services = handlers(engine, Plugin(name="suite.csi.volkit.io", version="1"))
        self._server = Server(services, Endpoint.parse(endpoint))
        self._server.start()
        self._client = Client(endpoint)

    def run(self, operation: str, request: Any) -> Any:
        """One operation. Raises the error, or one of those, that the status stands for."""
        row = _METHODS[operation]
        try:
            answer = self._client.call(row.method, _message(operation, request))
        except CallError as error:
            raise _error(operation, error.code)(error.message) from None
        read = _RESULTS.get(operation)
        return read(answer, self._engine) if read else None

    def close(self) -> None:
        """Stop the server, and close the engine."""
        self._client.close()
        self._server.abandon()
        self._engine.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _error(operation: str, code: str) -> type[volkit.VolkitError]:
    """A class that is each of those which the operation answers with this code."""
    possible = [one for one in volkit.ERRORS if code_of(one, operation).name == code]
    lowest = [
        one for one in possible if not any(issubclass(other, one) and other is not one for other in possible)
    ]
    if not lowest:
        raise AssertionError(f"{operation} was answered with {code}, which stands for no error: {CODES}")
    made: type[volkit.VolkitError] = type(code.title().replace("_", ""), tuple(lowest), {})
    return made


# -- from the core's requests to messages ----------------------------------------------------------------------


def _message(operation: str, request: Any) -> Any:
    """The message of a request: fields of one name and type are taken as they are, `_SPECIAL` are the others."""
    made = _METHODS[operation].request()
    names = made.DESCRIPTOR.fields_by_name
    for name in names:
        special = _SPECIAL.get((operation, name)) or _SPECIAL.get(("", name))
        value = special(request) if special else getattr(request, name, None)
        if value is None:
            continue
        field = getattr(made, name)
        if isinstance(value, Mapping):
            field.update(value)
        elif isinstance(value, list):
            field.extend(value)
        elif hasattr(value, "SerializeToString"):
            field.CopyFrom(value)
        else:
            try:
                setattr(made, name, value)
            except ValueError as error:  # a number that the wire cannot carry
                raise InvalidArgument(f"{name}: {error}") from None
    return made


def _capability(capability: Capability | None) -> Any:
    if capability is None:
        return None
    made = pb.VolumeCapability(access_mode={"mode": capability.access_mode.name})
    if capability.block:
        made.block.SetInParent()
    else:
        made.mount.fs_type = capability.fs_type
        made.mount.mount_flags.extend(capability.mount_flags)
        made.mount.volume_mount_group = capability.volume_mount_group
        made.mount.SetInParent()
    return made


def _range(capacity: CapacityRange) -> Any:
    if capacity == CapacityRange():
        return None
    return pb.CapacityRange(required_bytes=capacity.required, limit_bytes=capacity.limit)


def _requirement(request: Any) -> Any:
    if request.topology is None:
        return None
    return pb.TopologyRequirement(
        requisite=[pb.Topology(segments=one.segments) for one in request.topology.requisite],
        preferred=[pb.Topology(segments=one.segments) for one in request.topology.preferred],
    )


_SPECIAL: Final[Mapping[tuple[str, str], Callable[[Any], Any]]] = {
    ("", "volume_capability"): lambda request: _capability(request.capability),
    ("", "volume_capabilities"): lambda request: [_capability(one) for one in request.capabilities],
    ("", "capacity_range"): lambda request: _range(request.capacity_range),
    ("", "volume_content_source"): lambda request: answers.write_source(request.source),
    ("", "accessibility_requirements"): _requirement,
    ("", "accessible_topology"): lambda request: answers.write_topology(request.topology),
    ("", "max_entries"): lambda request: request.limit,
    ("", "starting_token"): lambda request: request.token,
    ("", "secrets"): lambda request: dict(request.secrets),
    ("validate_capabilities", "volume_context"): lambda request: request.context,
    ("modify_volume", "mutable_parameters"): lambda request: dict(request.parameters),
}


# -- from messages to the core's results -----------------------------------------------------------------------


def _source(message: Any) -> Any:
    match message.WhichOneof("type"):
        case "snapshot":
            return SnapshotSource(message.snapshot.snapshot_id)
        case "volume":
            return CloneSource(message.volume.volume_id)
    return None


def _volume(message: Any, engine: Engine) -> Volume:
    return engine.backend.volume(
        id=message.volume_id,
        capacity=message.capacity_bytes,
        context=dict(message.volume_context),
        source=_source(message.content_source),
        topology=tuple(Topology(dict(one.segments)) for one in message.accessible_topology),
    )


def _health(status: Any) -> VolumeHealth | None:
    if not status.HasField("volume_condition"):
        return None
    return VolumeHealth(abnormal=status.volume_condition.abnormal, message=status.volume_condition.message)


def _entry(message: Any, engine: Engine) -> requests.VolumeEntry:
    return requests.VolumeEntry(
        volume=_volume(message.volume, engine),
        published_node_ids=tuple(message.status.published_node_ids),
        health=_health(message.status),
    )


def _snapshot(message: Any) -> Snapshot:
    since = timedelta(seconds=message.creation_time.seconds, microseconds=message.creation_time.nanos // 1000)
    return Snapshot(
        id=message.snapshot_id,
        source_volume_id=message.source_volume_id,
        size=message.size_bytes,
        created_at=datetime(1970, 1, 1, tzinfo=UTC) + since,
        ready=message.ready_to_use,
    )


def _stats(message: Any) -> requests.NodeStats:
    rows = {pb.VolumeUsage.Unit.Name(row.unit): row for row in message.usage}
    size, inodes = rows["BYTES"], rows.get("INODES")
    usage = Usage(total=size.total, used=size.used, available=size.available)
    if inodes is not None:
        usage = Usage(
            total=size.total,
            used=size.used,
            available=size.available,
            total_inodes=inodes.total,
            used_inodes=inodes.used,
            available_inodes=inodes.available,
        )
    return requests.NodeStats(usage=usage, health=_health(message) or VolumeHealth())


def _info(message: Any) -> requests.NodeInfo:
    here = message.accessible_topology.segments if message.HasField("accessible_topology") else None
    topology = Topology(dict(here)) if here is not None else None
    return requests.NodeInfo(
        node_id=message.node_id, max_volumes=message.max_volumes_per_node, topology=topology
    )


def _optional(wrapped: Any, name: str) -> int | None:
    return int(getattr(wrapped, name).value) if wrapped.HasField(name) else None


_RESULTS: Final[Mapping[str, Callable[[Any, Engine], Any]]] = {
    "create_volume": lambda answer, engine: _volume(answer.volume, engine),
    "get_volume": _entry,
    "list_volumes": lambda answer, engine: requests.Page(
        entries=[_entry(one, engine) for one in answer.entries], next_token=answer.next_token
    ),
    "validate_capabilities": lambda answer, _: requests.ValidateCapabilitiesResult(
        confirmed=answer.HasField("confirmed"), message=answer.message
    ),
    "controller_publish": lambda answer, _: requests.ControllerPublishResult(
        publish_context=dict(answer.publish_context)
    ),
    "expand_volume": lambda answer, _: requests.ExpandVolumeResult(
        capacity=answer.capacity_bytes, node_expansion_required=answer.node_expansion_required
    ),
    "get_capacity": lambda answer, _: requests.CapacityResult(
        available=answer.available_capacity,
        maximum_volume_size=_optional(answer, "maximum_volume_size"),
        minimum_volume_size=_optional(answer, "minimum_volume_size"),
    ),
    "create_snapshot": lambda answer, _: _snapshot(answer.snapshot),
    "get_snapshot": lambda answer, _: _snapshot(answer.snapshot),
    "list_snapshots": lambda answer, _: requests.Page(
        entries=[_snapshot(one.snapshot) for one in answer.entries], next_token=answer.next_token
    ),
    "node_expand": lambda answer, _: requests.NodeExpandResult(capacity=answer.capacity_bytes),
    "node_stats": lambda answer, _: _stats(answer),
    "node_info": lambda answer, _: _info(answer),
}
