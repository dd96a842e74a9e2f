"""What a CSI driver of a backend will report, for `volkit explain backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

import volkit
from volkit import Backend, Mixin
from volkit_csi import services
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.main import default_name


@frozen
class Classes:
    """A backend of which no engine runs, with both services on."""

    backend: type[Backend[Any, Any]]
    controller: type[Any] | None
    node: type[Any] | None

    @property
    def operations(self) -> Mapping[str, volkit.Operation]:
        return {one.name: one for one in volkit.backend.supported(self.controller, self.node)}

    def has(self, mixin: type[Mixin], /) -> bool:
        return any(issubclass(side, mixin) for side in (self.controller, self.node) if side)


def explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    """The driver's default name, the capabilities of each service, and the RPCs that answer UNIMPLEMENTED."""
    classes = Classes(backend, controller, node)
    rows = (*services.CONTROLLER_RPCS, *services.NODE_RPCS)
    return {
        "driver name": default_name(backend.name),
        "plugin": plugin_capabilities(classes),
        "controller": services.controller_capabilities(classes),
        "node": services.node_capabilities(classes),
        "unimplemented": [row.method for row in rows if row.operation not in classes.operations],
    }


def plugin_capabilities(classes: services.Classes) -> list[str]:
    """Names of PluginCapability.Service.Type and, as `VolumeExpansion …`, of PluginCapability.VolumeExpansion.Type."""
    names = []
    for one in services.plugin_capabilities(classes).capabilities:
        if one.WhichOneof("type") == "service":
            names.append(pb.PluginCapability.Service.Type.Name(one.service.type))
        else:
            how = pb.PluginCapability.VolumeExpansion.Type.Name(one.volume_expansion.type)
            names.append(f"VolumeExpansion {how}")
    return names
