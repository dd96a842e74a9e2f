"""`volkit table`: the lifecycle, for people, for machines and for the documentation, all out of one table."""

from __future__ import annotations

import sys
from typing import Any

from volkit.operations import OPERATIONS, Lock, Operation, Repeat, State

_HEADINGS = ("Operation", "Side", "From", "To", "Undo", "Needs", "Holds", "A repeat")


def show(form: str | None) -> int:
    """Print the table to stdout as `json`, `markdown` or `mermaid`, or for people."""
    if form == "json":
        from json import dump

        dump([describe(one) for one in OPERATIONS.values()], sys.stdout, indent=2)
        print()
    elif form == "markdown":
        print(markdown())
    elif form == "mermaid":
        print(mermaid())
    else:
        _print()
    return 0


def describe(operation: Operation) -> dict[str, Any]:
    """One row as plain values."""
    return {
        "name": operation.name,
        "side": operation.side,
        "request": operation.request.__name__,
        "result": operation.result.__name__ if operation.result else None,
        "method": operation.method or None,
        "mixin": operation.mixin.__name__ if operation.mixin else None,
        "without": operation.without.__name__ if operation.without else None,
        "before": _state(operation.before),
        "after": _state(operation.after),
        "undo": operation.undo or None,
        "lock": operation.lock.value,
        "repeat": operation.repeat.value,
    }


def markdown() -> str:
    """The rows as a Markdown table."""
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *(_cells(one, code="`") for one in OPERATIONS.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mermaid() -> str:
    """The states and what leads from one to another, as a Mermaid state diagram."""
    arrows = [
        f"    {_state(one.before)} --> {_state(one.after)}: {one.name}"
        for one in OPERATIONS.values()
        if one.before is not None
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {_state(State.ABSENT)}", *arrows])


def _state(state: State | None) -> str | None:
    return state.name if state is not None else None


def _cells(operation: Operation, code: str = "") -> tuple[str, ...]:
    """What people read of a row; names in `code` quotes."""
    row = describe(operation)
    needs = [f"{code}{row['mixin']}{code}"] if row["mixin"] else []
    if row["without"]:
        needs.append(f"no {code}{row['without']}{code}")
    undo = f"{code}{row['undo']}{code}" if row["undo"] else ""
    name = f"{code}{row['name']}{code}"
    place = (row["before"] or "", row["after"] or "")
    return (name, row["side"], *place, undo, ", ".join(needs), row["lock"], row["repeat"])


def _print() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Operation", "Leads", "Needs", "Holds", "A repeat"):
        table.add_column(heading, no_wrap=True)
    for operation in OPERATIONS.values():
        name, _, before, after, _, needs, _, _ = _cells(operation)
        words = (operation.lock.name.lower(), operation.repeat.name.lower())
        leads = f"{before} -> {after}" if before else ""
        table.add_row(name, leads, needs, *words, style="" if before else "dim")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print()
    for heading, meanings in (("Holds", Lock), ("A repeat", Repeat)):
        console.print(
            f"{heading}: {'; '.join(f'{one.name.lower()}: {one.value}' for one in meanings)}.", style="dim"
        )
