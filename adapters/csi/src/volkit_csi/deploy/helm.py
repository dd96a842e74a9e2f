"""How plain YAML and a Helm chart are spelled: one template, two renderings. `Plain` puts values in, `Helm` puts in
where Helm finds them; `values` are what an operator may still change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import attrs

import volkit
from volkit import FailedPrecondition
from volkit.options import Option
from volkit_csi.deploy.cluster import FILES, Cluster
from volkit_csi.deploy.sidecars import SIDECARS, Sidecar, of_controller, of_node


def dump(value: object) -> str:
    """YAML. Raises FailedPrecondition where its library is missing."""
    try:
        import yaml
    except ImportError:
        raise FailedPrecondition('this takes YAML: `pip install "volkit-sdk[deploy]"`') from None

    class Dumper(yaml.SafeDumper):
        """Texts of several lines are blocks."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(
        yaml.dump(
            value, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120
        )
    )


def shipped(name: str) -> str:
    """`alerts.yaml` or `dashboard.json`, as they come with volkit."""
    return (files(volkit) / "monitoring" / name).read_text(encoding="utf-8")


# -- what may be changed afterwards


def values(cluster: Cluster) -> dict[str, Any]:
    """`values.yaml`: only what this deployment has."""
    given = cluster.values
    found: dict[str, Any] = {
        "image": given.image,
        "imagePullSecrets": [{"name": one} for one in given.pull_secrets],
        "logLevel": given.log_level,
        "kubeletDir": str(given.kubelet_dir).rstrip("/"),
        "options": cluster.deployment.contained(FILES),
        "files": cluster.certificates,
        "secret": (given.secret or cluster.name) if cluster.secret_settings or cluster.secret_files else "",
        "volumeSecret": given.volume_secret,
        "controller": _controller(cluster),
        "node": _NODE
        | {"healthPort": given.health_port}
        | ({"secret": given.node_secret} if given.node_secret else {}),
        "sidecars": _sidecars(cluster),
        "storageClass": _storage_class(cluster),
        "metrics": _metrics(cluster),
    }
    always = ("options", "imagePullSecrets")
    return {key: one for key, one in found.items() if one or key in always}


_LINUX = {"kubernetes.io/os": "linux"}
_NODE = {
    "priorityClassName": "system-node-critical",
    "nodeSelector": _LINUX,
    "tolerations": [{"operator": "Exists"}],
    "readOnlyRootFilesystem": True,
    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
}
_CONTROLLER = {
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": _LINUX,
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
}


def _controller(cluster: Cluster) -> dict[str, Any]:
    found = {"replicas": cluster.values.replicas, **_CONTROLLER} if cluster.apart else {}
    if cluster.journal:
        found["journal"] = cluster.values.journal
    if cluster.journal_follows:
        found["journalClass"] = cluster.values.journal_class
    return found


def _sidecars(cluster: Cluster) -> dict[str, Any]:
    used = {one.value for one in (*of_controller(cluster), *of_node(cluster))}
    return {
        "registry": cluster.values.registry,
        **{name: version for name, (_, version) in SIDECARS.items() if name in used},
        "resources": {"requests": {"cpu": "5m", "memory": "24Mi"}, "limits": {"memory": "256Mi"}},
    }


def _storage_class(cluster: Cluster) -> dict[str, Any]:
    given = cluster.values
    if not cluster.sidecars:
        return {}
    return {
        "name": given.storage_class or cluster.instance,
        "default": str(given.default_class).lower(),
        "reclaimPolicy": given.reclaim_policy.value,
        "mountOptions": list(given.mount_options),
        "parameters": dict(cluster.deployment.parameters),
    }


def _metrics(cluster: Cluster) -> dict[str, Any]:
    given = cluster.values
    if not cluster.metrics:
        return {}
    return {
        "port": given.metrics_port,
        "labels": dict(label.split("=", 1) for label in given.monitor_labels),
    }


def chart(cluster: Cluster) -> str:
    """`Chart.yaml`."""
    return dump(
        {
            "apiVersion": "v2",
            "name": cluster.name,
            "description": f"The CSI driver {cluster.driver}: {cluster.deployment.backend.describe()['summary']}",
            "type": "application",
            "version": volkit.__version__,
            "appVersion": volkit.__version__,
            "kubeVersion": ">=1.29.0-0",
        }
    )


def notes(cluster: Cluster) -> str:
    """`NOTES.txt`: what is left to do."""
    files = " ".join(f"--from-file={key}={path}" for key, path in cluster.secret_sources.items())
    command = "kubectl -n {{ .Release.Namespace }} create secret generic {{ .Values.secret }}"
    return f"The pods wait for a Secret, which is yours to make:\n\n  {command} {files}\n"


# -- what the templates call


class Plain:
    """What the templates call. `path` names a value such as `node.healthPort`."""

    def __init__(self, cluster: Cluster, values: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self.values = values

    def functions(self) -> dict[str, Any]:
        """By the names that the templates know."""
        calls: tuple[Callable[..., Any], ...] = (
            self.q, self.raw, self.text, self.block, self.ns, self.setting, self.pull_secrets, self.mount_options,
            self.class_parameters, self.completed, self.labels, self.digest, self.shipped,
        )  # fmt: skip
        return {call.__name__: call for call in calls}

    def completed(self, sidecar: Sidecar) -> Sidecar:
        """With the values in its flags."""
        places = {"kubelet": self.text("kubeletDir"), "port": self.text("node.healthPort")}
        args = []
        for arg in sidecar.args:
            for name, value in places.items():
                arg = arg.replace(f"{{{name}}}", value)
            args.append(arg)
        return attrs.evolve(sidecar, args=tuple(args))

    def at(self, path: str) -> Any:
        value: Any = self.values
        for key in path.split("."):
            value = value[key]
        return value

    def q(self, path: str, suffix: str = "") -> str:
        """A quoted text."""
        return json.dumps(f"{self.at(path)}{suffix}")

    def raw(self, path: str) -> str:
        """A number or a word."""
        return json.dumps(self.at(path)).strip('"')

    def text(self, path: str) -> str:
        """A part of a text."""
        return str(self.at(path))

    def block(self, path: str, indent: int) -> str:
        """A table or a list, in lines of their own."""
        return _indented(dump(self.at(path)), indent)

    def ns(self) -> str:
        """The namespace."""
        return self.cluster.namespace

    def digest(self, key: str) -> str:
        """Of a file of certificates: pods are made anew where it changes."""
        return hashlib.sha256(self.values["files"][key].encode()).hexdigest()

    def shipped(self, name: str, indent: int) -> str:
        """A file that comes with volkit, in lines of their own."""
        return _indented(shipped(name), indent)

    def labels(self) -> str:
        """Those that Prometheus chooses monitors and rules by."""
        return self.block("metrics.labels", 4) if self.at("metrics.labels") else ""

    def setting(self, one: Option) -> str:
        """An option of the backend as a variable; nothing where it is not set."""
        if one.key not in self.values["options"]:
            return ""
        value = json.dumps(str(self.values["options"][one.key]))
        return f"            - {{name: {one.variable}, value: {value}}}"

    def pull_secrets(self) -> str:
        if not self.values["imagePullSecrets"]:
            return ""
        return "      imagePullSecrets:\n" + self.block("imagePullSecrets", 8)

    def mount_options(self) -> str:
        if not self.at("storageClass.mountOptions"):
            return ""
        return "mountOptions:\n" + self.block("storageClass.mountOptions", 2)

    def class_parameters(self) -> str:
        """What the sidecars take of a StorageClass (`csi.storage.k8s.io/…`), and what the backend does."""
        own = self.at("storageClass.parameters")
        lines = self._own_keys()
        if not own and not lines:
            return ""
        return "\n".join(
            ["parameters:", *lines, *([self.block("storageClass.parameters", 2)] if own else [])]
        )

    def _own_keys(self) -> list[str]:
        cluster, prefix = self.cluster, "csi.storage.k8s.io"
        lines = [f"  {prefix}/fstype: {cluster.fs_type}"] if cluster.fs_type else []
        if not cluster.volume_secret:
            return lines
        calls = ["provisioner"] + ["controller-publish"] * cluster.attaches
        calls += ["node-publish"] if cluster.per_pod else ["node-stage", "node-publish"]
        if cluster.expands:
            calls += ["controller-expand", "node-expand"]
        for call in calls:
            lines.append(f"  {prefix}/{call}-secret-name: {self.q('volumeSecret')}")
            lines.append(f"  {prefix}/{call}-secret-namespace: {self.ns()}")
        return lines


class Helm(Plain):
    """The same, as expressions of Go's templates."""

    def q(self, path: str, suffix: str = "") -> str:
        if suffix:
            return f'"{self.text(path)}{suffix}"'
        return f"{{{{ {_place(path)} | quote }}}}"

    def raw(self, path: str) -> str:
        return f"{{{{ {_place(path)} }}}}"

    def text(self, path: str) -> str:
        return f"{{{{ {_place(path)} }}}}"

    def block(self, path: str, indent: int) -> str:
        return f"{' ' * indent}{{{{- toYaml {_place(path)} | nindent {indent} }}}}"

    def ns(self) -> str:
        return "{{ .Release.Namespace }}"

    def digest(self, key: str) -> str:
        return f"{{{{ {_place(f'files.{key}')} | sha256sum }}}}"

    def shipped(self, name: str, indent: int) -> str:
        return f'{" " * indent}{{{{- .Files.Get "files/{name}" | nindent {indent} }}}}'

    def labels(self) -> str:
        return _with("metrics.labels", "    ", "", 4)

    def setting(self, one: Option) -> str:
        place = _place(f"options.{one.key}")
        line = f"            - {{name: {one.variable}, value: {{{{ {place} | quote }}}}}}"
        there = (
            f'            {{{{- if hasKey .Values.options "{one.key}" }}}}'  # `with` would leave out a false
        )
        return f"{there}\n{line}\n            {{{{- end }}}}"

    def pull_secrets(self) -> str:
        return _with("imagePullSecrets", "      ", "imagePullSecrets:", 8)

    def mount_options(self) -> str:
        return _with("storageClass.mountOptions", "", "mountOptions:", 2)

    def class_parameters(self) -> str:
        lines = self._own_keys()
        if not lines:
            return _with("storageClass.parameters", "", "parameters:", 2)
        return "\n".join(["parameters:", *lines, _with("storageClass.parameters", "", "", 2)])


def _place(path: str) -> str:
    return f".Values.{path}"


def _with(path: str, indent: str, heading: str, nested: int) -> str:
    """What is there only where the value is not empty."""
    lines = [f"{indent}{heading}"] if heading else []
    lines.append(f"{' ' * nested}{{{{- toYaml . | nindent {nested} }}}}")
    return "\n".join([f"{indent}{{{{- with {_place(path)} }}}}", *lines, f"{indent}{{{{- end }}}}"])


def _indented(text: str, indent: int) -> str:
    return "\n".join(f"{' ' * indent}{line}" for line in text.splitlines())
