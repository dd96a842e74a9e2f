"""What runs beside the driver: the containers of https://kubernetes-csi.github.io/docs/sidecar-containers.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from attrs import field, frozen

from volkit_csi.deploy.cluster import HEALTH_PORT, Cluster

SIDECARS: Final[Mapping[str, tuple[str, str]]] = {
    "provisioner": ("csi-provisioner", "v6.4.0"),
    "attacher": ("csi-attacher", "v4.13.0"),
    "resizer": ("csi-resizer", "v2.3.0"),
    "snapshotter": ("csi-snapshotter", "v8.7.0"),
    "registrar": ("csi-node-driver-registrar", "v2.17.0"),
    "livenessprobe": ("livenessprobe", "v2.19.0"),
}
"""Every sidecar's image and version: the one place where they are."""


@frozen(kw_only=True)
class Sidecar:
    """One container beside the driver. `env` names fields of the pod by variable; `{kubelet}` and `{port}` in `args`
    are the operator's values.
    """

    value: str
    args: tuple[str, ...]
    env: Mapping[str, str] = field(factory=dict)
    registers: bool = False
    health_port: bool = False

    @property
    def name(self) -> str:
        return SIDECARS[self.value][0]


Flags = Callable[[Cluster], bool]

_ADDRESS: Final = "--csi-address=/csi/csi.sock"
_FLAGS: Final[tuple[tuple[str, str, Flags], ...]] = (
    ("provisioner attacher resizer snapshotter", "--timeout=60s", lambda c: True),
    ("provisioner attacher resizer snapshotter", "--leader-election", lambda c: c.leads),
    ("provisioner snapshotter", "--node-deployment", lambda c: c.node_local),
    ("provisioner snapshotter", "--extra-create-metadata", lambda c: True),
    ("provisioner attacher", "--default-fstype={fs_type}", lambda c: bool(c.fs_type)),
    ("provisioner", "--strict-topology", lambda c: c.node_local),
    ("provisioner", "--immediate-topology=false", lambda c: c.node_local),
    ("provisioner", "--enable-capacity", lambda c: c.capacity),
    ("provisioner", "--capacity-ownerref-level={level}", lambda c: c.capacity),
    # or it watches every pod of the cluster for those that use a volume that only grows offline
    ("resizer", "--handle-volume-inuse-error=false", lambda c: not c.expands_offline),
    ("snapshotter", "--feature-gates=CSIVolumeGroupSnapshot=false", lambda c: True),
)
"""The flags of the controller's sidecars: whose, which, and where."""

_FIELDS: Final[tuple[tuple[str, str, str, Flags], ...]] = (
    ("provisioner snapshotter", "NODE_NAME", "spec.nodeName", lambda c: c.node_local),
    ("provisioner", "NAMESPACE", "metadata.namespace", lambda c: c.capacity),
    ("provisioner", "POD_NAME", "metadata.name", lambda c: c.capacity),
)
"""Their variables, likewise."""


def of_controller(cluster: Cluster) -> list[Sidecar]:
    """Those in the pods of a controller apart."""
    args = (_ADDRESS, f"--http-endpoint=:{HEALTH_PORT}")
    return [*_central(cluster), Sidecar(value="livenessprobe", args=args)]


def of_node(cluster: Cluster) -> list[Sidecar]:
    """Those in the nodes' pods."""
    path = f"--kubelet-registration-path={{kubelet}}/plugins/{cluster.driver}/csi.sock"
    registrar = Sidecar(value="registrar", args=(_ADDRESS, path), registers=True)
    host = "127.0.0.1" if cluster.host_network else ""
    watched = (_ADDRESS, f"--http-endpoint={host}:{{port}}")
    probe = Sidecar(value="livenessprobe", args=watched, health_port=cluster.host_network)
    return [registrar, *(_central(cluster) if cluster.everywhere else ()), probe]


def _central(cluster: Cluster) -> list[Sidecar]:
    # a pod's owner is a DaemonSet or a StatefulSet, or a ReplicaSet, whose owner is the Deployment
    level = 2 if cluster.apart and not cluster.journal_follows else 1
    return [
        Sidecar(
            value=name,
            args=(
                _ADDRESS,
                *(
                    flag.format(fs_type=cluster.fs_type, level=level)
                    for whose, flag, there in _FLAGS
                    if name in whose.split() and there(cluster)
                ),
            ),
            env={
                variable: path
                for whose, variable, path, there in _FIELDS
                if name in whose.split() and there(cluster)
            },
        )
        for name in cluster.sidecars
    ]
