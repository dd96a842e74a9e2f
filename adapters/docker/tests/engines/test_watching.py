"""What is seen of a plugin that Docker uses: the containers of a volume, the log of a call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Docker, Plugin

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("dockerd", "docker", "busybox", "mkfs.ext4"),
    pytest.mark.timeout(300),
]
VOLKIT = Path(sys.executable).with_name("volkit")


def volkit(command: str, *words: str) -> Any:
    done = subprocess.run(
        [VOLKIT, command, *words, "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_the_containers_that_use_a_volume_are_named(docker: Docker, plugin: Plugin) -> None:
    for name in ("v1", "v2"):
        docker.ok("volume", "create", "-d", plugin.name, "-o", "size=16Mi", name)
    words = ("--network", "none", "-v", "v1:/data", "bb:1", "sleep", "1000")
    one = docker.ok("run", "-d", "--name", "one", *words)
    two = docker.ok("run", "-d", "--name", "two", *words)
    flags = ("--backend", "loop", "-o", f"pool={plugin.home}/pool", "--state-dir", str(plugin.state))
    shown = {row["name"]: row for row in volkit("volumes", *flags, "--node-id", "n1")["volumes"]}
    assert {user["id"] for user in shown["v1"]["users"]} == {one, two}
    assert (shown["v1"]["state"], shown["v1"]["holders"]) == ("published", 2)
    assert shown["v1"]["used"] < shown["v1"]["size"] == 16 << 20
    assert (shown["v2"]["state"], shown["v2"]["users"]) == ("created", [])
    [told] = volkit("top", "--state-dir", str(plugin.state))
    assert told["operations"]["create_volume"]["ended"] == 2
    docker.ok("rm", "-f", "one", "two")
    docker.ok("volume", "rm", "v1", "v2")
    staged = [line for line in plugin.log.read_text().splitlines() if "node_stage " in line]
    published = [line for line in plugin.log.read_text().splitlines() if "node_publish " in line]
    calls = [line.partition("[")[2].partition("]")[0] for line in (*staged, *published)]
    assert len(calls) >= 2
    assert calls[0] == calls[len(staged)], "Docker's one Mount is several operations under one id"
