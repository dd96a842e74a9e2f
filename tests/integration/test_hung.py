"""A storage that hangs takes its own volume down and nothing else: a driver whose parts hang while a file says so."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from volkit_csi.client import CallError
from volkit_csi.wire import csi_pb2 as pb

from . import driver as host
from .conftest import Drivers
from .driver import Driver
from .orchestrator import AGAIN, MIB, Orchestrator, Used, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
KIND = capability("ext4")
PATIENCE = 90.0

HANGING = """
import os, time
from volkit.host import mounts
from volkit_loop import controller, node

def hang(place, name):
    flag = os.path.join(os.environ["TMPDIR"], f"hang-{place}-{name}")
    while os.path.exists(flag):
        open(flag + ".reached", "w").close()
        time.sleep(0.02)

def hanging(cls, method, name):
    original = getattr(cls, method)
    def work(self, request):
        hang(method, name(request))
        return original(self, request)
    setattr(cls, method, work)

hanging(node.LoopNode, "connect", lambda request: request.volume_id)
hanging(controller.LoopController, "create_volume", lambda request: request.name)
hanging(controller.LoopController, "delete_volume", lambda request: request.volume_id)
hanging(controller.LoopController, "get_volume", lambda request: request.volume_id)
node.LoopNode.usage = lambda self, volume_id, connection: hang("usage", volume_id)
bind = mounts.bind
def hanging_bind(source, target, **words):
    hang("bind", os.path.basename(target))
    bind(source, target, **words)
mounts.bind = hanging_bind
"""


class Hung:
    """What hangs while its file is there."""

    def __init__(self, driver: Driver, place: str, name: str) -> None:
        self.driver = driver
        self.file = driver.home / f"hang-{place}-{name}"
        self.reached = driver.home / f"hang-{place}-{name}.reached"

    def __enter__(self) -> Hung:
        self.file.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.unlink(missing_ok=True)

    def leave(self, method: str, request: object) -> None:
        """A call that comes as far as this, and whose caller waits no longer."""
        assert code(self.driver, method, request) == "DEADLINE_EXCEEDED"
        wait_until(self.reached.exists)


@pytest.fixture
def hanging(drivers: Drivers) -> Driver:
    """A driver whose parts can be made to hang."""
    return drivers().start(before=HANGING)


def code(driver: Driver, method: str, request: object, timeout: float = 1.0) -> str:
    """How a call ends: the name of its status."""
    try:
        driver.client.call(method, request, timeout=timeout)
    except CallError as error:
        return error.code
    return "OK"


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def eventually_ok(driver: Driver, method: str, request: object) -> None:
    """Repeat a call as an orchestrator does until it is done."""

    def is_done() -> bool:
        answer = code(driver, method, request, timeout=30)
        assert answer in AGAIN | {"OK"}, answer
        return answer == "OK"

    wait_until(is_done)


def staging_request(used: Used) -> pb.NodeStageVolumeRequest:
    return pb.NodeStageVolumeRequest(
        volume_id=used.id,
        staging_target_path=str(used.staging),
        volume_capability=used.capability,
        volume_context={"firstFormat": "true"},
    )


def publish_request(used: Used) -> pb.NodePublishVolumeRequest:
    return pb.NodePublishVolumeRequest(
        volume_id=used.id,
        staging_target_path=str(used.staging),
        target_path=str(used.target),
        volume_capability=used.capability,
    )


def test_one_volume_hangs_in_every_lane_and_the_others_answer(hanging: Driver) -> None:
    co = Orchestrator(hanging.client, hanging.home)
    stuck = co.use(co.create("stuck", 16 * MIB, KIND), KIND)
    other = co.use(co.create("other", 16 * MIB, KIND), KIND)
    other.write(b"before")
    stats = pb.NodeGetVolumeStatsRequest(volume_id=stuck.id, volume_path=str(stuck.target))
    validate = pb.ValidateVolumeCapabilitiesRequest(volume_id=stuck.id, volume_capabilities=[KIND])
    expand = pb.ControllerExpandVolumeRequest(volume_id=stuck.id, capacity_range={"required_bytes": 32 * MIB})
    calls = [
        ("NodeGetVolumeStats", stats),
        ("ValidateVolumeCapabilities", validate),
        ("ControllerExpandVolume", expand),
    ]
    with (
        Hung(hanging, "usage", stuck.id) as usage,
        Hung(hanging, "get_volume", stuck.id) as get,
        ThreadPoolExecutor(60) as pool,
    ):
        ends = [pool.submit(code, hanging, *calls[number % 3], timeout=4.0) for number in range(60)]
        wait_until(lambda: usage.reached.exists() and get.reached.exists())
        for _ in range(3):
            hanging.client.call("Probe", timeout=60)
            co.unuse(other)
            other = co.use(pb.Volume(volume_id=other.id), KIND)
            assert other.read(6) == b"before"
            co.delete(co.create("quick", MIB, capability(block=True)).volume_id)
        unpublish = pb.NodeUnpublishVolumeRequest(volume_id=stuck.id, target_path=str(stuck.target))
        assert code(hanging, "NodeUnpublishVolume", unpublish, 60) == "OK"
        assert {one.result() for one in ends} <= AGAIN | {"NOT_FOUND"}  # no longer at the target
        assert hanging.process
        report = hanging.state / "left-behind" / f"{hanging.process.pid}.json"
        wait_until(report.exists)
        assert stuck.id in report.read_text()
        assert "left behind" in hanging.text()
    wait_until(lambda: not report.exists())
    eventually_ok(hanging, "ControllerExpandVolume", expand)
    co.unuse(other)


def test_a_call_without_a_deadline_of_its_own_gets_an_answer(drivers: Drivers) -> None:
    before = HANGING + "\nfrom volkit import lanes\nlanes.CALL_SECONDS = 0.5\n"
    hanging = drivers().start(before=before)
    with Hung(hanging, "create_volume", "v"):
        request = pb.CreateVolumeRequest(
            name="v", volume_capabilities=[KIND], capacity_range={"required_bytes": MIB}
        )
        with grpc.insecure_channel(hanging.endpoint) as channel:
            create: Any = channel.unary_unary("/csi.v1.Controller/CreateVolume")
            with pytest.raises(grpc.RpcError) as caught:
                create(request.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "goes on: repeat the call later" in str(caught.value.details())
        assert code(hanging, "CreateVolume", request, 60) == "ABORTED"
    eventually_ok(hanging, "CreateVolume", request)
    assert len(hanging.images()) == 1


def test_an_unpublish_overrides_a_publish_that_hangs(hanging: Driver) -> None:
    co = Orchestrator(hanging.client, hanging.home)
    volume = co.create("v", 16 * MIB, KIND)
    with Hung(hanging, "bind", volume.volume_id) as hung:
        used = Used(
            volume.volume_id, KIND, hanging.home / "staging" / "v", hanging.home / "pod" / volume.volume_id
        )
        used.staging.mkdir(parents=True)
        used.target.parent.mkdir()
        assert code(hanging, "NodeStageVolume", staging_request(used), 60) == "OK"
        hung.leave("NodePublishVolume", publish_request(used))
        unpublish = pb.NodeUnpublishVolumeRequest(volume_id=used.id, target_path=str(used.target))
        assert code(hanging, "NodeUnpublishVolume", unpublish, 60) == "OK"
        assert not used.target.exists()
        assert code(hanging, "NodeUnpublishVolume", unpublish, 60) == "OK"  # as often as it likes
        assert (
            code(hanging, "NodePublishVolume", publish_request(used), 60) == "ABORTED"
        )  # it may still be mounted
    eventually_ok(hanging, "NodePublishVolume", publish_request(used))
    assert str(used.target) in host.mounts(hanging.home)
    co.unuse(used)
    co.delete(used.id)
    assert hanging.left() == []


def test_a_cancelled_publish_undoes_itself(hanging: Driver) -> None:
    co = Orchestrator(hanging.client, hanging.home)
    volume = co.create("v", 16 * MIB, KIND)
    used = Used(volume.volume_id, KIND, hanging.home / "staging", hanging.home / "pod" / volume.volume_id)
    used.staging.mkdir()
    used.target.parent.mkdir()
    assert code(hanging, "NodeStageVolume", staging_request(used), 60) == "OK"
    with Hung(hanging, "bind", volume.volume_id) as hung:
        hung.leave("NodePublishVolume", publish_request(used))
        co.unpublish(used)
        used.target.mkdir()  # so that its mount can be made
    wait_until(lambda: not any(key.startswith("target/") for key in hanging.records()))
    assert list(host.mounts(hanging.home)) == [str(used.staging)]
    co.unuse(used)
    co.delete(used.id)
    assert hanging.left() == []


def test_a_driver_killed_in_a_cancelled_publish(hanging: Driver) -> None:
    co = Orchestrator(hanging.client, hanging.home)
    volume = co.create("v", 16 * MIB, KIND)
    used = Used(volume.volume_id, KIND, hanging.home / "staging", hanging.home / "pod" / volume.volume_id)
    used.staging.mkdir()
    used.target.parent.mkdir()
    assert code(hanging, "NodeStageVolume", staging_request(used), 60) == "OK"
    with Hung(hanging, "bind", volume.volume_id) as hung:
        hung.leave("NodePublishVolume", publish_request(used))
        co.unpublish(used)
        hanging.kill()
    used.target.mkdir()
    subprocess.run(["mount", "--bind", used.staging, used.target], check=True)  # the kernel did it after all
    hanging.start()
    recover = [
        str(Path(sys.executable).with_name("volkit")),
        "recover",
        "--backend",
        "loop",
        "-o",
        f"pool={hanging.pool}",
    ]
    subprocess.run(
        [*recover, "--state-dir", str(hanging.state), "--node-id", "n1", "--min-age", "0"],
        check=True,
        timeout=180,
    )
    assert list(host.mounts(hanging.home)) == [str(used.staging)]
    assert not any(key.startswith("target/") for key in hanging.records())
    co.unuse(used)
    co.delete(used.id)
    assert hanging.left() == []


def test_sigterm_ends_a_driver_that_hangs(drivers: Drivers) -> None:
    hanging = drivers(arguments=["--grace", "1"]).start(before=HANGING)
    co = Orchestrator(hanging.client, hanging.home)
    volume = co.create("v", 16 * MIB, KIND)
    used = Used(volume.volume_id, KIND, hanging.home / "staging", hanging.home / "pod" / "v")
    used.staging.mkdir()
    with Hung(hanging, "connect", volume.volume_id) as hung:
        hung.leave("NodeStageVolume", staging_request(used))
        waiting = threading.Thread(
            target=code, args=(hanging, "NodeStageVolume", staging_request(used), 60.0)
        )
        waiting.start()
        hanging.stop()
        waiting.join(PATIENCE)
        assert not hanging.locked()
    hanging.start()
    eventually_ok(hanging, "NodeStageVolume", staging_request(used))


def test_a_lock_is_held_while_its_work_may_run_and_freed_with_its_process(
    drivers: Drivers, tmp_path: Path
) -> None:
    first = drivers("first").start(before=HANGING)
    second = drivers("second", pool=first.pool, state=first.state).start()
    co = Orchestrator(second.client, second.home)
    volume = co.create("v", 16 * MIB, KIND)
    used = Used(volume.volume_id, KIND, tmp_path / "staging", tmp_path / "pod" / "v")
    used.staging.mkdir()
    with Hung(first, "connect", volume.volume_id) as hung:
        hung.leave("NodeStageVolume", staging_request(used))
        assert code(second, "NodeStageVolume", staging_request(used), 60) == "ABORTED"
        first.kill()
        assert code(second, "NodeStageVolume", staging_request(used), 60) == "OK"
    unstage = pb.NodeUnstageVolumeRequest(volume_id=used.id, staging_target_path=str(used.staging))
    assert code(second, "NodeUnstageVolume", unstage, 60) == "OK"


def test_mkfs_that_hangs_holds_up_its_own_volume(drivers: Drivers, tmp_path: Path) -> None:
    """More of them than may run at once of one program."""
    real = subprocess.check_output(
        ["sh", "-c", "command -v mkfs.ext4 || echo /sbin/mkfs.ext4"], text=True
    ).strip()
    programs = tmp_path / "programs"
    programs.mkdir()
    stub = programs / "mkfs.ext4"
    flag = tmp_path / "mkfs-hangs"
    stub.write_text(f'#!/bin/sh\nwhile [ -e {flag} ]; do sleep 0.1; done\nexec {real} "$@"\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    driver = drivers(environment={"PATH": f"{programs}:{os.environ['PATH']}"}).start()
    co = Orchestrator(driver.client, driver.home)
    used = []
    for number in range(6):
        volume = co.create(f"v{number}", 16 * MIB, KIND)
        used.append(Used(volume.volume_id, KIND, driver.home / f"s{number}", driver.home / f"t{number}"))
        used[-1].staging.mkdir()
    flag.touch()
    try:
        for one in used[:-1]:
            assert code(driver, "NodeStageVolume", staging_request(one), 0.5) == "DEADLINE_EXCEEDED"
        assert code(driver, "NodeStageVolume", staging_request(used[0]), 60) == "ABORTED"
        driver.client.call("Probe", timeout=60)
        raw = capability(block=True)
        co.unuse(co.use(co.create("raw", MIB, raw), raw))
        stub.rename(programs / "away")  # the next one finds the real program
        assert code(driver, "NodeStageVolume", staging_request(used[-1]), 60) == "OK"
    finally:
        flag.unlink()
    for one in used:
        eventually_ok(driver, "NodeStageVolume", staging_request(one))
        unstage = pb.NodeUnstageVolumeRequest(volume_id=one.id, staging_target_path=str(one.staging))
        eventually_ok(driver, "NodeUnstageVolume", unstage)
