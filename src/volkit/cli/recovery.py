"""`volkit journal`, `volkit recover` and `volkit doctor`: after a crash, by the flags of the driver itself."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from volkit.cli.progress import progress
from volkit.errors import InvalidArgument, VolkitError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from volkit.arguments import Parser
    from volkit.engine import Engine
    from volkit.recovery import Record


def main(command: str, argv: Sequence[str]) -> int:
    """Run one of the three; the exit code is 0 where nothing is left to do, 1 where something is, 2 for a wrong
    command line.
    """
    args = make_parser(command).parse(argv)
    args.flags = _flags(argv)
    try:
        from volkit.launch import configure_logging, open_engine

        configure_logging(args.log_level, args.log_format)
        engine = in_time(lambda: open_engine(args))
        try:
            code = {"journal": _journal, "recover": _recover, "doctor": _doctor}[command](engine, args)
        finally:
            left = engine.close()
    except VolkitError as error:
        print(f"volkit {command}: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    if left:  # of the backend, which does not answer: nobody waits for it
        sys.stdout.flush()
        os._exit(code)
    return code


def in_time(work: Callable[[], Engine]) -> Engine:
    """The engine, unless the backend hangs already where it is made. Raises DeadlineExceeded."""
    from volkit.lanes import CALL_SECONDS, Lanes

    return Lanes().run("the start of the backend", "", work, until=time.monotonic() + CALL_SECONDS)


def _flags(argv: Sequence[str]) -> str:
    """The driver's flags among the words, for the commands that are shown."""
    kept, words = [], iter(argv)
    for word in words:
        if word == "--min-age":
            next(words, None)
        elif word not in ("--repair", "--json", "--dry-run", "--all") and not word.startswith("--min-age="):
            kept.append(word)
    return shlex.join(kept)


def make_parser(command: str) -> Parser:
    """What `volkit COMMAND` takes."""
    from volkit.arguments import Parser, add_arguments
    from volkit.recovery import MIN_AGE

    parser = Parser(prog=f"volkit {command}", description=SUMMARIES[command], any_config=True)
    add_arguments(parser)
    parser.set_defaults(log_level="warning")
    if command == "journal":
        parser.add_argument("--all", action="store_true", help="also what is finished")
        parser.add_argument("--forget", default="", metavar="KEY", help="delete the record of this key")
    else:
        parser.add_argument(
            "--min-age",
            type=float,
            default=MIN_AGE,
            metavar="SECONDS",
            help=f"leave younger intents to the orchestrator (default: {MIN_AGE:.0f})",
        )
    if command == "recover":
        parser.add_argument("--dry-run", action="store_true", help="only say what would be settled")
    if command == "doctor":
        parser.add_argument("--repair", action="store_true", help="repair what volkit itself made")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


SUMMARIES = {
    "journal": "list what is unfinished in the journal",
    "recover": "settle what a crash left unfinished, by looking",
    "doctor": "find what is leaked, stuck or foreign",
}


def _journal(engine: Engine, args: argparse.Namespace) -> int:
    from volkit.journal import Delete
    from volkit.recovery import records

    journals = list(dict.fromkeys((engine.journal, engine.node_journal)))
    if args.forget:
        holders = [one for one in journals if one.get(args.forget) is not None]
        if not holders:
            raise InvalidArgument(
                f"there is no record {args.forget!r}: `volkit journal --all --json` lists the keys"
            )
        for one in holders:
            one.write(Delete(args.forget))
        return 0
    shown = [one for journal in journals for one in records(journal) if args.all or one.unfinished]
    _show([_plain(one) for one in shown], args, "Nothing is unfinished.")
    return 0


def _recover(engine: Engine, args: argparse.Namespace) -> int:
    from volkit.recovery import recover

    rows, left = [], 0
    try:
        with progress("settling what is unfinished") as shown:
            for record, did, settled in recover(engine, dry_run=args.dry_run, min_age=args.min_age):
                shown.say(f"{record.kind} {record.id}: {did}")
                rows.append({"kind": record.kind, "id": record.id, "state": record.state, "result": did})
                left += not settled
    except VolkitError:  # one journal is away; what the other told is done
        if rows:
            _show(rows, args, "")
        raise
    _show(rows, args, "Nothing is unfinished.")
    return 1 if left else 0


def _doctor(engine: Engine, args: argparse.Namespace) -> int:
    from volkit.doctor import examine

    rows: list[dict[str, Any]] = []
    with progress("looking at journal, storage and node"):
        found = list(examine(engine, min_age=args.min_age))
    for one in found:
        command = _OWN_COMMAND.sub(lambda found: f"{found[0]} {args.flags}".rstrip(), one.command)
        row = {"sort": one.sort, "what": one.what, "command": command}
        if args.repair and one.repair:
            try:
                row["repaired"] = engine.lanes.run("repair", one.what, one.repair)
            except VolkitError as error:
                row["failed"] = error.message
        rows.append(row)
    _show(rows, args, "Nothing is leaked, stuck or foreign.")
    return 1 if any("repaired" not in row and row["sort"] != "advice" for row in rows) else 0


def _plain(record: Record) -> dict[str, Any]:
    age = None if record.age is None else round(record.age, 1)
    return {"kind": record.kind, "id": record.id, "state": record.state, "age": age, "key": record.key}


def _show(rows: list[dict[str, Any]], args: argparse.Namespace, nothing: str) -> None:
    if args.json:
        from json import dump

        dump(rows, sys.stdout, indent=2)
        print()
        return
    if not rows:
        print(nothing)
    for row in rows:
        shown = {name: value for name, value in row.items() if name != "key" and value is not None}
        print("  ".join(f"{value} s" if name == "age" else f"{name}: {value}" if name in _NAMED else str(value)
                        for name, value in shown.items()))  # fmt: skip


_OWN_COMMAND = re.compile(r"^volkit (doctor|journal|recover)\b")
_NAMED = frozenset({"command", "repaired", "failed"})
