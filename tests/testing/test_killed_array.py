"""A storage with every capability that outlives its process: SIGKILL at the system calls of each operation."""

from __future__ import annotations

import copyreg
import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from attrs import frozen

from volkit.backend import Backend, Limits
from volkit.errors import NotFound
from volkit.model import FileVolume
from volkit.options import option
from volkit.testing import BackendSuite, Storage, Witness
from volkit.testing.faults import METHODS
from volkit.testing.memory import Array, MemoryController, MemoryNode, MemoryParameters, MemorySettings


def proxy_of(values: dict[str, str]) -> MappingProxyType[str, str]:
    return MappingProxyType(values)


copyreg.pickle(MappingProxyType, lambda proxy: (proxy_of, (dict(proxy),)))


@frozen
class DiskSettings:
    file: Path = option(help="where the array is kept")


def load(file: Path) -> Array:
    """The array as it is on the disk."""
    array = Array()
    if file.exists():
        array.volumes, array.snapshots, array.made = pickle.loads(file.read_bytes())
    return array


def kept(name: str) -> Callable[[Any, Any], Any]:
    """A method of the memory backend, on what is on the disk: read, changed, and put back as a whole."""

    def method(self: Any, request: Any) -> Any:
        file: Path = self.disk.file
        with open(f"{file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.array = load(file)
            before = pickle.dumps((self.array.volumes, self.array.snapshots, self.array.made))
            try:
                return getattr(MemoryController, name)(self, request)
            finally:
                after = pickle.dumps((self.array.volumes, self.array.snapshots, self.array.made))
                if after != before:
                    Path(f"{file}.new").write_bytes(after)
                    os.rename(f"{file}.new", file)

    return method


class DiskController(MemoryController):
    """Keeps the array in a file."""

    def __init__(self, settings: Any, node_id: str = "") -> None:
        super().__init__(MemorySettings(array="unused"), node_id)
        self.disk = settings


for _name in METHODS:
    if hasattr(MemoryController, _name):
        setattr(DiskController, _name, kept(_name))


class DiskNode(MemoryNode):
    def __init__(self, settings: Any, node_id: str = "") -> None:
        super().__init__(MemorySettings(array="unused", root=settings.file.parent / "volumes"), node_id)
        self.disk = settings

    def connect(self, request: Any) -> Any:
        if request.volume_id not in load(self.disk.file).volumes:
            raise NotFound(f"there is no volume {request.volume_id!r}")
        (self.disk.file.parent / "volumes" / request.volume_id).mkdir(parents=True, exist_ok=True)
        return super().connect(request)


class DiskBackend(Backend[DiskSettings, MemoryParameters]):
    name = "disk-array"
    settings = DiskSettings
    parameters = MemoryParameters
    controller = DiskController
    node = DiskNode
    volume = FileVolume
    limits = Limits(granularity=1, default_size=1 << 20)


class FileWitness(Witness):
    """Reads the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def volumes(self) -> list[str]:
        return list(load(self.file).volumes)

    def snapshots(self) -> list[str]:
        return list(load(self.file).snapshots)

    def attachments(self) -> list[tuple[str, str]]:
        return [(id_, node) for id_, stored in load(self.file).volumes.items() for node in stored.nodes]

    def capacity(self, volume_id: str) -> int:
        return load(self.file).volumes[volume_id].volume.capacity


@pytest.mark.root
class TestArrayOnDisk(BackendSuite):
    sampled = True
    backend = DiskBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        file = directory / "array"
        return Storage(settings=DiskSettings(file=file), witness=FileWitness(file))
