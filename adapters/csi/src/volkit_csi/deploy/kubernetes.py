"""`volkit deploy kubernetes`: a driver's objects as plain YAML, a kustomize base and a Helm chart, and its image.

`volkit_csi.deploy.cluster` says what is needed, the templates write it down, once for all three; what an operator may
still change is in the chart's `values.yaml`.
"""

from __future__ import annotations

from typing import Any, Final

from volkit import Deployment, rendering
from volkit_csi.deploy import helm, permissions, sidecars
from volkit_csi.deploy.cluster import FILES, HEALTH_PORT, Cluster
from volkit_csi.deploy.image import image

PACKAGE: Final = "volkit_csi"
DIRECTORY: Final = "deploy/templates/kubernetes/"

_CRDS: Final = {
    "snapshotclass": "snapshot.storage.k8s.io/v1",
    "monitor": "monitoring.coreos.com/v1",
    "alerts": "monitoring.coreos.com/v1",
}
"""The objects of a chart that are left out of a cluster without their CRDs."""


def render(deployment: Deployment) -> dict[str, str]:
    """Every file by its path, `kubernetes.yaml` (all objects) first.

    Raises InvalidArgument and FailedPrecondition for what no cluster could run.
    """
    cluster = Cluster(deployment)
    values = helm.values(cluster)
    plain = helm.Plain(cluster, values)
    named = {"namespace": "namespace.yaml"} | {one: f"{one}.yaml" for one in cluster.objects}
    objects = {path: _rendered(one, cluster, plain) for one, path in named.items()}
    found = {"kubernetes.yaml": "---\n".join(objects.values())}
    found["kustomize/kustomization.yaml"] = helm.dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": list(objects),
        }
    )
    found |= {f"kustomize/{path}": text for path, text in objects.items()}
    found["chart/Chart.yaml"] = helm.chart(cluster)
    found["chart/values.yaml"] = helm.dump(values)
    found |= {f"chart/files/{name}": text for name, text in _monitoring(cluster).items()}
    if cluster.secret_sources:
        found["chart/templates/NOTES.txt"] = helm.notes(cluster)
    writer = helm.Helm(cluster, values)
    for one in cluster.objects:
        found[f"chart/templates/{one}.yaml"] = _guarded(one, _rendered(one, cluster, writer))
    return found | image(cluster)


def _rendered(template: str, cluster: Cluster, writer: helm.Plain) -> str:
    names: dict[str, Any] = {
        "dir": DIRECTORY,
        "cluster": cluster,
        "place": FILES,
        "health_port": HEALTH_PORT,
        "controller_sidecars": sidecars.of_controller(cluster),
        "node_sidecars": sidecars.of_node(cluster),
        "roles": permissions.of_cluster(cluster),
        "local_roles": permissions.of_namespace(cluster),
        **writer.functions(),
    }
    text = rendering.render(PACKAGE, f"{DIRECTORY}{template}.yaml.jinja", names)
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _guarded(template: str, text: str) -> str:
    if template not in _CRDS:
        return text
    return f'{{{{- if .Capabilities.APIVersions.Has "{_CRDS[template]}" }}}}\n{text}{{{{- end }}}}\n'


def _monitoring(cluster: Cluster) -> dict[str, str]:
    """The files that come with volkit, for a chart: they are in a template language of their own."""
    there = {"alerts.yaml": cluster.alerts, "dashboard.json": cluster.dashboard}
    return {name: helm.shipped(name) for name, one in there.items() if one}
