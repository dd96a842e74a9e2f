"""The loop backend passes the conformance suite, on a pool that is a directory of the test's."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from volkit.testing import BackendSuite, Storage
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings
from volkit_loop.witness import Images


@pytest.mark.root
@pytest.mark.timeout(900)
class TestLoop(BackendSuite):
    backend = LoopBackend
    size: ClassVar[int] = 16 << 20
    sample_faults = 0

    def storage(self, directory: Path) -> Storage:
        images = Images(directory)
        return Storage(settings=LoopSettings(pool=directory), witness=images, reboot=images.detach)
