"""Which node has a volume, where hosts share a journal: one that is for one node alone is used on one, and none is
removed while another node has it.

```python
claims = Claims(engine, many=lambda: False)
claims.take("vol-1", "pvc-1")  # raises InUse where another node has it
claims.give_back("vol-1")
```

    node-of/<volume id>        {"node", "name", "alone": to remove it}
    node-of/<volume id>/<node> the same, where many nodes may have a volume at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from volkit.engine import Engine
from volkit.errors import InUse
from volkit.journal import Conflict, Delete, Entry, Put, SharedJournal, key
from volkit.journal.records import parts


class Claims:
    """Those of one engine's node; without a shared journal there are none. `many`: may several nodes have a volume?"""

    def __init__(self, engine: Engine, many: Callable[[], bool]) -> None:
        self._journal = engine.journal
        self._node = engine.node_id
        self._many = many
        self.shared: bool = isinstance(engine.journal, SharedJournal)

    def take(self, volume_id: str, name: str, *, alone: bool = False) -> None:
        """This node has the volume from now on; `alone`: no other one may, as to remove it. Raises InUse."""
        if not self.shared:
            return
        mine = self._key(volume_id)
        entry = self._claim(mine, {"node": self._node, "name": name, "alone": alone})
        if not self._many():
            return
        # after its own is there: of two nodes, one at least sees the other
        for other in self._journal.scan(key("node-of", volume_id, "")):
            if other.key != mine and (alone or other.value.get("alone")):
                self._journal.write(Put(mine, entry.value) if entry else Delete(mine), durable=False)
                raise _elsewhere(other.key, other.value)

    def _claim(self, mine: str, claim: Mapping[str, Any]) -> Entry | None:
        """What was claimed there before. Raises InUse."""
        while True:
            entry = self._journal.get(mine)
            if entry is not None and entry.value["node"] != self._node:
                raise _elsewhere(mine, entry.value)
            if entry is not None and entry.value.get("alone", False) == claim["alone"]:
                return entry
            with suppress(Conflict):  # another node came first: the error names it
                self._journal.write(Put(mine, claim, revision=entry.revision if entry else 0), durable=True)
                return entry

    def give_back(self, volume_id: str) -> None:
        """This node has it no more; to repeat it does nothing."""
        if not self.shared:
            return
        entry = self._journal.get(self._key(volume_id))
        if entry is not None and entry.value["node"] == self._node:
            with suppress(Conflict):  # forgotten by somebody's hand, and another node's by now
                self._journal.write(Delete(entry.key, revision=entry.revision), durable=False)

    @contextmanager
    def alone(self, volume_id: str, name: str) -> Iterator[None]:
        """No other node has it meanwhile. Raises InUse."""
        self.take(volume_id, name, alone=True)
        try:
            yield
        finally:
            self.give_back(volume_id)

    def own(self) -> list[str]:
        """The volumes that this node has."""
        found = self._journal.scan(key("node-of", "")) if self.shared else []
        return [parts(entry.key)[1] for entry in found if entry.value["node"] == self._node]

    def _key(self, volume_id: str) -> str:
        return key("node-of", volume_id, *([self._node] if self._many() else []))


def _elsewhere(claim: str, value: Mapping[str, Any]) -> InUse:
    doing = "removed" if value.get("alone") else "in use"
    return InUse(
        f"volume {value['name']!r} is {doing} on node {value['node']!r}; where that node is gone for good: "
        f"`volkit journal --forget '{claim}'`"
    )
