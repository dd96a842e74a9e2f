"""What the entry point `docker` of the group `volkit.adapters` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volkit import Adapter, Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@hookimpl
def volkit_adapter() -> Adapter:
    """The Docker adapter."""
    return Adapter(name="docker", summary="volume plugin of Docker and Podman, over HTTP", explain=_explain)


def _explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    from volkit_docker.explain import explain

    return explain(backend, controller)
