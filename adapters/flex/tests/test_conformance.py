"""The memory and the loop backend pass the conformance suite through a FlexVolume driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from volkit import (
    AccessMode,
    Capability,
    CapacityRange,
    ControllerPublishRequest,
    ControllerUnpublishRequest,
    CreateVolumeRequest,
    Engine,
    ExpandVolumeRequest,
    NodePublishRequest,
    NodeStageRequest,
    NodeUnpublishRequest,
    NodeUnstageRequest,
)
from volkit.testing import Storage
from volkit.testing.memory import ARRAYS, ArrayWitness, MemoryBackend, memory_settings
from volkit_flex.testing import FlexDriver, FlexSuite
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings
from volkit_loop.witness import Images


class TestMemoryOverFlex(FlexSuite):
    backend = MemoryBackend
    mutable: ClassVar[Mapping[str, str]] = {"tier": "slow"}

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)


@pytest.mark.root
class TestLoopOverFlex(FlexSuite):
    sampled: ClassVar[bool] = True
    backend = LoopBackend
    size: ClassVar[int] = 16 << 20

    def storage(self, directory: Path) -> Storage:
        return Storage(settings=LoopSettings(pool=directory), witness=Images(directory))


@pytest.mark.root
def test_a_lifecycle_goes_by_the_wire(tmp_path: Path) -> None:
    """Else the suites above would try an engine alone."""
    staging, target = str(tmp_path / "staging"), str(tmp_path / "target")
    engine = Engine(
        MemoryBackend,
        memory_settings(root=tmp_path / "array"),
        state_dir=tmp_path / "state",
        node_id="node-a",
    )
    driver = FlexDriver(engine)
    way = Capability(access_mode=AccessMode.MULTI_NODE_MULTI_WRITER)
    volume = driver.run("create_volume", CreateVolumeRequest(name="v", parameters={}, capabilities=(way,)))
    common = {"volume_id": volume.id, "capability": way, "volume_context": volume.context}
    published = driver.run("controller_publish", ControllerPublishRequest(node_id="node-a", **common))
    common["publish_context"] = published.publish_context
    driver.run("node_stage", NodeStageRequest(staging_target_path=staging, **common))
    driver.run("node_publish", NodePublishRequest(target_path=target, staging_target_path=staging, **common))
    grown = CapacityRange(required=volume.capacity + (1 << 20))
    driver.run("expand_volume", ExpandVolumeRequest(volume_id=volume.id, capacity_range=grown))
    driver.run("node_unpublish", NodeUnpublishRequest(volume_id=volume.id, target_path=target))
    driver.run("node_unstage", NodeUnstageRequest(volume_id=volume.id, staging_target_path=staging))
    driver.run("controller_unpublish", ControllerUnpublishRequest(volume_id=volume.id, node_id="node-a"))
    driver.close()
    assert driver.calls == [
        *("attach", "mountdevice", "mount", "expandvolume", "unmount", "unmountdevice", "detach")
    ]
