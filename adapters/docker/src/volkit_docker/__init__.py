"""Serves a volkit backend as a volume plugin of Docker and Podman: `volkit-docker --backend NAME …`.

A vendor's own plugin is this one with the backend and the name fixed, as a console script of the vendor's:

```python
from volkit_docker import volume_plugin

main = volume_plugin(backend="acme", name="acme", prog="acme-docker")
```
"""

from __future__ import annotations

from typing import Any

__all__ = ["volume_plugin"]


def __getattr__(name: str) -> Any:
    """Loaded when first used: `volkit` imports this package to list its commands."""
    if name == "volume_plugin":
        from volkit_docker.main import volume_plugin

        return volume_plugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
