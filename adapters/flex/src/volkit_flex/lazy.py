"""Modules that are loaded when they are first used, for a process that lives as long as one call.

They are imported by what a call needs, and most calls never use them. That an import of one cannot fail early is of no
harm here: all are of Python or of volkit, and whatever fails is answered.
"""

from __future__ import annotations

import sys
from _thread import RLock
from importlib.machinery import PathFinder
from types import ModuleType

from volkit_flex import kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from typing import Any

_one_at_a_time = RLock()

NAMES = frozenset(
    {
        "argparse", "ast", "base64", "copy", "difflib", "fnmatch", "glob", "html", "inspect", "ipaddress", "locale",
        "pickle", "platform", "selectors", "shutil", "socket", "statistics", "subprocess", "tempfile", "textwrap",
        "tokenize", "tomllib", "traceback",
        "attr.filters", "attr.validators", "attrs.filters", "attrs.validators",
        "volkit.formatting", "volkit.mending", "volkit.upkeep",
        "volkit.host.apart", "volkit.host.devices", "volkit.host.files", "volkit.host.filesystems",
        "volkit.host.freeze", "volkit.host.fuse", "volkit.host.loop", "volkit.host.ownership", "volkit.host.process",
        "volkit.host.rebind",
    }
)  # fmt: skip

ELSEWHERE = frozenset({"_winapi", "nt", "org"})
"""Python's own modules try these, of Windows and of Java; to look for one takes as long as to load one."""


class _Module(ModuleType):
    """Is run when something of it is asked for. importlib's own lazy module is so when it is imported once more."""

    def __getattr__(self, name: str) -> Any:
        if name[:2] != "__":  # those are asked for by the import itself
            with _one_at_a_time:
                later = vars(self).pop("__later__", None)
                if later is not None:
                    spec: Any = self.__spec__
                    spec.loader = later
                    later.exec_module(self)
        return ModuleType.__getattribute__(self, name)


class _Later:
    """A loader that leaves it to the module. Not one of importlib.abc's, which take 10 ms to load."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Module(spec.name)
        vars(module)["__later__"] = self._loader
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Not yet."""


class _Finder:
    """Finds the modules in `NAMES`, and leaves everything else to those that come after it. What is in C cannot be for
    later: it makes its own module object.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in ELSEWHERE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name not in NAMES:
            return None
        spec = kept.Finder.find_spec(name, path) or PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None and (spec.origin or "").endswith(".py"):
            spec.loader = _Later(spec.loader)  # type: ignore[assignment]
        return spec


def install() -> None:
    """From now on, in this process."""
    sys.meta_path.insert(0, _Finder)
    # until Python 3.12 datetime reads 100 KiB of its own, and then takes all from this
    sys.modules.setdefault("datetime", __import__("_datetime"))
    # all that attrs asks of it
    implementation = {"cpython": "CPython", "pypy": "PyPy"}.get(sys.implementation.name)
    if implementation:
        vars(__import__("platform"))["python_implementation"] = lambda: implementation


def compile_methods_later() -> None:
    """attrs compiles the methods of each class, which is half of what a class costs, and a call makes objects of a few.
    Here they are compiled for the first of those. An attrs that does it otherwise than is known here does it at once.
    """
    from attr import _make

    builder: Any = getattr(_make, "_ClassBuilder", None)
    compile_now = getattr(builder, "_eval_snippets", None)
    if compile_now is None:
        return

    def compile_later(self: Any) -> None:
        names = [script.partition("(")[0].removeprefix("def ") for script, *_ in self._script_snippets]
        if all(name.startswith("__") and name.isidentifier() for name in names):
            self._cls_dict.update({name: _compiled_later(self, name, compile_now) for name in names})
        else:
            compile_now(self)

    builder._eval_snippets = compile_later


def _compiled_later(builder: Any, name: str, compile_now: Callable[[Any], None]) -> Callable[..., Any]:
    def method(this: object, *args: object, **kwargs: object) -> Any:
        with _one_at_a_time:
            if builder._script_snippets:
                compile_now(builder)
                builder._script_snippets.clear()
        compiled = builder._cls_dict[name]
        for one in type(this).__mro__:
            if vars(one).get(name) is method:
                setattr(one, name, compiled)
        return compiled(this, *args, **kwargs)

    return method


def annotate_no_converters() -> None:
    """attrs reads the signature of each converter, for the annotations of an `__init__`. Nobody looks at those here,
    and inspect with what it needs takes 8 ms to load.
    """
    from attr import _compat

    def unread(self: Any, converter: object) -> None:
        self.sig = None

    reader: Any = getattr(_compat, "_AnnotationExtractor", object)
    if reader is not object:  # or it takes these 8 ms
        reader.__init__ = unread
