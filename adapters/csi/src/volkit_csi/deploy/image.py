"""The image of a driver: its Dockerfile, and the Python packages in it, pinned to what is installed here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final

from volkit import Backend, rendering
from volkit_csi.deploy.cluster import Cluster

_EVERY_PACKAGE: Final = ("libudev1", "mount", "util-linux")
_BLOCK_PACKAGES: Final = ("btrfs-progs", "e2fsprogs", "xfsprogs")

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def image(cluster: Cluster) -> dict[str, str]:
    """`image/Dockerfile` and `image/requirements.txt`."""
    backend, values = cluster.deployment.backend, cluster.values
    own = backend.needs.packages
    packages = sorted({*_EVERY_PACKAGE, *own, *(_BLOCK_PACKAGES if cluster.block_devices else ())})
    names = {"image": values.image, "command": values.command, "packages": packages, "own_packages": own}
    extras = [name for name, one in (("etcd", cluster.journal), ("metrics", cluster.metrics)) if one]
    return {
        "image/Dockerfile": rendering.render("volkit_csi", "deploy/templates/image/Dockerfile.jinja", names),
        "image/requirements.txt": pinned(backend, [f"volkit-sdk[{one}]" for one in extras]),
    }


def pinned(backend: type[Backend[Any, Any]], more: Iterable[str] = ()) -> str:
    """`name==version` lines of the backend's distribution, volkit-csi, `more` (`name[extra]`), and of all they need.

    What is needed elsewhere only (of another system, say) is not installed here, and is left out.
    """
    versions: dict[str, str] = {}
    for wanted in ("volkit-csi", *_distribution(backend), *more):
        _add(wanted, versions)
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    heading = "# What is installed where `volkit deploy` ran; `uv pip compile --generate-hashes` adds hashes."
    return "\n".join([heading, *lines]) + "\n"


def _distribution(backend: type[Backend[Any, Any]]) -> list[str]:
    points = metadata.entry_points(group="volkit.backends", name=backend.name)
    return [one.dist.name for one in points if one.dist is not None]


def _add(wanted: str, versions: dict[str, str]) -> None:
    match = _REQUIREMENT.fullmatch(wanted.strip())
    if match is None:
        return
    name, extras = match[1], {one.strip() for one in (match[2] or "").split(",") if one.strip()}
    normal = re.sub(r"[-_.]+", "-", name).lower()
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    new = normal not in versions
    versions[normal] = found.version
    for requirement in found.requires or ():
        extra = _EXTRA.search(requirement)
        if (extra is None and new) or (extra is not None and extra[1] in extras):
            _add(requirement.partition(";")[0] if extra else requirement, versions)
