"""Finds backends and adapters by name, and imports only the one that is asked for.

A plugin is an entry point of the group `volkit.backends` or `volkit.adapters` that names a module with a hook
(see `volkit.hookspecs`). A plugin that cannot be loaded is reported and does not stop the others; a name that
two distributions claim belongs to neither of them.

pluggy by itself ends at the first plugin that cannot be imported, silently skips the second of two with one
name, and takes a misspelt hook until it is asked to check; so each plugin gets a plugin manager of its own
here.
"""

from __future__ import annotations

import difflib
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, Generic, TypeGuard, TypeVar

from attrs import frozen
from pluggy import PluginManager, PluginValidationError

from volkit import hookspecs
from volkit.backend import Backend
from volkit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from volkit.hookspecs import PROJECT, Adapter

BACKENDS = "volkit.backends"
ADAPTERS = "volkit.adapters"

T = TypeVar("T")
N = TypeVar("N", type[Backend[Any, Any]], Adapter)

_registered: dict[str, type[Backend[Any, Any]]] = {}


@frozen(kw_only=True)
class Found(Generic[T]):
    """One installed plugin: `loaded`, or the `error` that says in one sentence why it cannot be used.

    `distribution` is the name that pip knows, "" for what was registered in this process.
    """

    name: str
    distribution: str
    version: str
    loaded: T | None = None
    error: str = ""


def backends() -> list[Found[type[Backend[Any, Any]]]]:
    """Every backend there is, by name, each imported, the broken ones with their error."""
    here = [Found(name=name, distribution="", version="", loaded=one) for name, one in _registered.items()]
    return sorted(
        [*here, *_load_all(BACKENDS, _backend, _registered)],
        key=lambda found: (found.name, found.distribution),
    )


def adapters() -> list[Found[Adapter]]:
    """Every adapter there is, by name, each imported, the broken ones with their error."""
    return _load_all(ADAPTERS, _adapter, ())


def distributions(name: str) -> list[Distribution]:
    """Those that bring the backend of that name; none for what was registered in this process."""
    points = entry_points(group=BACKENDS, name=name)
    return [one.dist for one in points if one.dist is not None]


def load_backend(name: str) -> type[Backend[Any, Any]]:
    """The backend called `name`, or the class at `module:Class`; nothing else is imported.

    Raises NotFound where none has that name, FailedPrecondition where it is broken or claimed more than once.
    """
    if ":" in name:
        return _load_class(name)
    points = list(entry_points(group=BACKENDS, name=name))
    if name in _registered and not points:
        return _registered[name]
    if not points:
        raise NotFound(_unknown(name))
    if clash := _clash(points, _registered):
        raise FailedPrecondition(clash)
    return _backend(points[0])


def register(backend: type[Backend[Any, Any]]) -> Callable[[], None]:
    """Make a backend known in this process, without an entry point; returns the function that takes it back.

    Raises AlreadyExists where another class is registered by that name.
    """
    if (other := _registered.setdefault(backend.name, backend)) is not backend:
        raise AlreadyExists(f"a backend {backend.name!r} is registered already: {other!r}")

    def unregister() -> None:
        if _registered.get(backend.name) is backend:
            del _registered[backend.name]

    return unregister


def _load_all(group: str, load: Callable[[EntryPoint], T], registered: Iterable[str]) -> list[Found[T]]:
    claims: defaultdict[str, list[EntryPoint]] = defaultdict(list)
    for point in entry_points(group=group):
        claims[point.name].append(point)
    found: list[Found[T]] = []
    for _, points in sorted(claims.items()):
        error = _clash(points, registered)
        found += [_found(point, load, error) for point in points]
    return found


def _found(point: EntryPoint, load: Callable[[EntryPoint], T], error: str) -> Found[T]:
    loaded = None
    if not error:
        try:
            loaded = load(point)
        except FailedPrecondition as broken:
            error = broken.message
    name, version = _origin(point)
    return Found(name=point.name, distribution=name, version=version, loaded=loaded, error=error)


def _clash(points: list[EntryPoint], registered: Iterable[str]) -> str:
    """Why a name belongs to nobody; "" where just one claims it."""
    name = points[0].name
    if len(points) == 1 and name not in registered:
        return ""
    claimants = sorted(" ".join(_origin(point)) for point in points)
    if name in registered:
        claimants.append("a class registered in this process")
    return f"{name!r} is claimed by {' and by '.join(claimants)}: remove all but one of them"


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("", "")


def _unknown(name: str) -> str:
    installed = sorted({*_registered, *(point.name for point in entry_points(group=BACKENDS))})
    near = difflib.get_close_matches(name[:64], installed, n=1)
    hint = ""
    if near:
        hint = f"; did you mean {near[0]!r}?"
    elif len(name) <= 32 and name.replace("-", "").isalnum():
        hint = f"; try `pip install volkit-{name}`"
    there = f"installed are {', '.join(installed)}" if installed else "none is installed"
    return f"there is no backend {name[:64]!r}: {there}{hint}"


# -- one plugin ----------------------------------------------------------------------------------------------


def _backend(point: EntryPoint) -> type[Backend[Any, Any]]:
    backend = _ask(point, "volkit_backend")
    if not _is_backend(backend):
        raise FailedPrecondition(
            f"{_place(point)}: volkit_backend() returned {backend!r:.80}, no subclass of volkit.Backend"
        )
    return _named(backend, point)


def _adapter(point: EntryPoint) -> Adapter:
    adapter = _ask(point, "volkit_adapter")
    if not isinstance(adapter, Adapter):
        raise FailedPrecondition(
            f"{_place(point)}: volkit_adapter() returned {adapter!r:.80}, which is no volkit.Adapter"
        )
    return _named(adapter, point)


def _is_backend(value: object) -> TypeGuard[type[Backend[Any, Any]]]:
    return isinstance(value, type) and issubclass(value, Backend) and value is not Backend


def _named(plugin: N, point: EntryPoint) -> N:
    if plugin.name != point.name:
        raise FailedPrecondition(
            f"{_place(point)} calls itself {plugin.name!r} and its entry point is {point.name!r}: "
            "give both one name"
        )
    return plugin


def _ask(point: EntryPoint, hook: str) -> object:
    """What one plugin's hook returns. Raises FailedPrecondition for all that goes wrong in its code."""
    plugins = PluginManager(PROJECT)
    plugins.add_hookspecs(hookspecs)
    try:
        plugins.register(point.load(), name=point.name)
        plugins.check_pending()
        answer = getattr(plugins.hook, hook)()
    except PluginValidationError as error:
        raise FailedPrecondition(
            f"{_place(point)}: {error}; the hooks are volkit_backend() and volkit_adapter()"
        ) from error
    except (Exception, SystemExit) as error:  # a plugin's module may do anything, and is one of several
        raise FailedPrecondition(
            f"{_place(point)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not getattr(plugins.hook, hook).get_hookimpls():
        raise FailedPrecondition(
            f"{_place(point)} has no hook {hook}: define it there and mark it with @volkit.hookimpl"
        )
    return answer


def _place(point: EntryPoint) -> str:
    return f"{point.value} of {' '.join(_origin(point)).strip() or 'an unknown distribution'}"


def _load_class(name: str) -> type[Backend[Any, Any]]:
    """The class at `module:Class`: a backend that is being written, or one without an entry point."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InvalidArgument(f"{name!r} is no backend: write its name, or module:Class")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        hint = ": install it, or put its directory on PYTHONPATH" if isinstance(error, ImportError) else ""
        raise FailedPrecondition(
            f"backend {name!r} cannot be loaded: {type(error).__name__}: {error}{hint}"
        ) from error
    if not _is_backend(backend):
        raise FailedPrecondition(f"{name!r} is {backend!r:.80}, which is no subclass of volkit.Backend")
    return backend
