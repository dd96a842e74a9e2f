"""The Docker plugin on two hosts that share an etcd: volumes go from one to the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from volkit import AccessMode, Engine, Journal, Limits, VolkitError, open_journal
from volkit.testing.memory import MemoryBackend, MemorySettings, memory_settings
from volkit_docker.service import Service

Cluster = Any  # of tests/conftest.py


class OneNode(MemoryBackend):
    """Volumes for one node at a time."""

    name = "one-node"
    limits = Limits(access_modes=frozenset({AccessMode.SINGLE_NODE_WRITER}))


def service(tmp_path: Path, node: str, settings: MemorySettings, journal: Journal) -> Service:
    engine = Engine(OneNode, settings, state_dir=tmp_path / node, journal=journal, node_id=node)
    return Service(engine, tmp_path / node / "mounts")


@pytest.mark.root
@pytest.mark.needs("etcd", "etcdctl")
def test_two_hosts_share_volumes_and_one_uses_each(etcd: Cluster, tmp_path: Path) -> None:
    settings = memory_settings(root=tmp_path / "volumes")
    url = etcd.url()
    one, two = (service(tmp_path, node, settings, open_journal(url)) for node in ("one", "two"))
    try:
        assert one.capabilities({}) == {"Capabilities": {"Scope": "global"}}
        one.create({"Name": "v", "Opts": {"size": "1Mi"}})
        assert [volume["Name"] for volume in two.listing({})["Volumes"]] == ["v"]
        path = two.mount({"Name": "v", "ID": "a"})["Mountpoint"]
        Path(path, "file").write_text("content")
        with pytest.raises(VolkitError, match="in use on node 'two'"):
            one.mount({"Name": "v", "ID": "b"})
        with pytest.raises(VolkitError):
            one.remove({"Name": "v"})
        two.unmount({"Name": "v", "ID": "a"})
        path = one.mount({"Name": "v", "ID": "b"})["Mountpoint"]
        assert Path(path, "file").read_text() == "content"
        one.unmount({"Name": "v", "ID": "b"})
        two.remove({"Name": "v"})
        assert one.listing({})["Volumes"] == []
        assert json.dumps([entry.key for entry in one.engine.journal.scan("")]) == "[]"
    finally:
        for each in (one, two):
            each.engine.close()
