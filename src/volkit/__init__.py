"""Write one storage backend, serve it as a CSI driver, a FlexVolume driver and a Docker volume plugin.

```python
# acme.py: the vendor's storage, and the client of its own
class AcmeController(Controller[AcmeSettings, AcmeParameters], FindsByName): ...
class AcmeNode(Node[AcmeSettings]): ...
class Acme(Backend[AcmeSettings, AcmeParameters]): name = "acme"; ...

# plugin.py: found by the entry point `acme = "acme.plugin"` of the group volkit.backends
@hookimpl
def volkit_backend(): return Acme
```

Every public name is here, and loaded when it is first used: a FlexVolume driver starts a process for each
call, so `import volkit` by itself imports nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from volkit import (
        arguments,
        backend,
        errors,
        hookspecs,
        host,
        interfaces,
        launch,
        lifecycle,
        model,
        objects,
        operations,
        options,
        registry,
        rendering,
        requests,
        rootfs,
    )
    from volkit.backend import Backend, Limits, Needs
    from volkit.credentials import AccessKey
    from volkit.deployment import Deployment, Platform
    from volkit.endpoints import Endpoints
    from volkit.engine import Engine
    from volkit.errors import (
        ERRORS,
        Aborted,
        AlreadyExists,
        Ambiguous,
        DeadlineExceeded,
        FailedPrecondition,
        InUse,
        InvalidArgument,
        InvalidToken,
        NotBlank,
        NotFound,
        OutOfRange,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
        Unsupported,
        UnsupportedVolume,
        VolkitError,
        error_of_status,
    )
    from volkit.hookspecs import Adapter, hookimpl
    from volkit.interfaces import (
        Clones,
        ConnectsPerPod,
        Controller,
        Expands,
        ExpandsOffline,
        FindsByName,
        Lists,
        ListsConnections,
        ListsPublished,
        ListsSnapshots,
        Mixin,
        Modifies,
        MountsByProgram,
        MountsForGroup,
        Node,
        Publishes,
        ReportsCapacity,
        ReportsHealth,
        ReportsTopology,
        Snapshots,
        TakesIds,
        TakesTokens,
    )
    from volkit.journal import Journal, open_journal
    from volkit.lifecycle import plan
    from volkit.model import (
        FIRST_FORMAT,
        MAX_BYTES,
        NO_SECRETS,
        AccessMode,
        AccessType,
        BlockConnection,
        BlockVolume,
        Capability,
        CapacityRange,
        CloneSource,
        Connection,
        FileConnection,
        FileVolume,
        FuseConnection,
        ObjectVolume,
        Secrets,
        Snapshot,
        SnapshotSource,
        Source,
        Topology,
        TopologyRequirement,
        Usage,
        Volume,
        VolumeHealth,
    )
    from volkit.operations import OPERATIONS, Operation, State
    from volkit.options import Mode, NoOptions, Size, format_size, option, parse_size
    from volkit.registry import Found, adapters, backends, load_backend, register
    from volkit.requests import (
        Call,
        CapacityRequest,
        CapacityResult,
        ConnectRequest,
        ControllerPublishRequest,
        ControllerPublishResult,
        ControllerUnpublishRequest,
        CreateSnapshotRequest,
        CreateVolumeRequest,
        DeleteSnapshotRequest,
        DeleteVolumeRequest,
        DisconnectRequest,
        ExpandVolumeRequest,
        ExpandVolumeResult,
        GetSnapshotRequest,
        GetVolumeRequest,
        ListPublishedRequest,
        ListPublishedResult,
        ListRequest,
        ListSnapshotsRequest,
        ModifyVolumeRequest,
        NodeExpandRequest,
        NodeExpandResult,
        NodeInfo,
        NodeInfoRequest,
        NodePublishRequest,
        NodeStageRequest,
        NodeStats,
        NodeStatsRequest,
        NodeUnpublishRequest,
        NodeUnstageRequest,
        Page,
        ResizeRequest,
        ValidateCapabilitiesRequest,
        ValidateCapabilitiesResult,
        VolumeEntry,
    )
    from volkit.usage import UsageCache
    from volkit.validate import file_name, split_metadata

__version__ = "0.1.0"

__all__ = [
    "__version__",
    # a backend
    "Backend",
    "Limits",
    "Needs",
    "Controller",
    "Node",
    "NoOptions",
    "Mode",
    "Size",
    "option",
    "hookimpl",
    # capabilities
    "Mixin",
    "Clones",
    "ConnectsPerPod",
    "MountsByProgram",
    "MountsForGroup",
    "Expands",
    "ExpandsOffline",
    "FindsByName",
    "Lists",
    "ListsConnections",
    "ListsPublished",
    "ListsSnapshots",
    "Modifies",
    "Publishes",
    "ReportsCapacity",
    "ReportsHealth",
    "ReportsTopology",
    "Snapshots",
    "TakesIds",
    "TakesTokens",
    # values
    "MAX_BYTES",
    "NO_SECRETS",
    "AccessMode",
    "AccessType",
    "BlockConnection",
    "BlockVolume",
    "Capability",
    "CapacityRange",
    "CloneSource",
    "Connection",
    "FIRST_FORMAT",
    "FileConnection",
    "FuseConnection",
    "FileVolume",
    "ObjectVolume",
    "Secrets",
    "Snapshot",
    "SnapshotSource",
    "Source",
    "Topology",
    "TopologyRequirement",
    "Usage",
    "Volume",
    "VolumeHealth",
    # what backends share
    "AccessKey",
    "Endpoints",
    "UsageCache",
    # requests and results
    "CapacityRequest",
    "CapacityResult",
    "ConnectRequest",
    "ControllerPublishRequest",
    "ControllerPublishResult",
    "ControllerUnpublishRequest",
    "CreateSnapshotRequest",
    "CreateVolumeRequest",
    "DeleteSnapshotRequest",
    "DeleteVolumeRequest",
    "DisconnectRequest",
    "ExpandVolumeRequest",
    "ExpandVolumeResult",
    "GetSnapshotRequest",
    "GetVolumeRequest",
    "ListPublishedRequest",
    "ListPublishedResult",
    "ListRequest",
    "ListSnapshotsRequest",
    "ModifyVolumeRequest",
    "NodeExpandRequest",
    "NodeExpandResult",
    "NodeInfo",
    "NodeInfoRequest",
    "NodePublishRequest",
    "NodeStageRequest",
    "NodeStats",
    "NodeStatsRequest",
    "NodeUnpublishRequest",
    "NodeUnstageRequest",
    "Page",
    "ResizeRequest",
    "ValidateCapabilitiesRequest",
    "ValidateCapabilitiesResult",
    "VolumeEntry",
    # errors
    "ERRORS",
    "Aborted",
    "AlreadyExists",
    "Ambiguous",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InUse",
    "InvalidArgument",
    "InvalidToken",
    "NotBlank",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "UnsupportedVolume",
    "VolkitError",
    "error_of_status",
    # for adapters
    "OPERATIONS",
    "Operation",
    "State",
    "plan",
    "Call",
    "Engine",
    "Journal",
    "open_journal",
    "split_metadata",
    "file_name",
    "format_size",
    "parse_size",
    "Adapter",
    "Deployment",
    "Platform",
    "Found",
    "adapters",
    "backends",
    "load_backend",
    "register",
    # modules
    "backend",
    "errors",
    "hookspecs",
    "host",
    "interfaces",
    "arguments",
    "launch",
    "lifecycle",
    "model",
    "objects",
    "operations",
    "options",
    "registry",
    "rendering",
    "requests",
    "rootfs",
]

_NAMES = {
    "backend": "Backend Limits Needs",
    "credentials": "AccessKey",
    "endpoints": "Endpoints",
    "deployment": "Deployment Platform",
    "engine": "Engine",
    "errors": """
        ERRORS Aborted AlreadyExists Ambiguous DeadlineExceeded FailedPrecondition InUse InvalidArgument
        InvalidToken NotBlank NotFound OutOfRange PermissionDenied ResourceExhausted Unauthenticated
        Unavailable Unsupported UnsupportedVolume VolkitError error_of_status
    """,
    "hookspecs": "Adapter hookimpl",
    "interfaces": """
        Clones ConnectsPerPod Controller Expands ExpandsOffline FindsByName Lists ListsConnections
        ListsPublished ListsSnapshots Mixin Modifies MountsByProgram MountsForGroup Node Publishes ReportsCapacity
        ReportsHealth ReportsTopology Snapshots TakesIds TakesTokens
    """,
    "journal": "Journal open_journal",
    "lifecycle": "plan",
    "model": """
        FIRST_FORMAT MAX_BYTES NO_SECRETS AccessMode AccessType BlockConnection BlockVolume Capability
        CapacityRange CloneSource Connection FileConnection FileVolume FuseConnection ObjectVolume Secrets Snapshot
        SnapshotSource Source Topology TopologyRequirement Usage Volume VolumeHealth
    """,
    "operations": "OPERATIONS Operation State",
    "options": "Mode NoOptions Size format_size option parse_size",
    "registry": "Found adapters backends load_backend register",
    "requests": """
        Call CapacityRequest CapacityResult ConnectRequest ControllerPublishRequest ControllerPublishResult
        ControllerUnpublishRequest CreateSnapshotRequest CreateVolumeRequest DeleteSnapshotRequest
        DeleteVolumeRequest DisconnectRequest ExpandVolumeRequest ExpandVolumeResult GetSnapshotRequest
        GetVolumeRequest ListPublishedRequest ListPublishedResult ListRequest ListSnapshotsRequest
        ModifyVolumeRequest NodeExpandRequest NodeExpandResult NodeInfo NodeInfoRequest NodePublishRequest
        NodeStageRequest NodeStats NodeStatsRequest NodeUnpublishRequest NodeUnstageRequest Page
        ResizeRequest ValidateCapabilitiesRequest ValidateCapabilitiesResult VolumeEntry
    """,
    "usage": "UsageCache",
    "validate": "file_name split_metadata",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = frozenset({*_NAMES, "arguments", "host", "launch", "objects", "rendering", "rootfs"})


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        value = getattr(import_module(f"volkit.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"volkit.{name}")
    else:
        raise AttributeError(f"module 'volkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
