"""Who else has something mounted: the mount tables of all the other mount namespaces of this machine.

```python
taken = namespaces.mounts_elsewhere()
namespaces.count_holders("/var/lib/acme/mounts/v1", taken)  # how many containers have what is mounted there
```
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from volkit.host.mounts import Mount, mount_at, parse_mountinfo

_HOST_PIDS = "pid:[4026531836]"  # include/linux/proc_ns.h, PROC_PID_INIT_INO

Elsewhere: TypeAlias = Mapping[tuple[int, int], Sequence[Sequence[Mount]]]
"""By device, and for each mount namespace: its mounts of it."""


def can_see_everybody() -> bool:
    """Does this process see the mount namespaces of all others (the host's pid namespace, and its root)?"""
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PIDS and os.geteuid() == 0
    except OSError:
        return False


def mounts_elsewhere() -> Elsewhere:
    """The mounts of each mount namespace that is not this process's, read through one process of it."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    found: dict[tuple[int, int], list[list[Mount]]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace in seen:
                continue
            table = parse_mountinfo(Path(f"/proc/{name}/mountinfo").read_bytes())
            seen.add(namespace)
            devices: dict[tuple[int, int], list[Mount]] = {}
            for mount in table:
                devices.setdefault(mount.device, []).append(mount)
            for device, mounts in devices.items():
                found.setdefault(device, []).append(mounts)
    return found


def count_holders(path: str, elsewhere: Elsewhere, *, copies: Sequence[str] = ()) -> int:
    """How many other mount namespaces have what is mounted at `path` here, at another place; 0 where nothing is.

    At a place that ends like one of `copies` it is only a copy, as each service of systemd with a namespace of its own
    has one; below another root too, as the host has one of a managed plugin's.
    """
    here = mount_at(path)
    if here is None:
        return 0
    root, own = here.root.rstrip("/"), tuple(copies)
    return sum(
        any(
            (mount.root == here.root or mount.root.startswith(f"{root}/"))
            and not (own and mount.mount_point.endswith(own))
            for mount in mounts
        )
        for mounts in elsewhere.get(here.device, ())
    )
