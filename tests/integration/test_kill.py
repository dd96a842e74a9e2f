"""The driver dies by SIGKILL, at random moments and at chosen ones; the calls are repeated, and all ends well."""

from __future__ import annotations

import itertools
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from volkit_csi.client import CallError
from volkit_csi.wire import csi_pb2 as pb

from .driver import Driver, loops
from .orchestrator import MIB, Orchestrator, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
Drivers = Callable[..., Driver]
SEED = 20
CALLERS = 6
SECONDS = 12.0
KILLS = 8
START_SECONDS = 1.0  # what a start takes at most where nothing else runs
SIZE = 16 * MIB


def pattern(name: str) -> bytes:
    return random.Random(name).randbytes(32 << 10)


# -- at random moments ---------------------------------------------------------------------------------------


@contextmanager
def killed_now_and_then(driver: Driver, dice: random.Random) -> Iterator[list[float]]:
    """Kill and restart the driver meanwhile, the later the longer its start takes: a slow machine's calls get as far as
    any. Yields the list of the moments.
    """
    moments: list[float] = []
    enough = threading.Event()

    def reap() -> None:
        started = START_SECONDS
        while not enough.wait(dice.uniform(0.05, 0.6) * max(1.0, started / START_SECONDS)):
            driver.kill()
            moments.append(time.monotonic())
            driver.start()
            started = time.monotonic() - moments[-1]

    with ThreadPoolExecutor(1) as reaper:
        done = reaper.submit(reap)
        try:
            yield moments
        finally:
            enough.set()
            done.result()


def keep(co: Orchestrator, name: str) -> Any:
    """A volume for the whole test."""
    kind = capability("ext4")
    used = co.use(co.create(name, SIZE, kind), kind)
    used.write(pattern(name))
    return used


def live(co: Orchestrator, name: str, *, block: bool) -> None:
    """Every call that changes something, most of them twice; the data is looked at after each."""
    kind = capability(block=block)
    volume = co.create(name, SIZE, kind)
    assert co.create(name, SIZE, kind).volume_id == volume.volume_id
    used = co.use(volume, kind)
    used.write(pattern(name))
    assert co.use(volume, kind) == used
    assert used.read(32 << 10) == pattern(name)
    snapshot = co.snapshot(f"{name}-s", used.id)
    assert co.snapshot(f"{name}-s", used.id) == snapshot
    used.write(pattern(f"{name} later"))
    source = {"snapshot": {"snapshot_id": snapshot}}
    copy = co.use(co.create(f"{name}-r", SIZE, kind, volume_content_source=source), kind)
    assert copy.read(32 << 10) == pattern(name)
    co.unuse(used)
    co.expand(used.id, SIZE + 4 * MIB)
    used = co.use(volume, kind)
    assert used.read(32 << 10) == pattern(f"{name} later")
    for one in (used, copy):
        co.unuse(one)
        co.unuse(one)
        co.delete(one.id)
        co.delete(one.id)
    co.delete_snapshot(snapshot)
    co.delete_snapshot(snapshot)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments(driver: Driver) -> None:
    dice = random.Random(SEED)
    co = Orchestrator(driver.client, driver.home, patience=240)
    end = time.monotonic() + SECONDS

    def call(caller: int) -> tuple[int, Any]:
        kept = keep(co, f"kept-{caller}")
        for count in itertools.count():
            live(co, f"c{caller}-{count}", block=count % 2 == 1)
            assert kept.read(32 << 10) == pattern(f"kept-{caller}")
            if time.monotonic() > end and len(moments) >= KILLS:
                return count + 1, kept
        raise AssertionError

    with killed_now_and_then(driver, dice) as moments, ThreadPoolExecutor(CALLERS) as callers:
        futures: list[Future[tuple[int, Any]]] = [callers.submit(call, one) for one in range(CALLERS)]
        results = [future.result() for future in futures]
    kept = [one for _, one in results]
    assert sum(count for count, _ in results) >= CALLERS
    assert co.repeats > len(moments)
    # exactly what is wanted is there, once
    assert sorted(co.volumes()) == sorted(one.id for one in kept)
    assert len(driver.images()) == len(kept) == len(loops(driver.home))
    for caller, one in enumerate(kept):
        assert one.read(32 << 10) == pattern(f"kept-{caller}")
        co.unuse(one)
        co.delete(one.id)
    assert driver.left() == []
    assert "failed unexpectedly" not in driver.text()


# -- at chosen moments ---------------------------------------------------------------------------------------

POINTS = {
    "image made": ("volkit_loop.pool", "Pool", "create", (1, 2, 3)),
    "image grown": ("volkit_loop.pool", "Pool", "grow", (1,)),
    "image removed": ("volkit_loop.pool", "Pool", "remove", (1, 3)),
    "device attached": ("volkit_loop.node", "LoopNode", "connect", (1, 2)),
    "device detached": ("volkit_loop.node", "LoopNode", "disconnect", (1,)),
    "file system made": ("volkit.host.filesystems", "", "make", (1,)),
    "mounted": ("volkit.host.mounts", "", "mount", (1, 2)),
    "bound": ("volkit.host.mounts", "", "bind", (1,)),
    "unmounted": ("volkit.host.mounts", "", "unmount", (1, 2)),
    "target removed": ("volkit.host.paths", "", "remove_target", (1,)),
    "recorded": ("volkit.journal.sqlite", "SqliteJournal", "write", tuple(range(1, 9))),
}
"""A moment, and the function after whose return it is: the first one, the second one …"""

DYING = """
import importlib, os, signal
owner = importlib.import_module({module!r})
owner = getattr(owner, {owner!r}, owner)
alive, count = getattr(owner, {name!r}), 0
def dying(*arguments, **options):
    global count
    result = alive(*arguments, **options)
    count += 1
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, {name!r}, dying)
"""


@pytest.mark.parametrize(("point", "at"), [(point, at) for point in POINTS for at in POINTS[point][3]])
def test_killed_right_after(drivers: Drivers, point: str, at: int) -> None:
    """What was done, and not recorded as done, is found by the repeat of the call."""
    module, owner, name, _ = POINTS[point]
    driver = drivers().start(before=DYING.format(module=module, owner=owner, name=name, at=at))
    co = Orchestrator(driver.client, driver.home, patience=120)
    with ThreadPoolExecutor(1) as caller:
        done = caller.submit(live, co, "v", block=False)
        try:
            assert driver.wait_dead() == -9
        finally:
            if not driver.running():
                driver.start()
        done.result()
    assert co.repeats >= 1
    assert driver.left() == []


@pytest.mark.parametrize("block", [False, True])
def test_what_is_used_outlives_the_driver(driver: Driver, block: bool) -> None:
    co = Orchestrator(driver.client, driver.home)
    kind = capability(block=block)
    volume = co.create("v", SIZE, kind)
    used = co.use(volume, kind)
    used.write(pattern("v"))
    driver.kill()
    assert used.read(32 << 10) == pattern("v")
    used.write(pattern("without a driver"))
    before = loops(driver.home)
    driver.start()
    co.patience = 60
    assert co.use(volume, kind) == used
    assert loops(driver.home) == before
    assert used.read(32 << 10) == pattern("without a driver")
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


# -- while mkfs runs -----------------------------------------------------------------------------------------

SLOW = """#!/bin/sh
# begins, waits for leave, then does it
echo $$ >> {home}/mkfs-begun
while [ ! -e {home}/mkfs-go ]; do sleep 0.02; done
{real} "$@" || exit
{after}
"""


def slow_mkfs(home: Path, program: str = "mkfs.ext4", after: str = "") -> dict[str, str]:
    """A PATH with another mkfs in front, which runs the real one when `mkfs-go` is there, and then `after`."""
    programs = home / "programs"
    programs.mkdir(parents=True)
    real = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")
    (programs / program).write_text(SLOW.format(home=home, real=real, after=after))
    (programs / program).chmod(0o755)
    return {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}


def wait_for(path: Path, lines: int = 1) -> None:
    end = time.monotonic() + 90
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < end, f"{path} is not written"
        time.sleep(0.01)


def stage_request(home: Path, volume: Any, kind: Any) -> pb.NodeStageVolumeRequest:
    return pb.NodeStageVolumeRequest(
        volume_id=volume.volume_id,
        staging_target_path=f"{home}/staging/{volume.volume_id}",
        volume_capability=kind,
        volume_context=dict(volume.volume_context),
    )


def test_an_orphaned_mkfs_keeps_its_device(drivers: Drivers, tmp_path: Path) -> None:
    """mkfs outlives the driver. Until it ends the volume goes nowhere: its device cannot become another's."""
    home = tmp_path / "driver"
    driver = drivers(environment=slow_mkfs(home)).start()
    co = Orchestrator(driver.client, home)
    kind = capability("ext4")
    volume = co.create("v", SIZE, kind)
    with ThreadPoolExecutor(1) as caller:
        staging = caller.submit(co.call, "NodeStageVolume", stage_request(home, volume, kind))
        wait_for(home / "mkfs-begun")
        driver.kill()
        with pytest.raises(CallError, match="UNAVAILABLE"):
            staging.result()
    driver.start()
    unstage = {"volume_id": volume.volume_id, "staging_target_path": f"{home}/staging/{volume.volume_id}"}
    with pytest.raises(CallError, match="FAILED_PRECONDITION"):
        co.call("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(**unstage))
    with pytest.raises(CallError, match="FAILED_PRECONDITION"):
        co.delete(volume.volume_id)
    co.patience = 60
    with ThreadPoolExecutor(1) as caller:
        using = caller.submit(co.use, volume, kind)
        wait_for(home / "mkfs-begun", lines=2)
        (home / "mkfs-go").touch()
        used = using.result()
    used.write(pattern("v"))
    assert used.read(32 << 10) == pattern("v")
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


@pytest.mark.needs("mkfs.xfs")
def test_a_half_made_file_system_is_made_anew(drivers: Drivers, tmp_path: Path) -> None:
    """mkfs.xfs dies with the driver when the superblock, which is its first block, is written: under the recorded
    intent it is made again, and not mounted as it is.
    """
    home = tmp_path / "driver"
    # sb_inprogress, 126 bytes into the superblock (xfs_sb, "XFS Algorithms & Data Structures")
    tear = 'printf "\\001" | dd of=$device bs=1 seek=126 conv=notrunc,fsync'
    torn = f"for device; do :; done; {tear}; echo >> mkfs-torn; sleep 60"
    driver = drivers(environment=slow_mkfs(home, "mkfs.xfs", torn)).start()
    (home / "mkfs-go").touch()
    co = Orchestrator(driver.client, home)
    kind = capability("xfs")
    volume = co.create("v", 300 * MIB, kind)
    with ThreadPoolExecutor(1) as caller:
        staging = caller.submit(co.call, "NodeStageVolume", stage_request(home, volume, kind))
        wait_for(home / "mkfs-torn")
        driver.end_processes()
        with pytest.raises(CallError, match="UNAVAILABLE"):
            staging.result()
    assert any('"format": "xfs"' in value for value in driver.records().values())
    (home / "programs/mkfs.xfs").unlink()
    driver.start()
    used = co.use(volume, kind)
    used.write(pattern("v"))
    co.unuse(used)
    used = co.use(volume, kind)
    assert used.read(32 << 10) == pattern("v")
    co.unuse(used)
    co.delete(used.id)
    assert driver.left() == []


# -- two drivers on one state directory ----------------------------------------------------------------------


def test_two_drivers_exclude_each_other(drivers: Drivers, tmp_path: Path) -> None:
    """A rolling update: the old and the new process have one state directory, and the old one is in the middle of
    mkfs.
    """
    home = tmp_path / "old"
    old = drivers("old", environment=slow_mkfs(home)).start()
    new = drivers("new", pool=old.pool, state=old.state).start()
    kind = capability("ext4")
    first, second = Orchestrator(old.client, home), Orchestrator(new.client, home)
    volume = first.create("v", SIZE, kind)
    assert second.create("v", SIZE, kind).volume_id == volume.volume_id
    request = stage_request(home, volume, kind)
    with ThreadPoolExecutor(1) as caller:
        staging = caller.submit(first.call, "NodeStageVolume", request)
        wait_for(home / "mkfs-begun")
        assert old.locked()
        begun = time.monotonic()
        with pytest.raises(CallError, match="ABORTED"):
            second.call("NodeStageVolume", request)
        assert time.monotonic() - begun > 1.5
        with pytest.raises(CallError, match=r"ABORTED|FAILED_PRECONDITION"):
            second.delete(volume.volume_id)
        (home / "mkfs-go").touch()
        staging.result()
    used = second.use(volume, kind)
    used.write(pattern("v"))
    assert first.use(volume, kind) == used
    assert len(loops(tmp_path)) == 1
    first.unuse(used)
    second.delete(used.id)
    assert (home / "mkfs-begun").read_text().count("\n") == 1
    assert old.left() == new.left() == []


def test_one_name_through_two_drivers_is_one_volume(drivers: Drivers) -> None:
    old = drivers("old").start()
    new = drivers("new", pool=old.pool, state=old.state).start()
    both = [Orchestrator(one.client, old.home, patience=60) for one in (old, new)]
    kind = capability(block=True)
    with ThreadPoolExecutor(8) as callers:
        made = list(callers.map(lambda n: both[n % 2].create(f"v{n // 8}", MIB, kind).volume_id, range(160)))
    assert len(set(made)) == 20
    assert sorted(both[0].volumes()) == sorted(both[1].volumes()) == sorted(set(made))
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda n: both[n % 2].delete(made[n]), range(160)))
    assert old.left() == new.left() == []
