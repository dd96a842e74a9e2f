"""Processes that are stopped, that outlived their driver, or that cannot end: real ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from volkit.host import apart, processes
from volkit.journal import Put, key

from .world import MOUNTED, World, until

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4", "bindfs")]

HOLDER = """
import sys, time
from pathlib import Path
from volkit.journal import key
from volkit.locks import Locks
with Locks(Path(sys.argv[1]) / "locks").hold(key("volume", sys.argv[2]), wait=60):
    print("held", flush=True)
    time.sleep(1000)
"""


@contextmanager
def driver(node: World, volume: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on a volume."""
    command = [sys.executable, "-c", HOLDER, str(node.engine.state_dir), volume]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def staging_since(node: World, volume: str, seconds: float) -> None:
    record = {
        "path": node.staging(volume),
        "capability": MOUNTED.record(),
        "state": "connecting",
        "since": time.time() - seconds,
    }
    node.engine.node_journal.write(Put(key("stage", volume), record))


def test_an_old_intent_names_who_works_on_it(node: World) -> None:
    staging_since(node, "v", 600)
    with driver(node, "v") as process:
        found = node.one()
        assert (found.sort, found.repair) == ("stuck", None)
        assert re.match(r"stage v is staging for 6\d\d s", found.what), found.what
        assert f"pid {process.pid} (python" in found.what
        assert found.command == f"ps -o pid,stat,wchan,etime,args -p {process.pid}"
        assert subprocess.run(found.command.split(), check=False, capture_output=True).returncode == 0
        assert node.findings(min_age=6000) == []
    until(lambda: node.one().repair)


def test_a_driver_that_is_stopped_is_stuck(node: World) -> None:
    with driver(node, "v") as process:
        assert node.findings() == []
        process.send_signal(signal.SIGSTOP)
        until(lambda: (found := processes.read(process.pid)) and found.state == "T")
        found = node.one()
        assert found.sort == "stuck"
        assert "is stopped and holds 1 locks" in found.what
        subprocess.run(found.command.split(), check=True)
        until(lambda: node.findings() == [])


def test_the_calls_of_a_driver_that_hang_are_shown(node: World) -> None:
    directory = node.engine.state_dir / "left-behind"
    directory.mkdir()
    call = {"operation": "node_stage", "subject": "v", "since": time.time() - 70}
    with driver(node, "w") as process:
        report = directory / f"{process.pid}.json"
        report.write_text(json.dumps({"pid": process.pid, "calls": [call]}))
        told = rf"node_stage of v hangs for \d\d+ s in the driver \(pid {process.pid}\)"  # 70, or more by now
        assert re.fullmatch(told, node.one().what)
    (directory / f"{process.pid}.new").touch()
    for one in node.findings():
        assert one.sort == "leaked"
        assert one.repair
        one.repair()
    assert not list(directory.iterdir())
    assert node.findings() == []


def test_what_was_killed_and_hangs_in_the_kernel(node: World, hung: Any) -> None:
    """A process that waits for a FUSE server which has taken its request: nothing ends it (state D)."""
    with subprocess.Popen(["stat", "-f", hung]) as process:
        until(lambda: hung.taken)
        process.kill()
        until(lambda: (found := processes.read(process.pid)) and found.state == "D" and found.killed)
        assert [one for one in node.findings() if str(process.pid) in one.what] == []
        record = {
            "path": hung,
            "readonly": False,
            "capability": MOUNTED.record(),
            "staging": "",
            "since": time.time(),
        }
        node.engine.node_journal.write(Put(key("target", "v", hung), record))
        (found,) = [one for one in node.findings() if str(process.pid) in one.what]
        assert (found.sort, found.repair) == ("stuck", None)
        assert found.what == f"pid {process.pid} (stat) was killed and hangs in the kernel"
        subprocess.run(["umount", "-f", hung], check=False)


def test_a_helper_that_outlived_its_driver(node: World, hung: Any) -> None:
    program = "import sys\nfrom volkit.host import apart, fuse\napart.belong_to(sys.argv[2])\n"
    program += "apart.call(fuse.is_served, sys.argv[1], timeout=60)"
    before = helpers(node)
    with subprocess.Popen([sys.executable, "-c", program, hung, str(node.engine.state_dir)]) as process:
        until(lambda: hung.taken and helpers(node) - before)
        process.kill()
    (helper,) = helpers(node) - before
    (found,) = [one for one in node.findings() if f"pid {helper}," in one.what]
    assert found.sort == "stuck"
    subprocess.run(found.command.split(), check=True)
    subprocess.run(["umount", "-f", hung], check=False)
    until(lambda: processes.read(helper) is None)


def helpers(node: World) -> set[int]:
    owner = str(node.engine.state_dir)
    return {one.pid for one in processes.table() if apart.is_helper_of(owner, one.words)}


def test_an_mkfs_that_outlived_its_driver_is_ended(node: World) -> None:
    volume = node.create()
    node.stage(volume)
    entry = node.engine.node_journal.get(key("stage", volume))
    assert entry
    device = entry.value["connection"]["device"]
    node.engine.node_journal.write(Put(entry.key, {**entry.value, "format": "ext4"}))
    fake = node.base / "mkfs.ext4"
    fake.symlink_to("/bin/sleep")
    with subprocess.Popen([str(fake), "100"], env={}) as bystander:
        os.symlink("/bin/tail", node.base / "mkfs.xfs")
        with subprocess.Popen([str(node.base / "mkfs.xfs"), "-f", "/dev/null", device]) as orphan:
            try:
                until(lambda: (found := processes.read(orphan.pid)) and found.name == "mkfs.xfs")
                with node.engine.locks.hold(key("volume", volume), wait=0):
                    assert not [one for one in node.findings() if one.sort == "leaked"]
                (found,) = [one for one in node.findings() if one.sort == "leaked"]
                assert found.command == f"kill {orphan.pid}"
                assert found.repair
                assert found.repair() == "it is ended"
                assert orphan.wait(60) == -signal.SIGKILL
                assert bystander.poll() is None
                assert found.repair() == "it has ended meanwhile"
            finally:
                orphan.kill()
                bystander.kill()


def test_a_process_that_cannot_be_read_stops_nothing(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from volkit.errors import DeadlineExceeded

    def hang(function: object, *args: object, timeout: float) -> None:
        raise DeadlineExceeded("it hangs")

    with driver(node, "v") as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: (found := processes.read(process.pid)) and found.state == "T")
        with monkeypatch.context() as patch:
            patch.setattr(apart, "call", hang)
            assert "is stopped" in node.one().what
