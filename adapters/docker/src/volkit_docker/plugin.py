"""What the entry point `docker` of the group `volkit.adapters` names."""

from __future__ import annotations

from volkit import Adapter, hookimpl


@hookimpl
def volkit_adapter() -> Adapter:
    """The Docker adapter."""
    return Adapter(name="docker", summary="volume plugin of Docker and Podman, over HTTP")
