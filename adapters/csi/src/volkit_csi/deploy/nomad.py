"""`volkit deploy nomad`: the jobs of a CSI plugin, and a volume. https://developer.hashicorp.com/nomad/docs/job-specification/csi_plugin."""

from __future__ import annotations

import json
from typing import Any

import volkit
from volkit import Deployment, FailedPrecondition, rendering
from volkit_csi.deploy.values import Nomad


def render(deployment: Deployment) -> dict[str, str]:
    """`plugin.nomad.hcl` (the first), `controller.nomad.hcl` where a controller runs apart, and `volume.hcl`."""
    values: Nomad = deployment.values
    backend = deployment.backend
    if deployment.node is None:
        raise FailedPrecondition(
            f"backend {backend.name!r} has no node: there is nothing to run on Nomad's clients"
        )
    if deployment.has(volkit.MountsByProgram):
        raise FailedPrecondition(
            f"backend {backend.name!r} mounts by programs that must outlive the plugin's container, which Nomad cannot "
            "promise: run the driver on the hosts, by systemd"
        )
    if backend.needs.node_local:
        raise FailedPrecondition(
            f"volumes of backend {backend.name!r} live on the nodes that make them, and Nomad would ask any of "
            "them for one: run it as a Docker plugin, or on Kubernetes"
        )
    apart = deployment.controller is not None
    names = {one.key: one for one in deployment.declared}
    own_files = {one.key for one in deployment.files}
    settings = {
        names[key].variable: json.dumps(text if key in own_files else text.replace("${", "$${"))
        for key, text in deployment.contained("${NOMAD_SECRETS_DIR}").items()
    }
    facts: dict[str, Any] = {
        "backend": backend.name,
        "id": values.plugin_id or backend.name,
        "image": values.image,
        "command": values.command,
        "log_level": values.log_level,
        "datacenters": json.dumps(list(values.datacenters)),
        "environment": settings,
        "secrets": deployment.secrets,
        "files": sorted(own_files),
        "sources": [
            f"{key}=@{path}"
            for key, path in deployment.sources([*deployment.secrets, *deployment.files]).items()
        ],
        "block_devices": backend.volume.kind == "block",
        "host_network": deployment.host_network,
        "services": "node",
        "headless": not apart,
        "volume": values.volume,
        "size": volkit.format_size(values.size).replace("i", "iB"),
        "parameters": {key: json.dumps(text) for key, text in deployment.parameters.items()},
        "access": "single-node-writer" if backend.volume.kind == "block" else "multi-node-multi-writer",
        "fs_type": backend.limits.fs_types[0] if backend.volume.kind == "block" else "",
        "created": apart,
    }
    files = {"plugin.nomad.hcl": _rendered("plugin", facts)}
    if apart:
        files["controller.nomad.hcl"] = _rendered("controller", facts)
    files["volume.hcl"] = _rendered("volume", facts)
    return files


def _rendered(template: str, facts: dict[str, Any]) -> str:
    return rendering.render("volkit_csi", f"deploy/templates/hcl/{template}.hcl.jinja", facts)
