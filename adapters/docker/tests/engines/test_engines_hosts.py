"""Two engines, each with its plugin, on one etcd and one storage: as on two hosts."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Docker, Plugin, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("dockerd", "docker", "containerd", "busybox", "mkfs.ext4", "etcd"),
    pytest.mark.timeout(300),
]

RUN = ("run", "-d", "--network", "none", "--stop-signal", "KILL")
LOOP = ("bb:1", "sh", "-c", "echo kept > /data/file; while :; do sleep 1; done")


@pytest.fixture
def etcd(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[str]:
    """The journal's URL, on an etcd of one member."""
    client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = ["etcd", "--data-dir", str(tmp_path / "etcd"), "--initial-cluster", f"default=http://{peer}"]
    for side, address in (("client", client), ("peer", peer)):
        listen, advertise = (
            f"--listen-{side}-urls",
            f"--{'initial-' if side == 'peer' else ''}advertise-{side}-urls",
        )
        command += [listen, f"http://{address}", advertise, f"http://{address}"]
    with open(tmp_path / "etcd.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    host, port = client.split(":")

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    try:
        wait_until("etcd answers", answers)
        yield f"etcd://{client}/volumes"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def second() -> Iterator[Docker]:
    made = Docker()
    try:
        made.start().make_image()
        yield made
    finally:
        made.end()


@pytest.fixture
def plugins(tmp_path: Path, etcd: str) -> Iterator[list[Plugin]]:
    pool = tmp_path / "pool"
    made = [
        Plugin(tmp_path / node, f"{node}{os.getpid()}", pool=pool, node=node, journal=etcd)
        for node in ("n1", "n2")
    ]
    try:
        yield [one.start() for one in made]
    finally:
        for one in made:
            one.end()


def test_a_volume_goes_from_engine_to_engine(docker: Docker, second: Docker, plugins: list[Plugin]) -> None:
    """It is seen on both, protected while one has it, and its data goes along."""
    one, two = plugins
    docker.ok("volume", "create", "-d", one.name, "-o", "size=16Mi", "both")
    assert docker.ok("volume", "inspect", "-f", "{{.Scope}}", "both") == "global"
    assert second.ok("volume", "ls", "-q", "-f", f"driver={two.name}") == "both"
    docker.ok(*RUN, "--name", "first", "-v", "both:/data", *LOOP)
    wait_until("it has written", lambda: docker.run("exec", "first", "cat", "/data/file").stdout == "kept\n")
    refused = second.run(*RUN, "--volume-driver", two.name, "-v", "both:/data", *LOOP)
    assert "in use on node 'n1'" in refused.stderr
    assert second.run("volume", "rm", "both").returncode
    docker.ok("rm", "-f", "first")
    words = ["run", "--rm", "--network", "none", "--volume-driver", two.name, "-v", "both:/data", "bb:1"]
    assert second.ok(*words, "cat", "/data/file") == "kept"
    wait_until("it is unmounted", lambda: one.mounted() + two.mounted() == [])
    second.run("container", "prune", "-f")
    second.ok("volume", "rm", "both")
    assert one.ok("VolumeDriver.List")["Volumes"] == []
