"""One Ceph gateway for all tests; what they mount and start goes when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volkit.host import mounts

from .servers import Rclone, Rgw, stop_programs

FreePorts = Callable[[int], list[int]]


@pytest.fixture(scope="session")
def running_rgw(tmp_path_factory: pytest.TempPathFactory, free_ports: FreePorts) -> Iterator[Rgw]:
    server = Rgw(tmp_path_factory.mktemp("rgw"), free_ports(3))
    yield server
    server.close()


@pytest.fixture
def rgw(running_rgw: Rgw) -> Iterator[Rgw]:
    """Ceph's gateway; what a test did to it is healed after it."""
    yield running_rgw
    running_rgw.heal()


@pytest.fixture
def rclone_server(tmp_path: Path, free_ports: FreePorts) -> Iterator[Rclone]:
    home = tmp_path / "server"
    home.mkdir()
    server = Rclone(home, *free_ports(1))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs run below the test's directory, and end with it."""
    monkeypatch.setenv("VOLKIT_RUN_DIR", str(tmp_path / "run"))
    yield
    stop_programs(tmp_path / "run")
    for mount in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(mount.mount_point, lazy=True)
