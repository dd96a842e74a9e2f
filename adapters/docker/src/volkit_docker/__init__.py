"""Serves a volkit backend as a volume plugin of Docker and Podman: `volkit-docker --backend NAME …`.

A vendor's own plugin is this one with the backend and the name fixed, as a console script of the vendor's:

```python
from volkit_docker import volume_plugin

main = volume_plugin(backend="acme", name="acme", prog="acme-docker")
```
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from volkit_docker.main import volume_plugin

__all__ = ["volume_plugin"]


def __getattr__(name: str) -> Any:
    if name != "volume_plugin":
        raise AttributeError(f"module 'volkit_docker' has no attribute {name!r}")
    from volkit_docker.main import volume_plugin

    globals()[name] = volume_plugin
    return volume_plugin
