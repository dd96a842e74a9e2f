"""The hooks: how a backend or an adapter makes itself known, from a module behind an entry point.

```python
# acme/plugin.py, named by the entry point `acme = "acme.plugin"` of the group `volkit.backends`
from volkit import hookimpl


@hookimpl
def volkit_backend():
    from acme.backend import Acme

    return Acme
```

The import inside the function is a good habit: a module behind an entry point is imported to be asked, also
by `volkit backends`, which only lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from pluggy import HookimplMarker, HookspecMarker

from volkit.deployment import Platform

if TYPE_CHECKING:
    import argparse

    from volkit.backend import Backend
    from volkit.interfaces import Controller, Node

    Explain = Callable[
        [type[Backend[Any, Any]], type[Controller[Any, Any]] | None, type[Node[Any]] | None],
        Mapping[str, str | Sequence[str]],
    ]

PROJECT = "volkit"

hookspec: HookspecMarker = HookspecMarker(PROJECT)
hookimpl: HookimplMarker = HookimplMarker(PROJECT)
"""Marks a function of a plugin's module as the implementation of the hook it is named after."""


@frozen(kw_only=True)
class Adapter:
    """A wire that backends can be served on.

    `add_commands` adds the adapter's subcommands to `volkit`: it calls `commands.add_parser(name, help=…)`
    and sets `run` with `set_defaults(run=function)`, which takes the parsed arguments and returns the exit
    code. It must be cheap: what a command needs is imported when the command runs. `check` is what `volkit check
    --endpoint URL …` runs, with the words after `check`: it returns the exit code. `explain` is asked by `volkit
    explain backend NAME` what this wire offers of a backend with these controller and node classes: facts by their
    name, each a text or a list of texts. `platforms` are what `volkit deploy` can write for. `parsers`
    make the parsers of commands (`check` among them) that read their words themselves, by name: for shell completion.
    """

    name: str
    summary: str
    add_commands: Callable[[argparse._SubParsersAction[Any]], None] = lambda commands: None
    check: Callable[[Sequence[str]], int] | None = None
    explain: Explain | None = None
    platforms: tuple[Platform, ...] = ()
    parsers: Mapping[str, Callable[[], argparse.ArgumentParser]] = field(factory=dict)


@hookspec(firstresult=True)
def volkit_backend() -> type[Backend[Any, Any]]:  # type: ignore[empty-body]
    """The backend of this plugin: a subclass of `volkit.Backend` whose `name` is the entry point's (group
    `volkit.backends`).
    """


@hookspec(firstresult=True)
def volkit_adapter() -> Adapter:  # type: ignore[empty-body]
    """The adapter of this plugin, whose `name` is the entry point's (group `volkit.adapters`)."""
