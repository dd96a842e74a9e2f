"""What the sidecars may ask of the API server: the rules of their repositories' RBAC files, at the versions that
`volkit_csi.deploy.sidecars` names, less what a sidecar does not do for this driver. The driver itself asks nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import evolve, frozen

from volkit_csi.deploy.cluster import Cluster


@frozen
class Rule:
    """One rule of a role: which sidecar needs it, the API group, the resource, the verbs, and why; where (`needed`)."""

    sidecar: str
    group: str
    resource: str
    verbs: str
    why: str
    needed: Callable[[Cluster], bool] = lambda cluster: True
    names: tuple[str, ...] = ()


READ: Final = "get list watch"
STORAGE: Final = "storage.k8s.io"
SNAPSHOT: Final = "snapshot.storage.k8s.io"


def _knows_nodes(c: Cluster) -> bool:
    """A provisioner for one node knows that node by the driver."""
    return (c.topology or c.capacity) and not c.node_local


# fmt: off
CLUSTER: Final = (
    Rule("provisioner", "", "persistentvolumes", f"{READ} create patch delete", "it makes and deletes them"),
    Rule("provisioner", "", "persistentvolumeclaims", f"{READ} update", "it reads what is wanted"),
    Rule("provisioner", STORAGE, "storageclasses", READ, "with which parameters"),
    Rule("provisioner", STORAGE, "csinodes", READ, "how places of nodes are called", _knows_nodes),
    Rule("provisioner", "", "nodes", READ, "where nodes are", _knows_nodes),
    Rule("provisioner", STORAGE, "volumeattachments", READ, "whether a volume to be deleted is still attached",
         lambda c: c.attaches),
    Rule("provisioner", SNAPSHOT, "volumesnapshots", f"{READ} update",
         "what a volume is made from, kept while it is made", lambda c: c.snapshots),
    Rule("provisioner", SNAPSHOT, "volumesnapshotcontents", "get list", "and where its content is",
         lambda c: c.snapshots),
    Rule("provisioner", STORAGE, "volumeattributesclasses", READ, "what a volume is to be", lambda c: c.modifies),
    Rule("attacher", "", "persistentvolumes", f"{READ} patch", "it marks what it attaches"),
    Rule("attacher", STORAGE, "csinodes", READ, "how a node is called"),
    Rule("attacher", STORAGE, "volumeattachments", f"{READ} patch", "it does what these ask for"),
    Rule("attacher", STORAGE, "volumeattachments/status", "patch", "and says how it went"),
    Rule("resizer", "", "persistentvolumes", f"{READ} patch", "it writes their new size"),
    Rule("resizer", "", "persistentvolumeclaims", READ, "it reads what is wanted"),
    Rule("resizer", "", "persistentvolumeclaims/status", "patch", "and says how it went"),
    Rule("resizer", "", "pods", READ, "who uses a volume that grows offline", lambda c: c.expands_offline),
    Rule("resizer", STORAGE, "volumeattributesclasses", READ, "what a volume is to become", lambda c: c.modifies),
    Rule("snapshotter", SNAPSHOT, "volumesnapshotclasses", READ, "with which parameters"),
    Rule("snapshotter", SNAPSHOT, "volumesnapshotcontents", f"{READ} update patch", "it does what these ask for"),
    Rule("snapshotter", SNAPSHOT, "volumesnapshotcontents/status", "update patch", "and says how it went"),
    Rule("", "", "events", "create update patch", "what people see by `kubectl describe`"),
)
"""Of the whole cluster. A rule without a sidecar is for any of them."""

NAMESPACE: Final = (
    Rule("", "coordination.k8s.io", "leases", f"{READ} create update delete", "who of them leads", lambda c: c.leads),
    Rule("provisioner", STORAGE, "csistoragecapacities", f"{READ} create update patch delete",
         "the room that is left", lambda c: c.capacity),
    Rule("provisioner", "", "pods", "get", "whose that is: the pod's", lambda c: c.capacity),
    Rule("provisioner", "apps", "replicasets", "get", "and its owner's",
         lambda c: c.capacity and c.apart and not c.journal_follows),
    Rule("", "", "secrets", "get", "what goes with every call", lambda c: c.volume_secret),
)
"""Of the driver's namespace."""
# fmt: on


def of_cluster(cluster: Cluster) -> list[Rule]:
    """The rules of all sidecars of one pod together, for the whole cluster."""
    return _merged(_needed(CLUSTER, cluster))


def of_namespace(cluster: Cluster) -> list[Rule]:
    """Those for the driver's namespace. The one Secret that is read is named."""
    secret = (cluster.values.volume_secret,)
    rules = _needed(NAMESPACE, cluster)
    return [evolve(one, names=secret) if one.resource == "secrets" else one for one in rules]


def _needed(rules: tuple[Rule, ...], cluster: Cluster) -> list[Rule]:
    there = (*cluster.sidecars, "") if cluster.sidecars else ()
    return [one for one in rules if one.sidecar in there and one.needed(cluster)]


def _merged(rules: list[Rule]) -> list[Rule]:
    """One rule for each resource, with all that is needed of it by whom."""
    merged: dict[tuple[str, str], Rule] = {}
    for rule in rules:
        key = (rule.group, rule.resource)
        if (old := merged.get(key)) is not None:
            verbs = " ".join(dict.fromkeys(f"{old.verbs} {rule.verbs}".split()))
            rule = evolve(old, verbs=verbs, why="; ".join(dict.fromkeys((old.why, rule.why))))
        merged[key] = rule
    return list(merged.values())
