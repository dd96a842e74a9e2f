"""What the driver has to remember between its calls, since each call tells only a part.

    flex-pv/<PV>        {"volume", "nodes"}     on the controller's side: what `detach` finds its volume by
    flex-device/<PV>    {"volume", "wanted", "path", "publish_context", "volume_context"}   mounted by mountdevice on
                                                this node; "wanted" is what the options called it
    flex-path/<path>    {"volume", "name", "staging", "ephemeral"}   mounted on this node: by mountdevice where
                                                "staging" is "", else by mount, from there
    flex-open/<path>    {"begun", "tried"}      a call that mounts or unmounts there began, and was not answered yet
    flex-made/<volume>  {"id"}                  on the controller's side: it is there, or it was lost
    flex-node/<node>    {"node_id"}             a node's name with what it told of itself, for a journal that is shared

Each is written before the act that it stands for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from volkit import Journal
from volkit.journal import Delete, Put, key

PV: Final = "flex-pv"
DEVICE: Final = "flex-device"
PATH: Final = "flex-path"
OPEN: Final = "flex-open"
MADE: Final = "flex-made"
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

    def begin(self, path: str, value: Mapping[str, Any]) -> None:
        """A call begins that mounts at `path` what `value` tells of, or unmounts it."""
        new = self.get(PATH, path) != value
        record, mark = Put(key(PATH, path), value), Put(key(OPEN, path), {"begun": time.time(), "tried": 0.0})
        self._journal.write(*((record, mark) if new else (mark,)), durable=new)

    def tried(self, path: str) -> None:
        """What a call that was cut short left is looked after now."""
        mark = {**self.get(OPEN, path), "tried": time.time()}
        self._journal.write(Put(key(OPEN, path), mark), durable=False)

    def mounted(self, path: str) -> None:
        """The call has ended, and its caller knows."""
        self._journal.write(Delete(key(OPEN, path)), durable=False)

    def unmounted(self, path: str) -> None:
        """The call has ended, and nothing is mounted."""
        self._journal.write(Delete(key(OPEN, path)), Delete(key(PATH, path)), durable=False)

    def all(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """Every record of a kind, by name."""
        prefix = key(kind, "")
        return {
            entry.key.removeprefix(prefix).replace("%2F", "/").replace("%25", "%"): entry.value
            for entry in self._journal.scan(prefix)
        }
