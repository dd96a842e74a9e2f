"""`volkit check --endpoint`: checks on any CSI driver, in any language, from outside."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volkit import InvalidArgument, VolkitError, parse_size
from volkit.arguments import Parser, read_pairs
from volkit.testing.report import FORMATS, Outcome, failed, write
from volkit_csi.checking import Driver, Failed, Row
from volkit_csi.checks import ROWS
from volkit_csi.client import CallError, Client

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str]) -> int:
    """Run the checks; 0 where nothing failed, 1 where something did, 2 for a wrong command line."""
    args = make_parser().parse(argv)
    directory = Path(tempfile.mkdtemp(prefix="volkit-check-"))
    try:
        driver = _driver(args, directory)
        with driver.controller, driver.node:
            driver.controller.wait(args.timeout)
            driver.learn()
            name = driver.call("GetPluginInfo").name
            outcomes = list(run(driver, args.only))
    except (VolkitError, CallError) as error:
        print(f"volkit check: {getattr(error, 'message', error)}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    write(outcomes, args.report, name, args.output)
    return 1 if failed(outcomes) else 0


def make_parser() -> Parser:
    """What the command takes."""
    description = "Check a CSI driver from outside. Volumes are made and removed; nothing else is touched."
    parser = Parser(prog="volkit check", description=description)
    parser.add_argument("--endpoint", required=True, metavar="URL", help="the driver's socket")
    parser.add_argument(
        "--node-endpoint", default="", metavar="URL", help="the node's, where it is another one"
    )
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="KEY=VALUE", help="of the volumes"
    )
    parser.add_argument("--secret", action="append", default=[], metavar="KEY=@/FILE", help="of every call")
    parser.add_argument("--size", default="0", metavar="SIZE", help="of the volumes (default: the driver's)")
    parser.add_argument(
        "--staging-dir", default="", metavar="DIR", help="where volumes are staged (default: new)"
    )
    parser.add_argument(
        "--target-dir", default="", metavar="DIR", help="where they are published (default: new)"
    )
    parser.add_argument(
        "--log", default="", metavar="FILE", help="the driver's log, to be searched for secrets"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="the checks whose name has this in it")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="until the driver answers"
    )
    parser.add_argument("--report", choices=FORMATS, default="table", help="its form (default: table)")
    parser.add_argument(
        "--output", default="", metavar="FILE", help="where the report goes (default: stdout)"
    )
    return parser


def _driver(args: argparse.Namespace, directory: Path) -> Driver:
    controller = Client(args.endpoint)
    return Driver(
        controller=controller,
        node=Client(args.node_endpoint) if args.node_endpoint else controller,
        staging=Path(args.staging_dir or directory / "staging"),
        targets=Path(args.target_dir or directory / "targets"),
        parameters=read_pairs(args.parameter),
        secrets=read_pairs(args.secret),
        size=parse_size(args.size),
        log=Path(args.log) if args.log else None,
    )


def run(driver: Driver, only: str = "") -> Iterator[Outcome]:
    """The outcome of every row; what a row made is gone after it, also where it failed."""
    for one in ROWS:
        if only in one.id:
            yield _outcome(driver, one)


def _outcome(driver: Driver, one: Row) -> Outcome:
    begun = time.monotonic()
    facts: Any = {"id": one.id, "title": one.title, "source": f"CSI spec, {one.source}"}
    if lacking := [need for need in one.needs if not driver.has(need)]:
        return Outcome(**facts, status="skipped", detail=f"the driver has no {lacking[0].rpartition(':')[2]}")
    detail = ""
    try:
        one.check(driver)
    except Failed as error:
        detail = str(error)
    except CallError as error:
        detail = f"{error.method} failed with {error.code}: {error.message}"
    finally:
        left = driver.undo()
    if not detail and left:
        detail = f"what was made could not be removed: {left[0]}"
    status = "passed" if not detail else "failed" if one.strict else "advice"
    return Outcome(**facts, status=status, detail=detail, seconds=time.monotonic() - begun)  # type: ignore[arg-type]
