"""Who keeps a mount busy: the mounts below it and the processes with something open in it (proc(5))."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from volkit.host._mount_table import mounts

_SECONDS = 0.2


def holders(target: str, *, limit: int = 3, children: bool = True) -> list[str]:
    """Up to `limit` phrases such as "pid 812 (bash)" or "a mount at /x/y". Empty where nobody is found:
    processes of other mount namespaces and users of the device itself cannot be seen from here. Reads links
    only, so that a hung file system is not touched, and gives up after 0.2 s. `children`: also this process' own.
    """
    found = [
        f"a mount at {mount.mount_point}" for mount in mounts(under=target) if mount.mount_point != target
    ]
    until = time.monotonic() + _SECONDS
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if len(found) >= limit or time.monotonic() > until:
            break
        holds = any(link == target or link.startswith(target + "/") for link in _links(pid))
        if holds and (children or _parent(pid) != os.getpid()):
            found.append(f"pid {pid} ({process_name(pid)})")
    return found[:limit]


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _links(pid: str) -> Iterator[str]:
    """Where the process is, and what it has open or mapped as its program."""
    place = f"/proc/{pid}"
    try:
        descriptors = [f"fd/{number}" for number in os.listdir(f"{place}/fd")]
    except OSError:
        descriptors = []
    for name in ("cwd", "root", "exe", *descriptors):
        try:
            yield os.readlink(f"{place}/{name}")
        except OSError:  # a kernel thread, or gone by now
            continue


def process_name(pid: str) -> str:
    """What the process is called; "?" where it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
