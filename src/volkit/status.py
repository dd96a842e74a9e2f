"""What a driver does right now, told to other processes of its own user: `volkit top`.

Who connects to `STATE_DIR/status/PID.sock` (mode 0600) gets one JSON object and an end. Nothing is written while
nobody asks.

```text
{"pid", "version", "program", "backend", "node", "services", "since",
 "calls": [{"operation", "subject", "request", "since", "left"}],
 "operations": {NAME: {"ended", "failed", "seconds", "slowest"}},
 "recent": [{"operation", "subject", "request", "ended", "seconds", "code"}],
 "rejected": {REASON: COUNT}}
```
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from volkit.errors import Unavailable
from volkit.events import Event, Tally
from volkit.lanes import Lanes

DIRECTORY: Final = "status"
_SECONDS: Final = 2.0
_MOST: Final = 64 << 20
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Status:
    """Answers for one engine, on a thread of its own, until `close`. That it cannot listen stops nothing.

    `facts` are told as they are: backend, node and services.
    """

    def __init__(self, state_dir: Path, lanes: Lanes, tally: Tally, facts: Mapping[str, Any]) -> None:
        self._lanes = lanes
        self._tally = tally
        self._facts = {
            "pid": os.getpid(),
            "version": getattr(sys.modules["volkit"], "__version__", ""),
            "program": os.path.basename(sys.argv[0]),
            **facts,
            "since": time.time(),
        }
        self._path = state_dir / DIRECTORY / f"{os.getpid()}.sock"
        self._socket: socket.socket | None = None

    def serve(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            _clear(self._path.parent)
            self._path.unlink(missing_ok=True)
            self._socket = _bound(self._path)
            threading.Thread(
                target=self._answer, args=(self._socket,), name="volkit-status", daemon=True
            ).start()

    def close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes up the thread
            self._socket.close()
            self._socket = None

    def _answer(self, listening: socket.socket) -> None:
        while True:
            try:
                asking, _ = listening.accept()
            except OSError:
                return
            with asking, suppress(OSError):
                if _uid(asking) in (0, os.geteuid()):
                    asking.settimeout(_SECONDS)
                    asking.sendall(json.dumps(self.told()).encode())

    def told(self) -> dict[str, Any]:
        """The object, as it is now."""
        return {
            **self._facts,
            "calls": [asdict(one) for one in self._lanes.calls],
            "operations": {name: asdict(one) for name, one in sorted(self._tally.sums.items())},
            "recent": [_recent(one) for one in list(self._tally.recent)],
            "rejected": dict(self._lanes.rejected),
        }


def _recent(event: Event) -> dict[str, Any]:
    return {
        "operation": event.operation,
        "subject": event.subject,
        "request": event.request,
        "ended": event.began + event.seconds,
        "seconds": event.seconds,
        "code": event.code,
    }


def running(state_dir: Path) -> list[dict[str, Any]]:
    """What the drivers of a state directory tell; of one that was killed, or does not answer in time, nothing."""
    found = []
    for path in sorted((state_dir / DIRECTORY).glob("*.sock")):
        with suppress(Unavailable):
            found.append(ask(path))
    return found


def ask(path: Path) -> dict[str, Any]:
    """What the driver behind a socket tells. Raises Unavailable."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_SECONDS)
            with _near(path) as name:
                asking.connect(name)
            said = bytearray()
            until = time.monotonic() + 2 * _SECONDS
            while (part := asking.recv(1 << 16)) and len(said) < _MOST and time.monotonic() < until:
                said += part
        told = json.loads(said)
    except (OSError, ValueError) as error:
        raise Unavailable(f"no driver answers on {path} ({error})") from None
    if not isinstance(told, dict):
        raise Unavailable(f"what answers on {path} is no driver")
    return told


def _clear(directory: Path) -> None:
    """Remove what drivers left that were killed."""
    for path in directory.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as asking, _near(path) as name:
            asking.setblocking(False)
            if asking.connect_ex(name) == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)


class _near:  # noqa: N801 (reads as a function)
    """A name for a socket that is short enough, whatever its directory is called (man 7 unix: 107 bytes)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *error: object) -> None:
        os.close(self._directory)


def _bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _near(path) as name:
            listening.bind(name)
        os.chmod(path, 0o600)  # its directory is closed to others meanwhile
        listening.listen(16)
    except OSError:
        listening.close()
        raise
    return listening


def _uid(asking: socket.socket) -> int:
    raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
