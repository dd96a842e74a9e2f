"""`volkit backends`: what is installed, what it can do, and what is broken and why."""

from __future__ import annotations

import sys
from typing import Any

from volkit.backend import Backend
from volkit.model import MAX_BYTES
from volkit.options import Option, declared, format_size
from volkit.registry import Found, backends


def show(*, json: bool) -> int:
    """Print the backends to stdout; 1 where one of them is broken."""
    found = backends()
    if json:
        from json import dump

        dump([describe(one) for one in found], sys.stdout, indent=2, default=str)
        print()
    elif found:
        _print(found)
    else:
        print("No backend is installed: try `pip install volkit-loop`.")
    return 1 if any(one.error for one in found) else 0


def describe(found: Found[type[Backend[Any, Any]]]) -> dict[str, Any]:
    """One backend as plain values: `Backend.describe()` with its distribution and options, or its error."""
    origin = {"name": found.name, "distribution": found.distribution, "version": found.version}
    if found.loaded is None:
        return {**origin, "error": found.error}
    backend = found.loaded
    limits = backend.limits
    return {
        **origin,
        **backend.describe(),
        "settings": [_option(one) for one in declared(backend.settings)],
        "parameters": [_option(one) for one in declared(backend.parameters)],
        "limits": {
            "min_size": limits.min_size,
            "max_size": limits.max_size,
            "default_size": limits.default_size,
            "granularity": limits.granularity,
            "fs_types": list(limits.fs_types),
            "access_modes": sorted(mode.value for mode in limits.access_modes),
        },
    }


def _option(option: Option) -> dict[str, Any]:
    shown = not (option.default is None or option.secret or hasattr(option.default, "factory"))
    return {
        "key": option.key,
        "type": option.type,
        "required": option.required,
        "default": str(getattr(option.default, "value", option.default)) if shown else None,
        "mutable": option.mutable,
        "secret": option.secret,
        "help": option.help,
    }


def size_text(size: int) -> str:
    """A limit of a size for people."""
    return "any" if size == MAX_BYTES else format_size(size)


def _print(found: list[Found[type[Backend[Any, Any]]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Backend", "Distribution", "Kind", "Capabilities", "Options (-o)", "Sizes"):
        table.add_column(heading, overflow="fold")
    for one in (one for one in found if one.loaded):
        described, limits = describe(one), one.loaded.limits  # type: ignore[union-attr]
        table.add_row(
            one.name,
            f"{one.distribution} {one.version}".strip() or "(this process)",
            described["kind"],
            ", ".join(described["capabilities"]) or "-",
            ", ".join(f"{o['key']}*" if o["required"] else o["key"] for o in described["settings"]) or "-",
            f"{format_size(limits.min_size)} to {size_text(limits.max_size)}",
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    if table.row_count:
        console.print(table)
    for one in (one for one in found if one.error):
        console.print(Text(f"broken: {one.name}: {one.error}", style="red"), soft_wrap=True)
