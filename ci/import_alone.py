"""Run by install_alone.sh in a clean environment: import all of a distribution, load its entry points."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from importlib import metadata

PACKAGES = {"volkit-sdk": "volkit"}  # the others are named alike
FOREIGN = {
    "volkit-sdk": ("grpc", "google.protobuf", "volkit_csi", "volkit_local", "volkit_loop"),
    "volkit-csi": ("volkit_local", "volkit_loop"),
    "volkit-flex": ("grpc", "google.protobuf", "volkit_csi", "volkit_docker", "volkit_local", "volkit_loop"),
    "volkit-local": ("grpc", "google.protobuf", "volkit_csi", "volkit_docker", "volkit_flex", "volkit_loop"),
    "volkit-loop": ("grpc", "google.protobuf", "volkit_csi", "volkit_local"),
}
OF_AN_EXTRA = (
    "volkit.metrics",
    "volkit.testing",
    "volkit.tracing",
)  # imported only when named: it needs what an extra brings


def main(distribution: str, package: str | None = None) -> None:
    installed = metadata.distribution(distribution)
    modules = modules_of(package or PACKAGES.get(distribution, distribution.replace("-", "_")))
    for name in modules:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)
    for entry in installed.entry_points:
        if package or not entry.module.startswith(OF_AN_EXTRA):
            entry.load()
    if foreign := [name for name in FOREIGN.get(distribution, ()) if available(name)]:
        sys.exit(f"{distribution} alone brings {', '.join(foreign)}: remove the dependency or the import")
    print(f"{package or distribution} {installed.version}: {len(modules)} modules import")


def modules_of(package: str) -> list[str]:
    names, left = [package], [package]
    while left:
        parent = left.pop()
        for module in pkgutil.iter_modules(importlib.import_module(parent).__path__, f"{parent}."):
            if module.name in OF_AN_EXTRA or module.name.endswith(".__main__"):
                continue
            names.append(module.name)
            if module.ispkg:
                left.append(module.name)
    return sorted(names)


def available(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


main(*sys.argv[1:])
