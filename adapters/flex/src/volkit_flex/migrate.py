"""`volkit-flex migrate`: from a FlexVolume PV to the CSI PV of the same volume. No data is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from volkit import FIRST_FORMAT, FailedPrecondition, InvalidArgument, NotFound, Volume, parse_size
from volkit.options import declared
from volkit_flex import records
from volkit_flex.opening import open_engine
from volkit_flex.options import Options
from volkit_flex.service import Service
from volkit_flex.wire import NAME, Callout

_KEPT = (
    "capacity",
    "accessModes",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
)
_DROPPED_ANNOTATIONS = ("pv.kubernetes.io/", "kubectl.kubernetes.io/")


def migrate(
    settings: Mapping[str, Any],
    files: list[str],
    *,
    flex_driver: str = "",
    csi_driver: str = "",
    name: str = "",
) -> int:
    """Print the CSI PVs as YAML. `flex_driver` is what the PVs have to name, where it is known.

    Raises InvalidArgument, NotFound, FailedPrecondition for the first that cannot be.
    """
    volumes = [pv for file in files for pv in _read(file)]
    if not volumes:
        raise InvalidArgument(f"no PersistentVolume in {', '.join(files)}")
    if name and len(volumes) > 1:
        raise InvalidArgument(f"--name is for one PV, and there are {len(volumes)}")
    engine = open_engine(settings)
    try:
        service = Service(engine, attaches=settings["attaches"])
        driver = csi_driver or f"{engine.backend.name}.csi.volkit.io"
        made = [migrated(service, pv, flex_driver, driver, name) for pv in volumes]
    finally:
        engine.close()
    print(yaml.safe_dump_all(made, sort_keys=False, default_flow_style=False), end="")
    return 0


def migrated(
    service: Service, pv: Mapping[str, Any], flex_driver: str, csi_driver: str, name: str = ""
) -> dict[str, Any]:
    """The CSI PV of a FlexVolume PV, checked against the backend."""
    spec, metadata = pv.get("spec") or {}, pv.get("metadata") or {}
    old_name = metadata.get("name") or ""
    flex = spec.get("flexVolume")
    if not isinstance(flex, dict):
        raise InvalidArgument(f"PV {old_name!r} is not a FlexVolume: it has no spec.flexVolume")
    if flex_driver and flex.get("driver") != flex_driver:
        raise InvalidArgument(
            f"PV {old_name!r} is of the driver {flex.get('driver')!r}, not of {flex_driver!r}"
        )
    options = _options(service, old_name, flex)
    volume = _checked(service, old_name, spec, options)
    flags = [*(spec.get("mountOptions") or ()), *options.wanted.asked.mount_flags]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": _metadata(metadata, name or old_name),
        "spec": {
            **{key: spec[key] for key in _KEPT if key in spec},
            **({"mountOptions": list(dict.fromkeys(flags))} if flags else {}),
            **_claim(spec),
            "csi": _csi(service, spec, options, volume, csi_driver),
            **_affinity(spec, volume),
        },
    }


def _options(service: Service, name: str, flex: Mapping[str, Any]) -> Options:
    """What the driver was given by kubelet for this PV."""
    given = {str(key): str(value) for key, value in (flex.get("options") or {}).items()}
    given[NAME] = name
    given["kubernetes.io/fsType"] = flex.get("fsType") or ""
    given["kubernetes.io/readwrite"] = "ro" if flex.get("readOnly") else "rw"
    return service.volumes.options(Callout("getvolumename", {"options": given}))


def _checked(service: Service, name: str, spec: Mapping[str, Any], options: Options) -> Volume:
    volume = service.volumes.find(options.volume, service.limits(), options.secrets)
    if volume is None:
        raise NotFound(f"PV {name!r}: the backend has no volume {options.volume!r}, by name or by id")
    if options.secrets:
        print(
            f"PV {name!r}: its options hold the credentials {', '.join(sorted(options.secrets))}, and the CSI driver "
            "takes them from a Secret alone: make one, and name it by nodePublishSecretRef and nodeStageSecretRef",
            file=sys.stderr,
        )
    if wanted := (spec.get("capacity") or {}).get("storage"):
        size = parse_size(str(wanted))
        if volume.capacity and volume.capacity < size:
            print(
                f"PV {name!r}: the volume has {volume.capacity} bytes, less than the {size} of the PV: grow it after",
                file=sys.stderr,
            )
    state = service.engine.node_state
    if used := state.in_use(volume.id) if state is not None else "":
        raise FailedPrecondition(f"PV {name!r} is mounted on this node ({used}): end its pods first")
    if nodes := service.controller_records.get(records.PV, options.name).get("nodes"):
        raise FailedPrecondition(
            f"PV {name!r} is attached to {', '.join(nodes)} by FlexVolume: end its pods first"
        )
    return volume


def _csi(
    service: Service, spec: Mapping[str, Any], options: Options, volume: Volume, csi_driver: str
) -> dict[str, Any]:
    flex = spec["flexVolume"]
    theirs = {spelling for one in declared(service.engine.backend.parameters) for spelling in one.spellings}
    attributes = {key: value for key, value in options.parameters.items() if key not in theirs}
    attributes |= volume.context
    if volume.context.get(FIRST_FORMAT) == "true" and not options.first_format:
        attributes.pop(FIRST_FORMAT)  # it was mounted by FlexVolume: what is on it stays
    secret = flex.get("secretRef") or {}
    refs = {}
    if secret.get("name"):  # kubelet looks for it where the pod is, and that is where the claim is
        claimed_in = (spec.get("claimRef") or {}).get("namespace")
        ref = {"name": secret["name"], "namespace": secret.get("namespace") or claimed_in or "default"}
        refs = {"nodeStageSecretRef": ref, "nodePublishSecretRef": dict(ref)}
    block = service.engine.backend.volume.kind == "block"
    return {
        "driver": csi_driver,
        "volumeHandle": volume.id,
        **({"fsType": options.fs_type} if options.fs_type and block else {}),
        **({"readOnly": True} if options.readonly else {}),
        **({"volumeAttributes": attributes} if attributes else {}),
        **refs,
    }


def _metadata(old: Mapping[str, Any], name: str) -> dict[str, Any]:
    annotations = {
        key: value
        for key, value in (old.get("annotations") or {}).items()
        if not key.startswith(_DROPPED_ANNOTATIONS)
    }
    kept = {"labels": dict(old.get("labels") or {}), "annotations": annotations}
    return {"name": name, **{key: value for key, value in kept.items() if value}}


def _claim(spec: Mapping[str, Any]) -> dict[str, Any]:
    """For the claim of the same name alone; without its uid, since it is made anew."""
    claim = spec.get("claimRef") or {}
    if not claim.get("name"):
        return {}
    kept = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    return {"claimRef": {**kept, "namespace": claim.get("namespace") or "default", "name": claim["name"]}}


def _affinity(spec: Mapping[str, Any], volume: Volume) -> dict[str, Any]:
    """Where the volume can be used from: as the CSI provisioner writes it, and where the PV allows it. One term of the
    list has to hold, and of a term all of it.
    """
    allowed = ((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or [{}]
    terms = []
    for term in allowed:
        for place in [one.segments for one in volume.topology] or [{}]:
            here = [{"key": key, "operator": "In", "values": [value]} for key, value in place.items()]
            found = [*term.get("matchExpressions", ()), *here]
            terms.append({**term, **({"matchExpressions": found} if found else {})})
    return {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}} if any(terms) else {}


def _read(file: str) -> Iterator[Mapping[str, Any]]:
    """Each PersistentVolume in a file of YAML documents, lists of them too. Raises InvalidArgument."""
    try:
        if file == "-":
            documents = list(yaml.safe_load_all(sys.stdin))
        else:
            with open(file, encoding="utf-8") as opened:
                documents = list(yaml.safe_load_all(opened))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not YAML"
        raise InvalidArgument(f"{file} cannot be read: {reason}") from None
    for document in documents:
        items = document.get("items", [document]) if isinstance(document, dict) else [document]
        for one in filter(None, items):
            if not isinstance(one, dict) or one.get("kind") != "PersistentVolume":
                kind = one.get("kind") if isinstance(one, dict) else type(one).__name__
                raise InvalidArgument(f"{file} holds a {kind}: give PersistentVolumes")
            yield one
