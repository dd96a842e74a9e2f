"""One Ceph gateway for all tests; what they mount and start goes when they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from volkit.host import mounts
from volkit_s3.options import S3Settings

sys.path.insert(0, str(Path(__file__).parent))
from servers import ACCESS, SECRET, Rclone, Rgw, Server, client, stop_programs


@pytest.fixture(scope="session")
def running_rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rgw]:
    server = Rgw(tmp_path_factory.mktemp("rgw"))
    yield server
    server.close()


@pytest.fixture
def rgw(running_rgw: Rgw) -> Iterator[Rgw]:
    """Ceph's gateway; what a test did to it is healed after it."""
    yield running_rgw
    running_rgw.heal()


@pytest.fixture
def rclone_server(tmp_path: Path) -> Iterator[Rclone]:
    home = tmp_path / "server"
    home.mkdir()
    server = Rclone(home)
    server.start()
    yield server
    server.kill()


def settings_of(server: Server, **more: Any) -> S3Settings:
    """The same for all tests but for `more`, so that clients are kept; `shared=True`: with a bucket to share."""
    given: dict[str, Any] = {"access_key": ACCESS, "secret_key": SECRET, "timeout": 2.0}
    if more.pop("shared", False):
        given["bucket"] = "shared"
        with suppress(ClientError):  # it is there
            client(server.port).create_bucket(Bucket="shared")
    return S3Settings(endpoint=server.endpoint, insecure_http=True, **{**given, **more})


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs run below the test's directory, and end with it."""
    monkeypatch.setenv("VOLKIT_RUN_DIR", str(tmp_path / "run"))
    yield
    stop_programs(tmp_path / "run")
    for mount in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(mount.mount_point, lazy=True)
