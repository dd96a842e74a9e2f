"""The examples are whole backends: each is driven through the engine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit import (
    AlreadyExists,
    Capability,
    CapacityRange,
    ControllerPublishRequest,
    ControllerUnpublishRequest,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    Engine,
    ExpandVolumeRequest,
    InUse,
    NodeInfoRequest,
    options,
)

EXAMPLES = Path(__file__).parent.parent / "examples"
MIB = 1 << 20


class FakeArray:
    """The array of examples/san.py, in memory."""

    def __init__(self) -> None:
        self.luns: dict[str, dict[str, Any]] = {}
        self.mapped: set[tuple[str, str]] = set()

    def create(self, name: str, size: int, tier: str) -> dict[str, Any]:
        key = f"lun-{len(self.luns)}"
        lun = self.luns[key] = {"id": key, "name": name, "size": size, "serial": f"S{len(self.luns)}"}
        return lun

    def find(self, *, id: str = "", name: str = "") -> dict[str, Any]:
        for lun in self.luns.values():
            if lun["id"] == id or (name and lun["name"] == name):
                return lun
        raise KeyError(id or name)

    def delete(self, id: str) -> None:
        del self.luns[id]

    def resize(self, id: str, size: int) -> None:
        self.luns[id]["size"] = size

    def map(self, id: str, initiator: str) -> int:
        self.mapped.add((id, initiator))
        return 1

    def unmap(self, id: str, initiator: str) -> None:
        self.mapped = {one for one in self.mapped if one[0] != id or initiator not in ("", one[1])}


@pytest.fixture
def san() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("examples_san", EXAMPLES / "san.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["examples_san"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["examples_san"]


def test_the_san_array(san: Any, tmp_path: Path) -> None:
    array = san.CLIENTS["array.example"] = FakeArray()
    (tmp_path / "initiator").write_text("InitiatorName=iqn.2026-01.example:n1\n")
    given = {"endpoint": "array.example", "initiator": str(tmp_path / "initiator")}
    settings = options.read(san.Settings, given, "setting")
    engine = Engine(san.San, settings, state_dir=tmp_path / "state", node_id="n1")
    try:
        wanted = CreateVolumeRequest(
            name="pvc-1",
            parameters={"tier": "hdd"},
            capabilities=(Capability(),),
            capacity_range=CapacityRange(required=9 * MIB + 1),
        )
        volume = engine.run("create_volume", wanted)
        assert engine.run("create_volume", wanted) == volume
        assert (volume.capacity, dict(volume.context)) == (10 * MIB, {"serial": "S0", "firstFormat": "true"})
        node = engine.run("node_info", NodeInfoRequest())
        publish = ControllerPublishRequest(volume_id=volume.id, node_id=node.node_id, capability=Capability())
        assert dict(engine.run("controller_publish", publish).publish_context) == {"lun": "1"}
        assert array.mapped == {(volume.id, "iqn.2026-01.example:n1")}
        with pytest.raises(InUse, match="n1"):
            engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume.id))
        grow = ExpandVolumeRequest(volume_id=volume.id, capacity_range=CapacityRange(required=12 * MIB))
        assert engine.run("expand_volume", grow).capacity == array.luns[volume.id]["size"] == 12 * MIB
        with pytest.raises(AlreadyExists, match="bytes"):
            engine.run("create_volume", CreateVolumeRequest(
                name="pvc-1", parameters={"tier": "hdd"}, capabilities=(Capability(),),
                capacity_range=CapacityRange(limit=7 * MIB),
            ))  # fmt: skip
        unpublish = ControllerUnpublishRequest(volume_id=volume.id, node_id=node.node_id)
        engine.run("controller_unpublish", unpublish)
        engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume.id))
        assert (array.luns, array.mapped) == ({}, set())
    finally:
        engine.close()
