"""`volkit deploy kubernetes`: a driver's objects as plain YAML, a kustomize base and a Helm chart.

What is deployed follows from the backend's classes: `_facts` says it once, the templates write it down. What an
operator may still change is in `values.yaml`; the plain YAML is the chart with these values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import field, frozen

import volkit
from volkit import Backend, Deployment, FailedPrecondition, InvalidArgument, rendering
from volkit_csi.deploy.helm import Helm, Plain, dump
from volkit_csi.deploy.values import Architecture, Kubernetes

SIDECARS: Final[Mapping[str, tuple[str, str]]] = {
    "provisioner": ("csi-provisioner", "v6.3.0"),
    "attacher": ("csi-attacher", "v4.12.0"),
    "resizer": ("csi-resizer", "v2.2.1"),
    "snapshotter": ("csi-snapshotter", "v8.6.0"),
    "registrar": ("csi-node-driver-registrar", "v2.17.0"),
    "livenessprobe": ("livenessprobe", "v2.19.0"),
}
"""Every sidecar's image and version: the one place where they are."""

PACKAGE: Final = "volkit_csi"
DIRECTORY: Final = "deploy/kubernetes/"

_BLOCK_PACKAGES: Final = ("btrfs-progs", "e2fsprogs", "xfsprogs")
_EVERY_PACKAGE: Final = ("libudev1", "mount", "util-linux")
_UNIQUE: Final = frozenset({"FindsByName", "TakesIds", "TakesTokens"})
"""A controller with one of these finds again what was made, without its journal."""
_ADDRESS: Final = "--csi-address=/csi/csi.sock"


@frozen(kw_only=True)
class Sidecar:
    """One container beside the driver. `env` names fields of the pod by variable."""

    value: str
    args: tuple[str, ...]
    env: Mapping[str, str] = field(factory=dict)
    registers: bool = False

    @property
    def name(self) -> str:
        return SIDECARS[self.value][0]


@frozen(kw_only=True)
class Rule:
    """One rule of a role, with the reason for it."""

    why: str
    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()


READ: Final = ("get", "list", "watch")

# The sources are the RBAC files of the sidecars' repositories, at the versions above.
RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "provisioner": (
        Rule(
            why="it makes and deletes them",
            group="",
            resources=("persistentvolumes",),
            verbs=(*READ, "create", "patch", "delete"),
        ),
        Rule(
            why="it reads what is wanted",
            group="",
            resources=("persistentvolumeclaims",),
            verbs=(*READ, "update"),
        ),
        Rule(why="with which parameters", group="storage.k8s.io", resources=("storageclasses",), verbs=READ),
        Rule(
            why="how capabilities and places of nodes are known",
            group="storage.k8s.io",
            resources=("csinodes",),
            verbs=READ,
        ),
        Rule(why="where nodes are", group="", resources=("nodes",), verbs=READ),
    ),
    "attacher": (
        Rule(
            why="it marks what it attaches",
            group="",
            resources=("persistentvolumes",),
            verbs=(*READ, "patch"),
        ),
        Rule(why="how a node is called", group="storage.k8s.io", resources=("csinodes",), verbs=READ),
        Rule(
            why="it does what these ask for",
            group="storage.k8s.io",
            resources=("volumeattachments",),
            verbs=(*READ, "patch"),
        ),
        Rule(
            why="and says how it went",
            group="storage.k8s.io",
            resources=("volumeattachments/status",),
            verbs=("patch",),
        ),
    ),
    "resizer": (
        Rule(
            why="it writes their new size", group="", resources=("persistentvolumes",), verbs=(*READ, "patch")
        ),
        Rule(why="it reads what is wanted", group="", resources=("persistentvolumeclaims",), verbs=READ),
        Rule(
            why="and says how it went",
            group="",
            resources=("persistentvolumeclaims/status",),
            verbs=("patch",),
        ),
        Rule(why="who uses a volume that grows offline", group="", resources=("pods",), verbs=READ),
    ),
    "snapshotter": (
        Rule(
            why="with which parameters",
            group="snapshot.storage.k8s.io",
            resources=("volumesnapshotclasses",),
            verbs=READ,
        ),
        Rule(
            why="it does what these ask for",
            group="snapshot.storage.k8s.io",
            resources=("volumesnapshotcontents",),
            verbs=(*READ, "update", "patch"),
        ),
        Rule(
            why="and says how it went",
            group="snapshot.storage.k8s.io",
            resources=("volumesnapshotcontents/status",),
            verbs=("update", "patch"),
        ),
    ),
}
EVENTS: Final = Rule(
    why="what people see by `kubectl describe`",
    group="",
    resources=("events",),
    verbs=("list", "watch", "create", "update", "patch"),
)


def render(deployment: Deployment) -> dict[str, str]:
    """Every file by its path, `kubernetes.yaml` (all objects) first.

    Raises InvalidArgument and FailedPrecondition for what no cluster could run.
    """
    values: Kubernetes = deployment.values
    facts = _facts(deployment, values)
    chart_values = _values(deployment, values, facts)
    plain, helm = Plain(chart_values, facts), Helm(chart_values, facts)
    named = {"namespace": "namespace.yaml"} | {one: f"{one}.yaml" for one in facts["objects"]}
    objects = {path: _rendered(one, facts, plain) for one, path in named.items()}
    files = {"kubernetes.yaml": "---\n".join(objects.values())}
    files["kustomize/kustomization.yaml"] = dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": list(objects),
        }
    )
    files |= {f"kustomize/{path}": text for path, text in objects.items()}
    files["chart/Chart.yaml"] = _chart(deployment.backend, facts)
    files["chart/values.yaml"] = dump(chart_values)
    for one in facts["objects"]:
        files[f"chart/templates/{one}.yaml"] = _guarded(one, _rendered(one, facts, helm))
    return files | _image(deployment, values, facts)


def _rendered(template: str, facts: Mapping[str, Any], writer: Plain) -> str:
    text = rendering.render(PACKAGE, f"{DIRECTORY}{template}.yaml.jinja", {**facts, **writer.functions()})
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _guarded(template: str, text: str) -> str:
    """In a chart: what takes CRDs is left out of a cluster without them."""
    if template != "snapshotclass":
        return text
    return f'{{{{- if .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1" }}}}\n{text}{{{{- end }}}}\n'


# -- what follows from the classes


def _facts(deployment: Deployment, values: Kubernetes) -> dict[str, Any]:
    backend, controller = deployment.backend, deployment.controller
    if deployment.node is None:
        raise FailedPrecondition(
            f"backend {backend.name!r} has no node: there is nothing to run on a cluster's nodes"
        )
    needs = backend.needs
    architecture = _architecture(deployment, values)
    runs = architecture is not Architecture.NODE
    sidecars = _sidecars(controller, node_local=needs.node_local) if runs else ()
    findable = controller is None or bool(_UNIQUE & volkit.backend.mixins(controller))
    has = _has(deployment)
    facts: dict[str, Any] = {
        "dir": DIRECTORY,
        "backend": backend.name,
        "name": f"volkit-{backend.name}",
        "driver": values.driver_name or f"{backend.name}.csi.volkit.io",
        "namespace": values.namespace or f"volkit-{backend.name}",
        "command": values.command,
        "architecture": architecture.value,
        "sidecars": sidecars,
        "services": "controller,node" if architecture is Architecture.EVERYWHERE else "node",
        "headless": not runs,
        "node_local": needs.node_local,
        "attaches": has(volkit.Publishes) and runs,
        "topology": has(volkit.ReportsTopology),
        "capacity": has(volkit.ReportsCapacity) and runs,
        "fs_group_policy": "None" if backend.volume.kind == "object" else "File",
        "selinux_mount": needs.selinux_mount,
        "audiences": needs.token_audiences,
        "fs_type": backend.limits.fs_types[0] if backend.volume.kind == "block" else "",
        "block_devices": backend.volume.kind == "block",
        "mounter": has(volkit.MountsByProgram),
        "modifies": has(volkit.Modifies),
        "expands": has(volkit.Expands) and "resizer" in sidecars,
        "per_pod": has(volkit.ConnectsPerPod),
        "host_network": _host_network(backend),
        "host_paths": [one.key for one in _options(backend) if one.field in needs.host_paths],
        "settings": [one for one in _options(backend) if not one.secret],
        "secret_settings": [
            one for one in _options(backend) if one.secret and one.key not in deployment.settings
        ],
        "journal": bool(values.journal),
        "journal_follows": not findable and architecture is Architecture.APART,
        "volume_secret": bool(values.volume_secret),
        "node_sidecars_central": architecture is Architecture.EVERYWHERE,
    }
    _refuse_unsafe(backend, values, architecture, findable=findable)
    facts |= _pods(facts)
    facts |= _permissions(facts, values)
    facts["objects"] = _objects(architecture, sidecars)
    return facts


def _has(deployment: Deployment) -> Callable[[type], bool]:
    sides = [one for one in (deployment.controller, deployment.node) if one is not None]
    return lambda mixin: any(issubclass(one, mixin) for one in sides)


def _options(backend: type[Backend[Any, Any]]) -> tuple[volkit.options.Option, ...]:
    return volkit.options.declared(backend.settings)


def _host_network(backend: type[Backend[Any, Any]]) -> bool:
    if backend.needs.host_network is not None:
        return backend.needs.host_network
    return backend.volume.kind != "block" and not backend.needs.node_local


def _architecture(deployment: Deployment, values: Kubernetes) -> Architecture:
    backend, asked = deployment.backend, values.architecture
    if deployment.controller is None:
        if asked not in (Architecture.AUTO, Architecture.NODE):
            raise InvalidArgument(f"backend {backend.name!r} has no controller: its architecture is node")
        return Architecture.NODE
    if backend.needs.node_local:
        if asked is Architecture.APART:
            raise InvalidArgument(
                f"volumes of backend {backend.name!r} live on the nodes that make them: a controller apart could make "
                "none there; its architecture is everywhere, or node"
            )
        return Architecture.EVERYWHERE if asked is Architecture.AUTO else asked
    return Architecture.APART if asked is Architecture.AUTO else asked


def _refuse_unsafe(
    backend: type[Backend[Any, Any]], values: Kubernetes, architecture: Architecture, *, findable: bool
) -> None:
    """Sidecars elect their leaders each for itself, so that several controllers do work at one time."""
    if values.replicas > 1 and architecture is not Architecture.APART:
        raise InvalidArgument("replicas are those of a controller apart: each node has one driver")
    if findable:
        return
    why = f"backend {backend.name!r} finds no volume by name, takes no ids, no tokens"
    if values.journal:
        raise FailedPrecondition(
            f"{why}: no lock keeps two controllers from making a volume twice, and a shared journal invites a second "
            "one; leave --journal out, and the journal follows the one controller on a volume"
        )
    if values.replicas > 1:
        raise FailedPrecondition(f"{why}: two controllers could make a volume twice; give one replica")
    if architecture is Architecture.EVERYWHERE and not backend.needs.node_local:
        raise FailedPrecondition(
            f"{why}: controllers on every node could make a volume twice; deploy it apart"
        )
    if architecture is Architecture.APART and not values.journal_class:
        raise InvalidArgument(
            f"{why}: its journal has to follow the controller; give --journal-class, a StorageClass for it"
        )


def _sidecars(controller: type | None, *, node_local: bool) -> tuple[str, ...]:
    """Those whose capability the controller has. The resizer knows no nodes: it would ask any of them to grow a
    volume, so that volumes that live on nodes have none.
    """
    if controller is None:
        return ()
    wanted = {
        "provisioner": True,
        "attacher": issubclass(controller, volkit.Publishes),
        "resizer": issubclass(controller, volkit.Expands | volkit.Modifies) and not node_local,
        "snapshotter": issubclass(controller, volkit.Snapshots),
    }
    return tuple(name for name, one in wanted.items() if one)


def _pods(facts: Mapping[str, Any]) -> dict[str, list[Sidecar]]:
    """The sidecars of the controller's pods, and of the nodes'."""
    central = [_controller_sidecar(name, facts) for name in facts["sidecars"]]
    endpoint = "127.0.0.1:" if facts["host_network"] else ":"
    registrar = Sidecar(
        value="registrar",
        args=(_ADDRESS, f"--kubelet-registration-path={{kubelet}}/plugins/{facts['driver']}/csi.sock"),
        registers=True,
    )
    watched = Sidecar(value="livenessprobe", args=(_ADDRESS, f"--http-endpoint={endpoint}{{port}}"))
    everywhere = facts["node_sidecars_central"]
    return {
        "controller_sidecars": [
            *central,
            Sidecar(value="livenessprobe", args=(_ADDRESS, "--http-endpoint=:9808")),
        ],
        "node_sidecars": [registrar, *(central if everywhere else []), watched],
    }


def _controller_sidecar(name: str, facts: Mapping[str, Any]) -> Sidecar:
    local = facts["node_local"]
    args = [_ADDRESS, "--timeout=60s"]
    env: dict[str, str] = {}
    if not local:
        args.append("--leader-election")
    elif name in ("provisioner", "snapshotter"):
        args.append("--node-deployment")
        env = {"NODE_NAME": "spec.nodeName"}
    if name in ("provisioner", "snapshotter"):
        args.append("--extra-create-metadata")
    if name in ("provisioner", "attacher") and facts["fs_type"]:
        args.append(f"--default-fstype={facts['fs_type']}")
    if name == "provisioner":
        if local:
            args += ["--strict-topology", "--immediate-topology=false"]
        if facts["capacity"]:
            level = 2 if facts["architecture"] == "apart" and not facts["journal_follows"] else 1
            args += ["--enable-capacity", f"--capacity-ownerref-level={level}"]
            env |= {"NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"}
    return Sidecar(value=name, args=tuple(args), env=env)


def _permissions(facts: Mapping[str, Any], values: Kubernetes) -> dict[str, list[Rule]]:
    """The rules of all sidecars of one pod together: those for the cluster, and those for the driver's namespace."""
    sidecars = facts["sidecars"]
    rules = [rule for name in sidecars for rule in RULES[name]]
    local: list[Rule] = []
    if "provisioner" in sidecars and facts["attaches"]:
        rules.append(
            Rule(
                why="whether a volume to be deleted is still attached",
                group="storage.k8s.io",
                resources=("volumeattachments",),
                verbs=READ,
            )
        )
    if "provisioner" in sidecars and "snapshotter" in sidecars:
        group = "snapshot.storage.k8s.io"
        rules += [
            Rule(
                why="what a volume is made from, kept while it is made",
                group=group,
                resources=("volumesnapshots",),
                verbs=(*READ, "update"),
            ),
            Rule(
                why="and where its content is",
                group=group,
                resources=("volumesnapshotcontents",),
                verbs=("get", "list"),
            ),
        ]
    if "resizer" in sidecars and facts["modifies"]:
        rules.append(
            Rule(
                why="what a volume is to become",
                group="storage.k8s.io",
                resources=("volumeattributesclasses",),
                verbs=READ,
            )
        )
    if sidecars:
        rules.append(EVENTS)
    if sidecars and not facts["node_local"]:
        local.append(
            Rule(
                why="who of them leads",
                group="coordination.k8s.io",
                resources=("leases",),
                verbs=(*READ, "create", "update", "patch", "delete"),
            )
        )
    if facts["capacity"] and sidecars:
        local += [
            Rule(
                why="the room that is left",
                group="storage.k8s.io",
                resources=("csistoragecapacities",),
                verbs=(*READ, "create", "update", "patch", "delete"),
            ),
            Rule(why="whose they are: the pod's", group="", resources=("pods",), verbs=("get",)),
        ]
        if facts["architecture"] == "apart" and not facts["journal_follows"]:
            local.append(
                Rule(why="and its owner's", group="apps", resources=("replicasets",), verbs=("get",))
            )
    if values.volume_secret and sidecars:
        local.append(
            Rule(
                why="what goes with every call",
                group="",
                resources=("secrets",),
                verbs=("get",),
                names=(values.volume_secret,),
            )
        )
    return {"roles": _merged(rules), "local_roles": local}


def _merged(rules: list[Rule]) -> list[Rule]:
    """One rule for each resource, with all that is needed of it by whom."""
    merged: dict[tuple[str, tuple[str, ...]], Rule] = {}
    for rule in rules:
        key = (rule.group, rule.resources)
        if key in merged:
            old = merged[key]
            verbs = tuple(dict.fromkeys((*old.verbs, *rule.verbs)))
            why = "; ".join(dict.fromkeys(filter(None, (old.why, rule.why))))
            rule = Rule(why=why, group=rule.group, resources=rule.resources, verbs=verbs)
        merged[key] = rule
    return list(merged.values())


def _objects(architecture: Architecture, sidecars: tuple[str, ...]) -> list[str]:
    objects = ["csidriver", "rbac"]
    if architecture is Architecture.APART:
        objects.append("controller")
    objects.append("node")
    if "provisioner" in sidecars:
        objects.append("storageclass")
    if "snapshotter" in sidecars:
        objects.append("snapshotclass")
    return objects


# -- what may be changed afterwards


def _values(deployment: Deployment, values: Kubernetes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`values.yaml`: only what this deployment has."""
    linux = {"kubernetes.io/os": "linux"}
    everywhere = [{"operator": "Exists"}]
    found: dict[str, Any] = {
        "image": values.image,
        "imagePullSecrets": [{"name": one} for one in values.pull_secrets],
        "logLevel": values.log_level,
        "kubeletDir": str(values.kubelet_dir).rstrip("/"),
        "options": dict(deployment.settings),
    }
    if facts["secret_settings"]:
        found["secret"] = values.secret or facts["name"]
    if values.volume_secret:
        found["volumeSecret"] = values.volume_secret
    found["controller"] = {}
    if facts["architecture"] == "apart":
        found["controller"] = {
            "replicas": values.replicas,
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": linux,
            "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        }
    if values.journal:
        found["controller"]["journal"] = values.journal
    if facts["journal_follows"]:
        found["controller"]["journalClass"] = values.journal_class
    found["node"] = {
        "priorityClassName": "system-node-critical",
        "nodeSelector": linux,
        "tolerations": everywhere,
        "healthPort": values.health_port,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    }
    used = {one.value for one in (*facts["controller_sidecars"], *facts["node_sidecars"])}
    found["sidecars"] = {
        "registry": values.registry,
        **{name: version for name, (_, version) in SIDECARS.items() if name in used},
        "resources": {"requests": {"cpu": "5m", "memory": "24Mi"}, "limits": {"memory": "256Mi"}},
    }
    if facts["sidecars"]:
        found["storageClass"] = {
            "name": values.storage_class or deployment.backend.name,
            "default": str(values.default_class).lower(),
            "reclaimPolicy": values.reclaim_policy.value,
            "mountOptions": list(values.mount_options),
            "parameters": dict(deployment.parameters),
        }
    if not found["controller"]:
        del found["controller"]
    return found


def _chart(backend: type[Backend[Any, Any]], facts: Mapping[str, Any]) -> str:
    return dump(
        {
            "apiVersion": "v2",
            "name": facts["name"],
            "description": f"The CSI driver {facts['driver']}: {backend.describe()['summary']}",
            "type": "application",
            "version": volkit.__version__,
            "appVersion": volkit.__version__,
            "kubeVersion": ">=1.29.0-0",
        }
    )


# -- the image


def _image(deployment: Deployment, values: Kubernetes, facts: Mapping[str, Any]) -> dict[str, str]:
    own = deployment.backend.needs.packages
    packages = sorted({*_EVERY_PACKAGE, *own, *(_BLOCK_PACKAGES if facts["block_devices"] else ())})
    text = rendering.render(
        PACKAGE,
        "deploy/image/Dockerfile.jinja",
        {"image": values.image, "command": values.command, "packages": packages, "own_packages": own},
    )
    from volkit_csi.deploy.requirements import pinned

    extra = ["volkit-sdk[etcd]"] if values.journal else []
    return {"image/Dockerfile": text, "image/requirements.txt": pinned(deployment.backend, extra)}
