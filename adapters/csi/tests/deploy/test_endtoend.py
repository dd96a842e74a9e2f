"""`volkit deploy e2e`: a driver for Kubernetes' end-to-end suite, which says nothing of a key that it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from volkit import cli
from volkit_csi.deploy.endtoend import CAPABILITIES

# DriverInfo and its capabilities: test/e2e/storage/framework/testdriver.go of Kubernetes 1.36
INFO = {
    "Name", "InTreePluginName", "TestTags", "MaxFileSize", "SupportedSizeRange", "SupportedFsType",
    "SupportedMountOption", "RequiredMountOption", "Capabilities", "RequiredAccessModes", "TopologyKeys",
    "NumAllowedTopologies", "StressTestOptions", "VolumeSnapshotStressTestOptions", "VolumeModifyStressTestOptions",
    "PerformanceTestOptions", "VolumeGroupSnapshotStressTestOptions",
}  # fmt: skip
KNOWN = {
    "persistence", "block", "fsGroup", "volumeMountGroup", "exec", "snapshotDataSource", "snapshotMetadata",
    "groupSnapshot", "pvcDataSource", "multipods", "RWX", "controllerExpansion", "nodeExpansion", "offlineExpansion",
    "onlineExpansion", "volumeLimits", "singleNodeVolume", "topology", "capacity", "FSResizeFromSourceNotSupported",
    "readWriteOncePod", "multiplePVsSameID", "capReadOnlyMany", "seLinuxMount",
}  # fmt: skip


def test_every_capability_is_one_that_the_suite_knows() -> None:
    assert CAPABILITIES.keys() <= KNOWN


def definition(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert cli.main(["deploy", "e2e", *argv]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert found["DriverInfo"].keys() <= INFO
    return found


def has(found: dict[str, Any]) -> set[str]:
    return {name for name, one in found["DriverInfo"]["Capabilities"].items() if one}


def test_what_runs_follows_from_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    always = {"persistence", "multipods", "multiplePVsSameID", "readWriteOncePod", "pvcDataSource"}
    on_a_node = always | {"exec", "fsGroup", "snapshotDataSource", "topology", "singleNodeVolume", "capacity"}
    loop = definition(capsys, "--backend", "loop", "-o", "pool=/p", "--mount-options", "noatime")
    assert has(loop) == on_a_node | {"block"}
    assert loop["StorageClass"] == loop["SnapshotClass"] == {"FromExistingClassName": "loop"}
    driver = loop["DriverInfo"]
    assert driver["Name"] == "loop.csi.volkit.io"
    assert driver["SupportedFsType"] == {"": {}, "ext4": {}, "xfs": {}}
    assert driver["SupportedSizeRange"] == {"Min": "300Mi", "Max": "2Gi"}
    assert driver["SupportedMountOption"] == {"noatime": {}}
    assert driver["TopologyKeys"] == ["volkit.io/node"]
    local = definition(capsys, "--backend", "local", "-o", "pool=/p", "--min-size", "16Mi")
    assert has(local) == on_a_node | {"volumeMountGroup", "FSResizeFromSourceNotSupported"}
    assert local["DriverInfo"]["SupportedSizeRange"]["Min"] == "16Mi"
    expansion = {"controllerExpansion", "offlineExpansion", "onlineExpansion"}
    alone = definition(capsys, "--backend", "loop", "-o", "pool=/p", "--resizer", "true")
    assert has(alone) == has(loop) | expansion | {"nodeExpansion"}
    s3 = definition(capsys, "--backend", "s3", "-o", "endpoint=https://x", "--name", "s3-east")
    assert {"RWX", "capReadOnlyMany"} <= has(s3)
    assert not {"block", "fsGroup", "snapshotDataSource", "topology"} & has(s3)
    assert s3["DriverInfo"]["Name"] == "s3-east.csi.volkit.io"
    assert s3["StorageClass"] == {"FromExistingClassName": "s3-east"}
    assert "SnapshotClass" not in s3


def test_names_that_a_cluster_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deploy", "e2e", "--backend", "loop", "-o", "pool=/p", "--driver-name", "a_b"]) == 2
    assert "driver-name" in capsys.readouterr().err
