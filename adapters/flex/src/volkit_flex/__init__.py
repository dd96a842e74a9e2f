"""Serves a volkit backend as a Kubernetes FlexVolume driver.

```sh
volkit-flex install --backend loop -o pool=/srv/volumes --vendor acme
```

A vendor's own command is this one with the backend fixed, as a console script of the vendor's:

```python
main = volkit_flex.driver(backend="acme", vendor="acme.com", prog="acme-flex")
```

Nothing is imported here: a FlexVolume driver starts a process for each call.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from volkit_flex.main import driver

__all__ = ["driver"]


def __getattr__(name: str) -> Any:
    if name != "driver":
        raise AttributeError(f"module 'volkit_flex' has no attribute {name!r}")
    from volkit_flex.main import driver

    globals()[name] = driver
    return driver
