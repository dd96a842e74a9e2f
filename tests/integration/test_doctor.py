"""The doctor beside a real driver: one that serves, one that is stopped, one that was killed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from volkit.host import processes

from .driver import Driver
from .orchestrator import MIB, Orchestrator, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]


def test_nothing_is_found_while_a_driver_serves(driver: Driver, orchestrator: Orchestrator) -> None:
    assert driver.doctor() == []
    used = orchestrator.use(orchestrator.create("v", 16 * MIB, capability("ext4")), capability("ext4"))
    assert driver.doctor() == []
    assert driver.doctor("--repair") == []
    assert used.file.parent.is_mount()
    orchestrator.unuse(used)
    orchestrator.delete(used.id)
    driver.stop()
    assert driver.doctor() == []


def test_a_killed_driver_leaves_its_socket(driver: Driver) -> None:
    socket = Path(driver.endpoint.removeprefix("unix://"))
    driver.kill()
    (found,) = driver.doctor()
    assert (found["sort"], found["command"]) == ("leaked", f"rm {socket}")
    assert socket.is_socket()
    driver.start()
    assert driver.doctor() == []
    driver.kill()
    (found,) = driver.doctor("--repair")
    assert found["repaired"] == "it is removed"
    assert not socket.exists()
    assert driver.doctor() == []


def test_a_stopped_driver_is_stuck_until_it_goes_on(driver: Driver) -> None:
    assert driver.process
    driver.process.send_signal(signal.SIGSTOP)
    while (found := processes.read(driver.process.pid)) and found.state != "T":
        pass
    (shown,) = driver.doctor("--repair")
    assert shown["sort"] == "stuck"
    assert "repaired" not in shown
    subprocess.run(shown["command"].split(), check=True)
    assert driver.doctor() == []
    driver.client.call("Probe", timeout=60)
