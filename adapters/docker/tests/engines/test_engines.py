"""On a real dockerd and a real podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from volkit.host import mounts
from volkit_docker import bundle

from .conftest import Docker, Plugin, certificates, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("dockerd", "docker", "busybox", "mkfs.ext4"),
    pytest.mark.timeout(300),
]


def content(docker: Docker, name: str, driver: str) -> str:
    """What is in the volume's file."""
    words = ["--rm", "--network", "none", "--volume-driver", driver, "-v", f"{name}:/data"]
    return docker.ok("run", *words, "bb:1", "cat", "/data/file")


def test_data_outlives_its_containers(docker: Docker, plugin: Plugin) -> None:
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    shown = json.loads(docker.ok("volume", "inspect", "v1"))[0]
    assert shown["Driver"] == plugin.name
    assert shown["Status"]["state"] == "created"
    docker.ok(
        "run", "--rm", "--network", "none", "-v", "v1:/data", "bb:1", "sh", "-c", "echo kept > /data/file"
    )
    assert plugin.mounted() == []
    assert content(docker, "v1", plugin.name) == "kept"
    docker.ok("run", "-d", "--name", "one", "--network", "none", "-v", "v1:/data", "bb:1", "sleep", "1000")
    docker.ok("run", "-d", "--name", "two", "--network", "none", "-v", "v1:/data", "bb:1", "sleep", "1000")
    docker.ok("exec", "one", "sh", "-c", "echo shared > /data/file")
    assert docker.ok("exec", "two", "cat", "/data/file") == "shared"
    assert docker.run("volume", "rm", "v1").returncode != 0
    docker.ok("rm", "-f", "one")
    assert docker.ok("exec", "two", "cat", "/data/file") == "shared"
    docker.ok("rm", "-f", "two")
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    docker.ok("volume", "rm", "v1")
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


def test_a_new_volume_gets_what_the_image_has_there(docker: Docker, plugin: Plugin) -> None:
    """And its owner, as a database's image counts on: a volume with lost+found in it got nothing."""
    make = "mkdir /data && echo image > /data/file && chown -R 999:999 /data && chmod 700 /data"
    docker.ok("run", "--name", "made", "--network", "none", "bb:1", "sh", "-c", make)
    docker.ok("commit", "made", "filled:1")
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    run = ("run", "--rm", "--network", "none", "-v", "v1:/data", "--user", "999:999", "filled:1")
    assert docker.ok(*run, "sh", "-c", "cat /data/file && echo used > /data/file") == "image"
    assert docker.ok(*run, "sh", "-c", "cat /data/file && stat -c %u:%a /data") == "used\n999:700"
    docker.ok("rm", "made")
    docker.ok("volume", "rm", "v1")


def test_cp_on_a_running_container_takes_nothing_away(docker: Docker, plugin: Plugin) -> None:
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    docker.ok("run", "-d", "--name", "one", "--network", "none", "-v", "v1:/data", "bb:1", "sleep", "1000")
    source = docker.home / "copied"
    source.write_text("copied")
    for _ in range(3):
        docker.ok("cp", str(source), "one:/data/file")
        docker.ok("cp", "one:/data/file", str(docker.home / "back"))
    assert docker.ok("exec", "one", "cat", "/data/file") == "copied"
    assert plugin.mounted()
    docker.ok("rm", "-f", "one")
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    docker.ok("volume", "rm", "v1")


def test_the_plugin_is_killed_with_a_container_running(docker: Docker, plugin: Plugin) -> None:
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    docker.ok("run", "-d", "--name", "one", "--network", "none", "-v", "v1:/data", "bb:1", "sleep", "1000")
    plugin.kill()
    docker.ok("exec", "one", "sh", "-c", "echo alive > /data/file")
    plugin.start()
    assert docker.ok("exec", "one", "cat", "/data/file") == "alive"
    docker.ok("rm", "-f", "one")
    wait_until("it is unmounted", lambda: plugin.mounted() == [])
    assert content(docker, "v1", plugin.name) == "alive"
    docker.ok("volume", "rm", "v1")


def test_a_plugin_that_is_away_makes_no_local_volume(docker: Docker, plugin: Plugin) -> None:
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    plugin.stop()
    words = [
        "run",
        "--rm",
        "--network",
        "none",
        "--volume-driver",
        plugin.name,
        "-v",
        "v1:/data",
        "bb:1",
        "ls",
    ]
    assert docker.run(*words).returncode != 0
    plugin.start()
    assert json.loads(docker.ok("volume", "inspect", "v1"))[0]["Driver"] == plugin.name
    docker.ok("volume", "rm", "v1")


def test_a_pool_that_is_away_makes_no_other_volume(docker: Docker, plugin: Plugin) -> None:
    """Neither a local one, nor an empty one in the directory on which the pool's disk is not mounted."""
    docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1")
    run = ("run", "--rm", "--network", "none", "-v", "v1:/data", "bb:1")
    docker.ok(*run, "sh", "-c", "echo kept > /data/file")
    away = plugin.pool.rename(plugin.pool.with_name("away"))

    def is_refused(said: str) -> None:
        assert said in docker.run(*run, "touch", "/data/file").stderr
        docker.ok(
            "volume", "create", "-d", plugin.name, "-o", "size=16Mi", "v1"
        )  # what Docker knows it does not make
        shown = json.loads(docker.ok("volume", "inspect", "v1"))[0]
        assert shown["Driver"] == plugin.name
        assert said in shown["Status"]["size"]
        assert docker.ok("volume", "ls", "-q", "-f", f"driver={plugin.name}") == "v1"

    is_refused("is away: is its file system mounted?")
    plugin.stop()
    plugin.pool.mkdir()
    plugin.start()
    is_refused("the storage does not have it: is all of it there?")
    assert list(plugin.pool.rglob("*.img")) == []
    plugin.stop()
    shutil.rmtree(plugin.pool)
    away.rename(plugin.pool)
    plugin.start()
    assert content(docker, "v1", plugin.name) == "kept"
    docker.ok("volume", "rm", "v1")


def test_a_managed_plugin(docker: Docker, tmp_path: Path) -> None:
    """It is created, used, upgraded with a container running, and removed. Without a registry, an upgrade is to remove
    it and to create the new one: what it knows is in the state directory, which is the host's.
    """
    output = tmp_path / "bundle"
    bundle.make("loop", output, ["pool=/var/lib/volkit/state/pool"])
    state = tmp_path / "state"
    (state / "pool").mkdir(parents=True)
    name = "volkit/loop:test"

    def install() -> None:
        docker.ok("plugin", "create", name, str(output))
        docker.ok("plugin", "set", name, f"state.source={state}")
        docker.ok("plugin", "enable", name)

    run = ("run", "--network", "none", "-v", "m1:/data")
    install()
    try:
        docker.ok("volume", "create", "-d", name, "-o", "size=16Mi", "m1")
        docker.ok(*run, "--rm", "bb:1", "sh", "-c", "echo kept > /data/file")
        inspect = ("volume", "inspect", "-f", "{{.Status.state}}", "m1")
        wait_until("it is unmounted", lambda: docker.ok(*inspect) == "created")
        docker.ok("plugin", "disable", "-f", name)
        docker.ok("plugin", "enable", name)
        assert docker.ok(*run, "--rm", "bb:1", "cat", "/data/file") == "kept"

        docker.ok(*run, "-d", "--name", "one", "bb:1", "sleep", "1000")
        assert (
            docker.run("plugin", "upgrade", "--skip-remote-check", name).returncode != 0
        )  # there is no registry
        config = json.loads((output / "config.json").read_text())
        (output / "config.json").write_text(json.dumps({**config, "description": "the next one"}))
        docker.ok("plugin", "rm", "-f", name)
        assert docker.ok("exec", "one", "cat", "/data/file") == "kept"
        install()
        assert docker.ok("plugin", "inspect", "-f", "{{.Config.Description}}", name) == "the next one"
        docker.ok("exec", "one", "sh", "-c", "echo last > /data/file")
        # the mount that was the old plugin's lives in the container, and both see one file system
        assert docker.ok(*run, "--rm", "bb:1", "cat", "/data/file") == "last"
        assert docker.ok("exec", "one", "cat", "/data/file") == "last"
        docker.ok("rm", "-f", "one")
        assert docker.ok(*run, "--rm", "bb:1", "cat", "/data/file") == "last"
        wait_until("it is unmounted", lambda: docker.ok(*inspect) == "created")
        docker.ok("volume", "rm", "m1")
        assert list((state / "pool").rglob("*.img")) == []
        docker.ok("plugin", "disable", name)
    finally:
        docker.run("rm", "-f", "one")
        docker.run("plugin", "disable", "-f", name)
        docker.run("plugin", "rm", "-f", name)


@pytest.mark.needs("openssl")
def test_docker_finds_a_plugin_behind_tls_by_its_spec(
    docker: Docker, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    certificates(tmp_path)
    (tmp_path / "pool").mkdir()
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    name, specs = f"vt{os.getpid()}", Path("/etc/docker/plugins")
    words = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", f"{tmp_path}/state"]
    words += ["--name", name, "--tcp", address, "--spec-dir", str(specs)]
    for flag, file in (("cert", "server.pem"), ("key", "server.key"), ("ca", "ca.pem")):
        words += [f"--tls-{flag}", str(tmp_path / file)]
    words += ["--tls-client-cert", f"{tmp_path}/client.pem", "--tls-client-key", f"{tmp_path}/client.key"]
    plugin = subprocess.Popen([sys.executable, "-m", "volkit_docker.main", *words])
    try:
        wait_until("it is announced", (specs / f"{name}.json").exists)
        docker.ok("volume", "create", "-d", name, "-o", "size=16Mi", "tls1")
        docker.ok("run", "--rm", "--network", "none", "-v", "tls1:/data", "bb:1", "touch", "/data/file")
        docker.ok("volume", "rm", "tls1")
        plugin.terminate()
        assert plugin.wait(90) == 0
        assert not (specs / f"{name}.json").exists()
    finally:
        plugin.kill()
        plugin.wait()
        (specs / f"{name}.json").unlink(missing_ok=True)


@pytest.mark.needs("podman")
def test_podman(docker: Docker, tmp_path: Path) -> None:
    """It mounts once for all containers, and says nothing when they restart, or while its user has the volume mounted
    on the host: nothing is taken away then.
    """
    plugin = Plugin(tmp_path / "plugin", f"vp{os.getpid()}", grace=0.5, seen=0.1, settle=0.1).start()
    config = tmp_path / "containers.conf"
    config.write_text(
        '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\n'
        f'[engine.volume_plugins]\n{plugin.name}="{plugin.socket}"\n'
        '[containers]\ndefault_ulimits=["nofile=1024:20000","nproc=1024:1024"]\n'
    )
    places = ["--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/run", "--tmpdir", f"{tmp_path}/tmp"]

    def podman(*words: str) -> str:
        done = subprocess.run(
            ["podman", *places, "--volumepath", f"{tmp_path}/vols", "--storage-driver", "vfs", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "CONTAINERS_CONF": str(config)},
        )
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    try:
        podman("import", str(docker.home / "image.tar"), "localhost/bb:1")
        podman("volume", "create", "--driver", plugin.name, "-o", "size=16Mi", "pv1")
        run = ["run", "--rm", "--network", "none", "-v", "pv1:/data", "localhost/bb:1"]
        podman(*run, "/bin/sh", "-c", "echo kept > /data/file")
        assert podman(*run, "/bin/cat", "/data/file") == "kept"
        wait_until("it is unmounted", lambda: plugin.mounted() == [])
        run[1:2] = ["-d", "--name", "one"]
        podman(*run, "/bin/sleep", "1000")
        for _ in range(3):
            podman("restart", "-t", "0", "one")
        assert podman("exec", "one", "/bin/cat", "/data/file") == "kept"
        podman("volume", "mount", "pv1")
        podman("rm", "-f", "-t", "0", "one")
        time.sleep(2.0)  # beyond what a start may take
        assert len(plugin.mounted()) == 2
        podman(*run, "/bin/sleep", "1000")
        podman("rm", "-f", "-t", "0", "one")
        podman("volume", "unmount", "pv1")
        assert plugin.mounted() == []
        podman("volume", "rm", "pv1")
        assert plugin.ok("VolumeDriver.List")["Volumes"] == []
    finally:
        plugin.end()
        for one in reversed(mounts.mounts(under=str(tmp_path))):
            mounts.unmount(one.mount_point, lazy=True)
