"""Loop devices: a regular file as a block device. Direct ioctls (loop(4)), no program is run.

```python
device = loop.attach("/srv/pool/v1.img")                     # "/dev/loop3"
loop.find("/srv/pool/v1.img")                                # ["/dev/loop3"]
loop.detach(device, expect={"backing_inode": "64512:1311"})  # True; False where it was not attached any more
```
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from volkit.errors import Aborted, FailedPrecondition, InUse, InvalidArgument, NotFound
from volkit.host import _block
from volkit.host._syscalls import encoded, refusal
from volkit.host.files import is_open
from volkit.model import Value

__all__ = ["LoopStatus", "attach", "detach", "find", "resize", "status"]

log: logging.Logger = logging.getLogger(__name__)

CONTROL: Final = "/dev/loop-control"
_SET_STATUS64: Final = 0x4C04
_CLR_FD: Final = 0x4C01
_SET_CAPACITY: Final = 0x4C07
_CONFIGURE: Final = 0x4C0A
_CTL_GET_FREE: Final = 0x4C82
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_CONFIG: Final = struct.Struct(f"=2I{_block.LOOP_INFO.size}s64x")  # struct loop_config

_DELETED: Final = " (deleted)"

_ATTEMPTS: Final = 500


@frozen(kw_only=True, eq=False, repr=False)
class LoopStatus(Value):
    """What a loop device is attached to. Sizes in bytes; `size_limit` 0 means the whole file.

    `backing_device` and `backing_inode` are the file's st_dev and st_ino. `backing_file` is its path as the
    kernel knows it now: it follows a rename and ends in " (deleted)" once the file has no name.
    """

    device: str
    backing_device: int
    backing_inode: int
    backing_file: str
    offset: int
    size_limit: int
    sector_size: int
    read_only: bool
    direct_io: bool
    autoclear: bool

    @property
    def identity(self) -> Mapping[str, str]:
        """What `detach` and `devices.verify` compare: the backing file outlives its device's number."""
        return {"backing_inode": f"{self.backing_device}:{self.backing_inode}"}


def attach(path: str, *, read_only: bool = False, direct_io: bool = True, sector_size: int = 512) -> str:
    """Makes a loop device of the file and returns its path, such as "/dev/loop3"; each call makes one more.

    `direct_io` spares the second copy in the page cache; where the file's file system cannot do it with this
    sector size, the device is buffered and a log line says so (`status` tells). `sector_size` is bytes, a
    power of two from 512 to 4096. The node in /dev is made where nobody else does.

    Raises NotFound for no file, InvalidArgument for one that is not regular or is smaller than a sector,
    FailedPrecondition where the kernel has no loop devices, Aborted where other processes took every free
    one.
    """
    if sector_size not in (512, 1024, 2048, 4096):
        raise InvalidArgument(f"sector_size {sector_size} is not 512, 1024, 2048 or 4096")
    flags = (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
    with _backing_file(path, read_only, sector_size) as backing, _control() as control:
        for attempt in range(_ATTEMPTS):
            device = _free_device(control)
            if device and _configure(device, backing, path, flags, sector_size):
                return device
            # another process was faster; so many as are at it, so often this may happen
            time.sleep(os.urandom(1)[0] / 255 * 0.0002 * min(attempt, 50))
    raise Aborted(
        f"no loop device for {path}: {_ATTEMPTS} free ones were taken by others first; repeat the call"
    )


@contextmanager
def _backing_file(path: str, read_only: bool, sector_size: int) -> Iterator[int]:
    encoded(path)
    try:
        # O_NONBLOCK: to open a FIFO must not block
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        backing = os.open(path, flags)
    except OSError as error:
        raise refusal(error, f"cannot open {path} to attach it") from error
    try:
        found = os.fstat(backing)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgument(f"{path} is not a regular file but {_block.kind_of_file(found.st_mode)}")
        if found.st_size < sector_size:
            raise InvalidArgument(f"{path} has {found.st_size} bytes, less than one sector of {sector_size}")
        yield backing
    finally:
        os.close(backing)


@contextmanager
def _control() -> Iterator[int]:
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _block.GONE:
            raise FailedPrecondition(
                f"{CONTROL} is missing: load the loop module (modprobe loop), or mount the host's /dev here"
            ) from error
        raise refusal(error, f"cannot open {CONTROL}") from error
    try:
        yield control
    finally:
        os.close(control)


def _free_device(control: int) -> str:
    """The path of a device that was free a moment ago; the kernel makes a new one where none is. "" when it
    went again.
    """
    try:
        number = fcntl.ioctl(control, _CTL_GET_FREE)
    except OSError as error:
        raise refusal(error, "cannot get a free loop device") from error
    device = f"/dev/loop{number}"
    if not _block.is_block_device(device):
        # a container's /dev is often a copy that the kernel does not add to
        text = _block.read_attribute(f"{_block.SYSFS}/block/loop{number}/dev")
        if not text:
            return ""
        major, minor = map(int, text.split(":"))
        try:
            os.mknod(device, stat.S_IFBLK | 0o660, os.makedev(major, minor))
        except FileExistsError:
            pass
        except OSError as error:
            raise refusal(error, f"cannot make the device node {device}") from error
    return device


def _configure(device: str, backing: int, path: str, flags: int, sector_size: int) -> bool:
    """False where another process has the device by now."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _block.GONE or error.errno == errno.EBUSY:
            return False
        raise refusal(error, f"cannot open {device}") from error
    try:
        _set_file(descriptor, backing, path, flags, sector_size)
        if not flags & _READ_ONLY and _block.read_only(descriptor):
            # BLKROSET stays with the number when a file goes, and would meet the next one
            _block.set_read_only(descriptor, device, False)
        info = _block.loop_info(descriptor) if flags & _DIRECT_IO else None
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENXIO):
            return False
        raise refusal(error, f"cannot attach {path} to {device}") from error
    finally:
        os.close(descriptor)
    if info and not info[8] & _DIRECT_IO:
        log.info(
            "%s: buffered, the file system of %s has no direct I/O for %d-byte sectors",
            device,
            path,
            sector_size,
        )
    return True


def _set_file(descriptor: int, backing: int, path: str, flags: int, sector_size: int) -> None:
    name = os.fsencode(path)[:63]
    for chosen in dict.fromkeys((flags, flags & ~_DIRECT_IO)):
        info = _block.LOOP_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, chosen, name, b"", b"", 0, 0)
        try:
            fcntl.ioctl(descriptor, _CONFIGURE, _CONFIG.pack(backing, sector_size, info))
            return
        except OSError as error:
            # some kernels fall back to buffered by themselves, some refuse
            if error.errno != errno.EINVAL or not chosen & _DIRECT_IO:
                raise


def detach(device: str, *, expect: Mapping[str, str] | None = None, timeout: float = 2.0) -> bool:
    """Takes the file from the loop device and proves that it is gone: True when this call did it.

    False, and nothing is done, where the device has no file any more or is not the one that `expect`
    describes (as `devices.read_identity` does, such as `LoopStatus.identity`): its number went to another
    file since.

    Raises InUse, with the device as it was, while it is mounted, and where somebody claims it or keeps it open for
    longer than `timeout` seconds: the kernel would detach it whenever they close it (LOOP_CLR_FD, loop(4)), which
    nobody sees.
    """
    try:
        # somebody else's device is not even held for a moment: his mkfs would find it in use
        with _block.opened(device) as descriptor:
            if not _attached_as_expected(descriptor, device, expect):
                return False
            number = _block.number(descriptor)
        # exclusive: what is mounted is refused untouched, and nobody can mount it from here on
        with _opened_alone(device, number, timeout) as descriptor:
            if not _attached_as_expected(descriptor, device, expect):
                return False
            was_read_only = _block.read_only(descriptor)
            if was_read_only:  # or the number stays so for the next file, whoever attaches it
                _block.set_read_only(descriptor, device, False)
            fcntl.ioctl(descriptor, _CLR_FD)
    except NotFound:
        return False
    except InUse:
        with _block.opened(device) as descriptor:
            if not _attached_as_expected(descriptor, device, expect):
                return False
        raise
    except OSError as error:
        if error.errno == errno.ENXIO:  # somebody else's detach came first
            return False
        raise refusal(error, f"cannot detach {device}") from error
    if not _detached(_block.sysfs(number), time.monotonic() + timeout):
        _keep_attached(device, was_read_only)
        raise InUse(f"{device} is kept open by a program; stop it, then repeat the call")
    return True


def _attached_as_expected(descriptor: int, device: str, expect: Mapping[str, str] | None) -> bool:
    number = _block.number(descriptor)
    if number[0] != _block.LOOP_MAJOR:
        raise InvalidArgument(f"{device} is not a loop device")
    if _block.loop_info(descriptor) is None:
        return False
    return not expect or not _block.differences(_block.identity(descriptor, expect), expect)


@contextmanager
def _opened_alone(device: str, number: tuple[int, int], timeout: float) -> Iterator[int]:
    descriptor = _block.when_unused(
        device,
        number,
        lambda flags: _block.open_device(device, flags),
        wait=timeout,
        refused="; unmount or close it first",
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _detached(place: str, end: float) -> bool:
    """Whether the file went from the device before the monotonic time `end`. Looks in sysfs: to open it would
    keep it.
    """
    pause = 0.001
    # a device that somebody else attached meanwhile is not marked to clear itself
    while _block.read_attribute(f"{place}/loop/autoclear") == "1":
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True


def _keep_attached(device: str, read_only: bool) -> None:
    """Takes the mark to clear itself from a device that somebody keeps open."""
    with _block.opened(device) as descriptor:
        info = _block.loop_info(descriptor)
        if info is None:
            return
        fields = list(info)
        fields[8] = info[8] & ~_AUTOCLEAR
        try:
            fcntl.ioctl(descriptor, _SET_STATUS64, _block.LOOP_INFO.pack(*fields))
        except OSError as error:  # it goes when its last user closes it, and the next detach finds that done
            log.warning("%s: still marked to detach itself: %s", device, error)
        if read_only:
            _block.set_read_only(descriptor, device, True)


def resize(device: str) -> int:
    """Takes over the file's present size and returns the device's new size in bytes.

    A mounted file system sees it at once. Raises FailedPrecondition for a device that has no file.
    """
    with _block.opened(device) as descriptor:
        try:
            fcntl.ioctl(descriptor, _SET_CAPACITY)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise FailedPrecondition(f"{device} has no file: attach it first") from error
            raise refusal(error, f"cannot resize {device}") from error
        return _block.size(descriptor)


def status(device: str) -> LoopStatus | None:
    """What the loop device is attached to; None where it has no file, or there is no such device.

    Raises InvalidArgument for what is no loop device.
    """
    try:
        with _block.opened(device) as descriptor:
            return _status(descriptor, device)
    except NotFound:
        return None


def _status(descriptor: int, device: str) -> LoopStatus | None:
    number = _block.number(descriptor)
    if number[0] != _block.LOOP_MAJOR:
        raise InvalidArgument(f"{device} is not a loop device")
    info = _block.loop_info(descriptor)
    if info is None:
        return None
    backing_device, inode, _, offset, size_limit, _, _, _, flags = info[:9]
    backing_file = _backing_path(_block.sysfs(number))
    return LoopStatus(
        device=device,
        backing_device=backing_device,
        backing_inode=inode,
        backing_file=backing_file or os.fsdecode(info[9].rstrip(b"\0")),
        offset=offset,
        size_limit=size_limit,
        sector_size=_block.sector_size(descriptor),
        read_only=bool(flags & _READ_ONLY),
        direct_io=bool(flags & _DIRECT_IO),
        autoclear=bool(flags & _AUTOCLEAR),
    )


def _backing_path(place: str) -> str:
    """The kernel's path of the file, every byte of it kept; "" where the device has none."""
    try:
        with open(f"{place}/loop/backing_file", "rb") as file:
            return os.fsdecode(file.read().removesuffix(b"\n"))
    except OSError:
        return ""


def find(path: str) -> list[str]:
    """The loop devices of this file, by its device and inode; of a deleted file, by the path it had. Lowest
    number first.

    Costs the same whatever the number of devices where nobody has the file open (`files.is_open`), else one
    read per attached device; only those of a like-named file are opened.
    """
    encoded(path)
    try:
        wanted: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        wanted = None
    except OSError as error:
        raise refusal(error, f"cannot look at {path}") from error
    real = os.path.realpath(path)
    if wanted is not None and not is_open(real):
        return []
    return [device for device, backing in attached() if _is_of(device, backing, real, wanted)]


def attached() -> Iterator[tuple[str, str]]:
    """Each attached loop device and its file's path, lowest number first; nothing is opened but sysfs."""
    root = f"{_block.SYSFS}/block"
    names = [name for name in os.listdir(root) if name.startswith("loop") and name[4:].isdecimal()]
    for name in sorted(names, key=lambda name: int(name[4:])):
        backing = _backing_path(f"{root}/{name}")
        if backing:
            yield f"/dev/{name}", backing


def _is_of(device: str, backing: str, path: str, wanted: os.stat_result | None) -> bool:
    if wanted is None:
        return backing == path + _DELETED
    # seen from another mount namespace the directory may have another name; the file only with hard links
    same_name = os.path.basename(backing.removesuffix(_DELETED)) == os.path.basename(path)
    if not same_name and wanted.st_nlink == 1:
        return False
    found = status(device)
    return found is not None and (found.backing_device, found.backing_inode) == (wanted.st_dev, wanted.st_ino)
