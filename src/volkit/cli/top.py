"""`volkit top`: the operations that run in the drivers of this machine, and those that ended last."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from volkit.errors import InvalidArgument
from volkit.status import DIRECTORY, running

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import RenderableType

    from volkit.arguments import Parser

_RECENT: Final = 15


def main(argv: Sequence[str]) -> int:
    """Show them, once in a pipe, on a terminal again and again; 1 where no driver answers, 2 for a wrong command
    line.
    """
    args = make_parser().parse(argv)
    try:
        interval = _interval(args.interval)
    except InvalidArgument as error:
        print(f"volkit top: {error.message}", file=sys.stderr)
        return 2
    places = _places(args)
    told = look(places)
    if not told:
        where = ", ".join(map(str, places)) or "the state directories below /var/lib/volkit"
        print(f"volkit top: no driver answers in {where}: give its --state-dir", file=sys.stderr)
        return 1
    if args.json:
        json.dump(told, sys.stdout, indent=2)
        print()
    elif args.once or not sys.stdout.isatty():
        _print(told)
    else:
        _live(places, told, interval)
    return 0


def make_parser() -> Parser:
    """What the command takes."""
    from volkit.arguments import Parser

    parser = Parser(
        prog="volkit top", description="Show the operations that run in drivers, and the last ones."
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=None,
        metavar="DIR",
        help="the driver's (default: all below /var/lib/volkit)",
    )
    parser.add_argument("--interval", default="1", metavar="SECONDS", help="between two looks (default: 1)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--once", action="store_true", help="once, also on a terminal")
    form.add_argument("--json", action="store_true", help="once, as JSON")
    return parser


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise InvalidArgument(f"--interval {text!r} is not a number of seconds from 0.1 to 3600")
    return seconds


def _places(args: argparse.Namespace) -> list[Path]:
    from volkit.launch import STATE_DIR

    if args.state_dir is not None:
        return [args.state_dir]
    return sorted(one.parent for one in STATE_DIR.glob(f"*/{DIRECTORY}"))


def look(places: list[Path]) -> list[dict[str, Any]]:
    """What the drivers of these state directories tell."""
    return [told for place in places for told in running(place)]


def _print(told: list[dict[str, Any]]) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(shown(told, {}, 0.0))


def _live(places: list[Path], told: list[dict[str, Any]], interval: float) -> None:
    from rich.live import Live

    before, at = _ended(told), time.monotonic()
    try:
        with Live(shown(told, {}, 0.0), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                told, now = look(places), time.monotonic()
                live.update(shown(told, before, now - at), refresh=True)
                before, at = _ended(told), now
    except KeyboardInterrupt:
        return


def _ended(told: list[dict[str, Any]]) -> dict[tuple[int, str], int]:
    return {(one["pid"], name): each["ended"] for one in told for name, each in one["operations"].items()}


def shown(told: list[dict[str, Any]], before: dict[tuple[int, str], int], seconds: float) -> RenderableType:
    """For people. `before` is how many had ended by driver and operation, `seconds` ago."""
    from rich.console import Group
    from rich.markup import escape

    parts: list[RenderableType] = []
    for one in told:
        calls = one["calls"]
        left = sum(call["left"] for call in calls)
        hanging = f", [red]{left} of them left behind[/red]" if left else ""
        driver = escape(
            f"{one['program']} (pid {one['pid']}): backend {one['backend']}, node {one['node'] or '-'}"
        )
        parts += [
            f"[bold]{driver}[/bold], {len(calls)} running{hanging}",
            _calls(calls),
            _sums(one, before, seconds),
        ]
        parts += ["", _last(one["recent"]), ""]
    return Group(*parts[:-1]) if parts else Group("no driver answers")


def _calls(calls: list[dict[str, Any]]) -> RenderableType:
    now = time.time()
    table = _table("Running", "Volume", "Since", "Request", "")
    for one in calls:
        waits = "nobody waits for it any more" if one["left"] else ""
        _add(table, one["operation"], one["subject"], f"{now - one['since']:.1f} s", one["request"], waits)
    return table if calls else ""


def _sums(one: dict[str, Any], before: dict[tuple[int, str], int], seconds: float) -> RenderableType:
    table = _table("Operation", "Ended", "Failed", "Per second", "Mean", "Slowest")
    for name, each in one["operations"].items():
        rate = "-"
        if seconds:
            rate = f"{(each['ended'] - before.get((one['pid'], name), 0)) / seconds:.1f}"
        mean = f"{each['seconds'] / max(1, each['ended']) * 1000:.1f} ms"
        slowest = f"{each['slowest'] * 1000:.1f} ms"
        _add(table, name, str(each["ended"]), str(each["failed"]), rate, mean, slowest)
    return table if one["operations"] else ""


def _last(recent: list[dict[str, Any]]) -> RenderableType:
    table = _table("Last", "Volume", "Code", "Took", "Request")
    for one in reversed(recent[-_RECENT:]):
        _add(
            table,
            one["operation"],
            one["subject"],
            one["code"],
            f"{one['seconds'] * 1000:.1f} ms",
            one["request"],
        )
    return table if recent else ""


def _table(*headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _add(table: Any, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*map(escape, cells))
