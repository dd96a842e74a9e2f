"""`volkit new`: a whole distribution for a backend, which passes its own tests as it is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from volkit.errors import InvalidArgument, VolkitError

if TYPE_CHECKING:
    import argparse

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*", re.ASCII)
_MAX_NAME = 32
KINDS = {"file": "share", "block": "disk"}
"""The kinds of volume that there is a scaffold for, and what the storage calls one."""
_TAKEN = ("sdk", "csi", "flex", "docker", "loop")


def main(args: argparse.Namespace) -> int:
    """Write it; 0 where it is written, 1 where it cannot be, 2 for a bad name."""
    from volkit import rendering

    try:
        name = checked(args.name)
        output = Path(args.out or f"volkit-{name}")
        rendering.write_tree(output, contents(name, args.kind))
    except VolkitError as error:
        print(f"volkit new: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    print(f"{output}: a backend {name!r} that works on a stand-in of its storage. Now:")
    print(f"  cd {output} && pip install -e '.[test]' && pytest")
    print(f"then write src/{_package(name)}/client.py for your storage, and README.md for its users.")
    return 0


def checked(name: str) -> str:
    """The backend's name. Raises InvalidArgument for one that no backend, package or index takes."""
    if name.startswith("volkit-"):
        raise InvalidArgument(f"{name[:64]!r} is the distribution's name: write {name[7:71]!r}")
    if not _NAME.fullmatch(name) or not 2 <= len(name) <= _MAX_NAME:
        raise InvalidArgument(
            f"{name[:64]!r} is no name of a backend: write 2 to {_MAX_NAME} of a-z, 0-9 and single hyphens, a letter "
            "first, no hyphen last"
        )
    if name in _TAKEN:
        raise InvalidArgument(f"volkit-{name} is a distribution of volkit's own: choose another name")
    return name


def contents(name: str, kind: str = "file") -> dict[str, str]:
    """Every file of the distribution of a backend whose volumes are of that kind (`KINDS`), by its path. Raises
    FailedPrecondition where Jinja is missing.
    """
    from volkit import __version__, rendering

    package = _package(name)
    values = {
        "name": name,
        "package": package,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "volkit": __version__,
        "kind": kind,
        "noun": KINDS[kind],
        "Noun": KINDS[kind].capitalize(),
    }
    rendered: dict[str, str] = {}
    for part in ("common", kind):
        rendered |= rendering.render_tree(
            "volkit.cli", f"scaffold/{part}", values, {"PACKAGE": package}, "new"
        )
    return dict(sorted(rendered.items()))


def _package(name: str) -> str:
    return f"volkit_{name.replace('-', '_')}"
