"""Namespaces: root without being root.

```python
rootless.become_root()  # the mounts of this process and its children are theirs alone, from now on
```
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from volkit.errors import FailedPrecondition
from volkit.host import mounts
from volkit.host._syscalls import check, function

__all__ = ["become_root"]

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
_unshare: Final = function("unshare", ctypes.c_int)


def become_root() -> None:
    """Puts this process into a user and a mount namespace of its own, in which it is root (user_namespaces(7)): it can
    mount, and nobody else sees it; when it and its children end, the mounts are gone. Its files stay the user's.

    To be called while it has one thread. Raises FailedPrecondition with the switch to turn where the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        check(_unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as mapping:
                mapping.write(text)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise FailedPrecondition(
                "a process with several threads cannot enter a user namespace"
            ) from error
        raise FailedPrecondition(f"no user namespace can be made ({error.strerror}): {_why_not()}") from error
    mounts.set_propagation("/", "private", recursive=True)


def _why_not() -> str:
    for path, off, how in _SWITCHES:
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == off:
                    return f"they are off on this machine; run `{how}` as root"
        except OSError:
            continue
    return "a container or a seccomp filter forbids them; run it as root"
