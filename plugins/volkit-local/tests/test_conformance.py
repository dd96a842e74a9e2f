"""The local backend passes the conformance suite on each sort of pool: quotas and snapshots, copies, plain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from volkit.testing import BackendSuite, Storage
from volkit_local.backend import LocalBackend
from volkit_local.options import LocalSettings
from volkit_local.witness import Trees

_numbers = itertools.count()


class OnFileSystem(BackendSuite):
    """Each case gets a pool of its own on a file system that is made once for the class."""

    backend = LocalBackend
    size: ClassVar[int] = 16 << 20
    fs_type: ClassVar[str] = ""
    place: ClassVar[Any] = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def on_file_system(cls, class_file_system: Path) -> None:
        cls.place = class_file_system

    def storage(self, directory: Path) -> Storage:
        pool = self.place / f"pool-{next(_numbers)}"
        pool.mkdir(mode=0o700)
        return Storage(settings=LocalSettings(pool=pool), witness=Trees(pool))


@pytest.mark.root
class TestBtrfs(OnFileSystem):
    fs_type = "btrfs"


class Advisory(OnFileSystem):
    """Where nothing enforces a size."""

    parameters: ClassVar[Mapping[str, str]] = {"advisorySize": "true"}


@pytest.mark.root
class TestXfs(Advisory):
    fs_type = "xfs"


@pytest.mark.root
class TestExt4(Advisory):
    fs_type = "ext4"
