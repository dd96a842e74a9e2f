"""Serve a volkit backend as a Container Storage Interface (CSI) driver over gRPC.

```sh
volkit-csi --backend loop -o pool=/srv/volumes --endpoint unix:///run/volkit/csi.sock --node-id n1
```

A vendor's own driver is a name around it (`driver`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from volkit_csi.main import driver

__all__ = ["driver"]


def __getattr__(name: str) -> Any:
    if name != "driver":
        raise AttributeError(f"module 'volkit_csi' has no attribute {name!r}")
    from volkit_csi.main import driver

    globals()[name] = driver
    return driver
