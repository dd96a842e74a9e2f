"""Who else has something mounted: the mount tables of all the other mount namespaces of this machine.

```python
taken = namespaces.mounts_elsewhere()
namespaces.count_holders("/var/lib/acme/mounts/v1", taken)  # how many containers have what is mounted there
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from volkit.host._holders import process_name
from volkit.host.mounts import Mount, mount_at, parse_mountinfo

_HOST_PIDS = "pid:[4026531836]"  # include/linux/proc_ns.h, PROC_PID_INIT_INO

_SYS_PTRACE = 19  # include/uapi/linux/capability.h

Elsewhere: TypeAlias = Mapping[tuple[int, int], Sequence[Sequence[Mount]]]
"""By device, and for each mount namespace: its mounts of it."""


def can_see_everybody() -> bool:
    """Does this process see the mount namespaces of all others (in the host's pid namespace, with SYS_PTRACE)?"""
    try:
        if os.readlink("/proc/self/ns/pid") != _HOST_PIDS:
            return False
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return False
    capable = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(capable.split()[1], 16) >> _SYS_PTRACE & 1)


def mounts_elsewhere(*, threads: bool = False, own: bool = False) -> Elsewhere:
    """The mounts of each mount namespace that is not this process's, read through one process of it.

    `threads`: also of those that single threads have, as Docker's have while they copy; it takes longer. `own`: of this
    process's too.
    """
    found: dict[tuple[int, int], list[list[Mount]]] = {}
    for _, table in _tables(threads=threads, own=own):
        devices: dict[tuple[int, int], list[Mount]] = {}
        for mount in table:
            devices.setdefault(mount.device, []).append(mount)
        for device, mounts in devices.items():
            found.setdefault(device, []).append(mounts)
    return found


def _tables(*, threads: bool = False, own: bool = False) -> Iterator[tuple[str, list[Mount]]]:
    """Each mount namespace's table, with the process that it was read through."""
    seen = set() if own else {os.readlink("/proc/self/ns/mnt")}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        for task in _tasks(pid) if threads else (f"/proc/{pid}",):
            with suppress(OSError):
                namespace = os.readlink(f"{task}/ns/mnt")
                if namespace not in seen:
                    table = parse_mountinfo(Path(f"{task}/mountinfo").read_bytes())
                    seen.add(namespace)
                    yield pid, table


def _tasks(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            yield f"/proc/{pid}/task/{name}"


def users_elsewhere(device: tuple[int, int], *, limit: int = 3) -> list[str]:
    """Up to `limit` phrases such as "a mount at /x in the mount namespace of pid 812 (bash)": where a device is mounted
    that looks unused from here. Empty where nobody is found, as in a pid namespace of one's own.
    """
    found = (
        f"a mount at {mount.mount_point} in the mount namespace of pid {pid} ({process_name(pid)})"
        for pid, table in _tables(threads=True)
        for mount in table
        if mount.device == device
    )
    return list(islice(found, limit))


def count_holders(path: str, elsewhere: Elsewhere, *, copies: Sequence[str] = ()) -> int:
    """How many of these mount namespaces have what is mounted at `path` here, at another place; 0 where nothing is.

    At a place that ends like one of `copies` it is only a copy, as each service of systemd with a namespace of its own
    has one; below another root too, as the host has one of a managed plugin's.
    """
    here = mount_at(path)
    if here is None:
        return 0
    return sum(_has(mounts, here, copies) for mounts in elsewhere.get(here.device, ()))


def name_holders(path: str, *, copies: Sequence[str] = (), limit: int = 3) -> list[str]:
    """One process of each mount namespace that `count_holders` counts, as "pid 812 (bash)"; up to `limit`."""
    here = mount_at(path)
    if here is None:
        return []
    found = (
        f"pid {pid} ({process_name(pid)})"
        for pid, table in _tables(threads=True)
        if _has(table, here, copies)
    )
    return list(islice(found, limit))


def _has(table: Iterable[Mount], here: Mount, copies: Sequence[str]) -> bool:
    """Is what `here` mounts in a table, and not only as a copy of it?"""
    root, own = here.root.rstrip("/"), tuple(copies)
    return any(
        mount.device == here.device
        and (mount.root == here.root or mount.root.startswith(f"{root}/"))
        and not (own and mount.mount_point.endswith(own))
        for mount in table
    )


def has_holders(device: tuple[int, int], elsewhere: Elsewhere, *, copies: Sequence[str] = ()) -> bool:
    """Has one of these mount namespaces a file system of this device mounted, also where none is here? `copies`: see
    `count_holders`.
    """
    own = tuple(copies)
    return any(
        not (own and mount.mount_point.endswith(own))
        for mounts in elsewhere.get(device, ())
        for mount in mounts
    )
