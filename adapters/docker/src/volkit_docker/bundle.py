"""`volkit-docker bundle`: the directory that `docker plugin create` takes, made of what is installed here.

The root file system is the running interpreter, the distributions that the plugin and the backend require, the programs
that the backend needs, and the shared libraries of all of them, as ldd names them: no registry is asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any

import volkit
from volkit import FailedPrecondition, VolkitError

PROGRAMS = (
    *(
        "mke2fs",
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "e2fsck",
        "fsck.ext4",
        "resize2fs",
        "tune2fs",
        "dumpe2fs",
    ),
    *("blkid", "xfs_growfs", "xfs_repair", "btrfs", "mount", "umount", "sh", "sleep"),
)
"""What is taken along where it is here."""

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_DAC_OVERRIDE")
"""Beyond those that Docker gives anyway: to mount, and to look into other namespaces."""

STATE = "/var/lib/volkit/state"
"""Where the plugin sees its state directory."""

_LIBRARIES = ("libblkid.so.1", "libudev.so.1", "libmount.so.1")
_SKIPPED = ("__pycache__", "test", "tests", "idlelib", "turtledemo", "ensurepip", "lib2to3", "tkinter")
_PACKAGES = ("site-packages", "dist-packages")


def main(argv: Sequence[str]) -> int:
    """Make a bundle; the exit code."""
    parser = ArgumentParser(
        prog="volkit-docker bundle", description="Make the directory that `docker plugin create` takes."
    )
    parser.add_argument("--backend", required=True, help="the backend that the plugin serves")
    parser.add_argument("--output", default="plugin", metavar="DIR", help="is made (default: plugin)")
    parser.add_argument(
        "-o", "--option", action="append", default=[], metavar="KEY=VALUE", help="a setting of the backend"
    )
    args = parser.parse_args(list(argv))
    try:
        make(args.backend, Path(args.output), args.option)
    except VolkitError as error:
        print(f"volkit-docker bundle: {error.message}", file=sys.stderr)
        return 1
    print(f"docker plugin create NAME {args.output}")
    return 0


def make(backend: str, output: Path, options: Iterable[str] = ()) -> None:
    """Write `config.json` and `rootfs` into `output`, which must not be there. Raises FailedPrecondition, NotFound."""
    volkit.load_backend(backend)
    if output.exists():
        raise FailedPrecondition(f"{output} is there already: remove it, or name another --output")
    root = output / "rootfs"
    for directory in ("proc", "sys", "dev", "tmp", "run", "etc", "var/lib/volkit", "run/docker/plugins"):
        (root / directory).mkdir(parents=True)
    _copy_python(root, backend)
    _copy_programs(root)
    (output / "config.json").write_text(json.dumps(config(backend, options), indent=2) + "\n")


def config(backend: str, options: Iterable[str] = ()) -> dict[str, Any]:
    """https://docs.docker.com/engine/extend/config/."""
    options = list(options)
    words = [word for option in options for word in ("-o", option)]
    entrypoint = [sys.executable, "-m", "volkit_docker.main", "--backend", backend, *words]
    return {
        "description": f"volkit's {backend} backend",
        "documentation": "https://github.com/volkit/volkit",
        "entrypoint": [
            *entrypoint,
            "--state-dir",
            STATE,
            "--mount-root",
            "/var/lib/volkit/mounts",
        ],
        "env": [{"name": "VOLKIT_LOG_LEVEL", "settable": ["value"], "value": "info"}],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": f"volkit-{backend}.sock"},
        # to mount, to look into other namespaces, to know the loop devices: see docs/docker.md
        "linux": {
            "capabilities": list(CAPABILITIES),
            "allowAllDevices": True,
        },
        "mounts": [
            {"type": "bind", "source": "/dev", "destination": "/dev", "options": ["rbind"]},
            {
                "name": "state",
                "settable": ["source"],
                "type": "bind",
                "source": "/var/lib/volkit",
                "destination": STATE,
                "options": ["rbind"],
            },
            *_own_paths(backend, options),
        ],
        "network": {"type": "host"},
        "pidhost": True,
        "propagatedMount": "/var/lib/volkit/mounts",
        "workdir": "/",
    }


def _own_paths(backend: str, options: Iterable[str]) -> list[dict[str, Any]]:
    """Mounts of what settings name of the host: directories of volumes, and files (`KEY=@/FILE` too), which are only
    read. What is in the state directory is there already.
    """
    cls = volkit.load_backend(backend)
    known = {spelling: one for one in volkit.options.declared(cls.settings) for spelling in one.spellings}
    mounts = {}
    for key, _, text in (option.partition("=") for option in options):
        path, option = text.removeprefix("@"), known.get(key)
        named = text.startswith("@/") or (option is not None and option.path)
        if named and not f"{path}/".startswith(f"{STATE}/"):
            writes = option is not None and option.field in cls.needs.host_paths
            flags = ["rbind"] if writes else ["rbind", "ro"]
            mounts[path] = {"type": "bind", "source": path, "destination": path, "options": flags}
    return list(mounts.values())


def _copy_python(root: Path, backend: str) -> None:
    """The interpreter, its standard library, and what the plugin and the backend are made of, at their own paths."""
    for place in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}:
        _copy_tree(Path(place), root)
    for one in _required(backend):
        for file in one.files or ():
            path = Path(os.path.normpath(str(one.locate_file(file))))
            _copy_file(path, root)
            if path.suffix == ".pth":  # of an editable one: where its sources are
                for line in filter(os.path.isdir, path.read_text().splitlines()):
                    _copy_tree(Path(line), root)
    for program in {Path(sys.executable), Path(sys.executable).resolve()}:
        _copy_file(program, root)
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.exists():
        _copy_file(config, root)
    _copy_libraries([Path(sys.executable).resolve(), *root.rglob("*.so*")], root)


def _required(backend: str) -> list[Distribution]:
    """The distributions of the plugin and of the backend, and all that these require here."""
    wanted = ["volkit-docker"]
    wanted += [one.dist.name for one in entry_points(group="volkit.backends", name=backend) if one.dist]
    found: dict[str, Distribution] = {}
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()  # PEP 503
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform, or another version of Python
            continue
        for line in found[name].requires or ():
            if "extra ==" not in line and (match := re.match(r"[\w.-]+", line)):
                wanted.append(match[0])
    return list(found.values())


def _copy_programs(root: Path) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    libraries = [
        line.rpartition("=> ")[2] for line in listed.splitlines() if line.strip().startswith(_LIBRARIES)
    ]
    found = [Path(one) for one in (*(shutil.which(name, path=path) for name in PROGRAMS), *libraries) if one]
    for one in found:
        _copy_file(one, root)
        _copy_file(one.resolve(), root)
    _copy_libraries([one.resolve() for one in found], root)


def _copy_libraries(binaries: Iterable[Path], root: Path) -> None:
    """What these load, by ldd(1)."""
    wanted: set[str] = set()
    for binary in binaries:
        told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
        for line in told.splitlines():
            words = line.split()
            wanted |= {word for word in words if word.startswith("/")}
    for path in sorted(wanted):
        _copy_file(Path(path), root)


def _copy_file(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    if target.exists() or not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _copy_tree(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    if not target.exists():
        shutil.copytree(
            path, target, ignore=shutil.ignore_patterns(*_SKIPPED, *_PACKAGES, "*.pyc", "*.a"), symlinks=False
        )
