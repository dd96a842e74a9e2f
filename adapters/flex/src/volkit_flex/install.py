"""Puts a driver where kubelet finds it, and takes it away.

`<plugin-dir>/<vendor~driver>/<driver>`, or `<plugin-dir>/<driver>/<driver>` without a vendor. Kubelet leaves names that
begin with a dot alone and sees what is renamed there, while it runs: so a driver appears whole, or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import volkit
from volkit import FailedPrecondition, InvalidArgument, NotFound
from volkit_flex import launcher

PLUGIN_DIR: Final = Path("/usr/libexec/kubernetes/kubelet-plugins/volume/exec")

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_CHECK_SECONDS = 30.0


def check_part(sort: str, text: str) -> str:
    """A vendor's or a driver's name. Raises InvalidArgument."""
    if not _PART.fullmatch(text):
        raise InvalidArgument(
            f"{sort} {text[:64]!r} is not a name: write letters, digits, '-', '_' and '.', 63 at most, the first and "
            "the last a letter or a digit"
        )
    return text


def place(plugin_dir: Path, vendor: str, driver: str) -> Path:
    """Where the executable is."""
    return plugin_dir / (f"{vendor}~{driver}" if vendor else driver) / driver


def spelled(vendor: str, driver: str) -> str:
    """What a pod or a PV writes as `driver`, and a Secret as its `type`."""
    return f"{vendor}/{driver}" if vendor else driver


def install(path: Path, text: str, *, complete: bool = False) -> dict[str, Any]:
    """Write a launcher to `path` at once, after it answered `init`; returns that answer. One that is `complete` in
    itself has to answer a call that takes the backend, too: to unmount what is not there.

    Raises FailedPrecondition where it does not, or where a file is there that is no launcher of volkit-flex.
    """
    _refuse_foreign(path)
    draft = path.with_name(f".{path.name}")
    made = not path.parent.exists()
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "wb") as file:
            os.fchmod(file.fileno(), 0o700)
            file.write(os.fsencode(text))
            file.flush()
            os.fsync(file.fileno())
        answer = checked(draft, "init")
        if complete:
            checked(draft, "unmount", os.path.abspath(f"{draft}.check"))
        os.replace(draft, path)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            draft.unlink()
        if made and not path.exists():
            with suppress(OSError):
                path.parent.rmdir()
    return answer


def checked(path: Path, *call: str) -> dict[str, Any]:
    """What a launcher answers. Raises FailedPrecondition where that is no success."""
    try:
        done = subprocess.run([path, *call], capture_output=True, timeout=_CHECK_SECONDS, check=False)
        answer = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise FailedPrecondition(
            f"{path} does not answer {call[0]}: {type(error).__name__}: {error}"
        ) from None
    if done.stderr or done.returncode or answer.get("status") != "Success":
        said = answer.get("message") or done.stdout[:200]
        raise FailedPrecondition(f"{path} answers {call[0]} with {said!r}, status {done.returncode}")
    return dict(answer)


def uninstall(path: Path) -> None:
    """Take a launcher away, and its directory. Raises NotFound, FailedPrecondition for somebody else's driver."""
    if not path.exists():
        raise NotFound(f"no driver is installed at {path}")
    _refuse_foreign(path)
    try:
        path.unlink()
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be removed: {error.strerror}") from None
    with suppress(OSError):  # something else is in it
        path.parent.rmdir()


def installed(path: Path) -> dict[str, Any]:
    """The settings of the driver at `path`. Raises NotFound, FailedPrecondition."""
    try:
        settings = launcher.settings_of(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        raise NotFound(
            f"no driver is installed at {path}: give --backend, or the --vendor and --driver of one"
        ) from None
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None
    if settings is None:
        raise FailedPrecondition(f"{path} is no driver of volkit-flex")
    return settings


def _refuse_foreign(path: Path) -> None:
    if path.exists() and (
        not path.is_file() or launcher.MARK not in path.read_text(encoding="utf-8", errors="replace")
    ):
        raise FailedPrecondition(f"{path} is somebody else's: it stays; take another name")


def module_path(modules: Sequence[str]) -> list[str]:
    """The directories that an interpreter without site-packages needs to import these modules, and what they import;
    not where the installer happened to be started, nor where its script is.
    """
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    here = {os.getcwd(), os.path.dirname(os.path.abspath(sys.argv[0]))}
    own = [
        one
        for one in sys.path
        if os.path.isdir(one)
        and os.path.abspath(one) not in here
        and not any(one == s or _in_dynload(one, s) for s in standard)
    ]
    return list(dict.fromkeys(os.path.abspath(one) for one in (*map(_root, modules), *own)))


def _root(name: str) -> str:
    """The directory that `import name` looks in; its packages may be namespaces, which have no file."""
    file = Path(str(importlib.import_module(name).__file__)).resolve()
    return str(file.parents[name.count(".") + (file.name == "__init__.py")])


def _in_dynload(path: str, standard: str | None) -> bool:
    return standard is not None and path == os.path.join(standard, "lib-dynload")


def version() -> str:
    """Of what is installed."""
    return volkit.__version__
