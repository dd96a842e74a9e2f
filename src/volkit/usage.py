"""How full a volume is, where to find out is dear: counted once, and told for a while.

```python
self._usages = UsageCache(seconds=300)
def usage(self, volume_id, connection): return self._usages.get(volume_id, lambda: self._count(volume_id))
```
"""

from __future__ import annotations

import time
from collections.abc import Callable

from volkit.model import Usage


class UsageCache:
    """Kubelet asks once a minute for each volume of each pod. `most` volumes are remembered at a time."""

    def __init__(self, seconds: float, most: int = 1024) -> None:
        self._seconds, self._most = seconds, most
        self._found: dict[str, tuple[float, Usage]] = {}

    def get(self, volume_id: str, count: Callable[[], Usage]) -> Usage:
        """What `count` gave at most so many seconds ago, else what it gives now. What it raises is not kept."""
        now = time.monotonic()
        when, usage = self._found.get(volume_id, (now, None))
        if usage is None or now - when > self._seconds:
            usage = count()
            self._found.pop(volume_id, None)
            self._found[volume_id] = (now, usage)
            while len(self._found) > self._most:
                self._found.pop(next(iter(self._found)), None)
        return usage
