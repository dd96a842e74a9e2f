"""What a Docker volume plugin of a backend will do, for `volkit explain backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import volkit
from volkit import Backend


def explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    """The plugin's default name, its scope, and the options of `docker volume create` beside the parameters."""
    options = ["size", "readonly", "mount-options"]
    if backend.volume.kind == "block":
        options.append("fs-type")
    if controller is not None and issubclass(controller, volkit.Snapshots):
        options.append("from-snapshot")
    if controller is not None and issubclass(controller, volkit.Clones):
        options.append("clone-of")
    return {
        "plugin name": f"volkit-{backend.name}",
        "scope": "local; global with --journal etcd://…",
        "volumes": "are made, mounted and removed" if controller else "that exist are mounted, none is made",
        "options": options,
    }
