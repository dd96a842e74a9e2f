"""What may be said of a deployment, beside the backend, its settings and its volumes' parameters."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen

from volkit import InvalidArgument, Size, option

_OBJECT = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_DRIVER = re.compile(r"[a-z](?:[a-z0-9.-]{0,61}[a-z])?", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", re.ASCII)
_LABEL = re.compile(
    r"[A-Za-z0-9](?:[\w./-]{0,250}[A-Za-z0-9])?=(?:[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII
)
_JOURNAL: Final = "etcd://"


class Architecture(enum.Enum):
    """Where the controller runs."""

    AUTO = "auto"
    APART = "apart"
    EVERYWHERE = "everywhere"
    NODE = "node"


class ReclaimPolicy(enum.Enum):
    """What becomes of a volume whose claim is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"


class Metrics(enum.Enum):
    """Who tells Prometheus where the drivers are."""

    NONE = "none"
    PORT = "port"
    ANNOTATIONS = "annotations"
    POD_MONITOR = "podmonitor"
    SERVICE_MONITOR = "servicemonitor"


def _checks(pattern: re.Pattern[str], what: str, *, lists: bool = False) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        for one in value if lists else (value,):
            if (text := str(one)) and not pattern.fullmatch(text):
                raise InvalidArgument(f"{attribute.name.replace('_', '-')} {text[:64]!r} is not {what}")

    return check


_object_name = _checks(_OBJECT, "an object's name: 63 of a-z, 0-9 and -, at most")
_driver_name = _checks(_DRIVER, "a driver's name in lower case, such as csi.acme.com")
_image = _checks(_IMAGE, "an image's name")
_command = _checks(re.compile(r"[\w./-]+", re.ASCII), "a program")
_plain_path = _checks(re.compile(r"/[\w./-]*", re.ASCII), "a plain path")
_log_level = _checks(re.compile("debug|info|warning|error"), "debug, info, warning or error")


def _check(values: Any, checks: Mapping[Any, str]) -> None:
    """Each check on the fields that are named beside it. Raises InvalidArgument."""
    fields = attrs.fields_dict(type(values))
    for check, names in checks.items():
        for name in names.split():
            check(values, fields[name], getattr(values, name))


@frozen
class Kubernetes:
    """`volkit deploy kubernetes`."""

    image: str = option(
        help="the driver's image, with its tag or digest; see the Dockerfile that comes along"
    )
    name: str = option(
        default="", help="tells this driver from a second one of the same backend (default: BACKEND)"
    )
    driver_name: str = option(default="", help="what the driver is called (default: NAME.csi.volkit.io)")
    namespace: str = option(default="", help="where it runs (default: volkit-NAME)")
    architecture: Architecture = option(
        default=Architecture.AUTO,
        help="apart: a controller and a node on every node; everywhere: both on every node; node: no controller, for "
        "volumes that exist; auto: everywhere where volumes live on nodes, else apart",
    )
    command: str = option(default="volkit-csi", help="the driver's command in the image")
    replicas: int = option(default=1, at_least=1, at_most=9, help="controllers, of which one works at a time")
    journal: str = option(default="", help="etcd://… that the controllers share (default: each its own)")
    journal_class: str = option(
        default="", help="the StorageClass of a journal that has to follow its controller"
    )
    secret: str = option(
        default="", help="the Secret with the secret settings and files (default: volkit-NAME)"
    )
    node_secret: str = option(
        default="", help="another Secret for the nodes, of an account that makes and deletes nothing"
    )
    volume_secret: str = option(
        default="", help="a Secret in the namespace that goes with every call for a volume"
    )
    storage_class: str = option(default="", help="the StorageClass (default: NAME)")
    default_class: bool = option(default=False, help="whether it is the cluster's default")
    reclaim_policy: ReclaimPolicy = option(default=ReclaimPolicy.DELETE, help="Delete or Retain")
    mount_options: tuple[str, ...] = option(
        default=(), help="mount(8) words for every volume, comma-separated"
    )
    pull_secrets: tuple[str, ...] = option(default=(), help="Secrets that the image is pulled with")
    registry: str = option(default="registry.k8s.io/sig-storage", help="where the sidecars come from")
    kubelet_dir: Path = option(default="/var/lib/kubelet", help="kubelet's --root-dir")
    health_port: int = option(
        default=9808, at_least=1024, at_most=65535, help="where the node answers; the host's, on its network"
    )
    metrics: Metrics = option(
        default=Metrics.NONE,
        help="serve metrics for Prometheus, which finds them by annotations, a podmonitor or a servicemonitor, or by "
        "itself (port)",
    )
    metrics_port: int = option(
        default=9810, at_least=1024, at_most=65535, help="where, on the pods' addresses"
    )
    monitor_labels: tuple[str, ...] = option(
        default=(), help="KEY=VALUE, comma-separated: what Prometheus chooses monitors and rules by"
    )
    alerts: bool = option(default=False, help="with the alert rules that come with volkit (PrometheusRule)")
    dashboard: bool = option(default=False, help="with the Grafana dashboard (ConfigMap)")
    log_level: str = option(default="info", help="debug, info, warning or error")

    def __attrs_post_init__(self) -> None:
        checks = {
            _object_name: "namespace secret node_secret volume_secret storage_class journal_class",
            _checks(_OBJECT, "a Secret's name", lists=True): "pull_secrets",
            _checks(
                re.compile(r"[a-z](?:[-a-z0-9]{0,38}[a-z0-9])?", re.ASCII), "2 to 40 of a-z, 0-9 and -"
            ): "name",
            _driver_name: "driver_name",
            _image: "image registry",
            _command: "command",
            _plain_path: "kubelet_dir",
            _log_level: "log_level",
            _checks(_LABEL, "a label: KEY=VALUE", lists=True): "monitor_labels",
        }
        _check(self, checks)
        if self.journal and not self.journal.startswith(_JOURNAL):
            raise InvalidArgument("a journal that controllers share is etcd://HOST:PORT/PREFIX")


@frozen
class Image:
    """`volkit deploy image`."""

    command: str = option(default="volkit-csi", help="the driver's command in the image")

    def __attrs_post_init__(self) -> None:
        _check(self, {_command: "command"})


@frozen
class Nomad:
    """`volkit deploy nomad`."""

    image: str = option(help="the driver's image, with its tag or digest")
    plugin_id: str = option(default="", help="what Nomad calls the plugin (default: BACKEND)")
    command: str = option(default="volkit-csi", help="the driver's command in the image")
    datacenters: tuple[str, ...] = option(default=("*",), help="where it runs, comma-separated")
    volume: str = option(default="data", help="the name of the volume in the example")
    size: Size = option(default="1Gi", help="its size")
    log_level: str = option(default="info", help="debug, info, warning or error")

    def __attrs_post_init__(self) -> None:
        checks = {
            _image: "image",
            _object_name: "plugin_id volume",
            _command: "command",
            _checks(re.compile(r"[\w.*-]+", re.ASCII), "a datacenter", lists=True): "datacenters",
            _log_level: "log_level",
        }
        _check(self, checks)


@frozen
class ExistingVolume:
    """`volkit deploy pv`."""

    volume: str = option(help="the volume's id in the storage, or its name where the storage finds names")
    size: Size | None = option(default=None, help="its size (default: the storage is asked)")
    driver_name: str = option(default="", help="what the driver is called (default: BACKEND.csi.volkit.io)")
    name: str = option(default="", help="of the PV and the claim (default: of the volume's id)")
    namespace: str = option(default="default", help="of the claim")
    access_mode: str = option(
        default="", help="ReadWriteOnce, ReadWriteOncePod, ReadOnlyMany or ReadWriteMany"
    )
    block: bool = option(default=False, help="hand the raw device to the pod")
    fs_type: str = option(default="", help="the file system (default: the backend's first)")
    first_format: bool = option(default=False, help="it may be formatted if it is blank")
    volume_secret: str = option(
        default="", help="a Secret, in the claim's namespace, that goes with every call"
    )
    node: str = option(default="", help="the node that the volume lives on, by its name, where volumes do")

    def __attrs_post_init__(self) -> None:
        _check(self, {_object_name: "name namespace volume_secret fs_type", _driver_name: "driver_name"})


@frozen
class EndToEnd:
    """`volkit deploy e2e`."""

    name: str = option(default="", help="what the driver was deployed as (default: BACKEND)")
    driver_name: str = option(default="", help="what the driver is called (default: NAME.csi.volkit.io)")
    storage_class: str = option(
        default="", help="the StorageClass, and the VolumeSnapshotClass, that there are (default: NAME)"
    )
    attributes_class: str = option(default="", help="a VolumeAttributesClass that volumes are modified to")
    min_size: Size | None = option(default=None, help="of the volumes it makes (default: the backend's)")
    max_size: Size = option(default="2Gi", help="of the volumes it makes")
    mount_options: tuple[str, ...] = option(
        default=(), help="mount(8) words that volumes can be mounted with, comma-separated"
    )
    topology_keys: tuple[str, ...] = option(
        default=(), help="what places are called (default: those of volumes that live on a node)"
    )
    resizer: bool = option(
        default=False,
        help="whether a resizer was added for volumes that live on nodes, as can be on a cluster of one",
    )
    stress_pods: int = option(default=5, at_least=1, help="pods at once in the stress tests")

    def __attrs_post_init__(self) -> None:
        _check(
            self,
            {_object_name: "name storage_class attributes_class", _driver_name: "driver_name"},
        )
