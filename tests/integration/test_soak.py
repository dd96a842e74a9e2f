"""Concurrent lifecycles while the driver is killed at random: `make soak`; here for some seconds.

SOAK_SECONDS says how long (default 15), SOAK_SEED which way (default: printed). Every caller repeats its calls as an
orchestrator does; in the end the doctor finds nothing, no data was lost, and nothing is left.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit_csi.wire import csi_pb2 as pb
from volkit_loop.witness import Images

from .driver import Driver
from .orchestrator import MIB, Orchestrator, Used, capability

SECONDS = float(os.environ.get("SOAK_SECONDS", "15"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
CALLERS = 6

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4"), pytest.mark.timeout(SECONDS + 600)]


class Soak:
    """The callers, and who disturbs them."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.done: Counter[str] = Counter()
        self.failed: list[BaseException] = []
        self.witness = Images(driver.pool)
        self.ends = time.monotonic() + SECONDS

    def caller(self, number: int) -> None:
        """One lifecycle after the other."""
        dice = random.Random(f"{SEED}-{number}")
        co = Orchestrator(self.driver.client, self.driver.home, patience=240)
        turn = 0
        try:
            while time.monotonic() < self.ends and not self.failed:
                turn += 1
                self.lifecycle(co, dice, f"soak-{number}-{turn}")
                self.done["lifecycles"] += 1
        except BaseException as error:
            self.failed.append(error)
        self.done["repeats"] += co.repeats

    def lifecycle(self, co: Orchestrator, dice: random.Random, name: str) -> None:
        raw = dice.random() < 0.5
        kind = capability(block=True) if raw else capability("ext4")
        size = (4 if raw else 16) * MIB
        volume = co.create(name, size, kind)
        assert co.create(name, size, kind).volume_id == volume.volume_id
        data = dice.randbytes(64 << 10)
        used = co.use(volume, kind, pod=name)
        used.write(data)
        self.check(used, data)
        if dice.random() < 0.5:
            used = self.expanded(co, volume, used, 2 * size, name)
            self.check(used, data)
        if dice.random() < 0.4:
            co.unpublish(used)
            again = co.use(volume, kind, pod=name)
            self.check(again, data)
        if dice.random() < 0.4:
            self.restored(co, name, used, kind, data)
        co.unuse(used)
        co.delete(used.id)

    def expanded(self, co: Orchestrator, volume: Any, used: Used, size: int, pod: str) -> Used:
        """A raw volume grows in use; a mounted ext4 would take CAP_SYS_RESOURCE, so it grows at its next stage."""
        raw, before = used.capability.HasField("block"), used.size()
        if raw:
            co.expand(used.id, size, used)
        else:
            co.unuse(used)
            co.expand(used.id, size)
            used = co.use(volume, used.capability, pod=pod)
        assert used.size() == size if raw else used.size() > 1.5 * before
        self.done["expansions"] += 1
        return used

    def restored(self, co: Orchestrator, name: str, used: Used, kind: Any, data: bytes) -> None:
        """A snapshot of the volume in use, and a volume of it, with the same data."""
        snapshot = co.snapshot(f"{name}-snapshot", used.id)
        source = pb.VolumeContentSource(snapshot={"snapshot_id": snapshot})
        size = self.witness.capacity(used.id) or 0
        volume = co.create(f"{name}-restored", size, kind, volume_content_source=source)
        copy = co.use(volume, kind, pod=f"{name}-restored")
        self.check(copy, data)
        co.unuse(copy)
        co.delete(copy.id)
        co.delete_snapshot(snapshot)
        self.done["restores"] += 1

    def check(self, used: Used, data: bytes) -> None:
        """The data is there, and the volume, its device and its mounts are there once."""
        assert used.read(len(data)) == data, f"volume {used.id} has lost its data"
        assert self.witness.volumes().count(used.id) == 1
        images = [one for one in self.witness.attachments() if f"/{used.id}." in one]
        assert len(images) == 1, f"{used.id} is attached {len(images)} times"
        table = Path("/proc/self/mountinfo").read_text().split("\n")
        assert sum(f" {used.target} " in line for line in table) == 1, f"{used.target} is mounted twice"

    def disturb(self) -> None:
        """Kill the driver, pause it, or kill a program of its, at random."""
        dice = random.Random(SEED)
        while time.monotonic() < self.ends and not self.failed:
            time.sleep(dice.uniform(0.2, 2.5))
            what = dice.choices(("kill", "pause", "child", "doctor"), (6, 1, 3, 1))[0]
            try:
                getattr(self, f"_{what}")(dice)
            except BaseException as error:
                self.failed.append(error)
            self.done[f"{what}s" if what != "child" else "children killed"] += 1

    def _kill(self, dice: random.Random) -> None:
        self.driver.kill()
        self.driver.start()

    def _pause(self, dice: random.Random) -> None:
        """The driver or a program of its."""
        pid = dice.choice(sorted(self.driver.children()))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(pid, signal.SIGCONT)

    def _doctor(self, dice: random.Random) -> None:
        """Repairs beside the driver what a kill has just left, and takes nothing from anybody."""
        if dice.random() < 0.5:
            self.driver.kill()
        self.driver.doctor("--repair")
        if not self.driver.running():
            self.driver.start()

    def _child(self, dice: random.Random) -> None:
        assert self.driver.process is not None
        for pid in self.driver.children():
            if pid != self.driver.process.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_nothing_is_doubled_leaked_or_lost(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    soak = Soak(driver)
    callers = [threading.Thread(target=soak.caller, args=(number,)) for number in range(CALLERS)]
    disturbs = threading.Thread(target=soak.disturb)
    for one in (*callers, disturbs):
        one.start()
    for one in (disturbs, *callers):
        one.join()
    with capsys.disabled():
        told = ", ".join(f"{count:,} {what}" for what, count in sorted(soak.done.items()))
        print(f"\nsoak of {SECONDS:g} s, seed {SEED}: {told}")
    if soak.failed:
        raise soak.failed[0]
    assert soak.done["lifecycles"]
    assert driver.doctor() == []
    assert driver.left() == []
    driver.stop()
    assert driver.doctor() == []
    left = [
        path for path in driver.state.rglob("*") if path.is_file() and not path.name.startswith("journal.db")
    ]
    assert left == [driver.state / "locks"]
