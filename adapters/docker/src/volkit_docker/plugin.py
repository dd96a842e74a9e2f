"""What the entry point `docker` of the group `volkit.adapters` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volkit import Adapter, Backend, Deployment, FailedPrecondition, NoOptions, Platform, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@hookimpl
def volkit_adapter() -> Adapter:
    """The Docker adapter."""
    summary = "volume plugin of Docker and Podman, over HTTP"
    return Adapter(name="docker", summary=summary, explain=_explain, platforms=PLATFORMS)


def _explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    from volkit_docker.explain import explain

    return explain(backend, controller, node)


def _write(deployment: Deployment, output: Path) -> None:
    """Docker has no secrets for plugins: those of a setting are in a file of the host."""
    from volkit import options
    from volkit_docker.bundle import make

    backend = deployment.backend
    for one in options.declared(backend.settings):
        if one.secret and one.required and one.key not in deployment.settings:
            raise FailedPrecondition(
                f"option {one.key!r} is secret, and Docker keeps no secrets of plugins: give -o {one.key}=@/FILE, "
                "a file in the plugin's state directory"
            )
    make(backend.name, output, [f"{key}={text}" for key, text in deployment.settings.items()])


PLATFORMS = (
    Platform(
        name="docker",
        summary="a managed plugin: what `docker plugin create` takes",
        values=lambda: NoOptions,
        write=_write,
    ),
)
