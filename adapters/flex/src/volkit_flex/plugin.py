"""What the entry point `flex` of the group `volkit.adapters` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volkit import Adapter, Backend, Deployment, Platform, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@hookimpl
def volkit_adapter() -> Adapter:
    """The FlexVolume adapter."""
    summary = "FlexVolume, an executable that kubelet calls"
    return Adapter(name="flex", summary=summary, explain=_explain, platforms=PLATFORMS)


def _explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    from volkit_flex.offer import explain

    return explain(backend, controller, node)


def _values() -> type:
    from volkit_flex.deploy import Values

    return Values


def _render(deployment: Deployment) -> Mapping[str, str]:
    from volkit_flex.deploy import render

    return render(deployment)


PLATFORMS = (
    Platform(
        name="flex",
        summary="a FlexVolume driver: a DaemonSet that installs and serves it",
        values=_values,
        render=_render,
    ),
)
