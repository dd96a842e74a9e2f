"""What may be said of a deployment, beside the backend, its settings and its volumes' parameters."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen

from volkit import InvalidArgument, Size, option

_OBJECT = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_DRIVER = re.compile(r"[a-z](?:[a-z0-9.-]{0,61}[a-z])?", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", re.ASCII)
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


def _checks(pattern: re.Pattern[str], what: str, *, lists: bool = False) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        for one in value if lists else (value,):
            if one and not pattern.fullmatch(one):
                raise InvalidArgument(f"{attribute.name.replace('_', '-')} {one[:64]!r} is not {what}")

    return check


_object_name = _checks(_OBJECT, "an object's name: 63 of a-z, 0-9 and -, at most")


@frozen
class Kubernetes:
    """`volkit deploy kubernetes`."""

    image: str = option(
        help="the driver's image, with its tag or digest; see the Dockerfile that comes along"
    )
    driver_name: str = option(default="", help="what the driver is called (default: BACKEND.csi.volkit.io)")
    namespace: str = option(default="", help="where it runs (default: volkit-BACKEND)")
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
    secret: str = option(default="", help="the Secret with the secret settings (default: volkit-BACKEND)")
    volume_secret: str = option(
        default="", help="a Secret in the namespace that goes with every call for a volume"
    )
    storage_class: str = option(default="", help="the StorageClass (default: the backend's name)")
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
    log_level: str = option(default="info", help="debug, info, warning or error")

    def __attrs_post_init__(self) -> None:
        for name in ("namespace", "secret", "volume_secret", "storage_class", "journal_class"):
            _object_name(self, getattr(attrs.fields(Kubernetes), name), getattr(self, name))
        fields = attrs.fields(Kubernetes)
        _checks(_OBJECT, "a Secret's name", lists=True)(self, fields.pull_secrets, self.pull_secrets)
        _checks(_DRIVER, "a driver's name in lower case, such as csi.acme.com")(
            self, fields.driver_name, self.driver_name
        )
        for image in (fields.image, fields.registry):
            _checks(_IMAGE, "an image's name")(self, image, getattr(self, image.name))
        _checks(re.compile(r"[\w./-]+", re.ASCII), "a program")(self, fields.command, self.command)
        _checks(re.compile(r"/[\w./-]*", re.ASCII), "a plain path")(
            self, fields.kubelet_dir, str(self.kubelet_dir)
        )
        _checks(re.compile("debug|info|warning|error"), "debug, info, warning or error")(
            self, fields.log_level, self.log_level
        )
        if self.journal and not self.journal.startswith(_JOURNAL):
            raise InvalidArgument("a journal that controllers share is etcd://HOST:PORT/PREFIX")


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
        fields = attrs.fields(Nomad)
        _checks(_IMAGE, "an image's name")(self, fields.image, self.image)
        for name in ("plugin_id", "volume"):
            _object_name(self, getattr(fields, name), getattr(self, name))
        _checks(re.compile(r"[\w./-]+", re.ASCII), "a program")(self, fields.command, self.command)
        _checks(re.compile(r"[\w.*-]+", re.ASCII), "a datacenter", lists=True)(
            self, fields.datacenters, self.datacenters
        )
        _checks(re.compile("debug|info|warning|error"), "debug, info, warning or error")(
            self, fields.log_level, self.log_level
        )


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
        fields = attrs.fields(ExistingVolume)
        for name in ("name", "namespace", "volume_secret", "fs_type"):
            _object_name(self, getattr(fields, name), getattr(self, name))
        _checks(_DRIVER, "a driver's name in lower case, such as csi.acme.com")(
            self, fields.driver_name, self.driver_name
        )
