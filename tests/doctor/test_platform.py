"""What the doctor says of the platform: nothing of a good one, and what is missing of others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from volkit.doctor import Finding, platform
from volkit.doctor.node import Table
from volkit.engine import Engine
from volkit.errors import FailedPrecondition
from volkit.host import mounts, process
from volkit.journal import Put
from volkit.registry import load_backend


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "pool").mkdir()
    backend = load_backend("loop")
    settings = backend.settings(pool=tmp_path / "pool")
    made = Engine(backend, settings, state_dir=tmp_path / "state", node_id="n1")
    yield made
    made.close()


@pytest.fixture
def kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """kubelet's directory, with a registry in it."""
    directory = tmp_path / "kubelet"
    (directory / "plugins_registry").mkdir(parents=True)
    (directory / "plugins/loop.csi.volkit.io").mkdir(parents=True)
    monkeypatch.setattr(platform, "KUBELET_DIRECTORIES", (str(directory),))
    return directory


def found(engine: Engine) -> list[tuple[str, str]]:
    return [(one.sort, one.what) for one in examine(engine)]


def examine(engine: Engine) -> list[Finding]:
    return list(platform.examine_platform(engine, Table()))


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as made:
        directory = os.open(path.parent, os.O_PATH)  # the path may be too long
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        made.listen()
        yield


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "resize2fs", "xfs_growfs")
def test_a_good_platform_has_nothing(engine: Engine) -> None:
    assert found(engine) == []


def test_programs_that_are_missing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = process.find_program

    def find(name: str) -> str:
        if name in ("mkfs.ext4", "xfs_growfs"):
            raise FailedPrecondition(f"{name} is not installed")
        return real(name)

    monkeypatch.setattr(process, "find_program", find)
    programs = [one for one in examine(engine) if "not installed" in one.what]
    assert [(one.sort, one.command) for one in programs] == [
        ("unfit", "apt-get install e2fsprogs"),
        ("advice", "apt-get install xfsprogs"),
    ]
    assert "mkfs.ext4 is not installed" in programs[0].what


def test_a_file_system_that_the_kernel_does_not_have(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_fs_types", lambda engine: ("nosuchfs", "reiser7"))
    monkeypatch.setattr(platform, "_is_module", lambda name, release: False)
    kernel = [one for one in found(engine) if "the kernel has no" in one[1]]
    assert [sort for sort, _ in kernel] == ["unfit", "advice"]


def test_a_module_is_looked_for_where_there_are_lists_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        platform, "Path", lambda *words: tmp_path.joinpath(*(one.strip("/") for one in words))
    )
    assert platform._is_module("xfs", "6.1"), "nothing is known: it may be there"
    (tmp_path / "lib/modules/6.1").mkdir(parents=True)
    (tmp_path / "lib/modules/6.1/modules.dep").write_text("kernel/fs/xfs/xfs.ko.zst: kernel/lib/crc.ko\n")
    assert platform._is_module("xfs", "6.1")
    assert not platform._is_module("btrfs", "6.1")


@pytest.mark.root
def test_mounts_below_kubelets_directory_have_to_propagate(engine: Engine, kubelet: Path) -> None:
    mounts.mount("none", str(kubelet), "tmpfs")
    try:
        (kubelet / "plugins_registry").mkdir()
        mounts.set_propagation(str(kubelet), "private")
        [(sort, what)] = [one for one in found(engine) if "mount namespace" in one[1]]
        assert sort == "unfit"
        assert f"{kubelet}, which is private" in what
        mounts.set_propagation(str(kubelet), "shared")
        assert not [one for one in found(engine) if "mount namespace" in one[1]]
    finally:
        mounts.unmount(str(kubelet))


def test_a_driver_that_kubelet_does_not_know(engine: Engine, kubelet: Path) -> None:
    endpoint = kubelet / "plugins/loop.csi.volkit.io/csi.sock"
    registration = kubelet / "plugins_registry/loop.csi.volkit.io-reg.sock"

    def told() -> list[tuple[str, str]]:
        return [one for one in found(engine) if one[1].startswith("the driver")]

    with engine.listening(str(endpoint)):
        assert told() == [], "it does not listen yet"
        with listening(endpoint):
            [(sort, what)] = told()
            assert (sort, "not registered" in what) == ("unfit", True)
            with listening(registration):
                assert told() == []
            [(sort, what)] = told()
            assert "nobody listens" in what
    elsewhere = kubelet.parent / "csi.sock"
    with engine.listening(str(elsewhere)), listening(elsewhere):
        [(sort, what)] = told()
        assert (sort, f"from {kubelet}/plugins" in what) == ("advice", True)


def test_kubelets_directory_is_what_its_command_line_says() -> None:
    assert platform._root_dir(("kubelet", "--root-dir=/data/kubelet", "--v=2")) == "/data/kubelet"
    assert platform._root_dir(("kubelet", "--root-dir", "/data/kubelet")) == "/data/kubelet"
    assert platform._root_dir(("kubelet", "--root-dir")) == ""


def test_versions_that_do_not_belong_together(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/volkit_acme-9.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: volkit-acme\nVersion: 9.0\nRequires-Dist: volkit-sdk==9.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    [(sort, what)] = [one for one in found(engine) if "volkit-acme" in one[1]]
    assert sort == "unfit"
    assert f"volkit-sdk 9.0, and {metadata.version('volkit-sdk')} is installed" in what


def test_a_driver_that_was_not_restarted_after_an_upgrade(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.watch()
    assert not [one for one in found(engine) if "that runs" in one[1]]
    status: Any = engine._status
    monkeypatch.setitem(status._facts, "version", "0.0.9")
    [(sort, what)] = [one for one in found(engine) if "that runs" in one[1]]
    assert (sort, "0.0.9" in what) == ("advice", True)


def test_a_clock_that_was_set_back(engine: Engine) -> None:
    record = {"state": "creating", "request": None, "since": time.time() + 3600}
    engine.journal.write(Put("volume-name/a", record))
    [(sort, what)] = [one for one in found(engine) if "clock" in one[1]]
    assert sort == "unfit"
    assert "volume-name/a" in what
