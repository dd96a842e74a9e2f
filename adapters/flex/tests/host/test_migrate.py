"""From FlexVolume to CSI: the same volume, with its data, published by the engine that a CSI driver runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import volkit
from volkit import (
    Capability,
    Engine,
    NodePublishRequest,
    NodeStageRequest,
    NodeUnpublishRequest,
    NodeUnstageRequest,
)
from volkit_flex.main import run
from volkit_flex.records import Records
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings

from .conftest import Host

pytestmark = pytest.mark.root


def pv(host: Host, **flex: Any) -> Path:
    spec = {
        "capacity": {"storage": "32Mi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": "claim", "namespace": "ns", "uid": "gone"},
        "flexVolume": {
            "driver": "acme/loop",
            "fsType": "ext4",
            "secretRef": {"name": "keys", "namespace": "ns"},
            "options": {"volume": "v1", "size": "32Mi", "note": "kept"},
            **flex,
        },
    }
    metadata = {
        "name": "pv-1",
        "labels": {"a": "b"},
        "annotations": {"own": "1", "pv.kubernetes.io/bound-by-controller": "yes"},
        "uid": "x",
    }
    path = host.home / "pv.yaml"
    path.write_text(yaml.safe_dump({"kind": "PersistentVolume", "metadata": metadata, "spec": spec}))
    return path


def migrate(host: Host, path: Path, *more: str) -> int:
    place = ["--vendor", "acme", "--driver", "loop", "--plugin-dir", str(host.plugins)]
    return run(["migrate", *place, str(path), *more])


def test_a_flex_volume_is_published_by_csi_with_its_data(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    kubelet = host.install()
    pod = kubelet.start_pod("u1", "pv-1", {"volume": "v1", "size": "32Mi"})
    (pod / "data").write_text("written under Flex")
    assert migrate(host, pv(host)) == 1
    assert "end its pods first" in capsys.readouterr().err
    kubelet.end_pod("u1", "pv-1")
    assert migrate(host, pv(host)) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["metadata"] == {"name": "pv-1", "labels": {"a": "b"}, "annotations": {"own": "1"}}
    spec, csi = made["spec"], made["spec"]["csi"]
    assert "flexVolume" not in spec
    assert spec["claimRef"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "ns",
        "name": "claim",
    }
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    assert csi["driver"] == "loop.csi.volkit.io"
    assert csi["nodeStageSecretRef"] == {"name": "keys", "namespace": "ns"}
    assert csi["volumeAttributes"] == {"note": "kept"}  # and no permission to format what has data
    terms = spec["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["node1"]

    engine = Engine(LoopBackend, LoopSettings(pool=host.pool), state_dir=host.home / "csi", node_id="node1")
    staging, target = str(host.home / "staging"), str(host.home / "target")
    common: dict[str, Any] = {
        "volume_id": csi["volumeHandle"],
        "capability": Capability(fs_type=csi["fsType"]),
        "volume_context": csi["volumeAttributes"],
    }
    engine.run("node_stage", NodeStageRequest(staging_target_path=staging, **common))
    engine.run("node_publish", NodePublishRequest(target_path=target, staging_target_path=staging, **common))
    assert (Path(target) / "data").read_text() == "written under Flex"
    volume_id = csi["volumeHandle"]
    engine.run("node_unpublish", NodeUnpublishRequest(volume_id=volume_id, target_path=target))
    engine.run("node_unstage", NodeUnstageRequest(volume_id=volume_id, staging_target_path=staging))
    engine.close()
    host.assert_clean()


def test_what_a_pv_has_besides_goes_along(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """What FlexVolume has in options and CSI in the PV; whose Secret it is; where it may be used; what its class is."""
    kubelet = host.install()
    kubelet.start_pod("u1", "pv-1", {"volume": "v1", "size": "32Mi"})
    kubelet.end_pod("u1", "pv-1")
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    options = {"volume": "v1", "mountOptions": "noatime,ro", "fs-type": "xfs", "secretKey": "hunter2"}
    path = pv(host, secretRef={"name": "keys"}, options=options)
    old = yaml.safe_load(path.read_text())
    old["spec"] |= {
        "storageClassName": "fast",
        "mountOptions": ["nodiratime"],
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}},
    }
    path.write_text(yaml.safe_dump({"kind": "List", "items": [old]}))
    capsys.readouterr()
    assert migrate(host, path) == 0
    said = capsys.readouterr()
    spec = yaml.safe_load(said.out)["spec"]
    assert spec["storageClassName"] == "fast"
    assert spec["mountOptions"] == ["nodiratime", "noatime"]
    assert spec["csi"]["readOnly"] is True
    assert spec["csi"]["fsType"] == "xfs"
    assert spec["csi"]["nodePublishSecretRef"] == {"name": "keys", "namespace": "ns"}
    (term,) = spec["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0] == zone
    assert term["matchExpressions"][1]["values"] == ["node1"]
    assert "hunter2" not in said.out + said.err
    assert "secretKey" in said.err


def test_another_drivers_pv_is_not_migrated(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.install()
    assert migrate(host, pv(host, driver="other/loop")) == 2
    assert "is of the driver 'other/loop'" in capsys.readouterr().err


def test_a_stale_record_hinders_no_migration(host: Host) -> None:
    kubelet = host.install()
    path = kubelet.start_pod("u1", "pv-1", {"volume": "v1", "size": "32Mi"})
    kubelet.end_pod("u1", "pv-1")
    journal = volkit.open_journal(f"sqlite://{host.state}/journal.db")
    Records(journal).put(
        "flex-path", str(path), volume=host.images()[0].stem, name="pv-1", staging="", ephemeral=False
    )
    journal.close()
    assert migrate(host, pv(host)) == 0


def test_an_attached_volume_is_not_migrated(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    kubelet = host.install("--attach", "yes")
    kubelet.call("attach", kubelet.options("pv-1", {"volume": "v1", "size": "32Mi"}), "node1")
    assert migrate(host, pv(host)) == 1
    assert "attached to node1" in capsys.readouterr().err
    kubelet.call("detach", "pv-1", "node1")
    assert migrate(host, pv(host, readOnly=True), "--name", "pv-2", "--csi-driver", "csi.acme.com") == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["metadata"]["name"] == "pv-2"
    assert made["spec"]["csi"]["driver"] == "csi.acme.com"
    assert made["spec"]["csi"]["readOnly"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no PersistentVolume"),
        ("{", "is not YAML"),
        ("kind: Pod", "holds a Pod"),
        ("[1]", "holds a list"),
        ("kind: PersistentVolume", "has no spec.flexVolume"),
        ("kind: PersistentVolume\nspec: {csi: {}}", "has no spec.flexVolume"),
    ],
)
def test_what_cannot_be_migrated(
    host: Host, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    host.install()
    path = host.home / "bad.yaml"
    path.write_text(text)
    assert migrate(host, path) == 2
    assert said in capsys.readouterr().err


def test_a_pv_of_a_volume_that_is_gone(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.install()
    assert migrate(host, pv(host)) == 2
    assert "the backend has no volume 'v1'" in capsys.readouterr().err
    assert migrate(host, host.home / "missing.yaml") == 2
