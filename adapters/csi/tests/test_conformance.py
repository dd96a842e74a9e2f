"""The memory backend passes the conformance suite through a CSI server, as it does without one."""

from __future__ import annotations

from pathlib import Path

from volkit.testing import Storage
from volkit.testing.memory import ARRAYS, ArrayWitness, MemoryBackend, memory_settings
from volkit_csi.testing import CsiSuite


class TestMemoryOverCsi(CsiSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)
