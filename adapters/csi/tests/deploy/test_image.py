"""`volkit deploy image`: a root file system that runs the driver by itself, and is the same each time."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

import volkit
from volkit import FailedPrecondition, cli, rootfs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("image") / "loop"
    assert cli.main(["deploy", "image", "--backend", "loop", "-o", "pool=/p", "--out", str(output)]) == 0
    return output


@pytest.mark.root
def test_the_driver_runs_with_nothing_of_the_host(made: Path, tmp_path: Path) -> None:
    with tarfile.open(made / "rootfs.tar") as tar:
        tar.extractall(root := tmp_path / "root", filter="tar")
    root.chmod(0o755)

    def said(*command: str) -> str:
        run = ["chroot", "--userspec=65532:65532", str(root), *command]
        done = subprocess.run(run, env={"PATH": rootfs.PATH}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("volkit-csi", "--version") == f"volkit-csi {volkit.__version__}\n"
    assert "ReportsCapacity" in said("volkit", "explain", "backend", "loop", "--json")
    modules = "import etcd3gw, grpc, prometheus_client, sqlite3, ssl, volkit_loop"
    said(
        "sh",
        "-c",
        f"python -c '{modules}' && mkfs.ext4 -V && mkfs.xfs -V && btrfs --version && mount --version",
    )
    assert not list(root.rglob("*.pyc"))


def test_it_is_the_same_each_time(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert cli.main(["deploy", "image", "--backend", "loop", "-o", "pool=/q", "--out", str(again)]) == 0
    for name in ("Dockerfile", "rootfs.tar"):
        assert (made / name).read_bytes() == (again / name).read_bytes()
    with tarfile.open(made / "rootfs.tar") as tar:
        members = tar.getmembers()
    assert {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, 0)}
    assert "opt/volkit/bin/volkit-csi" in {one.name for one in members}


def test_a_package_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="apt-get install no-such-package"):
        rootfs.make(tmp_path, (), ["no-such-package"])
