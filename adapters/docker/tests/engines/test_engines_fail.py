"""A real dockerd that is stopped, killed and started again, a disk that is full, a machine that reboots."""

from __future__ import annotations

import json
import os
import string
import threading
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
    docker.ok(*RUN, "-d", "--name", name, *more, "-v", f"{volume}:/data", "bb:1", "sleep", "1000")


def content(docker: Docker, volume: str) -> str:
    """What is in the volume's file, asked in a container of its own."""
    return docker.ok(*RUN, "--rm", "-v", f"{volume}:/data", "bb:1", "cat", "/data/file")


def is_free(docker: Docker, plugin: Plugin, volume: str) -> None:
    """Nobody has it, and it can be removed."""
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    docker.ok("volume", "rm", volume)
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


@pytest.mark.parametrize("flags", [(), ("--live-restore",)], ids=["", "live-restore"])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_dockerd_ends_with_containers_running(
    docker: Docker, plugin: Plugin, how: str, flags: tuple[str, ...]
) -> None:
    """Of a dockerd that is killed the containers live on, as do those of one that ends under live-restore. The next
    dockerd adopts them then; else it ends them, and starts again those that are always to be there, with the same ID.
    """
    docker.stop()
    docker.start(*flags)
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    run(docker, "one", "v1", "--restart", "always")
    run(docker, "two", "v1")
    docker.ok("exec", "one", "sh", "-c", "echo kept > /data/file")
    getattr(docker, how)()
    lives = how == "kill" or bool(flags)
    assert bool(plugin.mounted()) == lives
    docker.start(*flags)
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    assert (docker.run("exec", "two", "cat", "/data/file").stdout.strip() == "kept") == bool(flags)
    assert plugin.mounted()
    docker.ok("exec", "one", "sh", "-c", "echo again > /data/file")
    assert docker.run("volume", "rm", "v1").returncode != 0
    docker.ok("rm", "-f", "one", "two")
    assert content(docker, "v1") == "again"
    is_free(docker, plugin, "v1")
    docker.stop()


def test_the_plugin_dies_while_dockerd_is_away(docker: Docker, plugin: Plugin) -> None:
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    run(docker, "one", "v1", "--restart", "always")
    docker.ok("exec", "one", "sh", "-c", "echo kept > /data/file")
    docker.kill()
    plugin.kill()
    plugin.start()
    docker.start()
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    docker.ok("rm", "-f", "one")
    is_free(docker, plugin, "v1")


def test_a_reboot(docker: Docker, plugin: Plugin) -> None:
    """Everything that runs and all mounts are gone, the records are there. The container comes back by itself, and its
    end leaves nothing: who had the volume before the reboot has it no more.
    """
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v2")
    run(docker, "one", "v1", "--restart", "always")
    run(docker, "two", "v2")
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
    assert plugin.ok("VolumeDriver.Get", {"Name": "v2"})["Volume"]["Status"]["holders"] == {}
    docker.start()
    wait_until("it runs", lambda: docker.run("exec", "one", "cat", "/data/file").stdout.strip() == "kept")
    docker.ok("rm", "-f", "one", "two")
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    assert content(docker, "v2") == "kept"
    docker.ok("volume", "rm", "v2")
    is_free(docker, plugin, "v1")


def test_prune(docker: Docker, plugin: Plugin) -> None:
    """What a container has is kept, also when the container is stopped; the rest is removed."""
    for name in ("used", "stopped", "idle"):
        docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", name)
    run(docker, "one", "used")
    run(docker, "two", "stopped")
    docker.ok("stop", "-t", "0", "two")
    docker.ok("volume", "prune", "-f", *prune_all(docker))
    left = [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]]
    assert left == ["stopped", "used"]
    docker.ok("rm", "-f", "one", "two")
    docker.ok("volume", "prune", "-f", *prune_all(docker))
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []
    assert plugin.mounted() == []


def prune_all(docker: Docker) -> tuple[str, ...]:
    """Since Docker 23 volumes with a name are kept unless it is told otherwise."""
    version = docker.ok("version", "-f", "{{.Server.Version}}")
    return ("--filter", "all=1") if int(version.split(".")[0]) >= 23 else ()


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
        docker.ok(*create, "v1")
        fill = "dd if=/dev/zero of=/data/big bs=64k; echo kept > /data/file || echo full"
        assert "No space left" in docker.run(*RUN, "--rm", "-v", "v1:/data", "bb:1", "sh", "-c", fill).stderr
        status = json.loads(docker.ok("volume", "inspect", "v1"))[0]["Status"]
        assert status["state"] == "created"
        (small / "ballast").write_bytes(bytes(24 << 20))
        refused = docker.run(*create, "v2")
        assert refused.returncode != 0
        assert "room" in refused.stderr or "space" in refused.stderr, refused.stderr
        assert [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]] == ["v1"]
        (small / "ballast").unlink()
        docker.ok("run", "--network", "none", "--rm", "-v", "v1:/data", "bb:1", "rm", "/data/big")
        docker.ok("volume", "rm", "v1")
        docker.ok(*create, "v2")
        docker.ok("volume", "rm", "v2")
    finally:
        plugin.end()
        mounts.unmount(str(small), lazy=True)


def test_every_name_that_docker_takes_and_two_hundred_volumes(docker: Docker, plugin: Plugin) -> None:
    """By Docker's API: every printable character, and many at once, several of them the same."""
    odd = [f"n{one}n" for one in string.printable if one not in string.whitespace + "/"]
    odd += ["Ünï-日本", "with space", "n" * 255, ".hidden", "-dash", "_", "a/b", "../up", "%2F"]
    names = [*odd, *(f"v{number}" for number in range(200))]
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
