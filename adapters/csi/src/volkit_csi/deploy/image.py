"""The image of a driver: a Dockerfile, with its Python packages pinned to what is installed here; or a root file system
of what is installed here (`volkit deploy image`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import volkit
from volkit import Backend, Deployment, FailedPrecondition, rendering, rootfs
from volkit_csi.deploy.cluster import Cluster
from volkit_csi.deploy.values import Image

_EVERY_PACKAGE: Final = ("libudev1", "mount", "util-linux")
_BLOCK_PACKAGES: Final = ("btrfs-progs", "e2fsprogs", "xfsprogs")
_TEMPLATES: Final = "deploy/templates/image/"


def image(cluster: Cluster) -> dict[str, str]:
    """`image/Dockerfile` and `image/requirements.txt`."""
    backend, values = cluster.deployment.backend, cluster.values
    own = backend.needs.packages
    packages = sorted({*_EVERY_PACKAGE, *own, *(_BLOCK_PACKAGES if cluster.block_devices else ())})
    names = {"image": values.image, "command": values.command, "packages": packages, "own_packages": own}
    extras = [name for name, one in (("etcd", cluster.journal), ("metrics", cluster.metrics)) if one]
    return {
        "image/Dockerfile": rendering.render("volkit_csi", f"{_TEMPLATES}Dockerfile.jinja", names),
        "image/requirements.txt": pinned(backend, extras),
    }


def pinned(backend: type[Backend[Any, Any]], extras: Iterable[str] = ()) -> str:
    """`name==version` lines of all that a driver of the backend needs, with these extras of volkit-sdk."""
    found = rootfs.required(_distributions(backend, extras))
    lines = [f"{name}=={one.version}" for name, one in found.items()]
    heading = "# What is installed where `volkit deploy` ran; `uv pip compile --generate-hashes` adds hashes."
    return "\n".join([heading, *lines]) + "\n"


def _distributions(backend: type[Backend[Any, Any]], extras: Iterable[str]) -> list[str]:
    brought = [one.name for one in volkit.registry.distributions(backend.name)]
    return ["volkit-csi", *brought, *(f"volkit-sdk[{one}]" for one in extras)]


def write(deployment: Deployment, output: Path) -> None:
    """`rootfs.tar` and a Dockerfile that takes it, and no registry. Raises FailedPrecondition."""
    values: Image = deployment.values
    backend = deployment.backend
    if output.exists():
        raise FailedPrecondition(f"{output} is there already: remove it, or name another directory")
    output.mkdir(parents=True)
    with TemporaryDirectory(dir=output) as directory:
        root = Path(directory)
        rootfs.make(root, _distributions(backend, ("etcd", "metrics")), backend.needs.packages)
        rootfs.archive(root, output / "rootfs.tar")
    names = {"path": rootfs.PATH, "command": values.command}
    dockerfile = rendering.render("volkit_csi", f"{_TEMPLATES}Dockerfile.rootfs.jinja", names)
    (output / "Dockerfile").write_text(dockerfile, encoding="utf-8")
