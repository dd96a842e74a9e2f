"""The driver definitions for Kubernetes' storage suite say of a backend what its classes say.

Upstream leaves out, without a word, what a definition does not claim, and ignores a key that it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import volkit
from volkit import AccessMode
from volkit.registry import load_backend

DEFINITIONS = sorted(Path(__file__).parent.glob("*.yaml"))
# of test/e2e/storage/framework/testdriver.go, Kubernetes 1.36
OF_NO_CLASS = {
    "persistence", "exec", "fsGroup", "multiplePVsSameID", "singleNodeVolume", "volumeLimits",
    "FSResizeFromSourceNotSupported",
}  # fmt: skip


def claims(backend: type[volkit.Backend[Any, Any]]) -> dict[str, bool]:
    """Which capability follows from which class."""
    modes = backend.limits.access_modes
    controller, node = cast("type", backend.controller), cast("type", backend.node)
    block = issubclass(backend.volume, volkit.BlockVolume)
    expands = issubclass(controller, volkit.Expands)
    return {
        "block": block,
        "volumeMountGroup": issubclass(node, volkit.MountsForGroup),
        "snapshotDataSource": issubclass(controller, volkit.Snapshots),
        "pvcDataSource": issubclass(controller, volkit.Clones),
        "multipods": AccessMode.SINGLE_NODE_MULTI_WRITER in modes,
        "RWX": AccessMode.MULTI_NODE_MULTI_WRITER in modes,
        "capReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY in modes,
        "readWriteOncePod": AccessMode.SINGLE_NODE_SINGLE_WRITER in modes,
        "controllerExpansion": expands,
        "nodeExpansion": expands and block,
        "offlineExpansion": expands,
        "onlineExpansion": expands and not issubclass(controller, volkit.ExpandsOffline),
        "topology": issubclass(node, volkit.ReportsTopology),
        "capacity": issubclass(controller, volkit.ReportsCapacity),
    }


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_a_definition_claims_what_the_backend_has(path: Path) -> None:
    definition = yaml.safe_load(path.read_text())
    driver, backend = definition["DriverInfo"], load_backend(path.stem)
    claimed = {key: it for key, it in driver["Capabilities"].items() if key not in OF_NO_CLASS}
    assert claimed == claims(backend)
    assert set(driver["Capabilities"]) <= OF_NO_CLASS | set(claimed)
    assert driver["Name"] == f"{backend.name}.csi.volkit.io"
    assert definition["StorageClass"] == {"FromExistingClassName": backend.name}


def test_there_is_one_for_each_backend_of_a_node() -> None:
    assert [path.stem for path in DEFINITIONS] == ["local", "loop"]
