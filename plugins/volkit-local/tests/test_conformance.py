"""The local backend passes the conformance suite on each sort of pool, and through the wires."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from volkit import Backend
from volkit.testing import BackendSuite, Storage
from volkit_csi.testing import CsiSuite
from volkit_docker.testing import DockerSuite
from volkit_flex.testing import FlexSuite
from volkit_local.backend import LocalBackend
from volkit_local.options import LocalSettings
from volkit_local.witness import Trees

_numbers = itertools.count()


class OnFileSystem:
    """Each case gets a pool of its own on a file system that is made once for the class."""

    backend: ClassVar[type[Backend[Any, Any]]] = LocalBackend
    size: ClassVar[int] = 16 << 20
    sampled: ClassVar[bool] = True
    sample_faults: ClassVar[int | None] = 12
    sample_kills: ClassVar[int] = 6
    fs_type: ClassVar[str]
    place: ClassVar[Any] = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def on_file_system(cls, class_file_system: Path) -> None:
        cls.place = class_file_system

    def storage(self, directory: Path) -> Storage:
        pool = self.place / f"pool-{next(_numbers)}"
        pool.mkdir(mode=0o700)
        return Storage(settings=LocalSettings(pool=pool), witness=Trees(pool))


class Advisory(OnFileSystem):
    """Where nothing enforces a size."""

    parameters: ClassVar[Mapping[str, str]] = {"advisorySize": "true"}
    sample_faults: ClassVar[int | None] = 4
    sample_kills: ClassVar[int] = 2
    sequences: ClassVar[int] = 3


class OverAWire(OnFileSystem):
    """What is tried without it is tried a little only."""

    fs_type = "btrfs"
    sample_faults: ClassVar[int | None] = 2
    sample_kills: ClassVar[int] = 1
    sequences: ClassVar[int] = 3


@pytest.mark.root
@pytest.mark.needs("mkfs.btrfs")
class TestBtrfs(OnFileSystem, BackendSuite):
    fs_type = "btrfs"


@pytest.mark.root
@pytest.mark.needs("mkfs.xfs")
class TestXfs(Advisory, BackendSuite):
    fs_type = "xfs"


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
class TestExt4(Advisory, BackendSuite):
    fs_type = "ext4"


@pytest.mark.root
@pytest.mark.needs("mkfs.btrfs")
class TestBtrfsOverCsi(OverAWire, CsiSuite):
    pass


@pytest.mark.root
@pytest.mark.needs("mkfs.btrfs")
class TestBtrfsOverFlex(OverAWire, FlexSuite):
    pass


@pytest.mark.root
@pytest.mark.needs("mkfs.btrfs")
class TestBtrfsOverDocker(OverAWire, DockerSuite):
    pass
