"""The memory backend passes the conformance suite with the whole matrix of faults: in this process, and kept in a file,
which outlives one that is killed.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from volkit.interfaces import ConnectsPerPod
from volkit.testing import BackendSuite, Storage
from volkit.testing.memory import ARRAYS, ArrayWitness, MemoryBackend, MemoryNode, memory_settings


class TestMemory(BackendSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)


@pytest.mark.root
@pytest.mark.timeout(900)  # where all is tried
class TestInAFile(BackendSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory, file=directory / "array")
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]))


class PerPodNode(MemoryNode, ConnectsPerPod):
    pass


class PerPodBackend(MemoryBackend):
    node = PerPodNode


@pytest.mark.root
class TestPerPod(TestInAFile):
    backend = PerPodBackend
    sampled: ClassVar[bool] = True
