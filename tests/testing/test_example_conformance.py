"""The examples pass the conformance suite."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from volkit import BlockConnection, NotFound
from volkit.host import loop
from volkit.node_ids import encode_node_id
from volkit.testing import BackendSuite, Storage, Witness

ROOT = Path(__file__).parent.parent.parent


def san() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conforming_san", ROOT / "examples/san.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SAN: Any = san()


class FileArray(Witness):
    """An array whose LUNs are files, and whose fabric are loop devices; it is its own witness. What it knows is in
    one file, changed as a whole: it outlives whoever calls it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """{"luns": {id: LUN}, "mapped": [[id, initiator], …], "made": number}, to be changed."""
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.directory / "state"
            before = file.read_text() if file.exists() else '{"luns": {}, "mapped": [], "made": 0}'
            state = json.loads(before)
            yield state
            if (after := json.dumps(state)) != before:
                (self.directory / "state.new").write_text(after)
                (self.directory / "state.new").replace(file)

    # -- what the example calls

    def create(self, name: str, size: int, tier: str) -> dict[str, Any]:
        with self.state() as state:
            state["made"] += 1
            id_, serial = f"lun-{state['made']}", f"S{state['made']:04}"
            state["luns"][id_] = {"id": id_, "name": name, "size": size, "serial": serial}
            with open(self.file(serial), "wb") as file:
                file.truncate(size)
            return dict(state["luns"][id_])

    def find(self, *, id: str = "", name: str = "") -> dict[str, Any]:
        with self.state() as state:
            for lun in state["luns"].values():
                if lun["id"] == id or (name and lun["name"] == name):
                    return dict(lun)
        raise KeyError(id or name)

    def delete(self, id: str) -> None:
        with self.state() as state:
            del state["luns"][id]

    def resize(self, id: str, size: int) -> None:
        with self.state() as state:
            state["luns"][id]["size"] = size
            with open(self.file(state["luns"][id]["serial"]), "ab") as file:
                file.truncate(size)

    def map(self, id: str, initiator: str) -> int:
        with self.state() as state:
            if [id, initiator] not in state["mapped"]:
                state["mapped"].append([id, initiator])
        return 1

    def unmap(self, id: str, initiator: str) -> None:
        with self.state() as state:
            state["mapped"] = [
                one for one in state["mapped"] if one[0] != id or initiator not in ("", one[1])
            ]

    # -- what is there

    def file(self, serial: str) -> Path:
        return self.directory / serial

    def volumes(self) -> list[str]:
        with self.state() as state:
            return list(state["luns"])

    def attachments(self) -> list[tuple[str, str]]:
        with self.state() as state:
            return [*map(tuple, state["mapped"]), *self.devices().items()]

    def devices(self) -> dict[str, str]:
        return {device: file for device, file in loop.attached() if file.startswith(f"{self.directory}/")}

    def reboot(self) -> None:
        for device in self.devices():
            loop.detach(device)

    def capacity(self, volume_id: str) -> int:
        return self.file(self.find(id=volume_id)["serial"]).stat().st_size


class LoopNode(SAN.SanNode):  # type: ignore[misc]
    """The example's node, on a fabric of loop devices."""

    def connect(self, request: Any) -> BlockConnection:
        array: Any = SAN.CLIENTS[self.settings.endpoint]
        if request.volume_id not in array.volumes():
            raise NotFound(f"no LUN {request.volume_id!r} is seen here")
        file = os.fspath(array.file(request.volume_context["serial"]))
        device = next(iter(loop.find(file)), "") or loop.attach(file)
        status = loop.status(device)
        assert status is not None
        return BlockConnection(device=device, identity=status.identity)

    def disconnect(self, request: Any) -> None:
        array: Any = SAN.CLIENTS[self.settings.endpoint]
        if request.volume_id in array.volumes():
            for device in loop.find(os.fspath(array.file(array.find(id=request.volume_id)["serial"]))):
                loop.detach(device)

    def resize(self, request: Any) -> None:
        loop.resize(request.connection.device)


class SanBackend(SAN.San):  # type: ignore[misc]
    node = LoopNode


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
class TestSan(BackendSuite):
    backend = SanBackend
    sampled: ClassVar[bool] = True
    size: ClassVar[int] = 16 << 20
    nodes: ClassVar[tuple[str, str]] = (
        encode_node_id("node-a", {"iqn": "iqn.2026-01.example:a"}),
        encode_node_id("node-b", {"iqn": "iqn.2026-01.example:b"}),
    )

    def storage(self, directory: Path) -> Storage:
        luns = directory / "luns"
        luns.mkdir()
        array = SAN.CLIENTS[str(directory)] = FileArray(luns)
        (directory / "initiator").write_text("InitiatorName=iqn.2026-01.example:n1\n")
        settings = SAN.Settings(endpoint=str(directory), initiator=directory / "initiator")
        return Storage(settings=settings, witness=array, reboot=array.reboot)
