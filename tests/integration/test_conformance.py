"""The loop backend passes the conformance suite through a CSI server too."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from volkit.testing import Storage
from volkit_csi.testing import CsiSuite
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings
from volkit_loop.witness import Images


@pytest.mark.root
class TestLoopOverCsi(CsiSuite):
    sampled: ClassVar[bool] = True
    backend = LoopBackend
    size: ClassVar[int] = 16 << 20

    def storage(self, directory: Path) -> Storage:
        return Storage(settings=LoopSettings(pool=directory), witness=Images(directory))
