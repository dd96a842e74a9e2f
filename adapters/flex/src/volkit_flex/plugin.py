"""What the entry point `flex` of the group `volkit.adapters` names."""

from __future__ import annotations

from volkit import Adapter, hookimpl


@hookimpl
def volkit_adapter() -> Adapter:
    """The FlexVolume adapter."""
    return Adapter(name="flex", summary="FlexVolume, an executable that kubelet calls")
