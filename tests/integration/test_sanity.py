"""csi-sanity, the conformance suite of Kubernetes CSI, against the real driver in each of its deployments.

What it skips is compared with the lists below, in both directions: a spec that is skipped for another reason fails the
run, and so does one that is listed and runs by now. The reasons are explained in docs/csi.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .driver import Driver

pytestmark = [pytest.mark.root, pytest.mark.sanity]
SIZE, EXPANDED = 64 << 20, 128 << 20
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

ATTRIBUTED = "a volume created with a volume attribute class"
MODIFY = "ModifyVolume [Controller Server] should"
CONTROLLER, GROUPS = "Controller Service [Controller Server]", "GroupController Service [GroupController"
NO_MODIFY = {
    f"{CONTROLLER} CreateVolume should create volume with a volume attribute class",
    f"{CONTROLLER} CreateVolume should not create volume with an invalid volume attribute class",
    f"{MODIFY} fail if no volume id is given",
    f"{MODIFY} fail if specified mutable parameters are not supported by the volume",
    f"{MODIFY} fail if volume does not exist",
    f"{MODIFY} fail to modify {ATTRIBUTED} if new mutable parameters are not supported by volume",
    f"{MODIFY} modify {ATTRIBUTED}",
    f"{MODIFY} modify a volume created without a volume attribute class",
}
NO_ATTACHMENT = {
    f"{CONTROLLER} ControllerPublishVolume should fail when no node id is provided",
    f"{CONTROLLER} ControllerPublishVolume should fail when no volume capability is provided",
    f"{CONTROLLER} ControllerPublishVolume should fail when no volume id is provided",
    f"{CONTROLLER} ControllerPublishVolume should fail when publishing more volumes than the node max attach limit",
    f"{CONTROLLER} ControllerPublishVolume should fail when the node does not exist",
    f"{CONTROLLER} ControllerPublishVolume should fail when the volume does not exist",
    f"{CONTROLLER} ControllerPublishVolume should fail when the volume is already published but is incompatible",
    f"{CONTROLLER} ControllerUnpublishVolume should fail when no volume id is provided",
    f"{CONTROLLER} volume lifecycle should be idempotent",
    f"{CONTROLLER} volume lifecycle should work",
}
NO_GROUPS = {
    f"{GROUPS} Server] GroupControllerGetCapabilities should return appropriate capabilities",
    f"{GROUPS} VolumeGroupSnapshots] CreateVolumeGroupSnapshot should fail when no name is provided",
    f"{GROUPS} VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should fail when no volume id is provided",
    f"{GROUPS} VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should succeed when an invalid volume id is used",
    f"{GROUPS} VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when an invalid volume id is used",
    f"{GROUPS} VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when no volume id is provided",
}
SKIPPED: Mapping[str, set[str]] = {
    "the loop backend has no mutable parameters: no MODIFY_VOLUME": NO_MODIFY,
    "a volume is attached on its own node: no PUBLISH_UNPUBLISH_VOLUME": NO_ATTACHMENT,
    "no GroupController service": NO_GROUPS,
}
DELETED = "the last volume from a page is deleted"
PENDING = {
    f"{CONTROLLER} ListVolumes pagination should detect volumes added between pages and accept tokens when {DELETED}"
}
"""Switched off by csi-sanity itself, whatever the driver."""

NEEDS_CONTROLLER = (
    r"ValidateVolumeCapabilities",
    r"Node Service NodePublishVolume with single node multi writer capability",
    r"Node Service NodeUnpublishVolume should remove target path",
    r"Node Service NodeStageVolume should fail when no volume capability is provided",
    r"Node Service NodeGetVolumeStats should fail when volume does not exist on the specified path",
    r"Node Service NodeExpandVolume should fail when no volume path is provided",
    r"Node Service NodeExpandVolume should work if node-expand is called after node-publish",
)
"""Specs that make a volume, or ask a controller; csi-sanity does not ask first whether there is one."""


def run(directory: Path, *arguments: str) -> dict[str, set[str]]:
    """Run csi-sanity below `directory`; the names of its specs by how they ended. Fails where one failed."""
    report = directory / "report.xml"
    program = shutil.which("csi-sanity", path=PLACES)
    assert program
    command = [
        *(program, "--ginkgo.seed=1", "--ginkgo.no-color", "--ginkgo.timeout=60s"),
        *(f"--ginkgo.junit-report={report}", f"--csi.mountdir={directory}/mount"),
        *(f"--csi.stagingdir={directory}/staging", f"--csi.testvolumesize={SIZE}"),
        *(f"--csi.testvolumeexpandsize={EXPANDED}", *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    ended: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind, _, name = case.attrib["name"].partition(" ")
        if kind == "[It]":
            ended.setdefault(case.attrib["status"], set()).add(name)
    others = ended.keys() - {"passed", "skipped", "pending"}
    assert not others, "\n".join((*(f"{end}: {sorted(ended[end])}" for end in others), done.stdout[-6000:]))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return ended


def check(ended: dict[str, set[str]]) -> None:
    """All specs ran but those listed, and those ran."""
    expected = set[str]().union(*SKIPPED.values())
    assert sorted(ended["skipped"] - expected) == [], "skipped, and not listed"
    assert sorted(expected - ended["skipped"]) == [], "listed, and not skipped"
    assert ended["pending"] == PENDING
    assert len(ended["passed"]) >= 71, sorted(ended["passed"])


@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_controller_and_node_in_one_process(driver: Driver, access_type: str) -> None:
    check(run(driver.home, f"--csi.endpoint={driver.endpoint}", f"--csi.testvolumeaccesstype={access_type}"))
    driver.stop()
    assert driver.left() == []


@pytest.mark.needs("mkfs.btrfs")
def test_directories(drivers: Callable[..., Driver], tmp_path: Path) -> None:
    """The local backend, where sizes are enforced."""
    image, place = tmp_path / "image", tmp_path / "btrfs"
    image.touch()
    os.truncate(image, 1 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    driver = drivers(pool=place / "pool", arguments=["--backend", "local"]).start()
    check(run(driver.home, f"--csi.endpoint={driver.endpoint}"))
    driver.stop()
    assert driver.left() == []
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_controller_and_node_apart(drivers: Callable[..., Driver], tmp_path: Path, access_type: str) -> None:
    """Two processes with a journal each. The pool is the node's, so the controller runs beside it, under its name."""
    pool = tmp_path / "pool"
    node = drivers("node", pool=pool, arguments=["--services", "node"]).start()
    controller = drivers("controller", pool=pool, arguments=["--services", "controller"]).start()
    endpoints = f"--csi.endpoint={node.endpoint}", f"--csi.controllerendpoint={controller.endpoint}"
    check(run(tmp_path, *endpoints, f"--csi.testvolumeaccesstype={access_type}"))
    for one in (node, controller):
        one.stop()
        assert one.left() == []


def test_a_node_without_a_controller(drivers: Callable[..., Driver]) -> None:
    driver = drivers(arguments=["--services", "node", "--headless"]).start()
    skips = [f"--ginkgo.skip={pattern}" for pattern in NEEDS_CONTROLLER]
    ended = run(driver.home, f"--csi.endpoint={driver.endpoint}", *skips)
    assert len(ended["passed"]) == 20, sorted(ended["passed"])
    controller = {name for name in ended["passed"] if name.startswith("Controller")}
    assert controller == {f"{CONTROLLER} ControllerGetCapabilities should return appropriate capabilities"}
    driver.stop()
    assert driver.left() == []
