"""`volkit mounter`: runs FUSE programs for drivers that are in containers, and outlives them."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from types import FrameType

from volkit.host import fuse


def main(path: str) -> int:
    """Serve on the socket `path`, for its owner alone, until SIGTERM; the programs go on."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(64)

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"serving on {path}", flush=True)
    try:
        fuse.serve_mounter(listener)
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            os.unlink(path)
    return 0
