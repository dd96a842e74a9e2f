"""The memory and the loop backend pass the conformance suite through a Docker volume plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from volkit.testing import Storage
from volkit.testing.memory import ARRAYS, ArrayWitness, MemoryBackend, memory_settings
from volkit_docker.testing import DockerSuite
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings
from volkit_loop.witness import Images


class TestMemoryOverDocker(DockerSuite):
    sampled: ClassVar[bool] = True
    sample_faults: ClassVar[int | None] = 8
    sequences: ClassVar[int] = 10
    backend = MemoryBackend
    mutable: ClassVar[Mapping[str, str]] = {"tier": "slow"}

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)


@pytest.mark.root
class TestLoopOverDocker(DockerSuite):
    sampled: ClassVar[bool] = True
    sample_faults: ClassVar[int | None] = 4
    sample_kills: ClassVar[int] = 2
    sequences: ClassVar[int] = 3
    backend = LoopBackend
    size: ClassVar[int] = 16 << 20

    def storage(self, directory: Path) -> Storage:
        return Storage(settings=LoopSettings(pool=directory), witness=Images(directory))
