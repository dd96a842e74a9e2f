"""The local backend passes the conformance suite on each sort of pool: quotas and snapshots, copies, plain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from volkit.host import loop, mounts
from volkit.testing import BackendSuite, Storage
from volkit_local.backend import LocalBackend
from volkit_local.options import LocalSettings
from volkit_local.witness import Trees

from .conftest import close_workshops, detach, make_file_system

_numbers = itertools.count()


class OnFileSystem(BackendSuite):
    """Each case gets a pool of its own on a file system that is made once for the class."""

    backend = LocalBackend
    size: ClassVar[int] = 16 << 20
    fs_type: ClassVar[str] = ""
    place: ClassVar[Any] = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def file_system(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        place = cls.place = make_file_system(tmp_path_factory.mktemp(cls.fs_type) / "fs", cls.fs_type)
        yield
        close_workshops()
        mounts.unmount(str(place))
        for device in loop.find(f"{place}.file"):
            detach(device)

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
