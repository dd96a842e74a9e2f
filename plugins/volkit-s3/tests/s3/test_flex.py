"""The Deployment that mounts Huawei OBS by a FlexVolume driver: three replicas, with their keys in the options, and
neither bucket nor endpoint. Kubelet's calls, on an installed driver and a real S3 server.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from volkit.host import mounts
from volkit_flex.kubelet import DriverError, Kubelet
from volkit_flex.main import run

from .servers import ACCESS, SECRET, Rgw, client

pytestmark = [pytest.mark.root, pytest.mark.needs("radosgw", "s3fs")]
OPTIONS = {"accessKey": ACCESS, "secretKey": SECRET}


def test_three_replicas_share_the_drivers_bucket(rgw: Rgw, tmp_path: Path) -> None:
    plain = client(rgw.port)
    plain.create_bucket(Bucket="hwc-data")
    state, plugins = tmp_path / "state", tmp_path / "exec"
    settings = (f"endpoint={rgw.endpoint}", "insecureHttp=true", "bucket=hwc-data", "mounter=s3fs")
    words = ["--backend", "s3", "--driver", "hwc-csi-driver", *(f"-o{one}" for one in settings)]
    places = ["--plugin-dir", str(plugins), "--state-dir", str(state), "--node-id", "node1"]
    assert run(["install", *words, *places]) == 0
    kubelet = Kubelet(plugins / "hwc-csi-driver" / "hwc-csi-driver", root=tmp_path / "kubelet")

    pods = [kubelet.start_pod(uid, "obs", OPTIONS, fs_group="1234") for uid in ("u1", "u2", "u3")]
    for number, pod in enumerate(pods):
        (pod / f"from-{number}").write_text(str(number))
        assert (pod / f"from-{number}").stat().st_gid == 1234
    stored = {one["Key"] for one in plain.list_objects_v2(Bucket="hwc-data")["Contents"]}
    assert stored == {"from-0", "from-1", "from-2"}
    assert (pods[0] / "from-2").read_text() == "2"

    with pytest.raises(DriverError, match="SignatureDoesNotMatch"):
        kubelet.start_pod("u4", "obs", {**OPTIONS, "secretKey": "wrong"})
    kubelet.end_pod("u4", "obs")
    kubelet.end_pod("u1", "obs")
    assert (pods[1] / "from-0").read_text() == "0"
    pods[0] = kubelet.start_pod("u5", "obs", {}, secrets=OPTIONS)  # as secretRef has it
    assert (pods[0] / "from-0").read_text() == "0"
    for uid in ("u2", "u3", "u5"):
        kubelet.end_pod(uid, "obs")

    assert not mounts.mounts(under=str(tmp_path))
    assert stored == {one["Key"] for one in plain.list_objects_v2(Bucket="hwc-data")["Contents"]}
    told = [path.read_bytes() for path in (*state.rglob("*"), *plugins.rglob("*")) if path.is_file()]
    assert not any(secret.encode() in text for text in told for secret in OPTIONS.values())


def test_a_volume_of_its_own_is_named_or_asked_for(rgw: Rgw, tmp_path: Path) -> None:
    state, plugins = tmp_path / "state", tmp_path / "exec"
    words = [
        "--backend",
        "s3",
        "--driver",
        "own",
        "-o",
        f"obsEndpoint={rgw.endpoint}",  # as Huawei names it
        "-o",
        "insecureHttp=true",
    ]
    places = ["--plugin-dir", str(plugins), "--state-dir", str(state), "--node-id", "node1"]
    assert run(["install", *words, *places]) == 0
    kubelet = Kubelet(plugins / "own" / "own", root=tmp_path / "kubelet")
    with pytest.raises(DriverError, match="there is no volume"):
        kubelet.start_pod("u1", "obs", OPTIONS)
    pod = kubelet.start_pod("u2", "obs", {**OPTIONS, "volume": "mine", "create": "true"})
    (pod / "file").write_text("x")
    kubelet.end_pod("u2", "obs")
    name = next(one["Name"] for one in client(rgw.port).list_buckets()["Buckets"] if "-mine-" in one["Name"])
    assert client(rgw.port).get_object(Bucket=name, Key="file")["Body"].read() == b"x"
    assert json.loads((kubelet.run("init"))[1])["capabilities"]["fsGroup"] is False
    assert not mounts.mounts(under=str(tmp_path))
