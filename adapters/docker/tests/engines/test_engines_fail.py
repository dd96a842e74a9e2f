"""A real dockerd that is stopped, killed and started again, a disk that is full, a machine that reboots."""

from __future__ import annotations

import json
import os
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit.host import loop, mounts

from .conftest import Docker, Plugin, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("dockerd", "docker", "containerd", "busybox", "mkfs.ext4"),
    pytest.mark.timeout(300),
]

RUN = ("run", "--network", "none")


def run(docker: Docker, name: str, volume: str, *more: str) -> None:
    """A container that goes on."""
    docker.ok(
        *RUN,
        "-d",
        "--name",
        name,
        "--stop-signal",
        "KILL",
        *more,
        "-v",
        f"{volume}:/data",
        "bb:1",
        "sleep",
        "1000",
    )


def content(docker: Docker, volume: str) -> str:
    """What is in the volume's file, asked in a container of its own."""
    return docker.ok(*RUN, "--rm", "-v", f"{volume}:/data", "bb:1", "cat", "/data/file")


def is_free(docker: Docker, plugin: Plugin, volume: str) -> None:
    """Nobody has it, and it can be removed."""
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    docker.ok("volume", "rm", volume)
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Plugin]:
    """A plugin that believes what it sees sooner."""
    made = Plugin(tmp_path / "hasty", f"vh{os.getpid()}", grace=40.0, seen=1.0, settle=0.5)
    yield made.start()
    made.end()


@pytest.mark.parametrize("flags", [(), ("--live-restore",)], ids=["", "live-restore"])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_dockerd_ends_with_containers_running(
    docker: Docker, hasty: Plugin, how: str, flags: tuple[str, ...]
) -> None:
    """Of a dockerd that is killed the containers live on, as do those of one that ends under live-restore. The next
    dockerd adopts them then; else it ends them, and starts again those that are always to be there, with the same ID.
    """
    plugin = hasty
    docker.stop()
    docker.start(*flags)
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "f1")
    run(docker, "one", "f1", "--restart", "always")
    run(docker, "two", "f1")
    docker.ok("exec", "one", "sh", "-c", "echo kept > /data/file")
    getattr(docker, how)()
    lives = how == "kill" or bool(flags)
    assert bool(plugin.mounted()) == lives
    docker.start(*flags)
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    assert (docker.run("exec", "two", "cat", "/data/file").stdout.strip() == "kept") == bool(flags)
    assert plugin.mounted()
    docker.ok("exec", "one", "sh", "-c", "echo again > /data/file")
    assert docker.run("volume", "rm", "f1").returncode != 0
    docker.ok("rm", "-f", "one", "two")
    assert content(docker, "f1") == "again"
    is_free(docker, plugin, "f1")
    docker.stop()


def test_the_plugin_dies_while_dockerd_is_away(docker: Docker, hasty: Plugin) -> None:
    """What dockerd mounts again and ends once is taken down when nobody has had it for the grace."""
    plugin = hasty
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "f1")
    run(docker, "one", "f1", "--restart", "always")
    docker.ok("exec", "one", "sh", "-c", "echo kept > /data/file")
    docker.kill()
    plugin.kill()
    plugin.start()
    docker.start()
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    docker.ok("rm", "-f", "one")
    is_free(docker, plugin, "f1")


def test_a_reboot(docker: Docker, plugin: Plugin) -> None:
    """Everything that runs and all mounts are gone, the records are there. The container comes back by itself, and its
    end leaves nothing: who had the volume before the reboot has it no more.
    """
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "f1")
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "f2")
    run(docker, "one", "f1", "--restart", "always")
    run(docker, "two", "f2")
    for name in ("one", "two"):
        docker.ok("exec", name, "sh", "-c", "echo kept > /data/file")
    docker.kill()
    plugin.kill()
    docker.end_containers()
    for point in reversed(plugin.mounted()):
        mounts.unmount(point)
    for device, backing in list(loop.attached()):
        if backing.startswith(f"{plugin.home}/"):
            loop.detach(device)
    plugin.start()
    assert plugin.ok("VolumeDriver.Get", {"Name": "f2"})["Volume"]["Status"]["holders"] == {}
    docker.start()
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    docker.ok("rm", "-f", "one", "two")
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    assert content(docker, "f2") == "kept"
    docker.ok("volume", "rm", "f2")
    is_free(docker, plugin, "f1")


def test_prune(docker: Docker, plugin: Plugin) -> None:
    """Docker prunes volumes of its own driver `local` alone, and containers of any: none loses what it has."""
    for name in ("used", "stopped", "idle"):
        docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", name)
    run(docker, "one", "used")
    run(docker, "two", "stopped")
    docker.ok("exec", "two", "sh", "-c", "echo kept > /data/file")
    docker.ok("stop", "two")
    docker.ok("system", "prune", "-f", "--volumes")
    assert docker.run("inspect", "two").returncode != 0
    left = [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]]
    assert left == ["idle", "stopped", "used"]
    assert content(docker, "stopped") == "kept"
    docker.ok("exec", "one", "touch", "/data/file")
    docker.ok("rm", "-f", "one")
    docker.ok("volume", "rm", "idle", "stopped")
    is_free(docker, plugin, "used")


def test_a_full_volume_and_a_full_pool(docker: Docker, tmp_path: Path) -> None:
    """The volume is full: its container is told, and nothing else is. The pool is full: no volume is made, and when
    there is room again the same command makes it.
    """
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("none", str(small), "tmpfs", ["size=48m"])
    plugin = Plugin(small, f"vf{os.getpid()}", overcommit="1").start()
    create = ("volume", "create", "-d", plugin.name, "-o", "size=16Mi")
    try:
        docker.ok(*create, "f1")
        fill = "dd if=/dev/zero of=/data/big bs=64k; echo kept > /data/file || echo full"
        assert "No space left" in docker.run(*RUN, "--rm", "-v", "f1:/data", "bb:1", "sh", "-c", fill).stderr
        status = json.loads(docker.ok("volume", "inspect", "f1"))[0]["Status"]
        assert status["state"] == "created"
        (small / "ballast").write_bytes(bytes(24 << 20))
        refused = docker.run(*create, "f2")
        assert refused.returncode != 0
        assert "do not fit into the pool" in refused.stderr
        assert [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]] == ["f1"]
        (small / "ballast").unlink()
        docker.ok("run", "--network", "none", "--rm", "-v", "f1:/data", "bb:1", "rm", "/data/big")
        docker.ok("volume", "rm", "f1")
        docker.ok(*create, "f2")
        docker.ok("volume", "rm", "f2")
    finally:
        plugin.end()
        mounts.unmount(str(small), lazy=True)


def test_every_name_that_docker_takes_and_two_hundred_volumes(docker: Docker, plugin: Plugin) -> None:
    """By Docker's API: every printable character, and many at once, several of them the same."""
    odd = [f"n{one}n" for one in string.printable if one not in string.whitespace + "/"]
    odd += ["Ünï-日本", "with space", "n" * 255, ".hidden", "-dash", "_", "a/b", "../up", "%2F"]
    names = [*odd, *(f"many{number}" for number in range(200))]
    refused: list[tuple[str, Any]] = []

    def make(part: list[str]) -> None:
        for name in part:
            request = {"Name": name, "Driver": plugin.name, "DriverOpts": {"size": "1Mi"}}
            status, answer = docker.api("/volumes/create", request)
            if status != 201:
                refused.append((name, answer))

    threads = [threading.Thread(target=make, args=[names[first:]]) for first in (0, 0, 60, 120)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert refused == []
    listed = [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]]
    assert sorted(listed) == sorted(set(names))
    shown = docker.api("/volumes", method="GET")[1]["Volumes"]
    assert sorted(one["Name"] for one in shown if one["Driver"] == plugin.name) == sorted(set(names))
    for name in names:
        plugin.ok("VolumeDriver.Remove", {"Name": name})
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []
