"""What the entry point `flex` of the group `volkit.adapters` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volkit import Adapter, Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@hookimpl
def volkit_adapter() -> Adapter:
    """The FlexVolume adapter."""
    return Adapter(name="flex", summary="FlexVolume, an executable that kubelet calls", explain=_explain)


def _explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    from volkit_flex.offer import explain

    return explain(backend, controller)
