"""The code of the modules that calls import, kept in one file.

To find some 170 modules and to read them one by one is a fifth of a call. The file is to a call what `__pycache__` is
to a module: a call that had to read elsewhere writes it anew when it has answered, and what it holds counts only while
the source has the size and the time that it had. So an upgrade needs no care, and packages that were installed without
bytecode cost no more. It holds code that root runs, and lies where nobody else writes: in the state directory.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType
    from typing import Any

_LENGTH = 8

_path = ""
_file = -1
_begin = 0
_index: dict[str, tuple[str, int, int, int, int]] = {}
"""By a module's name: its source, that one's time in nanoseconds and size in bytes, and the code's place and size in
the file, after `_begin`.
"""
_earlier: frozenset[str] = frozenset()


def use(path: str) -> None:
    """From now on, import from the file at `path` what it holds. One of another Python, or of another module path, is
    as good as none.
    """
    global _path, _file, _begin, _index, _earlier
    _path, _earlier = path, frozenset(sys.modules)
    sys.meta_path.insert(0, Finder)
    try:
        _file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        length = int.from_bytes(os.pread(_file, _LENGTH, 0), "big")
        python, index = loads(os.pread(_file, length, _LENGTH))
    except Exception:  # whatever it is, it is not what was kept
        return
    if python == _python():
        _begin, _index = _LENGTH + length, index


def _python() -> list[str]:
    return [sys.version, *sys.path]


class Finder:
    """Finds what is kept, if its source is as it was then."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source, *was = _index.get(name, ("",))
        if not source or _state(source) != tuple(was[:2]):
            return None
        package = os.path.basename(source) == "__init__.py"
        spec = ModuleSpec(name, _Loader(name, source), origin=source, is_package=package)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(source))
        return spec


def _state(source: str) -> tuple[int, int] | None:
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class _Loader(SourceFileLoader):
    """Python's own, but for where the code is read."""

    def get_code(self, fullname: str) -> CodeType | None:
        *_, place, length = _index[fullname]
        try:
            code: CodeType = loads(os.pread(_file, length, _begin + place))
        except Exception:
            return super().get_code(fullname)
        return code


def keep() -> None:
    """Write the file anew where this process had to read modules elsewhere. That a full or read-only disk has no room
    for it is of no harm.
    """
    elsewhere = _read_elsewhere()
    if not _path or not elsewhere:
        return
    from glob import escape, glob

    from volkit import VolkitError
    from volkit.host import files

    codes = {
        name: ((source, *was), os.pread(_file, length, _begin + place))
        for name, (source, *was, place, length) in _index.items()
        if name not in elsewhere and _state(source) == tuple(was)
    }
    try:
        for name, loader in elsewhere.items():
            if state := _state(loader.path):
                codes[name] = ((loader.path, *state), dumps(loader.get_code(name)))
        for left in glob(f"{escape(_path)}.*.new"):  # by one that was killed while it wrote
            os.unlink(left)
        files.write_durably(_path, _content(codes))
    except (VolkitError, OSError):
        pass


def _read_elsewhere() -> dict[str, SourceFileLoader]:
    loaders = {
        name: getattr(getattr(module, "__spec__", None), "loader", None)
        for name, module in sys.modules.items()
        if name not in _earlier
    }
    return {  # some modules have a second name
        name: loader
        for name, loader in loaders.items()
        if type(loader) is SourceFileLoader and loader.name == name
    }


def _content(codes: dict[str, tuple[tuple[Any, ...], bytes]]) -> bytes:
    index: dict[str, tuple[Any, ...]] = {}
    place = 0
    for name, (source, code) in codes.items():
        index[name] = (*source, place, len(code))
        place += len(code)
    head = dumps((_python(), index))
    return len(head).to_bytes(_LENGTH, "big") + head + b"".join(code for _, code in codes.values())
