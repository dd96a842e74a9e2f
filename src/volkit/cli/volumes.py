"""`volkit volumes`: every volume, where it is and who uses it; as a table, JSON, or a graph."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from volkit.cli.progress import progress
from volkit.errors import FailedPrecondition, InvalidArgument, VolkitError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import RenderableType

    from volkit.arguments import Parser
    from volkit.engine import Engine
    from volkit.inventory import Inventory, Item

WATCH_SECONDS = 2.0


def main(argv: Sequence[str]) -> int:
    """Show them; 0 where everything could be looked at, 1 where something could not, 2 for a wrong command line."""
    args = make_parser().parse(argv)
    try:
        from volkit.cli.recovery import in_time
        from volkit.launch import configure_logging, open_engine

        configure_logging(args.log_level, args.log_format)
        engine = in_time(lambda: open_engine(args))
        try:
            code = _show(engine, args)
        finally:
            left = engine.close()
    except VolkitError as error:
        print(f"volkit volumes: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    if left:  # of the backend, which does not answer: nobody waits for it
        sys.stdout.flush()
        os._exit(code)
    return code


def make_parser() -> Parser:
    """What the command takes."""
    from volkit.arguments import Parser, add_arguments

    description = "Show every volume: its state, where it is attached, staged and published, and who uses it."
    parser = Parser(prog="volkit volumes", description=description, any_config=True)
    add_arguments(parser)
    parser.set_defaults(log_level="warning")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    form.add_argument(
        "--graph", default="", metavar="FILE", help="draw volume, node and pod into an SVG file; - is stdout"
    )
    return parser


def _show(engine: Engine, args: argparse.Namespace) -> int:
    from volkit.inventory import plain, take

    if args.watch:
        return _watch(engine)
    with progress("looking at storage, journal and mounts"):
        inventory = take(engine)
    if args.graph:
        from volkit.cli.graph import draw

        _write(args.graph, draw(inventory))
    elif args.json:
        json.dump(plain(inventory), sys.stdout, indent=2)
        print()
    else:
        _print(inventory)
    for note in inventory.notes:
        print(f"volkit volumes: {note}", file=sys.stderr)
    return 1 if inventory.notes else 0


def _write(place: str, text: str) -> None:
    if place == "-":
        sys.stdout.write(text)
        return
    try:
        Path(place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror}") from None


def _print(inventory: Inventory) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if inventory.volumes:
        console.print(table(inventory))
    elif not inventory.notes:
        print("There are no volumes.")


def _watch(engine: Engine) -> int:
    from rich.live import Live

    from volkit.inventory import take

    inventory: Inventory | None = None
    try:
        inventory = take(engine)
        with Live(table(inventory), auto_refresh=False, screen=sys.stdout.isatty()) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                inventory = take(engine)
                live.update(table(inventory), refresh=True)
    except KeyboardInterrupt:
        return 1 if inventory and inventory.notes else 0


def table(inventory: Inventory) -> RenderableType:
    """For people."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Volume", "State", "Size", "Used", "Attached to", "Used by"):
        shown.add_column(heading, overflow="fold", justify="right" if heading in ("Size", "Used") else "left")
    for one in inventory.volumes:
        shown.add_row(*_row(one, inventory.node))
    return shown


def _row(item: Item, node: str) -> tuple[str, ...]:
    from rich.markup import escape

    from volkit.inventory import named_pods

    name = f"{item.name} ({item.id})" if item.name and item.name != item.id else item.id
    nodes = item.attached or ([node] if item.staged or item.published else [])
    users = [one.shown for one in named_pods(item)]
    if item.published and not users:
        users = item.published
    state = f"{item.state}, {', '.join(item.unfinished)}" if item.unfinished else item.state
    used = "-" if item.used is None else rounded(item.used)
    if item.used is not None and item.size:
        used += f" {item.used * 100 // item.size}%"
    size = rounded(item.size) if item.size else "-"
    return tuple(map(escape, (name, state, size, used, ", ".join(nodes) or "-", ", ".join(users) or "-")))


def rounded(size: int) -> str:
    """Bytes for people, in three figures: 16Mi, 44.7Gi."""
    value, unit = float(size), ""
    for unit in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
        if value < 1024 or unit == "Pi":
            break
        value /= 1024
    shown = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{shown.removesuffix('.0')}{unit}"
