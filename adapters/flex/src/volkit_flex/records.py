"""What the driver has to remember between its calls, since each call tells only a part.

    flex-pv/<PV>        {"volume", "nodes"}     on the controller's side: what `detach` finds its volume by
    flex-device/<PV>    {"volume", "path", "publish_context", "volume_context"}   mounted on this node by mountdevice
    flex-path/<path>    {"volume", "name", "staging", "ephemeral"}                mounted on this node, for unmount
    flex-node/<node>    {"node_id"}             a node's name with what it told of itself, for a journal that is shared

Each is written before the act that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from volkit import Journal
from volkit.journal import Delete, Put, key

PV: Final = "flex-pv"
DEVICE: Final = "flex-device"
PATH: Final = "flex-path"
NODE: Final = "flex-node"


class Records:
    """The records of one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def get(self, kind: str, name: str) -> Mapping[str, Any]:
        """The record, {} where there is none."""
        entry = self._journal.get(key(kind, name))
        return entry.value if entry else {}

    def put(self, kind: str, subject: str, **value: Any) -> None:
        """Durable, and only where it changes: these calls are repeated for ever."""
        if self.get(kind, subject) != value:
            self._journal.write(Put(key(kind, subject), value), durable=True)

    def forget(self, kind: str, name: str) -> None:
        """Gone, now or already."""
        if self._journal.get(key(kind, name)) is not None:
            self._journal.write(Delete(key(kind, name)), durable=False)

    def all(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """Every record of a kind, by name."""
        prefix = key(kind, "")
        return {
            entry.key.removeprefix(prefix).replace("%2F", "/").replace("%25", "%"): entry.value
            for entry in self._journal.scan(prefix)
        }
