"""`volkit deploy flex`: a DaemonSet that installs the launcher on every node and serves it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

import volkit
from volkit import Deployment, FailedPrecondition, InvalidArgument, option, rendering
from volkit_flex.install import PLUGIN_DIR, check_part

SECRETS: Final = "/etc/volkit/secret"
"""Where the Secret is mounted: secret settings, and the files that settings name."""


@frozen
class Values:
    """What may be said beside the backend and its settings."""

    image: str = option(help="Python with volkit-flex and the backend")
    vendor: str = option(default="", help="whose driver it is, such as acme.com")
    namespace: str = option(default="", help="where it runs (default: volkit-flex-BACKEND)")
    command: str = option(default="volkit-flex", help="the driver's command in the image")
    secret: str = option(
        default="",
        help="the Secret of secret settings, mounted at /etc/volkit/secret (default: volkit-flex-BACKEND)",
    )
    plugin_dir: Path = option(default=str(PLUGIN_DIR), help="kubelet's --volume-plugin-dir")
    kubelet_dir: Path = option(default="/var/lib/kubelet", help="kubelet's --root-dir")
    log_level: str = option(default="info", help="debug, info, warning or error")

    def __attrs_post_init__(self) -> None:
        patterns = {
            "image": r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}",
            "namespace": r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?",
            "secret": r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?",
            "command": r"[\w./-]+",
            "plugin_dir": r"/[\w./-]*",
            "kubelet_dir": r"/[\w./-]*",
            "log_level": "debug|info|warning|error",
        }
        for name, pattern in patterns.items():
            if not re.fullmatch(pattern, text := str(getattr(self, name)), re.ASCII):
                raise InvalidArgument(f"{name.replace('_', '-')} {text[:64]!r} cannot be that")
        if self.vendor:
            check_part("vendor", self.vendor)


def render(deployment: Deployment) -> Mapping[str, str]:
    """One file. Raises FailedPrecondition for a backend that cannot run in a pod."""
    values: Values = deployment.values
    backend = deployment.backend
    if deployment.node is None:
        raise FailedPrecondition(f"backend {backend.name!r} has no node: kubelet has nothing to call")
    if deployment.has(volkit.MountsByProgram):
        raise FailedPrecondition(
            f"backend {backend.name!r} mounts by programs that would die with the pod: install it on the hosts "
            "(`volkit-flex install`), or deploy the CSI driver, which runs them in a pod of their own"
        )
    names = {one.key: one for one in deployment.declared}
    name = f"volkit-flex-{backend.name}"
    facts: dict[str, Any] = {
        "name": name,
        "namespace": values.namespace or name,
        "backend": backend.name,
        "image": values.image,
        "vendor": values.vendor,
        "command": values.command,
        "log_level": values.log_level,
        "plugin_dir": values.plugin_dir,
        "kubelet_dir": values.kubelet_dir,
        "attaches": deployment.has(volkit.Publishes),
        "block_devices": backend.volume.kind == "block",
        "host_network": deployment.host_network,
        "host_paths": [
            json.dumps(path)
            for one in deployment.directories
            if not (path := deployment.settings.get(one.key, "/var/lib/volkit")).startswith("/var/lib/volkit")
        ],
        "settings": {
            names[key].variable: json.dumps(text) for key, text in deployment.contained(SECRETS).items()
        },
        "secrets": [one for one in deployment.secrets if one.required or one.key in deployment.settings],
        "sources": deployment.sources([*deployment.secrets, *deployment.files]),
        "secret": (values.secret or name) if deployment.secrets or deployment.files else "",
        "place": SECRETS,
    }
    text = rendering.render("volkit_flex", "templates/daemonset.yaml.jinja", facts)
    return {"daemonset.yaml": "\n".join(line for line in text.splitlines() if line.strip()) + "\n"}
