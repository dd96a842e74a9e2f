"""`volkit deploy e2e`: a driver for Kubernetes' own end-to-end suite of storage, as its `-storage.testdriver` takes it.

https://github.com/kubernetes/kubernetes/blob/master/test/e2e/storage/external/README.md: what the driver can do decides
which tests run, and the suite reads over a key that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import volkit
from volkit import AccessMode, Deployment, FailedPrecondition, Topology
from volkit_csi.deploy.helm import dump
from volkit_csi.deploy.values import EndToEnd
from volkit_csi.main import default_name

XFS_SIZE: Final = 300 << 20
"""mkfs.xfs makes nothing smaller."""

FS_TYPES: Final = ("ext4", "xfs")
"""The file systems that the suite has tests for, and a driver's image programs."""

Has = Callable[[Deployment], bool]


def _has(mixin: type[volkit.Mixin]) -> Has:
    return lambda d: d.has(mixin)


def _takes(mode: AccessMode) -> Has:
    return lambda d: mode in d.backend.limits.access_modes


def _block(d: Deployment) -> bool:
    return d.backend.volume.kind == "block"


def _object(d: Deployment) -> bool:
    return d.backend.volume.kind == "object"


def _expands(d: Deployment) -> bool:
    """By a claim, which takes a resizer: none is deployed for volumes that live on nodes."""
    return d.has(volkit.Expands) and (d.values.resizer or not d.backend.needs.node_local)


CAPABILITIES: Final[Mapping[str, Has]] = {
    "persistence": lambda d: True,
    "exec": lambda d: not _object(d),
    "block": _block,
    "fsGroup": lambda d: not _object(d),
    "volumeMountGroup": _has(volkit.MountsForGroup),
    "seLinuxMount": lambda d: d.backend.needs.selinux_mount,
    "multipods": _takes(AccessMode.SINGLE_NODE_MULTI_WRITER),
    "readWriteOncePod": _takes(AccessMode.SINGLE_NODE_SINGLE_WRITER),
    "RWX": lambda d: _takes(AccessMode.MULTI_NODE_MULTI_WRITER)(d) and not _block(d),
    "capReadOnlyMany": _takes(AccessMode.MULTI_NODE_READER_ONLY),
    "multiplePVsSameID": lambda d: True,
    "snapshotDataSource": _has(volkit.Snapshots),
    "pvcDataSource": _has(volkit.Clones),
    # it compares what df says, and of a directory df says the size of what it is in
    "FSResizeFromSourceNotSupported": lambda d: not _block(d),
    "controllerExpansion": _expands,
    "nodeExpansion": lambda d: _expands(d) and _block(d),
    "offlineExpansion": _expands,
    "onlineExpansion": lambda d: _expands(d) and not d.has(volkit.ExpandsOffline),
    "topology": _has(volkit.ReportsTopology),
    "singleNodeVolume": lambda d: d.backend.needs.node_local,
    "capacity": _has(volkit.ReportsCapacity),
    "volumeLimits": lambda d: False,  # takes hours
}
"""What the suite calls a capability, and which driver has it (test/e2e/storage/framework/testdriver.go, 1.36)."""


def render(deployment: Deployment) -> dict[str, str]:
    """One file. Raises FailedPrecondition for a backend that makes no volumes."""
    values: EndToEnd = deployment.values
    backend = deployment.backend
    if deployment.controller is None:
        raise FailedPrecondition(f"backend {backend.name!r} makes no volumes: the suite has nothing to test")
    name = values.name or backend.name
    storage_class = values.storage_class or name
    classes = {
        "StorageClass": storage_class,
        "SnapshotClass": storage_class if deployment.has(volkit.Snapshots) else "",
        "VolumeAttributesClass": values.attributes_class,
    }
    definition: dict[str, Any] = {
        key: {"FromExistingClassName": found} for key, found in classes.items() if found
    }
    definition["DriverInfo"] = _driver(deployment, values, values.driver_name or default_name(name))
    heading = f"# e2e.test -storage.testdriver=FILE -ginkgo.focus='External.Storage.*{name}' -kubeconfig=…\n"
    return {"testdriver.yaml": heading + dump(definition)}


def _driver(deployment: Deployment, values: EndToEnd, name: str) -> dict[str, Any]:
    limits = deployment.backend.limits
    fs_types = [one for one in FS_TYPES if one in limits.fs_types] if _block(deployment) else []
    smallest = max(values.min_size or limits.min_size, XFS_SIZE if "xfs" in fs_types else 1 << 20)
    sizes = {
        "Min": volkit.format_size(smallest),
        "Max": volkit.format_size(min(values.max_size, limits.max_size)),
    }
    driver: dict[str, Any] = {
        "Name": name,
        "SupportedFsType": {one: {} for one in ("", *fs_types)},
        "SupportedSizeRange": sizes,
        "SupportedMountOption": {one: {} for one in values.mount_options},
        "TopologyKeys": _topology_keys(deployment, values),
        "StressTestOptions": {"NumPods": values.stress_pods, "NumRestarts": 3},
    }
    if deployment.has(volkit.Snapshots):
        driver["VolumeSnapshotStressTestOptions"] = {"NumPods": values.stress_pods, "NumSnapshots": 3}
    driver = {key: one for key, one in driver.items() if one}
    driver["Capabilities"] = {key: has(deployment) for key, has in CAPABILITIES.items()}
    return driver


def _topology_keys(deployment: Deployment, values: EndToEnd) -> list[str]:
    """Those that a volume of one node has; which others there are only the operator knows."""
    local = deployment.has(volkit.ReportsTopology) and deployment.backend.needs.node_local
    return list(values.topology_keys) or (list(Topology.of_node("").segments) if local else [])
