"""One template, two renderings: `Plain` puts values in, `Helm` puts in where Helm finds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from volkit import FailedPrecondition, options


def dump(value: object) -> str:
    """YAML. Raises FailedPrecondition where its library is missing."""
    try:
        import yaml
    except ImportError:
        raise FailedPrecondition('this takes YAML: `pip install "volkit-sdk[deploy]"`') from None
    return str(
        yaml.safe_dump(value, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)
    )


class Plain:
    """What the templates call. `path` names a value such as `node.healthPort`."""

    def __init__(self, values: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.values = values
        self.facts = facts

    def functions(self) -> dict[str, Any]:
        """By the names that the templates know; the sidecars' flags are completed."""
        calls: tuple[Callable[..., str], ...] = (
            self.q, self.raw, self.text, self.block, self.ns, self.setting, self.pull_secrets, self.mount_options,
            self.class_parameters,
        )  # fmt: skip
        named: dict[str, Any] = {call.__name__: call for call in calls}
        for pod in ("controller_sidecars", "node_sidecars"):
            named[pod] = [self._completed(one) for one in self.facts[pod]]
        return named

    def _completed(self, sidecar: Any) -> Any:
        import attrs

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
        return str(self.at(path))

    def text(self, path: str) -> str:
        """A part of a text."""
        return str(self.at(path))

    def block(self, path: str, indent: int) -> str:
        """A table or a list, in lines of their own."""
        return _indented(dump(self.at(path)), indent)

    def ns(self) -> str:
        """The namespace."""
        return str(self.facts["namespace"])

    def setting(self, one: options.Option) -> str:
        """An option of the backend as a variable; nothing where it is not set."""
        if one.key not in self.values["options"]:
            return ""
        value = json.dumps(str(self.values["options"][one.key]))
        return f"            - {{name: VOLKIT_OPTION_{one.field.upper()}, value: {value}}}"

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
        facts, prefix = self.facts, "csi.storage.k8s.io"
        lines = [f"  {prefix}/fstype: {facts['fs_type']}"] if facts["fs_type"] else []
        if not facts["volume_secret"]:
            return lines
        calls = ["provisioner"] + ["controller-publish"] * facts["attaches"]
        calls += ["node-publish"] if facts["per_pod"] else ["node-stage", "node-publish"]
        if facts["expands"]:
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

    def setting(self, one: options.Option) -> str:
        place = _place(f"options.{one.key}")
        line = f"            - {{name: VOLKIT_OPTION_{one.field.upper()}, value: {{{{ {place} | quote }}}}}}"
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
