"""Who else has something mounted."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from volkit.host import mounts, namespaces

pytestmark = pytest.mark.root
CLONE_NEWNS = 0x00020000


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "volumes/v"
    path.mkdir(parents=True)
    mounts.mount("none", str(path), "tmpfs", ["size=1m"])
    yield path
    for one in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(one.mount_point, lazy=True)


def holders(path: Path, *, threads: bool = False, own: bool = False) -> int:
    found = namespaces.mounts_elsewhere(threads=threads, own=own)
    return namespaces.count_holders(str(path), found, copies=["/volumes/v"])


@pytest.mark.copies_mounts
def test_a_thread_in_a_namespace_of_its_own(volume: Path, tmp_path: Path) -> None:
    """As Docker's while it copies from and into a container."""
    place = tmp_path / "place"
    place.mkdir()
    there, leave = threading.Event(), threading.Event()

    def copy() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0:
            mounts.bind(str(volume), str(place))
            there.set()
        leave.wait(60)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        assert there.wait(60)
        assert holders(volume) == 0
        assert holders(volume, threads=True) == 1
    finally:
        leave.set()
        thread.join()
    end = time.monotonic() + 60
    while holders(volume, threads=True):  # the kernel's thread ends after Python's
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_place_in_the_same_namespace(volume: Path, tmp_path: Path) -> None:
    """As Docker's while it copies from a container that is stopped."""
    place = tmp_path / "merged"
    place.mkdir()
    assert holders(volume, own=True) == 0
    mounts.bind(str(volume), str(place))
    assert holders(volume) == 0
    assert holders(volume, own=True) == 1


def test_without_ptrace_nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A managed plugin that was not given it."""
    if os.readlink("/proc/self/ns/pid") != "pid:[4026531836]":
        assert not namespaces.can_see_everybody()
        return
    status = Path("/proc/self/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    assert namespaces.can_see_everybody() == bool(mask >> 19 & 1)
    less = f"CapEff:\t{mask & ~(1 << 19):016x}\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *args: less)
    assert not namespaces.can_see_everybody()
