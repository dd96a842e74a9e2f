"""`volkit explain`: all there is to know of a backend, an operation, a capability or an error, out of its class."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from volkit.errors import ERRORS, InvalidArgument, NotFound, VolkitError

if TYPE_CHECKING:
    import argparse

    from volkit.arguments import Parser
    from volkit.backend import Backend
    from volkit.interfaces import Mixin

Facts = dict[str, Any]
"""What is explained: facts by name, each a text, a list of texts, or a table: a list of facts."""


def main(argv: Sequence[str]) -> int:
    """Print the facts; 0 where there are some, 1 where what is installed is broken, 2 for what there is not."""
    args = make_parser().parse(argv)
    try:
        facts = _KINDS[args.kind](args)
    except VolkitError as error:
        print(f"volkit explain: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument | NotFound) else 1
    if args.json:
        from json import dump

        dump(facts, sys.stdout, indent=2, default=str)
        print()
    else:
        _print(facts)
    return 0


def make_parser() -> Parser:
    """What the command takes."""
    from volkit.arguments import Parser, add_option_argument

    parser = Parser(prog="volkit explain", description="Show all there is to know, out of the classes.")
    parser.add_argument("kind", choices=sorted(_KINDS), metavar="KIND", help=f"{', '.join(sorted(_KINDS))}")
    parser.add_argument(
        "name", metavar="NAME", help="its name, such as loop, create_volume, Expands, NotFound"
    )
    add_option_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


# -- a backend


def _backend(args: argparse.Namespace) -> Facts:
    """`-o` counts where the backend's capabilities depend on its settings."""
    from volkit.backend import mixins
    from volkit.cli.backends import describe
    from volkit.launch import read_settings
    from volkit.registry import Found, load_backend

    backend = load_backend(args.name)
    controller, node = backend.controller, backend.node
    if args.option:
        settings = read_settings(backend, args.option)
        controller, node = backend.controller_class(settings), backend.node_class(settings)
    name, version = _distribution(backend)
    shown = describe(Found(name=backend.name, distribution=name, version=version, loaded=backend))
    has = mixins(controller) | mixins(node)
    every = _capabilities()
    facts = {
        key: shown[key] for key in ("name", "distribution", "version", "summary", "kind") if shown.get(key)
    }
    facts |= {
        "limits": shown["limits"],
        "capabilities": [{"name": one, "is": _first(every[one].__doc__)} for one in every if one in has],
        "not": [one for one in every if one not in has],
        "settings": shown["settings"],
        "parameters": shown["parameters"],
        "wires": _wires(backend, controller, node),
    }
    return facts


def _distribution(backend: type[Backend[Any, Any]]) -> tuple[str, str]:
    from importlib.metadata import entry_points

    from volkit.registry import BACKENDS

    points = entry_points(group=BACKENDS, name=backend.name)
    return next(((one.dist.name, one.dist.version) for one in points if one.dist), ("", ""))


def _wires(backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None) -> Facts:
    """What each installed adapter says of the backend; of a broken one, why it says nothing."""
    from volkit.registry import adapters

    wires: Facts = {}
    for found in adapters():
        if found.loaded is None:
            wires[found.name] = {"broken": found.error}
        elif found.loaded.explain is not None:
            wires[found.name] = {
                "wire": found.loaded.summary,
                **found.loaded.explain(backend, controller, node),
            }
    return wires


# -- what is the same for every backend


def _capabilities() -> Mapping[str, type[Mixin]]:
    from volkit.interfaces import Controller, Node

    return {one.__name__: one for one in (*Controller.mixins, *Node.mixins)}


def names() -> list[str]:
    """All that can be explained beside backends."""
    from volkit.operations import OPERATIONS

    return [*OPERATIONS, *_capabilities(), *(one.__name__ for one in ERRORS)]


def _capability(args: argparse.Namespace) -> Facts:
    from volkit.interfaces import Controller
    from volkit.operations import OPERATIONS

    mixin = _named(_capabilities(), args.name, "capability")
    methods = {name: value for name, value in vars(mixin).items() if inspect.isfunction(value)}
    return {
        "name": mixin.__name__,
        "is": _text(mixin.__doc__),
        "side": "controller" if mixin in Controller.mixins else "node",
        "needs": list(mixin.needs),
        "methods": [
            {"name": f"{name}{inspect.signature(value)}", "is": _text(value.__doc__)}
            for name, value in methods.items()
        ],
        "operations": [one.name for one in OPERATIONS.values() if one.mixin is mixin],
        "rules out": [one.name for one in OPERATIONS.values() if one.without is mixin],
    }


def _operation(args: argparse.Namespace) -> Facts:
    import attrs

    from volkit.cli.table import describe
    from volkit.operations import OPERATIONS

    row = _named(OPERATIONS, args.name, "operation")
    fields = [
        {"name": one.name, "type": str(one.type), "required": one.default is attrs.NOTHING}
        for one in attrs.fields(row.request)
    ]
    facts = {key: value for key, value in describe(row).items() if value is not None}
    return {**facts, "is": _text(row.request.__doc__), "fields": fields}


def _error(args: argparse.Namespace) -> Facts:
    cls = _named({one.__name__: one for one in ERRORS}, args.name, "error")
    above = [base.__name__ for base in cls.__mro__[1:] if issubclass(base, VolkitError)]
    return {"name": cls.__name__, "is": _text(cls.__doc__), "a kind of": above}


_KINDS: Final[Mapping[str, Callable[[argparse.Namespace], Facts]]] = {
    "backend": _backend,
    "operation": _operation,
    "capability": _capability,
    "error": _error,
}


def _named(things: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in things:
        import difflib

        near = difflib.get_close_matches(name[:64], things, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NotFound(f"there is no {what} {name[:64]!r}: there are {', '.join(things)}{hint}")
    return things[name]


def _text(doc: str | None) -> str:
    return " ".join((doc or "").split())


def _first(doc: str | None) -> str:
    return _text(doc).partition(": ")[0].rstrip(".")


# -- for people


def _print(facts: Facts) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    _print_facts(console, facts)


def _print_facts(console: Any, facts: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    plain = {key: value for key, value in facts.items() if not _is_nested(value)}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for key, value in plain.items():
        table.add_row(Text(_heading(key)), Text(_shown(key, value)))
    console.print(table)
    for key, value in facts.items():
        if not _is_nested(value):
            continue
        if isinstance(value, Mapping) and any(isinstance(one, Mapping) for one in value.values()):
            for name, inner in value.items():
                _print_part(console, f"{_heading(key).removesuffix('s')} {name}", inner)
        else:
            _print_part(console, _heading(key), value)


def _print_part(console: Any, heading: str, value: Any) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(heading, style="bold underline"))
    table = Table(box=None, pad_edge=False, show_header=False)
    if isinstance(value, Mapping):
        for key, text in value.items():
            table.add_row(Text(_heading(key)), Text(_shown(key, text)))
    else:
        for row in value:
            table.add_row(*map(Text, _row(row)))
    console.print(Padding(table, (0, 0, 0, 2)))


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """An option, a capability or a field as the cells of a line."""
    name = row.get("key") or row["name"]
    if "is" in row:
        return (name, row["is"])
    words = [row["help"]] if row.get("help") else []
    words += [word for word in ("mutable", "secret") if row.get(word)]
    default = "required" if row["required"] else f"{row['default']}" if row.get("default") else ""
    return (name, row["type"], default, "; ".join(words))


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


def _heading(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _shown(key: str, value: object) -> str:
    from volkit.cli.backends import size_text

    if isinstance(value, int) and not isinstance(value, bool):
        return size_text(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)
