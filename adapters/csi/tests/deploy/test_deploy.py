"""`volkit deploy` of volkit-csi: what is rendered is valid, is the same in every form, and follows from the classes.

The files of `golden/` show every change of what is rendered: UPDATE_GOLDEN=1 writes them anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from attrs import frozen

import volkit
from volkit import cli, registry
from volkit_csi.deploy.sidecars import SIDECARS
from volkit_csi.main import make_parser

GOLDEN = Path(__file__).parent / "golden"
PROGRAMS = Path(sys.executable).parent
VERSIONS = ("1.33", "1.35", "1.37")
IMAGE = "registry.example.com/driver:1.0"
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is there
CERTIFICATES = Path(__file__).parent / "ca.pem"

Run = Callable[..., tuple[int, str, str]]


# -- backends of every sort


@frozen
class Settings:
    endpoint: str = volkit.option(help="where the storage is")
    token: str = volkit.option(secret=True)
    ca: Path | None = volkit.option(default=None, help="a file on the node")
    password: str = volkit.option(default="", secret=True)
    verify: bool = True


@frozen
class Parameters:
    tier: str = volkit.option(default="fast", mutable=True)
    key: str = volkit.option(default="", secret=True)


class Plain(volkit.Controller[Any, Any], abstract=True):
    def create_volume(self, request: Any) -> volkit.Volume:
        raise AssertionError

    def delete_volume(self, request: Any) -> None: ...
    def get_volume(self, request: Any) -> volkit.Volume:
        if request.name == "found":
            return volkit.BlockVolume(id="lun/7", capacity=1 << 30, context={"serial": "S7"})
        raise volkit.NotFound("no such volume")


class ArrayController(
    Plain,
    volkit.FindsByName,
    volkit.Publishes,
    volkit.Expands,
    volkit.Modifies,
    volkit.Snapshots,
    volkit.ReportsCapacity,
):
    def controller_publish(self, request: Any) -> Any: ...
    def controller_unpublish(self, request: Any) -> None: ...
    def expand_volume(self, request: Any) -> Any: ...
    def modify_volume(self, request: Any) -> None: ...
    def create_snapshot(self, request: Any) -> Any: ...
    def delete_snapshot(self, request: Any) -> None: ...
    def get_snapshot(self, request: Any) -> Any: ...
    def get_capacity(self, request: Any) -> Any: ...


class Forgetful(Plain): ...


class Findable(Plain, volkit.TakesIds): ...


class TheNode(volkit.Node[Any]):
    def connect(self, request: Any) -> Any: ...
    def disconnect(self, request: Any) -> None: ...


class PodNode(TheNode, volkit.ConnectsPerPod, volkit.MountsByProgram): ...


class Array(volkit.Backend[Any, Any]):
    """LUNs of an array."""

    name, settings, parameters = "array", Settings, Parameters
    controller, node = ArrayController, TheNode
    needs = volkit.Needs(host_network=True, packages=("open-iscsi",), selinux_mount=True)


class Bucket(volkit.Backend[Any, Any]):
    """Buckets, mounted by a program."""

    name, settings, volume = "bucket", Settings, volkit.ObjectVolume
    controller, node = Findable, PodNode
    needs = volkit.Needs(token_audiences=("sts.example.com",))


class Old(volkit.Backend[Any, Any]):
    """Shares of a storage that forgets names."""

    name, volume = "old", volkit.FileVolume
    controller, node = Forgetful, TheNode


class Given(volkit.Backend[Any, Any]):
    """Shares that an administrator makes."""

    name, volume, node = "given", volkit.FileVolume, TheNode


CASES: dict[str, tuple[str, ...]] = {
    "loop": ("--backend", "loop", "-o", "pool=/var/lib/volkit/pool", "-p", "preallocate=true"),
    "local": ("--backend", "local", "-o", "pool=/srv/volumes", "--metrics", "annotations"),
    "s3": (
        "--backend", "s3", "-o", "endpoint=https://s3.example.com", "--volume-secret", "s3-keys",
        "--metrics", "podmonitor", "--monitor-labels", "release=prometheus", "--name", "s3-east",
    ),
    "array": (
        "--backend", "array", "-o", "endpoint=https://array.example.com", "-o", "ca=/etc/array/ca.pem",
        "--replicas", "2", "--journal", "etcd://etcd-0:2379/array", "--volume-secret", "chap",
        "--mount-options", "noatime,discard", "-p", "tier=slow", "--driver-name", "csi.array.example.com",
        "--default-class", "true", "--pull-secrets", "registry-key", "--node-secret", "array-nodes",
    ),
    "bucket": (
        "--backend", "bucket", "-o", 'endpoint=https://s3.example.com/?a="b"&c={{ d }}', "--secret", "keys",
        "-o", f"ca={CERTIFICATES}", "-o", "token=@/etc/bucket/token",
    ),
    "old": (
        "--backend", "old", "--journal-class", "fast", "--reclaim-policy", "Retain", "--namespace", "storage",
        "--metrics", "servicemonitor", "--metrics-port", "9900",
    ),
    "given": ("--backend", "given", "--kubelet-dir", "/data/kubelet"),
}  # fmt: skip


EVERY = CASES | {"watched": (*CASES["s3"], "--alerts", "true", "--dashboard", "true")}
"""With what has no golden file, since it is a file itself."""


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    take_back = [registry.register(one) for one in (Array, Bucket, Old, Given)]
    yield
    for one in take_back:
        one()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(platform: str, *argv: str) -> tuple[int, str, str]:
        try:
            code = cli.main(["deploy", platform, *argv])
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def tree(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("deploy") / case
            assert (
                cli.main(["deploy", "kubernetes", *EVERY[case], "--image", IMAGE, "--out", str(made[case])])
                == 0
            )
        return made[case]

    return tree


Trees = Callable[[str], Path]


def objects(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.load_all(text, Loader=LOADER) if one]


def by_name(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def of_kind(tree: Path, kind: str, part: str = "") -> dict[str, Any]:
    found = objects((tree / "kubernetes.yaml").read_text())
    return next(one for one in found if one["kind"] == kind and one["metadata"]["name"].endswith(part))


def containers(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in workload["spec"]["template"]["spec"]["containers"]}


# -- every form, and every version of Kubernetes


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_the_golden_files_show(case: str, trees: Trees) -> None:
    tree = trees(case)
    shown = [path for path in sorted(tree.rglob("*")) if path.is_file() and path.name != "requirements.txt"]
    if case != "array":  # one chart shows what charts look like
        shown = [path for path in shown if path.name == "kubernetes.yaml"]
    golden = GOLDEN / case
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        for path in shown:
            (golden / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, golden / path.relative_to(tree))
    expected = {str(path.relative_to(golden)) for path in golden.rglob("*") if path.is_file()}
    assert {str(path.relative_to(tree)) for path in shown} == expected
    for path in shown:
        assert path.read_text() == (golden / path.relative_to(tree)).read_text(), path.relative_to(tree)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_object_fits_the_published_schema(case: str, version: str, trees: Trees) -> None:
    checked = 0
    for one in objects((trees(case) / "kubernetes.yaml").read_text()):
        if one["apiVersion"] == "monitoring.coreos.com/v1":  # of CRDs, as the next
            continue
        if one["kind"] == "VolumeSnapshotClass":  # required are these two
            assert one["apiVersion"] == "snapshot.storage.k8s.io/v1"
            assert one["deletionPolicy"] in ("Delete", "Retain")
            assert one["driver"] == of_kind(trees(case), "CSIDriver")["metadata"]["name"]
            continue
        kubernetes_validate.validate(one, version, strict=True)
        checked += 1
    assert checked >= 4


def test_a_wrong_object_would_be_refused(trees: Trees) -> None:
    driver = of_kind(trees("loop"), "CSIDriver")
    driver["spec"]["attachRequird"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(driver, VERSIONS[0], strict=True)


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.needs("helm")
def test_the_chart_renders_to_the_plain_objects(case: str, trees: Trees) -> None:
    tree = trees(case)
    plain = by_name(objects((tree / "kubernetes.yaml").read_text()))
    namespace = next(name for kind, name in plain if kind == "Namespace")
    del plain["Namespace", namespace]
    found = helm(tree, namespace)
    assert by_name(found) == plain


@pytest.mark.needs("helm")
def test_the_values_of_a_chart_count(trees: Trees) -> None:
    found = by_name(
        helm(
            trees("array"), "elsewhere", "--set", "controller.replicas=3", "--set", "image=a:2", "--set",
            "options.endpoint=https://b", "--set", "options.verify=false", "--set", "storageClass.mountOptions=null",
        )
    )  # fmt: skip
    controller = found["Deployment", "volkit-array-controller"]
    assert controller["spec"]["replicas"] == 3
    assert controller["metadata"]["namespace"] == "elsewhere"
    driver = containers(controller)["driver"]
    assert driver["image"] == "a:2"
    values = {one["name"]: one.get("value") for one in driver["env"]}
    assert values["VOLKIT_OPTION_ENDPOINT"] == "https://b"
    assert values["VOLKIT_OPTION_VERIFY"] == "false"
    assert "mountOptions" not in found["StorageClass", "array"]


@pytest.mark.needs("helm")
def test_a_chart_leaves_out_what_a_cluster_has_no_crds_for(trees: Trees) -> None:
    kinds = {one["kind"] for case in ("array", "watched") for one in helm(trees(case), "x", crds=False)}
    assert "StorageClass" in kinds
    assert not {"VolumeSnapshotClass", "PodMonitor", "PrometheusRule"} & kinds


def helm(tree: Path, namespace: str, *more: str, crds: bool = True) -> list[dict[str, Any]]:
    known = ["snapshot.storage.k8s.io/v1", "monitoring.coreos.com/v1"] if crds else []
    versions = [word for one in known for word in ("--api-versions", one)]
    command = ["helm", "template", "release", str(tree / "chart"), "--namespace", namespace, *versions, *more]
    command += ["--kube-version", VERSIONS[0]]  # Helm's own idea of it is old where Go built it
    return objects(output(command, tree))


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.needs("kustomize")
def test_the_base_builds_to_the_plain_objects(case: str, trees: Trees) -> None:
    tree = trees(case)
    built = objects(output(["kustomize", "build", str(tree / "kustomize")], tree))
    assert by_name(built) == by_name(objects((tree / "kubernetes.yaml").read_text()))


def output(command: list[str], home: Path) -> str:
    environment = {**os.environ, "HOME": str(home.parent), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- what follows from the classes


ON_NODES = ((), ("csi-node-driver-registrar", "csi-provisioner", "csi-snapshotter", "livenessprobe"))
SIDECARS_OF = {
    "loop": ON_NODES,
    "local": ON_NODES,
    "s3": (
        ("csi-provisioner", "csi-resizer", "livenessprobe"),
        ("csi-node-driver-registrar", "livenessprobe"),
    ),
    "array": (
        ("csi-attacher", "csi-provisioner", "csi-resizer", "csi-snapshotter", "livenessprobe"),
        ("csi-node-driver-registrar", "livenessprobe"),
    ),
    "bucket": (("csi-provisioner", "livenessprobe"), ("csi-node-driver-registrar", "livenessprobe")),
    "old": (("csi-provisioner", "livenessprobe"), ("csi-node-driver-registrar", "livenessprobe")),
    "given": ((), ("csi-node-driver-registrar", "livenessprobe")),
}


@pytest.mark.parametrize("case", CASES)
def test_sidecars_are_those_of_the_capabilities(case: str, trees: Trees) -> None:
    central, node = SIDECARS_OF[case]
    tree = trees(case)
    found = objects((tree / "kubernetes.yaml").read_text())
    controllers = [
        one
        for one in found
        if one["metadata"]["name"].endswith("-controller") and "template" in one.get("spec", {})
    ]
    assert len(controllers) == bool(central)
    for workload, expected in ((controllers[:1], central), ([of_kind(tree, "DaemonSet", "-node")], node)):
        for one in workload:
            assert sorted(set(containers(one)) - {"driver"}) == sorted(expected)
    versions = dict(SIDECARS.values())
    images = re.findall(
        r'image: "registry\.k8s\.io/sig-storage/([^:"]+):([^"]+)"', (tree / "kubernetes.yaml").read_text()
    )
    assert images
    assert all(versions[name] == version for name, version in images)


def test_no_rule_is_for_a_sidecar_that_is_not_there(trees: Trees) -> None:
    roles = {case: of_kind(trees(case), "ClusterRole") for case in ("loop", "array", "bucket", "old")}
    resources = {
        case: {name for rule in role["rules"] for name in rule["resources"]} for case, role in roles.items()
    }
    assert "volumeattachments" in resources["array"]
    assert not {"volumeattachments", "volumesnapshots", "persistentvolumeclaims/status"} & resources["bucket"]
    assert "volumeattributesclasses" in resources["array"]
    assert "volumeattachments" not in resources["loop"]
    assert all("secrets" not in one for one in resources.values())
    given = objects((trees("given") / "kubernetes.yaml").read_text())
    assert not [one for one in given if "Role" in one["kind"]]
    (secrets,) = [
        rule for rule in of_kind(trees("array"), "Role")["rules"] if rule["resources"] == ["secrets"]
    ]
    assert (secrets["verbs"], secrets["resourceNames"]) == (["get"], ["chap"])


def test_the_driver_object_follows_from_the_classes(trees: Trees) -> None:
    spec = {case: of_kind(trees(case), "CSIDriver")["spec"] for case in CASES}
    assert [case for case in CASES if spec[case]["attachRequired"]] == ["array"]
    assert [case for case in CASES if spec[case]["storageCapacity"]] == ["loop", "local", "array"]
    assert [case for case in CASES if spec[case]["seLinuxMount"]] == ["array"]
    assert [case for case in CASES if spec[case]["requiresRepublish"]] == ["bucket"]
    grows = [
        case
        for case in ("loop", "s3", "array")
        if of_kind(trees(case), "StorageClass")["allowVolumeExpansion"]
    ]
    assert grows == ["array"]
    assert spec["bucket"]["tokenRequests"] == [{"audience": "sts.example.com"}]
    assert {case: one["fsGroupPolicy"] for case, one in spec.items()} == {
        "loop": "File", "local": "File", "s3": "None", "array": "File", "bucket": "None", "old": "File",
        "given": "File",
    }  # fmt: skip


def test_only_who_mounts_has_privileges(trees: Trees) -> None:
    for case in CASES:
        for one in objects((trees(case) / "kubernetes.yaml").read_text()):
            if "template" not in one.get("spec", {}):
                continue
            for name, container in containers(one).items():
                mounts = one["kind"] == "DaemonSet" and name in ("driver", "mounter")
                context = container["securityContext"]
                assert context.get("privileged", False) is mounts, (case, name)
                assert mounts or context["capabilities"] == {"drop": ["ALL"]}
                shared = {m["name"] for m in container["volumeMounts"] if "mountPropagation" in m}
                assert shared == ({"pods", "plugins"} if mounts else set())
            pod = one["spec"]["template"]["spec"]
            mounted = {m["name"] for container in pod["containers"] for m in container["volumeMounts"]}
            declared = {volume["name"] for volume in pod["volumes"]}
            claims = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
            assert mounted == declared | claims, (case, one["metadata"]["name"])
            if one["kind"] != "DaemonSet":
                assert pod["securityContext"]["runAsNonRoot"] is True
                assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


def test_nodes_have_what_their_backend_needs(trees: Trees) -> None:
    def pod(case: str) -> dict[str, Any]:
        found: dict[str, Any] = of_kind(trees(case), "DaemonSet", "-node")["spec"]["template"]["spec"]
        return found

    paths = {
        case: {one["hostPath"]["path"] for one in pod(case)["volumes"] if "hostPath" in one} for case in CASES
    }
    assert "/var/lib/volkit/pool" in paths["loop"]
    assert "/dev" in paths["loop"]
    assert "/dev" not in paths["old"]
    assert "/data/kubelet/pods" in paths["given"]
    assert not [path for path in paths["given"] if path.startswith("/var/lib/kubelet")]
    assert [case for case in CASES if pod(case).get("hostNetwork")] == [
        "s3",
        "array",
        "bucket",
        "old",
        "given",
    ]
    mounter = of_kind(trees("bucket"), "DaemonSet", "-mounter")
    assert mounter["spec"]["updateStrategy"] == {"type": "OnDelete"}
    socket = containers(mounter)["mounter"]["command"][-1]
    variables = {
        one["name"]: one.get("value")
        for one in containers(of_kind(trees("bucket"), "DaemonSet", "-node"))["driver"]["env"]
    }
    assert variables["VOLKIT_MOUNTER"] == socket


@pytest.mark.parametrize("case", CASES)
def test_the_driver_takes_the_variables(case: str, trees: Trees, tmp_path: Path) -> None:
    """As they stand, by the driver's own parser and the backend's own settings."""
    found = objects((trees(case) / "kubernetes.yaml").read_text())
    backend = volkit.load_backend(case)
    for one in found:
        for container in containers(one).values() if "template" in one.get("spec", {}) else ():
            if container["command" if "command" in container else "name"] != ["volkit-csi"]:
                continue
            secret = {
                entry["name"]: "what-a-secret-has"
                for entry in container["env"]
                if "secretKeyRef" in entry.get("valueFrom", {})
            }
            environ = {entry["name"]: entry.get("value", "n1") for entry in container["env"]} | secret
            args = make_parser("volkit-csi").parse([], environ)
            assert args.backend == case
            assert args.endpoint == "unix:///csi/csi.sock"
            volkit.launch.read_settings(backend, args.option)
            assert (args.headless, args.services) == (
                case == "given",
                tuple(environ["VOLKIT_SERVICES"].split(",")),
            )


def test_secrets_come_by_reference(trees: Trees) -> None:
    driver = containers(of_kind(trees("array"), "Deployment"))["driver"]
    references = {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in driver["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    assert references == {
        "VOLKIT_OPTION_TOKEN": {"name": "volkit-array", "key": "token"},
        "VOLKIT_OPTION_PASSWORD": {"name": "volkit-array", "key": "password", "optional": True},
    }
    driver = containers(of_kind(trees("array"), "DaemonSet"))["driver"]
    assert {"name": "array-nodes", "key": "token"} in [
        one["valueFrom"].get("secretKeyRef") for one in driver["env"] if "valueFrom" in one
    ]
    parameters = of_kind(trees("array"), "StorageClass")["parameters"]
    assert parameters["tier"] == "slow"
    assert parameters["csi.storage.k8s.io/node-stage-secret-name"] == "chap"
    assert parameters["csi.storage.k8s.io/controller-expand-secret-namespace"] == "volkit-array"


def test_files_that_settings_name_are_in_the_pods(trees: Trees) -> None:
    """Certificates come along; any other file is in the Secret, and so is a secret setting in a file."""
    items = [{"key": "ca", "path": "ca"}]
    for case, sources in (
        ("array", [{"secret": {"name": name, "items": items}} for name in ("volkit-array", "array-nodes")]),
        ("bucket", [{"configMap": {"name": "volkit-bucket-files"}}]),
    ):
        for one in objects((trees(case) / "kubernetes.yaml").read_text()):
            if "template" not in one.get("spec", {}):
                continue
            (files,) = [v for v in one["spec"]["template"]["spec"]["volumes"] if v["name"] == "files"]
            assert files["projected"]["defaultMode"] == 0o440
            assert files["projected"]["sources"] == [sources[one["kind"] == "DaemonSet" and case == "array"]]
            for name in {"driver", "mounter"} & containers(one).keys():
                mounts = {m["mountPath"]: m for m in containers(one)[name]["volumeMounts"]}
                assert mounts["/etc/volkit/files"]["readOnly"] is True
        driver = containers(of_kind(trees(case), "DaemonSet", "-node"))["driver"]
        assert {"name": "VOLKIT_OPTION_CA", "value": "/etc/volkit/files/ca"} in driver["env"]
    assert of_kind(trees("bucket"), "ConfigMap")["data"] == {"ca": CERTIFICATES.read_text()}
    (token,) = [one for one in driver["env"] if one["name"] == "VOLKIT_OPTION_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "token"}}
    command = "create secret generic {} --from-file=token={}"
    assert command.format('"keys"', "/etc/bucket/token") in (trees("bucket") / "kubernetes.yaml").read_text()
    notes = (trees("array") / "chart/templates/NOTES.txt").read_text()
    assert command.format("{{ .Values.secret }}", "FILE --from-file=ca=/etc/array/ca.pem") in notes


def test_a_file_with_a_key_is_not_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_text(
        CERTIFICATES.read_text() + "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"
    )
    argv = ("--backend", "array", "-o", "endpoint=x", "-o", f"ca={tmp_path}/both.pem")
    code, out, _ = run("kubernetes", "--image", IMAGE, *argv)
    assert code == 0
    assert "hunter2" not in out
    assert "CERTIFICATE" not in out


def test_what_a_file_says_of_a_setting_that_is_no_secret(run: Run, tmp_path: Path) -> None:
    (tmp_path / "endpoint").write_text("https://array.example.com\n")
    argv = ("kubernetes", "--image", IMAGE, "--backend", "array", "-o")
    code, out, _ = run(*argv, f"endpoint=@{tmp_path}/endpoint")
    assert code == 0
    assert 'value: "https://array.example.com"' in out
    code, _, err = run(*argv, f"endpoint=@{tmp_path}/nosuch")
    assert code == 2
    assert "cannot be read" in err


def test_two_drivers_of_one_backend_share_nothing(run: Run, trees: Trees) -> None:
    argv = ("-o", "endpoint=https://s3.example.org", "--volume-secret", "s3-keys", "--image", IMAGE)
    second = run("kubernetes", "--backend", "s3", *argv, "--health-port", "9811")[1]
    first = (trees("s3") / "kubernetes.yaml").read_text()

    def mine(text: str) -> tuple[set[tuple[str, str]], set[str]]:
        found = objects(text)
        pods = [one["spec"]["template"]["spec"] for one in found if "template" in one.get("spec", {})]
        volumes = [one["hostPath"]["path"] for pod in pods for one in pod["volumes"] if "hostPath" in one]
        ports = [
            port["containerPort"]
            for pod in pods
            for one in pod["containers"]
            for port in one.get("ports", ())
        ]
        sockets = re.findall(r"/run/volkit/[\w./-]+", text)
        paths = {path for path in volumes if "s3" in path} | set(sockets) | {str(port) for port in ports}
        return set(by_name(found)), paths

    (names, paths), (other_names, other_paths) = mine(first), mine(second)
    assert not names & other_names
    assert not paths & other_paths
    assert len(paths) == len(other_paths) + 1  # the port of the metrics
    assert "/var/lib/volkit/s3-east" in paths


# -- who watches them


def test_metrics_are_served_and_found(trees: Trees) -> None:
    for case, port in (("local", 9810), ("s3", 9810), ("old", 9900)):
        watched = {}
        for one in objects((trees(case) / "kubernetes.yaml").read_text()):
            if "driver" not in (containers(one) if "template" in one.get("spec", {}) else ()):
                continue
            driver = containers(one)["driver"]
            values = {each["name"]: each.get("value") for each in driver["env"]}
            assert values["VOLKIT_METRICS"] == f"$(VOLKIT_POD_IP):{port}"
            assert driver["ports"] == [{"name": "metrics", "containerPort": port}]
            assert driver["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
            assert driver["livenessProbe"]["httpGet"]["path"] == "/healthz"
            template = one["spec"]["template"]["metadata"]
            watched[tuple(sorted(template["labels"].items()))] = template.get("annotations")
        found = objects((trees(case) / "kubernetes.yaml").read_text())
        monitors = [one for one in found if one["kind"] in ("PodMonitor", "ServiceMonitor", "Service")]
        for one in monitors:
            selector = one["spec"]["selector"].get("matchLabels", one["spec"]["selector"])
            assert tuple(sorted(selector.items())) in watched
        kinds = [one["kind"] for one in monitors]
        assert kinds == {
            "local": [], "s3": ["PodMonitor"] * 2, "old": ["Service", "ServiceMonitor"] * 2,
        }[case]  # fmt: skip
    (annotations,) = [
        one["spec"]["template"]["metadata"]["annotations"]
        for one in objects((trees("local") / "kubernetes.yaml").read_text())
        if one["kind"] == "DaemonSet"
    ]
    assert annotations == {
        "prometheus.io/scrape": "true", "prometheus.io/port": "9810", "prometheus.io/path": "/metrics",
    }  # fmt: skip
    for service in (one for one in found if one["kind"] == "Service"):
        assert service["spec"]["ports"] == [{"name": "metrics", "port": 9900, "targetPort": "metrics"}]


def test_the_dashboard_and_the_alerts_come_along(trees: Trees) -> None:
    shipped = Path(volkit.__file__).parent / "monitoring"
    rules = of_kind(trees("watched"), "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((shipped / "alerts.yaml").read_text())
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    board = of_kind(trees("watched"), "ConfigMap", "-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["volkit.json"]) == json.loads((shipped / "dashboard.json").read_text())


def test_texts_arrive_as_they_were_given(trees: Trees) -> None:
    driver = containers(of_kind(trees("bucket"), "Deployment"))["driver"]
    values = {one["name"]: one.get("value") for one in driver["env"]}
    assert values["VOLKIT_OPTION_ENDPOINT"] == 'https://s3.example.com/?a="b"&c={{ d }}'


def test_a_journal_that_must_not_be_lost_follows_its_controller(trees: Trees) -> None:
    controller = of_kind(trees("old"), "StatefulSet")
    (claim,) = controller["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert controller["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--backend", "old"), "--journal-class"),
        (("--backend", "old", "--journal-class", "x", "--replicas", "2"), "could make a volume twice"),
        (("--backend", "old", "--journal", "etcd://e:1/x"), "leave --journal out"),
        (("--backend", "old", "--architecture", "everywhere"), "deploy it apart"),
        (("--backend", "loop", "-o", "pool=/p", "--architecture", "apart"), "live on the nodes"),
        (("--backend", "loop", "-o", "pool=/p", "--replicas", "2"), "each node has one driver"),
        (("--backend", "given", "--architecture", "apart"), "has no controller"),
        (("--backend", "loop"), "option 'pool' is required"),
        (("--backend", "loop", "-o", "pol=/p"), "did you mean 'pool'?"),
        (("--backend", "loop", "-o", "pool=p"), "absolute path"),
        (("--backend", "array", "-o", "endpoint=x", "-o", "token=hunter2"), "secret"),
        (("--backend", "array", "-o", "endpoint=x", "-p", "key=hunter2"), "secret"),
        (("--backend", "array", "-o", "endpoint=x", "-p", "teir=1"), "did you mean 'tier'?"),
        (("--backend", "given", "--namespace", "A"), "namespace"),
        (("--backend", "given", "--driver-name", "a_b"), "driver"),
        (("--backend", "given", "--kubelet-dir", "/a b"), "kubelet-dir"),
        (("--backend", "given", "--image", "a b"), "image"),
        (("--backend", "given", "--log-level", "loud"), "log-level"),
        (("--backend", "given", "--journal", "sqlite:///x"), "etcd://"),
        (("--backend", "given", "--replicas", "0"), "at least 1"),
        (("--backend", "given", "--alerts", "true"), "--metrics"),
        (("--backend", "loop", "-o", "pool=/p", "--node-secret", "n"), "leave it out"),
        (("--backend", "given", "--metrics", "port", "--metrics-port", "9808"), "both 9808"),
        (("--backend", "given", "--metrics", "yes"), "not one of none, port"),
        (("--backend", "given", "--monitor-labels", "a b"), "KEY=VALUE"),
        (("--backend", "given", "--name", "A"), "name"),
        (("--backend", "nosuch"), "there is no backend"),
        ((), "no backend"),
    ],
)
def test_what_no_cluster_could_run(run: Run, argv: tuple[str, ...], said: str) -> None:
    code, out, err = run("kubernetes", "--image", IMAGE, *argv)
    assert code in (1, 2)
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert "hunter2" not in err


# -- the description in a file


def test_a_description_in_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "array.yaml"
    description = {
        "backend": "array",
        "image": IMAGE,
        "options": {"endpoint": "https://array.example.com", "verify": False},
        "parameters": {"tier": "slow"},
        "mountOptions": ["noatime", "discard"],
        "replicas": 2,
    }
    file.write_text(yaml.safe_dump(description))
    code, out, _ = run("kubernetes", "--file", str(file), "--replicas", "3")
    found = by_name(objects(out))
    assert code == 0
    assert found["Deployment", "volkit-array-controller"]["spec"]["replicas"] == 3
    assert found["StorageClass", "array"]["mountOptions"] == ["noatime", "discard"]
    driver = containers(found["DaemonSet", "volkit-array-node"])["driver"]
    assert {"name": "VOLKIT_OPTION_VERIFY", "value": "false"} in driver["env"]


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [1", "backend: {a: 1}", "options: 1", "1: 2", "replcas: 2", "image: null"]
)
def test_a_bad_description(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    code, out, err = run(
        "kubernetes",
        "--file",
        str(tmp_path / "x.yaml"),
        "--backend",
        "array" if "backend" not in text else "",
    )
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    argv = (*CASES["given"], "--image", IMAGE, "--out", str(tmp_path / "x"))
    assert run("kubernetes", *argv)[0] == 0
    code, _, err = run("kubernetes", *argv)
    assert code == 1
    assert "is there already" in err


def test_without_libraries_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run("kubernetes", *CASES["given"], "--image", IMAGE)
    assert code == 1
    assert 'pip install "volkit-sdk[deploy]"' in err


def test_what_there_is_to_choose_from(run: Run) -> None:
    assert run("--help")[0] == 0
    code, _, err = run("kubernets")
    assert code == 2
    assert "kubernetes, image, nomad, pv, e2e" in err
    code, out, _ = run("kubernetes", "--help")
    assert code == 0
    assert "--kubelet-dir" in out


# -- the image


def test_the_image_is_pinned(trees: Trees) -> None:
    lines = (trees("array") / "image/requirements.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert "prometheus-client" in (trees("s3") / "image/requirements.txt").read_text()
    assert {"volkit-sdk", "volkit-csi", "grpcio", "protobuf", "attrs", "pluggy", "etcd3gw"} <= names
    assert not names & {"pytest", "jinja2", "hypothesis"}
    assert "volkit-loop" in (trees("loop") / "image/requirements.txt").read_text()
    dockerfile = (trees("array") / "image/Dockerfile").read_text()
    assert "open-iscsi" in dockerfile
    assert "e2fsprogs" not in (trees("given") / "image/Dockerfile").read_text()


# -- a volume that exists


def test_the_pv_of_a_volume(run: Run) -> None:
    code, out, err = run(
        "pv",
        "--backend",
        "array",
        "-o",
        "endpoint=x",
        "--volume",
        "lun/7",
        "--size",
        "10Gi",
        "--volume-secret",
        "chap",
    )
    assert (code, err) == (0, "")
    volume, claim = objects(out)
    for version in VERSIONS:
        for one in (volume, claim):
            kubernetes_validate.validate(one, version, strict=True)
    spec = volume["spec"]
    assert (volume["metadata"]["name"], spec["csi"]["volumeHandle"]) == ("lun-7", "lun/7")
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    assert spec["claimRef"] == {
        "name": claim["metadata"]["name"],
        "namespace": claim["metadata"]["namespace"],
    }
    assert (claim["spec"]["volumeName"], claim["spec"]["storageClassName"]) == ("lun-7", "")
    assert sorted(key for key in spec["csi"] if "Secret" in key) == [
        "controllerExpandSecretRef", "controllerPublishSecretRef", "nodeExpandSecretRef", "nodePublishSecretRef",
        "nodeStageSecretRef",
    ]  # fmt: skip
    assert spec["csi"]["fsType"] == "ext4"


def test_the_storage_is_asked_for_what_is_not_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-array-lets-this-in")
    settings = ("-o", "endpoint=x", "-o", f"token=@{tmp_path}/token")
    code, out, _ = run("pv", "--backend", "array", *settings, "--volume", "found")
    assert code == 0
    spec = objects(out)[0]["spec"]
    assert spec["capacity"] == {"storage": "1Gi"}
    assert (spec["csi"]["volumeHandle"], spec["csi"]["volumeAttributes"]) == ("lun/7", {"serial": "S7"})
    code, _, err = run("pv", "--backend", "array", *settings, "--volume", "lost")
    assert code == 2
    assert "no such volume" in err
    code, _, err = run("pv", "--backend", "array", "-o", "endpoint=x", "--volume", "found")
    assert code == 2
    assert "give --size" in err


def test_a_volume_of_a_node_stays_there(run: Run) -> None:
    argv = ("pv", "--backend", "loop", "-o", "pool=/p", "--volume", "v-1", "--size", "1Gi")
    code, _, err = run(*argv)
    assert code == 2
    assert "--node" in err
    spec = objects(run(*argv, "--node", "n1")[1])[0]["spec"]
    assert "n1" in json.dumps(spec["nodeAffinity"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--backend", "array", "-o", "endpoint=x", "--access-mode", "ReadWriteMany"), "destroy it"),
        (("--backend", "loop", "-o", "pool=/p", "--access-mode", "ReadOnlyMany"), "for one node"),
        (("--backend", "given", "--access-mode", "RWX"), "is not one of"),
        (("--backend", "given", "--block", "true"), "no devices"),
        (("--backend", "given", "--name", "A b"), "name"),
    ],
)
def test_unsafe_sharing_is_refused(run: Run, argv: tuple[str, ...], said: str) -> None:
    code, out, err = run("pv", "--volume", "v-1", "--size", "1Gi", *argv)
    assert (code, out) == (2, "")
    assert said in err


def test_a_share_of_two_clusters(run: Run) -> None:
    volume, _ = objects(run("pv", "--backend", "given", "--volume", "/exports/a", "--size", "1Ti")[1])
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "fsType" not in volume["spec"]["csi"]


# -- Nomad


@pytest.mark.parametrize("case", ["array", "given"])
def test_nomad(case: str, run: Run, tmp_path: Path) -> None:
    settings = CASES[case][:6] if case == "array" else CASES[case][:2]
    code, _, err = run("nomad", *settings, "--image", IMAGE, "--out", str(tmp_path / "x"))
    assert (code, err) == (0, "")
    written = {path.name: path.read_text() for path in (tmp_path / "x").iterdir()}
    golden = GOLDEN / f"nomad-{case}"
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(tmp_path / "x", golden)
    assert written == {path.name: path.read_text() for path in golden.iterdir()}
    for text in written.values():
        assert text.count("{") == text.count("}")
        assert text.count('"') % 2 == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [(CASES["loop"][:4], "live on the nodes"), (("--backend", "bucket", "-o", "endpoint=x"), "outlive")],
)
def test_what_nomad_cannot_run(run: Run, argv: tuple[str, ...], said: str) -> None:
    code, _, err = run("nomad", "--image", IMAGE, *argv)
    assert code == 1
    assert said in err
