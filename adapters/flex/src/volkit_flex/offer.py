"""What a FlexVolume driver of a backend will answer, for `volkit explain backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import volkit
from volkit import Backend
from volkit_flex import wire
from volkit_flex.service import capabilities


def explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    """The driver's default name, what its `init` answers, and what it leaves to kubelet."""
    attaches = controller is not None and issubclass(controller, volkit.Publishes)
    expands = controller is not None and issubclass(controller, volkit.Expands)
    per_pod = backend.node is not None and issubclass(backend.node, volkit.ConnectsPerPod)
    init = capabilities(backend, attaches=attaches, expands=expands, per_pod=per_pod)
    return {
        "driver name": f"VENDOR/{backend.name}",
        "init": [f"{key}: {str(value).lower()}" for key, value in init.items()],
        "not supported": [] if attaches else sorted(wire.ATTACHING),
        "growth": "by expandfs, which grows the backend too" if expands else "none",
    }
