"""`volkit deploy pv`: the PV and the claim of a volume that is in the storage already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import volkit
from volkit import AccessMode, Deployment, FailedPrecondition, GetVolumeRequest, InvalidArgument, Volume
from volkit_csi.deploy.helm import dump
from volkit_csi.deploy.values import ExistingVolume
from volkit_csi.main import default_name

# Kubernetes' access modes, as kubelet asks a driver with SINGLE_NODE_MULTI_WRITER for them
MODES: Final[Mapping[str, AccessMode]] = {
    "ReadWriteOnce": AccessMode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": AccessMode.SINGLE_NODE_SINGLE_WRITER,
    "ReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": AccessMode.MULTI_NODE_MULTI_WRITER,
}


def render(deployment: Deployment) -> dict[str, str]:
    """One file. Raises InvalidArgument for what the backend cannot do; what a look at the storage raises."""
    values: ExistingVolume = deployment.values
    backend = deployment.backend
    mode = _access_mode(deployment, values)
    found = _looked_up(deployment, values) if values.size is None else None
    volume_id = found.id if found is not None else values.volume
    context = dict(found.context) if found is not None else {}
    if values.first_format:
        context[volkit.FIRST_FORMAT] = "true"
    name = values.name or _object_name(volume_id)
    csi: dict[str, Any] = {
        "driver": values.driver_name or default_name(backend.name),
        "volumeHandle": volume_id,
        "readOnly": mode == "ReadOnlyMany",
    }
    if backend.volume.kind == "block" and not values.block:
        csi["fsType"] = values.fs_type or backend.limits.fs_types[0]
    if context:
        csi["volumeAttributes"] = context
    csi |= _secrets(deployment, values)
    size = volkit.format_size(found.capacity if found is not None else values.size or 0)
    shared: dict[str, Any] = {
        "accessModes": [mode],
        "storageClassName": "",
        "volumeMode": "Block" if values.block else "Filesystem",
    }
    volume: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            **shared,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": values.namespace, "name": name},
            "csi": csi,
        },
    }
    if affinity := _affinity(deployment, values, found):
        volume["spec"]["nodeAffinity"] = affinity
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": values.namespace},
        "spec": {**shared, "volumeName": name, "resources": {"requests": {"storage": size}}},
    }
    heading = "# Retain: Kubernetes did not make the volume, and must not delete it. claimRef: nobody else gets it.\n"
    return {"pv.yaml": f"{heading}{dump(volume)}---\n{dump(claim)}"}


def _access_mode(deployment: Deployment, values: ExistingVolume) -> str:
    """Raises InvalidArgument for a mode that would let two nodes write to what only one may."""
    backend, kind = deployment.backend, deployment.backend.volume.kind
    mode = values.access_mode or ("ReadWriteOnce" if kind == "block" else "ReadWriteMany")
    if mode not in MODES:
        raise InvalidArgument(f"access-mode {mode[:64]!r} is not one of {', '.join(MODES)}")
    if MODES[mode] not in backend.limits.access_modes:
        raise InvalidArgument(f"backend {backend.name!r} cannot {mode}: its volumes are for one node")
    if mode == "ReadWriteMany" and kind == "block" and not values.block:
        raise InvalidArgument(
            "two nodes that write to one file system on a block device destroy it: give ReadWriteOnce, or --block true "
            "for who knows how to share a device"
        )
    if values.block and kind != "block":
        raise InvalidArgument(f"volumes of backend {backend.name!r} are no devices: leave --block out")
    return mode


def _looked_up(deployment: Deployment, values: ExistingVolume) -> Volume:
    """The volume as the storage has it now. Raises NotFound, FailedPrecondition."""
    if deployment.controller is None:
        raise FailedPrecondition(f"backend {deployment.backend.name!r} finds no volumes: give --size")
    try:
        settings = volkit.launch.read_settings(
            deployment.backend, [("-o", key, text) for key, text in deployment.settings.items()]
        )
    except InvalidArgument as error:
        raise InvalidArgument(f"{error.message}; or give --size, and the storage is not asked") from None
    controller = deployment.controller(settings, values.node)
    finds = issubclass(deployment.controller, volkit.FindsByName)
    try:
        volume: Volume = controller.get_volume(GetVolumeRequest(volume_id=values.volume))
    except volkit.NotFound:
        if not finds:
            raise
        volume = controller.get_volume(GetVolumeRequest(name=values.volume))
    return volume


def _secrets(deployment: Deployment, values: ExistingVolume) -> dict[str, Any]:
    if not values.volume_secret:
        return {}
    reference = {"name": values.volume_secret, "namespace": values.namespace}
    calls = ["nodePublish"]
    if deployment.node is not None and not deployment.has(volkit.ConnectsPerPod):
        calls.append("nodeStage")
    if deployment.has(volkit.Publishes):
        calls.append("controllerPublish")
    if deployment.has(volkit.Expands):
        calls += ["controllerExpand", "nodeExpand"]
    return {f"{call}SecretRef": reference for call in sorted(calls)}


def _affinity(deployment: Deployment, values: ExistingVolume, found: Volume | None) -> dict[str, Any] | None:
    """Where the volume can be used: what the storage says, else the node that was named."""
    places = [dict(place.segments) for place in found.topology] if found is not None else []
    if not places and values.node:
        places = [{"kubernetes.io/hostname": values.node}]
    if not places:
        if deployment.backend.needs.node_local:
            raise InvalidArgument("the volume lives on a node: name it by --node")
        return None
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in place.items()
            ]
        }
        for place in places
    ]
    return {"required": {"nodeSelectorTerms": terms}}


def _object_name(volume_id: str) -> str:
    """A name that Kubernetes takes, of an id that it might not."""
    name = re.sub(r"[^a-z0-9]+", "-", volume_id.lower()).strip("-")[:63].rstrip("-")
    if not name:
        raise InvalidArgument(f"volume {volume_id[:64]!r} makes no name of an object: give --name")
    return name
