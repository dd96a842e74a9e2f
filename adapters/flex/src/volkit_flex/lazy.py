"""Modules that are loaded when they are first used, for a process that lives as long as one call.

They are imported by what a call needs, and most calls never use them. That an import of one cannot fail early is of no
harm here: all are of Python or of volkit, and whatever fails is answered.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import LazyLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAMES = frozenset(
    {
        *(
            "argparse",
            "ast",
            "difflib",
            "fnmatch",
            "glob",
            "html",
            "locale",
            "pickle",
            "selectors",
            "shutil",
            "socket",
        ),
        *("attr.filters", "attr.validators", "attrs.filters", "attrs.validators"),
        *("statistics", "subprocess", "tempfile", "textwrap", "tokenize", "tomllib", "traceback"),
        *(
            "volkit.host.apart",
            "volkit.host.freeze",
            "volkit.host.fuse",
            "volkit.host.process",
            "volkit.host.rebind",
        ),
        *("volkit.mending", "volkit.upkeep"),
    }
)


class _Finder:
    """Finds the modules in `NAMES`, and leaves everything else to those that come after it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in NAMES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    """From now on, in this process."""
    sys.meta_path.insert(0, _Finder)
