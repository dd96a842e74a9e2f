"""What a driver needs of a Kubernetes cluster: it follows from the backend's classes and the operator's values.

The templates read a `Cluster`, by the names of its properties; `volkit_csi.deploy.sidecars` and `.permissions` are the
tables of what runs beside the driver, and of what that may ask of the API server.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from attrs import frozen

import volkit
from volkit import Deployment, FailedPrecondition, InvalidArgument
from volkit.options import Option
from volkit_csi.deploy.values import Architecture, Kubernetes, Metrics
from volkit_csi.main import default_name

FILES: Final = "/etc/volkit/files"
"""Where the files are that settings name."""

HEALTH_PORT: Final = 9808
"""Of a controller apart, which has a network of its own."""

_UNIQUE: Final = frozenset({"FindsByName", "TakesIds", "TakesTokens"})
"""A controller with one of these finds again what was made, without its journal."""


@frozen(slots=False)
class Cluster:
    """What is deployed where. Raises FailedPrecondition and InvalidArgument for what no cluster could run."""

    deployment: Deployment

    def __attrs_post_init__(self) -> None:
        if self.deployment.node is None:
            raise FailedPrecondition(
                f"backend {self.backend!r} has no node: there is nothing to run on a cluster's nodes"
            )
        _refuse_impossible(self)
        _refuse_unsafe(self)

    @property
    def values(self) -> Kubernetes:
        """The operator's."""
        found: Kubernetes = self.deployment.values
        return found

    # -- what things are called

    @property
    def backend(self) -> str:
        return self.deployment.backend.name

    @property
    def instance(self) -> str:
        """What tells this driver from another one, also of the same backend."""
        return self.values.name or self.backend

    @property
    def name(self) -> str:
        """What objects are called."""
        return f"volkit-{self.instance}"

    @property
    def driver(self) -> str:
        return self.values.driver_name or default_name(self.instance)

    @property
    def namespace(self) -> str:
        return self.values.namespace or self.name

    @property
    def state_dir(self) -> str:
        return f"/var/lib/volkit/{self.instance}"

    @property
    def run_dir(self) -> str:
        return f"/run/volkit/{self.instance}"

    @property
    def command(self) -> str:
        return self.values.command

    # -- where what runs

    @cached_property
    def architecture(self) -> Architecture:
        if self.values.architecture is not Architecture.AUTO:
            return self.values.architecture
        if self.deployment.controller is None:
            return Architecture.NODE
        return Architecture.EVERYWHERE if self.node_local else Architecture.APART

    @property
    def apart(self) -> bool:
        """Whether a controller has pods of its own."""
        return self.architecture is Architecture.APART

    @property
    def everywhere(self) -> bool:
        """Whether the controller, with its sidecars, is in the nodes' pods."""
        return self.architecture is Architecture.EVERYWHERE

    @property
    def headless(self) -> bool:
        """Whether no controller runs."""
        return self.architecture is Architecture.NODE

    @property
    def node_local(self) -> bool:
        return self.deployment.backend.needs.node_local

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Those of a controller, by its capabilities. The resizer knows no nodes: it would ask any of them to grow a
        volume, so that volumes that live on nodes have none.
        """
        wanted = {
            "provisioner": True,
            "attacher": self._has(volkit.Publishes),
            "resizer": (self._has(volkit.Expands) or self.modifies) and not self.node_local,
            "snapshotter": self.snapshots,
        }
        return tuple(name for name, one in wanted.items() if one and not self.headless)

    @property
    def leads(self) -> bool:
        """Whether sidecars elect leaders: where each node has its own volumes, each has its own work."""
        return bool(self.sidecars) and not self.node_local

    # -- what the driver can do

    def _has(self, mixin: type[volkit.Mixin]) -> bool:
        return self.deployment.has(mixin)

    @property
    def attaches(self) -> bool:
        return self._has(volkit.Publishes) and not self.headless

    @property
    def topology(self) -> bool:
        return self._has(volkit.ReportsTopology)

    @property
    def capacity(self) -> bool:
        return self._has(volkit.ReportsCapacity) and not self.headless

    @property
    def modifies(self) -> bool:
        return self._has(volkit.Modifies)

    @property
    def snapshots(self) -> bool:
        return self._has(volkit.Snapshots)

    @property
    def expands(self) -> bool:
        return self._has(volkit.Expands) and "resizer" in self.sidecars

    @property
    def expands_offline(self) -> bool:
        return self._has(volkit.ExpandsOffline)

    @property
    def per_pod(self) -> bool:
        return self._has(volkit.ConnectsPerPod)

    @property
    def mounter(self) -> bool:
        """Whether programs serve volumes, which must outlive the driver's pod."""
        return self._has(volkit.MountsByProgram)

    @property
    def findable(self) -> bool:
        """Whether what was made is found again in the storage."""
        controller = self.deployment.controller
        return controller is None or bool(_UNIQUE & volkit.backend.mixins(controller))

    # -- what it needs of a node

    @property
    def block_devices(self) -> bool:
        return self.deployment.backend.volume.kind == "block"

    @property
    def fs_type(self) -> str:
        return self.deployment.backend.limits.fs_types[0] if self.block_devices else ""

    @property
    def fs_group_policy(self) -> str:
        return "None" if self.deployment.backend.volume.kind == "object" else "File"

    @property
    def selinux_mount(self) -> bool:
        return self.deployment.backend.needs.selinux_mount

    @property
    def audiences(self) -> tuple[str, ...]:
        return self.deployment.backend.needs.token_audiences

    @property
    def host_network(self) -> bool:
        return self.deployment.host_network

    # -- its settings

    @property
    def settings(self) -> list[Option]:
        """Those that are not secret, given or not: a chart may give them later."""
        return [one for one in self.deployment.declared if not one.secret]

    @property
    def secret_settings(self) -> tuple[Option, ...]:
        return self.deployment.secrets

    @property
    def directories(self) -> list[str]:
        """The keys of the settings that are directories of the node."""
        return [one.key for one in self.deployment.directories]

    @cached_property
    def certificates(self) -> dict[str, str]:
        """The files of settings that hold certificates and nothing else, which are no secret: texts by key."""
        found = {one.key: _certificates(self.deployment.settings[one.key]) for one in self.deployment.files}
        return {key: text for key, text in found.items() if text}

    @property
    def secret_files(self) -> list[str]:
        """The keys of the settings that name any other file: it is in the Secret."""
        return [one.key for one in self.deployment.files if one.key not in self.certificates]

    @property
    def secret_sources(self) -> dict[str, str]:
        """What the Secret is made of: a file for each key."""
        files = [one for one in self.deployment.files if one.key not in self.certificates]
        return self.deployment.sources([*self.secret_settings, *files])

    @property
    def node_secret(self) -> str:
        """Where the name of the nodes' Secret is among the values."""
        return "node.secret" if self.values.node_secret else "secret"

    @property
    def volume_secret(self) -> bool:
        return bool(self.values.volume_secret)

    # -- its journal

    @property
    def journal(self) -> bool:
        """Whether one is shared."""
        return bool(self.values.journal)

    @property
    def journal_follows(self) -> bool:
        """Whether the journal is all that knows what was made, and has to follow its controller."""
        return not self.findable and self.apart

    # -- who watches it

    @property
    def metrics(self) -> bool:
        return self.values.metrics is not Metrics.NONE

    @property
    def scraped(self) -> str:
        """How Prometheus finds it: `port`, `annotations`, `podmonitor` or `servicemonitor`."""
        return self.values.metrics.value

    @property
    def components(self) -> list[str]:
        """Whose drivers there are to watch."""
        return ["controller", "node"] if self.apart else ["node"]

    @property
    def dashboard(self) -> bool:
        return self.values.dashboard

    @property
    def alerts(self) -> bool:
        return self.values.alerts

    @property
    def objects(self) -> list[str]:
        """The templates of its objects."""
        there = {
            "csidriver": True,
            "rbac": True,
            "files": bool(self.certificates),
            "controller": self.apart,
            "node": True,
            "mounter": self.mounter,
            "storageclass": "provisioner" in self.sidecars,
            "snapshotclass": "snapshotter" in self.sidecars,
            "monitor": self.values.metrics in (Metrics.POD_MONITOR, Metrics.SERVICE_MONITOR),
            "alerts": self.alerts,
            "dashboard": self.dashboard,
        }
        return [name for name, one in there.items() if one]


def _certificates(path: str) -> str:
    """What is in a file of certificates of this machine; "" for any other."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError):
        return ""
    begun = [line for line in text.splitlines() if line.startswith("-----BEGIN ")]
    return text if begun and set(begun) == {"-----BEGIN CERTIFICATE-----"} else ""


def _refuse_impossible(cluster: Cluster) -> None:
    asked, controller = cluster.values.architecture, cluster.deployment.controller
    if controller is None and asked not in (Architecture.AUTO, Architecture.NODE):
        raise InvalidArgument(f"backend {cluster.backend!r} has no controller: its architecture is node")
    if cluster.node_local and asked is Architecture.APART:
        raise InvalidArgument(
            f"volumes of backend {cluster.backend!r} live on the nodes that make them: a controller apart could make "
            "none there; its architecture is everywhere, or node"
        )
    if cluster.values.replicas > 1 and not cluster.apart:
        raise InvalidArgument("replicas are those of a controller apart: each node has one driver")
    if (cluster.alerts or cluster.dashboard) and not cluster.metrics:
        raise InvalidArgument(
            "alerts and dashboard show metrics: give --metrics, such as --metrics podmonitor"
        )
    if cluster.values.node_secret and not cluster.apart:
        raise InvalidArgument("node-secret is for nodes without a controller beside the driver: leave it out")
    ports = (cluster.values.health_port, cluster.values.metrics_port)
    if cluster.metrics and len(set(ports)) < len(ports):
        raise InvalidArgument(f"health-port and metrics-port are both {ports[0]}: give one of them another")


def _refuse_unsafe(cluster: Cluster) -> None:
    """Sidecars elect their leaders each for itself, so that several controllers do work at one time."""
    if cluster.findable or cluster.headless:
        return
    values = cluster.values
    why = f"backend {cluster.backend!r} finds no volume by name, takes no ids, no tokens"
    if values.journal:
        raise FailedPrecondition(
            f"{why}: no lock keeps two controllers from making a volume twice, and a shared journal invites a second "
            "one; leave --journal out, and the journal follows the one controller on a volume"
        )
    if values.replicas > 1:
        raise FailedPrecondition(f"{why}: two controllers could make a volume twice; give one replica")
    if cluster.everywhere and not cluster.node_local:
        raise FailedPrecondition(
            f"{why}: controllers on every node could make a volume twice; deploy it apart"
        )
    if cluster.apart and not values.journal_class:
        raise InvalidArgument(
            f"{why}: its journal has to follow the controller; give --journal-class, a StorageClass for it"
        )
