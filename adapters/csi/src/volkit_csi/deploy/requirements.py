"""The Python packages of an image, pinned to what is installed here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from volkit import Backend

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


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
