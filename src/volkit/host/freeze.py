"""Copying an image file in use: its file system is frozen meanwhile, so that the copy is one moment, and clean.

```python
with freeze.frozen(f"{pool}/v1.img", limit=30):
    files.clone(f"{pool}/v1.img", f"{pool}/.v2.img.new")
```
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from volkit.errors import FailedPrecondition
from volkit.host import devices, loop, mounts

log: logging.Logger = logging.getLogger(__name__)

_FIFREEZE: Final = 0xC0045877  # linux/fs.h
_FITHAW: Final = 0xC0045878


@contextmanager
def frozen(image: str, limit: float) -> Iterator[None]:
    """What was written through the loop devices of `image` is in the file, and the file systems on them wait
    until the end (ioctl_fifreeze(2)).

    One that is used as a raw device is flushed; its users can go on writing. Raises FailedPrecondition
    at the end where it took more than `limit` seconds: the file system was let go then, and what was copied
    is not to be used.
    """
    with ExitStack() as stack:
        for device in loop.find(image):
            for mount_point in _mount_points(device):
                stack.enter_context(_frozen(mount_point, limit))
            devices.flush(device)
        yield


def thaw(image: str) -> None:
    """Lets go what a process that was killed in `frozen` left frozen."""
    for device in loop.find(image):
        for mount_point in _mount_points(device):
            descriptor = os.open(mount_point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if _thaw(descriptor):
                    log.warning("%s was still frozen by a process that was killed: let go", mount_point)
            finally:
                os.close(descriptor)


def _mount_points(device: str) -> list[str]:
    """One place where the device is mounted, if any. btrfs is mounted under a device number of its own."""
    rdev = os.stat(device).st_rdev
    number = (os.major(rdev), os.minor(rdev))
    for one in mounts.mounts():
        if one.device == number or (one.fs_type == "btrfs" and one.source == device):
            return [one.mount_point]
    return []


@contextmanager
def _frozen(mount_point: str, limit: float) -> Iterator[None]:
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            fcntl.ioctl(descriptor, _FIFREEZE, 0)
        except OSError as error:
            if error.errno != errno.EBUSY:  # frozen by somebody else: theirs to let go
                raise
            yield
            return
        timer = threading.Timer(limit, _thaw, [descriptor])
        timer.start()
        in_time = False
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            in_time = _thaw(descriptor)
        if not in_time:
            raise FailedPrecondition(
                f"copying took longer than the {limit:g} s that {mount_point} may be frozen: "
                "unmount the volume first, or keep the images on xfs or btrfs, where a copy takes no time"
            )
    finally:
        os.close(descriptor)


def _thaw(descriptor: int) -> bool:
    """False where it was not frozen any more."""
    try:
        fcntl.ioctl(descriptor, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
