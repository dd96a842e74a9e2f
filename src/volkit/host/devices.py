"""Block devices: who one is, how large it is, and waiting until one comes, grows or goes.

```python
devices.verify("/dev/disk/by-id/scsi-36001405…", {"serial": "f00d0001"})   # "/dev/sdc", or FailedPrecondition
devices.wait_for("/dev/disk/by-id/scsi-36001405…", identity={"serial": "f00d0001"}, timeout=30)
devices.wait_for_size("/dev/sdc", 20 << 30, timeout=30)
```

A path is a hint and the identity the proof: by-id links go stale (kubernetes-sigs/aws-ebs-csi-driver #1224).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from volkit.errors import DeadlineExceeded, FailedPrecondition, NotFound, VolkitError
from volkit.host import _block
from volkit.model import EMPTY

if TYPE_CHECKING:
    import pyudev

__all__ = [
    "fault", "flush", "holders", "made_of", "number", "read_identity", "set_read_only", "size", "verify", "wait_for",
    "wait_for_size", "wait_gone", "wait_until",
]  # fmt: skip

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
Look = Callable[[], T | None]

UDEV_CONTROL: Final = "/run/udev/control"
_WELL: Final = ("running", "live", "configured", "created")
_SESSION: Final = re.compile(r"/(session\d+)/")
_LOOK_AGAIN: Final = 0.5
_POLL_FIRST: Final = 0.01
_POLL_MOST: Final = 0.25


def read_identity(device: str) -> Mapping[str, str]:
    """What tells this device from every other, from sysfs and the driver itself; only what the device has.

    Keys: `serial`, `wwid`, `vendor`, `model`, `dm_uuid` (device mapper), `backing_inode` ("<st_dev>:<st_ino>"
    of a loop device's file), `diskseq` (grows with every new disk, so it proves "the same as before" until
    the next boot), `partition` (its number; the rest is then the whole disk's), `size` (bytes; it changes
    when the volume is expanded). Raises NotFound where no device is behind the path and InvalidArgument where
    it is no block device.
    """
    with _block.opened(device) as descriptor:
        return _block.identity(descriptor)


def verify(device: str, identity: Mapping[str, str]) -> str:
    """The device's own path, its links followed, after every attribute of `identity` was found to be as
    given.

    Raises FailedPrecondition with attribute, expected and found value; NotFound; InvalidArgument for no block
    device.
    """
    path = os.path.realpath(device)
    with _block.opened(path) as descriptor:
        wrong = _block.differences(_block.identity(descriptor, identity), identity) if identity else ""
    if wrong:
        raise FailedPrecondition(
            f"{device} is another device than expected: {wrong}. It was not touched; "
            "rescan the storage, or detach and attach the volume again"
        )
    return path


def size(device: str) -> int:
    """The device's size in bytes; 0 for a loop device without a file."""
    with _block.opened(device) as descriptor:
        return _block.size(descriptor)


def set_read_only(device: str, read_only: bool) -> None:
    """Makes the kernel refuse writes to the device from everybody who opens it from now on, or take them
    again (BLKROSET). It lasts until the device goes or a loop device is detached; nothing is
    done where it is so already.
    """
    with _block.opened(device) as descriptor:
        if _block.read_only(descriptor) != read_only:
            _block.set_read_only(descriptor, device, read_only)


def flush(device: str) -> None:
    """Writes what the kernel still holds for the device and waits until the storage has it durably.

    Raises Unavailable where a write failed, also an earlier one that nobody was told of.
    """
    with _block.opened(device) as descriptor:
        _block.sync(descriptor, device)


def holders(device: str) -> list[str]:
    """The block devices made of this one, such as ["/dev/dm-0"] for an open LUKS container."""
    with _block.opened(device) as descriptor:
        return [f"/dev/{name.replace('!', '/')}" for name in _block.holders(_block.number(descriptor))]


def number(device: str) -> tuple[int, int] | None:
    """(major, minor) of the block device behind a path, which is not opened; None where there is none."""
    try:
        found = os.stat(device)
    except OSError:
        return None
    return (os.major(found.st_rdev), os.minor(found.st_rdev)) if stat.S_ISBLK(found.st_mode) else None


def made_of(device: str) -> list[str]:
    """As `holders`, without opening the device: each as the name in sysfs, such as "dm-0"."""
    where = number(device)
    return _block.holders(where) if where else []


def fault(device: str) -> str:
    """What the kernel holds against this device or one that it is made of, in words; "" where there is nothing.

    Only sysfs is read, so that no device that hangs is touched: the `state` of SCSI and NVMe (a path that is offline,
    blocked, in transport-offline), an iSCSI session that failed, a device mapper that is suspended, a loop device
    whose file has no name any more.
    """
    where = number(device)
    if where is None:
        return f"no device is behind {device}"
    place = os.path.realpath(_block.sysfs(where))
    if os.path.exists(f"{place}/partition"):
        place = os.path.dirname(place)
    return _fault_at(place)


def _fault_at(place: str) -> str:
    name = os.path.basename(place)
    for part in ("device/state", "device/device/state"):
        state = _block.read_attribute(f"{place}/{part}")
        if state and state not in _WELL:
            return f"{name} is {state}"
    if _block.read_attribute(f"{place}/dm/suspended") == "1":
        return f"{name} is suspended"
    if _block.read_attribute(f"{place}/loop/backing_file").endswith(" (deleted)"):
        return f"the file behind {name} was deleted: what is on it goes when it is detached"
    session = _SESSION.search(os.path.realpath(f"{place}/device"))
    if session:
        state = _block.read_attribute(f"{_block.SYSFS}/class/iscsi_session/{session[1]}/state")
        if state and state != "LOGGED_IN":
            return f"iSCSI {session[1]} of {name} is {state}"
    with suppress(OSError):
        for slave in sorted(os.listdir(f"{place}/slaves")):
            if found := _fault_at(os.path.realpath(f"{place}/slaves/{slave}")):
                return f"{found} (below {name})"
    return ""


def wait_for(appears: str, *, identity: Mapping[str, str] = EMPTY, timeout: float) -> str:
    """Waits until a block device with this identity is at the path `appears`, and returns the device's own
    path.

    Raises DeadlineExceeded after `timeout` seconds with what was there instead.
    """
    seen = "nothing was looked at"

    def look() -> str | None:
        nonlocal seen
        try:
            return verify(appears, identity)
        except VolkitError as error:
            seen = str(error)
            return None

    return _wait(look, f"{appears} did not appear", lambda: seen, timeout)


def wait_for_size(device: str, at_least: int, *, timeout: float) -> int:
    """Waits until the device has at least so many bytes, and returns its size.

    Raises DeadlineExceeded after `timeout` seconds with the size it has.
    """
    found = 0

    def look() -> int | None:
        nonlocal found
        found = size(device)
        return found if found >= at_least else None

    return _wait(look, f"{device} did not grow to {at_least} bytes", lambda: f"it has {found}", timeout)


def wait_gone(device: str, *, identity: Mapping[str, str] = EMPTY, timeout: float) -> None:
    """Waits until no device is behind the path, or it has no medium any more (a detached loop device keeps
    its node).

    With `identity`, a device that is another one counts as gone. Raises DeadlineExceeded after `timeout`
    seconds.
    """

    def look() -> bool | None:
        try:
            found = read_identity(device)
        except NotFound:
            return True
        return found["size"] == "0" or bool(_block.differences(found, identity)) or None

    _wait(look, f"{device} did not go", lambda: "it is still there", timeout)


def wait_until(look: Look[T], what: str, *, timeout: float) -> T:
    """Calls `look` at first, after every event of a block device and twice a second, until it returns
    something true.

    `what` says in the error what did not happen ("sdc did not appear"). Raises DeadlineExceeded after
    `timeout` seconds, and what `look` raises.
    """
    return _wait(look, what, lambda: "", timeout)


def _wait(look: Look[T], what: str, seen: Callable[[], str], timeout: float) -> T:
    end = time.monotonic() + timeout
    # the watch begins before the first look, so that nothing happens unseen between the two
    watch = _listen()
    while not (found := look()):
        left = end - time.monotonic()
        if left <= 0:
            detail = "; ".join(filter(None, (seen(), watch.summary())))
            raise DeadlineExceeded(f"{what} within {timeout:g} s ({detail})")
        watch.pause(left)
    return found


class _Polling:
    """Looks again after a while, where the kernel's events cannot be had."""

    source = "polling"

    def __init__(self) -> None:
        self._seconds = _POLL_FIRST

    def pause(self, seconds: float) -> None:
        time.sleep(min(seconds, self._seconds))
        self._seconds = min(self._seconds * 1.5, _POLL_MOST)

    def summary(self) -> str:
        return "no events can be had here, it was polled"


class _Events:
    """Looks again when a block device's event comes, and now and then: a pod's network may not get udevd's
    events.
    """

    def __init__(self, monitor: pyudev.Monitor, source: str) -> None:
        self._monitor, self.source = monitor, source
        self._last: list[str] = []

    def pause(self, seconds: float) -> None:
        try:
            event = self._monitor.poll(min(seconds, _LOOK_AGAIN))
        except OSError:  # ENOBUFS: more events than the socket holds; one of them may be ours
            return
        if event is not None:
            self._last = [*self._last[-4:], f"{event.action} {event.sys_name}"]

    def summary(self) -> str:
        events = ", ".join(self._last) or "none"
        return f"last events from {self.source}: {events}"


def _listen() -> _Events | _Polling:
    """Events after udevd's rules where it runs, so that its links are made by then; else the kernel's own."""
    try:
        import pyudev

        source = "udev" if os.path.exists(UDEV_CONTROL) else "kernel"
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        monitor.filter_by("block")
        monitor.start()
    except (ImportError, OSError) as error:  # no libudev, or netlink is not permitted here
        log.debug("block device events cannot be had, polling instead: %s", error)
        return _Polling()
    return _Events(monitor, source)
