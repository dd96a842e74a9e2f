"""A root file system of what is installed here, for images that no registry is asked for.

It holds the running interpreter at its own place, distributions with all that they require in a virtual environment at
`HOME`, programs, and the shared libraries of all of them, as ldd(1) names them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from volkit.errors import FailedPrecondition

HOME: Final = "/opt/volkit"
"""Where the distributions are, and below it `bin` with their commands."""

PYTHON: Final = f"{HOME}/bin/python"
PATH: Final = f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image has to set."""

PROGRAMS: Final = (
    "mke2fs", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck", "fsck.ext4", "resize2fs", "tune2fs", "dumpe2fs", "blkid",
    "xfs_growfs", "xfs_io", "xfs_repair", "btrfs", "mount", "umount", "sh", "sleep",
)  # fmt: skip
"""What is taken along where it is here: what volkit runs, and what these scripts run."""

_BASE: Final = Path(getattr(sys, "_base_executable", sys.executable))
"""The interpreter itself, also where this is a virtual environment."""

_SCRIPTS: Final = Path(sysconfig.get_path("scripts"))
_LIBRARIES: Final = ("libblkid.so.1", "libudev.so.1", "libmount.so.1")
"""What is loaded by its name."""

_SKIPPED: Final = shutil.ignore_patterns(
    "__pycache__", "*.pyc", "*.a", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo",
    "ensurepip", "_tkinter*", "_test*", "_ctypes_test*", "lib2to3", "tkinter", "config-*",
)  # fmt: skip
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def required(wanted: Iterable[str]) -> dict[str, Distribution]:
    """Those distributions (`name` or `name[extra]`), and all that they require here, by normalized name in order.

    What is not installed is left out: it is for another system, or another version of Python.
    """
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = list(wanted)
    while waiting:
        match = _REQUIREMENT.match(waiting.pop().strip())
        if match is None or match[0] in seen:
            continue
        seen.add(match[0])
        extras = {one.strip() for one in (match[2] or "").split(",")}
        with suppress(PackageNotFoundError):
            one = distribution(match[1])
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = one  # PEP 503
            for line in one.requires or ():
                extra = _EXTRA.search(line)
                if extra is None or extra[1] in extras:
                    waiting.append(line)
    return dict(sorted(found.items()))


def make(root: Path, distributions: Iterable[str], packages: Iterable[str] = ()) -> None:
    """Write it into the directory `root`. `packages` are the Debian packages whose programs it needs besides.

    Raises FailedPrecondition for a package that is not installed.
    """
    for directory in ("proc", "sys", "dev", "tmp", "run", "etc", "var/lib/volkit", f"{HOME[1:]}/bin"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    _copy_interpreter(root)
    for one in required(distributions).values():
        _copy_distribution(one, root)
    programs = [*_programs(), *(file for one in packages for file in _of_package(one))]
    for path in (*programs, Path("/etc/ssl/certs/ca-certificates.crt")):
        if path.parent == _SCRIPTS:
            _copy_to(path, root / HOME[1:] / "bin" / path.name)
        else:
            _copy(path, root)
    _copy_libraries(root, programs)


def archive(root: Path, output: Path) -> None:
    """A tar of it, the same for the same contents: files in order, of root, at SOURCE_DATE_EPOCH (1970)."""
    moment = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = moment
        return member

    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root), recursive=False, filter=plain)


# -- Python


def _copy_interpreter(root: Path) -> None:
    for place in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}:
        _copy_tree(Path(place), root / place.lstrip("/"))
    _copy(_BASE, root)
    (root / PYTHON[1:]).symlink_to(_BASE)
    (root / HOME[1:] / "pyvenv.cfg").write_text(f"home = {_BASE.parent}\n")


def _copy_distribution(one: Distribution, root: Path) -> None:
    """Its files, those of an editable one from where its sources are, and its commands."""
    place, home = _site_packages(root), Path(str(one.locate_file("")))
    for file in one.files or ():
        path = Path(os.path.normpath(str(one.locate_file(file))))
        if path.suffix == ".pth" and path.exists():
            for line in filter(os.path.isdir, path.read_text().splitlines()):
                _copy_tree(Path(line), place)
        elif path.is_relative_to(home) and path.suffix != ".pyc" and path.is_file():
            _copy_to(path, place / path.relative_to(home))
        elif path.parent == _SCRIPTS and path.is_file():
            _copy_to(path, root / HOME[1:] / "bin" / path.name)
    for point in one.entry_points.select(group="console_scripts"):
        script = root / HOME[1:] / "bin" / point.name
        script.write_text(
            f"#!{PYTHON}\nimport sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
        )
        script.chmod(0o755)


def _site_packages(root: Path) -> Path:
    return root / HOME[1:] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


# -- programs


def _programs() -> Iterator[Path]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        if line.strip().startswith(_LIBRARIES):
            yield Path(line.rpartition("=> ")[2])
    yield from (Path(one) for name in PROGRAMS if (one := shutil.which(name, path=path)))


def _of_package(name: str) -> list[Path]:
    """What a Debian package brings, less its documentation; or the program of that name, whatever brought it."""
    try:
        told = subprocess.run(["dpkg", "-L", name], capture_output=True, text=True, check=False)
        files = [Path(line) for line in told.stdout.splitlines() if told.returncode == 0]
    except FileNotFoundError:
        files = []
    if not files and (program := shutil.which(name, path=f"{_SCRIPTS}:{os.environ['PATH']}")):
        files = [Path(program)]
    if not files:
        raise FailedPrecondition(
            f"the package {name} is not installed here, and a driver of this backend needs it: apt-get install {name}"
        )
    documentation = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/lintian")
    return [one for one in files if one.is_file() and not str(one).startswith(documentation)]


def _copy_libraries(root: Path, programs: Iterable[Path]) -> None:
    """What the programs, the interpreter and its extensions load."""
    binaries = [str(one) for one in (*programs, _BASE, *root.rglob("*.so*"))]
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    lines = [line.split() for line in told.splitlines() if line.startswith("\t")]  # others name the binary
    for path in sorted({word for words in lines for word in words if word.startswith("/")}):
        _copy(Path(path), root)


# -- files


def _copy(path: Path, root: Path) -> None:
    """A file at its own place, and what its links lead to."""
    target = root / str(path).lstrip("/")
    if not path.exists() or os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        link = os.readlink(path)
        target.symlink_to(link)
        _copy(Path(os.path.normpath(path.parent / link)), root)
    else:
        _copy_to(path, target)


def _copy_to(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _copy_tree(path: Path, target: Path) -> None:
    shutil.copytree(path, target, ignore=_SKIPPED, symlinks=False, dirs_exist_ok=True, copy_function=_copied)


def _copied(source: str, target: str) -> str:
    _copy_to(Path(source), Path(target))
    return target
