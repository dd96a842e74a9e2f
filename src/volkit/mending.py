"""Programs that serve a volume and died are started again, at the same place, with the pods' mounts put right."""

from __future__ import annotations

import logging
import threading
import time

from volkit.errors import Aborted, NotFound, VolkitError
from volkit.host import fuse
from volkit.journal import Entry, key
from volkit.journal.records import parts
from volkit.model import FuseConnection
from volkit.node_state import NodeState, recorded_connection

MEND_SECONDS = 5.0
"""How often the programs are looked at."""

_LONGEST_PAUSE = 300.0

_log = logging.getLogger("volkit.engine")


class Mending:
    """Looks after the programs of one node's volumes."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._pauses: dict[str, tuple[float, float]] = {}

    def watch(self, stop: threading.Event, seconds: float = MEND_SECONDS) -> None:
        """`mend` until `stop` is set; in a thread of its own."""
        while not stop.wait(seconds):
            try:
                self.mend()
            except VolkitError as error:
                _log.warning("the programs of mounted volumes cannot be looked at: %s", error.message)

    def mend(self) -> int:
        """Start again what died; returns how many those were. What cannot be started now is tried later, less and less
        often; a volume that is being worked on is left alone.
        """
        return sum(self._mended(entry) for kind in ("stage", "target") for entry in self._records(kind))

    def _records(self, kind: str) -> list[Entry]:
        return [entry for entry in self._state.journal.scan(key(kind, "")) if _directory(entry)]

    def _mended(self, entry: Entry) -> bool:
        if not self._is_broken(entry):
            self._pauses.pop(entry.key, None)
            return False
        since, pause = self._pauses.get(entry.key, (0.0, MEND_SECONDS))
        if time.monotonic() - since < pause:
            return False
        volume_id = parts(entry.key)[1]
        lock = entry.key if entry.key.startswith("target/") else key("volume", volume_id)
        try:
            with self._state.locks.hold(lock, wait=0):
                now = self._state.journal.get(entry.key)
                if now is None or now.revision != entry.revision or not self._is_broken(now):
                    return False
                replaced = fuse.restart(_directory(now))
        except (Aborted, NotFound):
            return False
        except VolkitError as error:
            self._pauses[entry.key] = (time.monotonic(), min(2 * pause, _LONGEST_PAUSE))
            _log.warning(
                "volume %r: its program died and cannot be started again: %s", volume_id, error.message
            )
            return False
        _log.warning(
            "volume %r: its program died and was started again, %d mounts replaced", volume_id, replaced
        )
        return True

    @staticmethod
    def _is_broken(entry: Entry) -> bool:
        settled = entry.value.get("state") == ("connected" if entry.key.startswith("stage/") else None)
        return settled and fuse.has_died(_directory(entry))


def _directory(entry: Entry) -> str:
    connection = recorded_connection(entry.value)
    return connection.directory if isinstance(connection, FuseConnection) else ""
