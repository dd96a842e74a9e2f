"""Two hundred lifecycles of every sort at once, each checked for its data, and nothing left of any of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from .driver import Driver
from .orchestrator import MIB, Orchestrator, capability

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.needs("mkfs.ext4", "mkfs.xfs")]
LIFECYCLES = 200
CALLERS = 32
EXT4, XFS, BLOCK = 16 * MIB, 300 * MIB, 4 * MIB


def pattern(name: str, size: int = 64 << 10) -> bytes:
    """Data that belongs to one name alone."""
    return random.Random(name).randbytes(size)


def mounted(co: Orchestrator, name: str, fs_type: str, size: int) -> None:
    """A file system, on two targets, one of them read-only."""
    kind = capability(fs_type)
    volume = co.create(name, size, kind)
    first = co.use(volume, kind)
    first.write(pattern(name))
    second = co.use(volume, kind, readonly=True, pod="reader")
    assert second.read(1 << 20) == pattern(name)
    with pytest.raises(OSError, match="Read-only"):
        second.write(b"x")
    co.unpublish(second)
    assert first.read(1 << 20) == pattern(name)
    co.unuse(first)
    again = co.use(volume, kind)
    assert again.read(1 << 20) == pattern(name)
    co.unuse(again)
    co.delete(volume.volume_id)


def ext4(co: Orchestrator, name: str) -> None:
    mounted(co, name, "ext4", EXT4)


def xfs(co: Orchestrator, name: str) -> None:
    mounted(co, name, "xfs", XFS)


def raw(co: Orchestrator, name: str) -> None:
    """A raw device that grows while it is used."""
    kind = capability(block=True)
    volume = co.create(name, BLOCK, kind)
    used = co.use(volume, kind)
    assert used.size() == BLOCK
    used.write(pattern(name))
    co.expand(used.id, 2 * BLOCK, used)
    assert used.size() == 2 * BLOCK
    assert used.read(64 << 10) == pattern(name)
    co.unuse(used)
    co.delete(used.id)


def expanded_online(co: Orchestrator, name: str) -> None:
    """xfs, grown while it is mounted."""
    kind = capability("xfs")
    volume = co.create(name, XFS, kind)
    used = co.use(volume, kind)
    used.write(pattern(name))
    before = used.size()
    co.expand(used.id, XFS + 64 * MIB, used)
    assert used.size() > before + 60 * MIB
    assert used.read(1 << 20) == pattern(name)
    co.unuse(used)
    co.delete(used.id)


def expanded_offline(co: Orchestrator, name: str) -> None:
    """ext4, grown while nobody uses it: the next stage fills the device."""
    kind = capability("ext4")
    volume = co.create(name, EXT4, kind)
    used = co.use(volume, kind)
    used.write(pattern(name))
    before = used.size()
    co.unuse(used)
    co.expand(used.id, 2 * EXT4)
    used = co.use(volume, kind)
    assert used.size() > before + 14 * MIB
    assert used.read(1 << 20) == pattern(name)
    co.unuse(used)
    co.delete(used.id)


def restored(co: Orchestrator, name: str) -> None:
    """A snapshot of a mounted volume, restored into a larger one beside it: the old data and not the new."""
    kind = capability("ext4")
    volume = co.create(name, EXT4, kind)
    used = co.use(volume, kind)
    used.write(pattern(name))
    snapshot = co.snapshot(f"{name}-snapshot", used.id)
    used.write(pattern(f"{name} later"))
    source = {"snapshot": {"snapshot_id": snapshot}}
    copy = co.create(f"{name}-restored", EXT4 + 8 * MIB, kind, volume_content_source=source)
    assert copy.content_source.snapshot.snapshot_id == snapshot
    beside = co.use(copy, kind)
    assert beside.read(1 << 20) == pattern(name)
    assert used.read(1 << 20) == pattern(f"{name} later")
    co.delete_snapshot(snapshot)
    for one in (beside, used):
        co.unuse(one)
        co.delete(one.id)


def restored_raw(co: Orchestrator, name: str) -> None:
    """A snapshot of a raw device, restored."""
    kind = capability(block=True)
    volume = co.create(name, BLOCK, kind)
    used = co.use(volume, kind)
    used.write(pattern(name))
    snapshot = co.snapshot(f"{name}-snapshot", used.id)
    used.write(pattern(f"{name} later"))
    source = {"snapshot": {"snapshot_id": snapshot}}
    beside = co.use(co.create(f"{name}-restored", BLOCK, kind, volume_content_source=source), kind)
    assert beside.read(64 << 10) == pattern(name)
    co.delete_snapshot(snapshot)
    for one in (used, beside):
        co.unuse(one)
        co.delete(one.id)


def cloned(co: Orchestrator, name: str) -> None:
    """A clone of a mounted xfs, mounted beside it: one UUID, two file systems."""
    kind = capability("xfs")
    volume = co.create(name, XFS, kind)
    used = co.use(volume, kind)
    used.write(pattern(name))
    copy = co.create(f"{name}-clone", XFS, kind, volume_content_source={"volume": {"volume_id": used.id}})
    beside = co.use(copy, kind)
    assert beside.read(1 << 20) == pattern(name)
    beside.write(pattern(f"{name} clone"))
    assert used.read(1 << 20) == pattern(name)
    for one in (used, beside):
        co.unuse(one)
        co.delete(one.id)


Lifecycle = Callable[[Orchestrator, str], None]
SORTS: tuple[Lifecycle, ...] = (
    ext4, raw, restored, expanded_offline, restored_raw, xfs, ext4, raw, expanded_online, cloned,
)  # fmt: skip


def test_two_hundred_at_once_leave_nothing_behind(driver: Driver, orchestrator: Orchestrator) -> None:
    done: Counter[str] = Counter()

    def live(number: int) -> None:
        sort = SORTS[number % len(SORTS)]
        sort(orchestrator, f"{sort.__name__}-{number}")
        done[sort.__name__] += 1

    with ThreadPoolExecutor(CALLERS) as callers:
        for future in [callers.submit(live, number) for number in range(LIFECYCLES)]:
            future.result()
    assert done.total() == LIFECYCLES
    assert orchestrator.volumes() == []
    assert driver.left() == []
    for place in ("pod", "reader", "staging"):
        assert list((driver.home / place).iterdir()) == []
    assert "failed unexpectedly" not in driver.text()
    driver.stop()
