"""What `volkit deploy` hands to a platform: a backend, and what it is deployed with.

A platform adds a `Platform` to its adapter (`Adapter.platforms`); what follows from the backend alone, for every
platform, is a property of `Deployment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from pathlib import Path

    from volkit.backend import Backend
    from volkit.interfaces import Controller, Mixin, Node
    from volkit.options import Option


@frozen(kw_only=True)
class Deployment:
    """What is deployed: a backend, with the classes that its settings choose; the settings and the parameters of its
    volumes, as texts by the options' keys; the platform's own values, an instance of `Platform.values`.

    No setting here is a secret: of a secret one at most its file on this machine is named (`@/FILE`). A platform takes
    them from where it keeps secrets.
    """

    backend: type[Backend[Any, Any]]
    controller: type[Controller[Any, Any]] | None
    node: type[Node[Any]] | None
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    values: Any

    def has(self, mixin: type[Mixin]) -> bool:
        """Whether the controller or the node has this capability."""
        return any(one is not None and issubclass(one, mixin) for one in (self.controller, self.node))

    @property
    def declared(self) -> tuple[Option, ...]:
        """The backend's settings, in the order of their class."""
        from volkit import options

        return options.declared(self.backend.settings)

    @property
    def secrets(self) -> tuple[Option, ...]:
        """The settings that are secret."""
        return tuple(one for one in self.declared if one.secret)

    @property
    def directories(self) -> tuple[Option, ...]:
        """The settings that are directories of the node."""
        return tuple(one for one in self.declared if one.field in self.backend.needs.host_paths)

    @property
    def files(self) -> tuple[Option, ...]:
        """The settings that name a file, such as a CA's certificates: paths that are given, and no directories of the
        node. In a container there is no such file, unless the platform puts it there.
        """
        return tuple(
            one
            for one in self.declared
            if one.path and one.key in self.settings and not one.secret and one not in self.directories
        )

    def contained(self, place: str) -> dict[str, str]:
        """The settings of a driver in a container, by key, whose files the platform puts into the directory `place`
        under their keys. Secret ones are left out.
        """
        return {
            one.key: f"{place}/{one.key}" if one in self.files else self.settings[one.key]
            for one in self.declared
            if one.key in self.settings and not one.secret
        }

    def sources(self, options: Iterable[Option]) -> dict[str, str]:
        """What a secret of the platform with these settings is made of: by key a file of this machine, FILE where none
        is named. One that is not given and need not be is left out.
        """
        named = {one.key: self.settings.get(one.key, "FILE" if one.required else "") for one in options}
        return {key: text.removeprefix("@") for key, text in named.items() if text}

    @property
    def host_network(self) -> bool:
        """Whether the node's driver has to be on the host's network."""
        needs, kind = self.backend.needs, self.backend.volume.kind
        if needs.host_network is not None:
            return needs.host_network
        return kind != "block" and not needs.node_local


@frozen(kw_only=True)
class Platform:
    """Something that `volkit deploy NAME` writes files for.

    `values` loads the class that declares what may be given beside backend, settings and parameters, as `--flags` and
    as keys of a file. `render` returns the texts of files by their relative paths; the first is what is printed where
    no directory is given. `write`, instead, makes a directory by itself.
    """

    name: str
    summary: str
    values: Callable[[], type]
    render: Callable[[Deployment], Mapping[str, str]] | None = None
    write: Callable[[Deployment, Path], None] | None = None
