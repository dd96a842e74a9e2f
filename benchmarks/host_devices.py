"""Loop devices by ioctl and probes by libblkid, beside the programs for it; what mkfs and check cost.

Run as root: `python benchmarks/host_devices.py [rounds]`. Prints the median of each in milliseconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from volkit.host import filesystems, loop

MIB = 1 << 20


def median(action: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> float:
    """The median duration of `action` in milliseconds, `before` not counted."""
    durations = []
    for _ in range(rounds):
        before()
        begun = time.perf_counter()
        action()
        durations.append((time.perf_counter() - begun) * 1000)
    return statistics.median(durations)


@contextmanager
def image(directory: str, size: int) -> Iterator[str]:
    path = os.path.join(directory, "bench.img")
    with open(path, "wb") as file:
        file.truncate(size)
    try:
        yield path
    finally:
        for device in loop.find(path):
            loop.detach(device)
        os.unlink(path)


def losetup(*words: str) -> str:
    return subprocess.run(["losetup", *words], check=True, capture_output=True, text=True).stdout.strip()


def attach_and_detach(path: str, rounds: int) -> dict[str, float]:
    devices: list[str] = []
    figures = {
        "attach, ioctl": median(lambda: devices.append(loop.attach(path)), rounds),
        "find among them": median(lambda: loop.find(path), rounds),
        "detach, ioctl": median(lambda: loop.detach(devices.pop()), rounds),
        "attach, losetup(8)": median(
            lambda: devices.append(losetup("--find", "--show", "--direct-io=on", path)), rounds
        ),
        "detach, losetup(8)": median(lambda: losetup("--detach", devices.pop()), rounds),
    }
    assert not devices
    return figures


def probe_and_make(path: str, fs_type: str, rounds: int) -> dict[str, float]:
    device = loop.attach(path)

    def empty() -> None:
        nonlocal device
        loop.detach(device)
        size = os.stat(path).st_size
        os.truncate(path, 0)
        os.truncate(path, size)
        device = loop.attach(path)

    figures = {
        f"probe blank ({fs_type} size)": median(lambda: filesystems.probe(device), rounds),
        f"make {fs_type}": median(
            lambda: filesystems.make(device, fs_type, zeroed=True, timeout=60), rounds, empty
        ),
        f"probe {fs_type}, libblkid": median(lambda: filesystems.probe(device), rounds),
        f"probe {fs_type}, blkid(8)": median(
            lambda: subprocess.run(["blkid", "-p", device], check=True, capture_output=True), rounds
        ),
        f"check clean {fs_type}": median(lambda: filesystems.check(device, fs_type), rounds),
        f"needs_growth {fs_type}": median(lambda: filesystems.needs_growth(device, fs_type), rounds),
    }
    loop.detach(device)
    return figures


def main(rounds: int) -> None:
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        with image(directory, 64 * MIB) as path:
            figures |= attach_and_detach(path, rounds)
            figures |= probe_and_make(path, "ext4", rounds)
        for fs_type, size in {"xfs": 300 * MIB, "btrfs": 128 * MIB}.items():
            with image(directory, size) as path:
                figures |= probe_and_make(path, fs_type, rounds)
    for name, milliseconds in figures.items():
        print(f"{name:32} {milliseconds:9.3f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
