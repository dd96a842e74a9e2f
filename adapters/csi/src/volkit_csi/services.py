"""The services: one row per RPC, and what is reported of the backend's capabilities. Policy is the engine's.

A handler takes the bytes of a request and returns the bytes of its answer. It parses them itself, because
grpcio answers what it cannot parse with INTERNAL before any handler runs. All tables are made once, at the
start.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from attrs import field, frozen
from google.protobuf.message import DecodeError, Message

import volkit
from volkit import AccessMode, Call, Engine, Mixin, VolkitError, events
from volkit_csi import answers, codec
from volkit_csi.codes import code_of
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.redaction import Redactor
from volkit_csi.server import Handler, ServerContext
from volkit_csi.status import Code, RpcError

IDENTITY: Final = "csi.v1.Identity"
CONTROLLER: Final = "csi.v1.Controller"
NODE: Final = "csi.v1.Node"

WAIT: Final = 2.0
"""Seconds that a call waits for another one on its volume before it is ABORTED; a sidecar repeats it soon."""

_log = logging.getLogger("volkit.csi")


@frozen(kw_only=True)
class Plugin:
    """What the driver calls itself: name in domain notation, the vendor's version, free facts for people."""

    name: str
    version: str
    manifest: Mapping[str, str] = field(factory=dict)


@frozen
class Rpc:
    """One row: a message `request` is read into the request of an `operation`, whose result is written into
    the answer. Without `write` the answer is an empty message.
    """

    request: type[Message]
    read: Callable[[Any], object]
    operation: str
    write: Callable[[Any, Any], Message] | None = None

    @property
    def method(self) -> str:
        """Its name: the request's without "Request"."""
        return self.request.DESCRIPTOR.name.removesuffix("Request")


CONTROLLER_RPCS: Final = (
    Rpc(pb.CreateVolumeRequest, codec.create_volume, "create_volume", answers.create_volume),
    Rpc(pb.DeleteVolumeRequest, codec.delete_volume, "delete_volume"),
    Rpc(
        pb.ControllerPublishVolumeRequest,
        codec.controller_publish,
        "controller_publish",
        answers.controller_publish,
    ),
    Rpc(pb.ControllerUnpublishVolumeRequest, codec.controller_unpublish, "controller_unpublish"),
    Rpc(pb.ValidateVolumeCapabilitiesRequest, codec.validate, "validate_capabilities", answers.validate),
    Rpc(pb.ListVolumesRequest, codec.list_volumes, "list_volumes", answers.list_volumes),
    Rpc(pb.GetCapacityRequest, codec.get_capacity, "get_capacity", answers.get_capacity),
    Rpc(pb.CreateSnapshotRequest, codec.create_snapshot, "create_snapshot", answers.create_snapshot),
    Rpc(pb.DeleteSnapshotRequest, codec.delete_snapshot, "delete_snapshot"),
    Rpc(pb.ListSnapshotsRequest, codec.list_snapshots, "list_snapshots", answers.list_snapshots),
    Rpc(pb.GetSnapshotRequest, codec.get_snapshot, "get_snapshot", answers.get_snapshot),
    Rpc(
        pb.ControllerExpandVolumeRequest, codec.controller_expand, "expand_volume", answers.controller_expand
    ),
    Rpc(pb.ControllerGetVolumeRequest, codec.get_volume, "get_volume", answers.get_volume),
    Rpc(pb.ControllerModifyVolumeRequest, codec.modify_volume, "modify_volume"),
)

NODE_RPCS: Final = (
    Rpc(pb.NodeStageVolumeRequest, codec.node_stage, "node_stage"),
    Rpc(pb.NodeUnstageVolumeRequest, codec.node_unstage, "node_unstage"),
    Rpc(pb.NodePublishVolumeRequest, codec.node_publish, "node_publish"),
    Rpc(pb.NodeUnpublishVolumeRequest, codec.node_unpublish, "node_unpublish"),
    Rpc(pb.NodeGetVolumeStatsRequest, codec.node_stats, "node_stats", answers.node_stats),
    Rpc(pb.NodeExpandVolumeRequest, codec.node_expand, "node_expand", answers.node_expand),
    Rpc(pb.NodeGetInfoRequest, codec.node_info, "node_info", answers.node_info),
)

# -- capabilities: each with what it takes, an operation, a mixin or an access mode --------------------------

Need = str | type[Mixin] | AccessMode

CONTROLLER_CAPABILITIES: Final[Mapping[str, Need]] = {
    "CREATE_DELETE_VOLUME": "create_volume",
    "PUBLISH_UNPUBLISH_VOLUME": "controller_publish",
    "LIST_VOLUMES": "list_volumes",
    "GET_CAPACITY": "get_capacity",
    "CREATE_DELETE_SNAPSHOT": "create_snapshot",
    "LIST_SNAPSHOTS": "list_snapshots",
    "CLONE_VOLUME": volkit.Clones,
    "PUBLISH_READONLY": "controller_publish",
    "EXPAND_VOLUME": "expand_volume",
    "LIST_VOLUMES_PUBLISHED_NODES": volkit.ListsPublished,
    "VOLUME_CONDITION": volkit.ReportsHealth,
    "GET_VOLUME": "get_volume",
    "SINGLE_NODE_MULTI_WRITER": AccessMode.SINGLE_NODE_MULTI_WRITER,
    "MODIFY_VOLUME": "modify_volume",
    "GET_SNAPSHOT": "get_snapshot",
}

NODE_CAPABILITIES: Final[Mapping[str, Need]] = {
    "STAGE_UNSTAGE_VOLUME": "node_stage",
    "GET_VOLUME_STATS": "node_stats",
    "EXPAND_VOLUME": volkit.Expands,  # the node does its part only of what the controller has begun
    "VOLUME_CONDITION": "node_stats",
    "SINGLE_NODE_MULTI_WRITER": AccessMode.SINGLE_NODE_MULTI_WRITER,
    "VOLUME_MOUNT_GROUP": volkit.MountsForGroup,
}


class Classes(Protocol):
    """What the capabilities are read from: an engine, or a backend that none runs of yet."""

    @property
    def backend(self) -> type[volkit.Backend[Any, Any]]: ...
    @property
    def controller(self) -> object: ...
    @property
    def node(self) -> object: ...
    @property
    def operations(self) -> Mapping[str, object]: ...
    def has(self, mixin: type[Mixin], /) -> bool: ...


def _meets(engine: Classes, need: Need) -> bool:
    if isinstance(need, str):
        return need in engine.operations
    if isinstance(need, AccessMode):
        return need in engine.backend.limits.access_modes
    return engine.has(need)


def controller_capabilities(engine: Classes) -> list[str]:
    """Names of ControllerServiceCapability.RPC.Type; none where the service is off."""
    if engine.controller is None:
        return []
    return [name for name, need in CONTROLLER_CAPABILITIES.items() if _meets(engine, need)]


def node_capabilities(engine: Classes) -> list[str]:
    """Names of NodeServiceCapability.RPC.Type; none where the service is off."""
    if engine.node is None:
        return []
    return [name for name, need in NODE_CAPABILITIES.items() if _meets(engine, need)]


def plugin_capabilities(engine: Classes, *, headless: bool = False) -> pb.GetPluginCapabilitiesResponse:
    """`headless`: no controller is run for these nodes, and so nothing grows.

    Every instance of a plugin has to answer alike, whichever services it has (CSI spec, GetPluginCapabilities): a
    node apart reports the controller that runs elsewhere.
    """
    service = pb.PluginCapability.Service
    types = []
    if engine.controller is not None or (engine.backend.controller is not None and not headless):
        types.append(service.CONTROLLER_SERVICE)
    if engine.has(volkit.ReportsTopology):
        types.append(service.VOLUME_ACCESSIBILITY_CONSTRAINTS)
    capabilities = [pb.PluginCapability(service=service(type=one)) for one in types]
    if engine.has(volkit.Expands) and not headless:
        how = pb.PluginCapability.VolumeExpansion
        kind = how.OFFLINE if engine.has(volkit.ExpandsOffline) else how.ONLINE
        capabilities.append(pb.PluginCapability(volume_expansion=how(type=kind)))
    return pb.GetPluginCapabilitiesResponse(capabilities=capabilities)


# -- handlers ------------------------------------------------------------------------------------------------


def handlers(engine: Engine, plugin: Plugin, *, headless: bool = False) -> dict[str, dict[str, Handler]]:
    """Every RPC that is served, by service and method.

    A process without a controller still answers ControllerGetCapabilities, with none (csi-sanity asks).
    """
    redact = Redactor(secret_keys(engine))
    served: dict[str, dict[str, Handler]] = {
        IDENTITY: {
            "GetPluginInfo": _constant(
                pb.GetPluginInfoRequest,
                pb.GetPluginInfoResponse(
                    name=plugin.name, vendor_version=plugin.version, manifest=plugin.manifest
                ),
            ),
            "GetPluginCapabilities": _constant(
                pb.GetPluginCapabilitiesRequest,
                plugin_capabilities(engine, headless=headless),
            ),
            "Probe": _probe(engine),
        },
        CONTROLLER: {
            "ControllerGetCapabilities": _constant(*_controller_report(controller_capabilities(engine)))
        },
    }
    if engine.controller is not None:
        served[CONTROLLER] |= _side(engine, CONTROLLER_RPCS, redact)
    if engine.node is not None:
        served[NODE] = _side(engine, NODE_RPCS, redact)
        served[NODE]["NodeGetCapabilities"] = _constant(*_node_report(node_capabilities(engine)))
    return served


def secret_keys(engine: Engine) -> frozenset[str]:
    """Every spelling of the parameters that the backend declares secret."""
    declared = volkit.options.declared(engine.backend.parameters)
    return frozenset(spelling for one in declared if one.secret for spelling in one.spellings)


def _controller_report(names: Iterable[str]) -> tuple[type[Message], Message]:
    rpc = pb.ControllerServiceCapability.RPC
    rows = [pb.ControllerServiceCapability(rpc=rpc(type=name)) for name in names]
    return pb.ControllerGetCapabilitiesRequest, pb.ControllerGetCapabilitiesResponse(capabilities=rows)


def _node_report(names: Iterable[str]) -> tuple[type[Message], Message]:
    rpc = pb.NodeServiceCapability.RPC
    rows = [pb.NodeServiceCapability(rpc=rpc(type=name)) for name in names]
    return pb.NodeGetCapabilitiesRequest, pb.NodeGetCapabilitiesResponse(capabilities=rows)


def _constant(request: type[Message], answer: Message) -> Handler:
    """Answers always the same, to any readable request."""
    data = answer.SerializeToString()

    def handle(received: bytes, context: ServerContext) -> bytes:
        if received:
            try:
                request.FromString(received)
            except DecodeError:
                raise RpcError(Code.INVALID_ARGUMENT, _unreadable(request)) from None
        return data

    return handle


def _probe(engine: Engine) -> Handler:
    """Ready, or not healthy any more, which livenessprobe takes for a reason to restart. Waits for nothing."""
    ready = _constant(pb.ProbeRequest, pb.ProbeResponse(ready={"value": True}))

    def handle(received: bytes, context: ServerContext) -> bytes:
        if why := engine.needs_restart():
            raise RpcError(Code.FAILED_PRECONDITION, why)
        return ready(received, context)

    return handle


def _side(engine: Engine, rows: Iterable[Rpc], redact: Redactor) -> dict[str, Handler]:
    return {
        row.method: _operation(engine, row, redact)
        if row.operation in engine.operations
        else _missing(engine, row)
        for row in rows
    }


def _missing(engine: Engine, row: Rpc) -> Handler:
    text = f"{row.method}: backend {engine.backend.name!r} cannot do it"

    def handle(received: bytes, context: ServerContext) -> bytes:
        raise RpcError(Code.UNIMPLEMENTED, text)

    return handle


def _operation(engine: Engine, row: Rpc, redact: Redactor) -> Handler:
    run, operation, request, read, write = engine.run, row.operation, row.request, row.read, row.write
    parse, method = request.FromString, row.method

    def handle(received: bytes, context: ServerContext) -> bytes:
        begun = False
        try:
            message = parse(received)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s request %s", method, redact(message))
            asked = read(message)
            begun = True
            result = run(operation, asked, Call(deadline=context.deadline, wait=WAIT))
            if write is None:
                return b""
            answer = write(message, result)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s answer %s", method, redact(answer))
            return answer.SerializeToString()
        except VolkitError as error:
            fault = RpcError(code_of(type(error), operation), error.message)
        except DecodeError:
            fault = RpcError(Code.INVALID_ARGUMENT, _unreadable(request))
        except Exception as error:
            _log_fault(method, error)
            begun = True
            fault = RpcError(Code.UNAVAILABLE, f"{method} failed unexpectedly: see the driver's log")
        if not begun:  # what the engine saw is in its own log
            _log.info("%s %s: %s", method, fault.code.name, fault.message, extra={"rpc": method})
        raise fault

    def handle_call(received: bytes, context: ServerContext) -> bytes:
        with events.request(headers=context.headers):
            return handle(received, context)

    return handle_call


def _unreadable(request: type[Message]) -> str:
    return f"the request is not a readable {request.DESCRIPTOR.full_name}"


def _log_fault(method: str, error: Exception) -> None:
    """A fault of volkit's, or of a value a backend made: where it was raised, not what it says, as that may
    quote a secret.
    """
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    _log.error("%s failed unexpectedly with %s, raised at\n%s", method, type(error).__name__, frames.rstrip())
