"""`volkit-docker bundle`: the directory that `docker plugin create` takes, made of what is installed here.

What is in its root file system: see `volkit.rootfs`. No registry is asked.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import volkit
from volkit import FailedPrecondition, VolkitError, rootfs

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_DAC_OVERRIDE")
"""Beyond those that Docker gives anyway: to mount, and to look into other namespaces."""

STATE = "/var/lib/volkit/state"
"""Where the plugin sees its state directory."""


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
    needs = volkit.load_backend(backend).needs
    if output.exists():
        raise FailedPrecondition(f"{output} is there already: remove it, or name another --output")
    root = output / "rootfs"
    (root / "run/docker/plugins").mkdir(parents=True)
    rootfs.make(
        root, ["volkit-docker", *(one.name for one in volkit.registry.distributions(backend))], needs.packages
    )
    (output / "config.json").write_text(json.dumps(config(backend, options), indent=2) + "\n")


def config(backend: str, options: Iterable[str] = ()) -> dict[str, Any]:
    """https://docs.docker.com/engine/extend/config/."""
    options = list(options)
    words = [word for option in options for word in ("-o", option)]
    entrypoint = [rootfs.PYTHON, "-m", "volkit_docker.main", "--backend", backend, *words]
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
        "env": [
            {"name": "PATH", "value": rootfs.PATH},
            {"name": "VOLKIT_LOG_LEVEL", "settable": ["value"], "value": "info"},
        ],
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
