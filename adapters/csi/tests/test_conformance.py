"""The memory backend passes the conformance suite through a CSI server, as it does without one."""

from __future__ import annotations

from pathlib import Path

from volkit.testing import Storage, Witness
from volkit.testing.memory import ARRAYS, Array, MemoryBackend, memory_settings
from volkit_csi.testing import CsiSuite


class ArrayWitness(Witness):
    """Looks into the dictionary."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def volumes(self) -> list[str]:
        return list(self.array.volumes)

    def snapshots(self) -> list[str]:
        return list(self.array.snapshots)

    def attachments(self) -> list[tuple[str, str]]:
        return [(id_, node) for id_, stored in self.array.volumes.items() for node in stored.nodes]

    def capacity(self, volume_id: str) -> int:
        return self.array.volumes[volume_id].volume.capacity


class TestMemoryOverCsi(CsiSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)
