"""Run by install_alone.sh in a clean environment: import all of a distribution and load its entry points, or use what
one of its extras brings: `import_alone.py DISTRIBUTION [EXTRA]`.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

PACKAGES = {"volkit-sdk": "volkit"}  # the others are named alike
OUR_OWN = {f"volkit_{name}" for name in ("csi", "docker", "flex", "local", "loop", "s3")}
WIRES = {"grpc", "google.protobuf", "cheroot", "boto3"}
BRINGS = {  # what of these a distribution may bring
    "volkit-csi": {"volkit_csi", "grpc", "google.protobuf"},
    "volkit-docker": {"volkit_docker", "cheroot"},
    "volkit-flex": {"volkit_flex"},
    "volkit-local": {"volkit_local"},
    "volkit-loop": {"volkit_loop"},
    "volkit-s3": {"volkit_s3", "boto3"},
}
OF_AN_EXTRA = (
    "volkit.metrics",
    "volkit.testing",
    "volkit.tracing",
)  # imported only when named: it needs what an extra brings


def main(distribution: str, extra: str = "") -> None:
    if extra:
        import_all([name for name in OF_AN_EXTRA if name == f"volkit.{extra}"])
        EXTRAS[distribution, extra]()
        print(f"{distribution}[{extra}] works")
        return
    installed = metadata.distribution(distribution)
    modules = import_all([PACKAGES.get(distribution, distribution.replace("-", "_"))])
    for entry in installed.entry_points:
        if not entry.module.startswith(OF_AN_EXTRA):
            entry.load()
    check_files(installed)
    foreign = (OUR_OWN | WIRES) - BRINGS.get(distribution, set())
    if found := sorted(name for name in foreign if available(name)):
        sys.exit(f"{distribution} alone brings {', '.join(found)}: remove the dependency or the import")
    print(f"{distribution} {installed.version}: {len(modules)} modules import")


def import_all(packages: list[str]) -> list[str]:
    modules = [name for package in packages for name in modules_of(package)]
    for name in modules:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)
    return modules


def modules_of(package: str) -> list[str]:
    names, left = [package], [package]
    while left:
        parent = left.pop()
        for module in pkgutil.iter_modules(
            getattr(importlib.import_module(parent), "__path__", ()), f"{parent}."
        ):
            if module.name in OF_AN_EXTRA or module.name.endswith(".__main__"):
                continue
            names.append(module.name)
            if module.ispkg:
                left.append(module.name)
    return sorted(names)


def check_files(installed: metadata.Distribution) -> None:
    """What a wheel has to have beside its modules."""
    names = [str(path) for path in installed.files or ()]
    for pattern, what in (
        (r"[^/]+/py\.typed", "says that it is typed"),
        (r"[^/]+\.dist-info/licenses/LICENSE", "is the licence"),
    ):
        if not any(re.fullmatch(pattern, name) for name in names):
            sys.exit(f"the wheel has no file that {what} ({pattern})")
    if not installed.metadata.json.get("description"):
        sys.exit("the wheel has no README")
    if not installed.metadata["Classifier"]:
        sys.exit("the wheel has no classifiers")


def available(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


# -- what each extra is for, and nothing else --------------------------------------------------------------------


def imports() -> None:
    """Importing its modules has shown it."""


def deploy() -> None:
    from volkit import rendering

    rendering.environment("volkit.cli")
    importlib.import_module("yaml")


def new() -> None:
    from volkit import cli

    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()):
        if cli.main(["new", "acme", "--out", f"{directory}/volkit-acme"]):
            sys.exit("volkit new fails")


def etcd() -> None:
    from volkit.journal.etcd_client import Address, Client

    Client(Address.parse("etcd://127.0.0.1:2379/volkit"))  # calls nobody yet


def rclone() -> None:
    subprocess.run([Path(sys.executable).with_name("rclone"), "version"], check=True, capture_output=True)


EXTRAS: dict[tuple[str, str], Callable[[], None]] = {
    ("volkit-s3", "rclone"): rclone,
    ("volkit-sdk", "deploy"): deploy,
    ("volkit-sdk", "etcd"): etcd,
    ("volkit-sdk", "metrics"): imports,
    ("volkit-sdk", "new"): new,
    ("volkit-sdk", "testing"): imports,
    ("volkit-sdk", "tracing"): imports,
}

main(*sys.argv[1:])
