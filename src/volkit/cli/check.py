"""`volkit check`: the conformance suite on an installed backend, without a test file; and what adapters check from
outside.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volkit.cli.progress import progress
from volkit.errors import FailedPrecondition, InvalidArgument, VolkitError
from volkit.testing.report import FORMATS, Outcome, failed, write

if TYPE_CHECKING:
    import argparse

    from volkit.arguments import Parser
    from volkit.testing.suite import BackendSuite

FAULTS = ("none", "sampled", "full")


def main(argv: Sequence[str]) -> int:
    """Run the checks; 0 where nothing failed, 1 where something did, 2 for a wrong command line."""
    if any(word == "--endpoint" or word.startswith("--endpoint=") for word in argv):
        return _from_outside(argv)
    args = make_parser().parse(argv)
    logging.getLogger().addHandler(logging.NullHandler())  # what is logged is of the faults that are injected
    try:
        suite = _suite(args)
        _refuse_to_disturb(suite, args)
        outcomes = []
        with progress(f"checking {args.backend}") as shown:
            for outcome in run(suite, faults=args.faults, only=args.only):
                outcomes.append(outcome)
                shown.say(f"checking {args.backend}: {len(outcomes)} cases done, the last {outcome.id}")
    except VolkitError as error:
        print(f"volkit check: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument) else 1
    write(outcomes, args.report, args.backend, args.output)
    return 1 if failed(outcomes) else 0


def _from_outside(argv: Sequence[str]) -> int:
    from volkit.registry import adapters

    for found in adapters():
        if found.loaded is not None and found.loaded.check is not None:
            return found.loaded.check(argv)
    print("volkit check: --endpoint comes with volkit-csi: `pip install volkit-csi`", file=sys.stderr)
    return 2


def make_parser() -> Parser:
    """What the command takes."""
    from volkit.arguments import Parser, add_option_argument

    description = "Run the conformance suite on a backend: it makes volumes in its storage, and removes them."
    parser = Parser(prog="volkit check", description=description)
    parser.add_argument(
        "backend", metavar="BACKEND", help="an installed backend; `volkit backends` lists them"
    )
    add_option_argument(parser)
    for name, what in (("parameter", "of the volumes that are made"), ("mutable", "to modify a volume with")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="KEY=VALUE", help=f"a parameter {what}"
        )
    parser.add_argument(
        "--secret", action="append", default=[], metavar="KEY=@/FILE", help="a secret of each call"
    )
    parser.add_argument("--size", default="0", metavar="SIZE", help="of the volumes (default: the backend's)")
    parser.add_argument(
        "--faults", choices=FAULTS, default="sampled", help="how many are injected (default: sampled)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose name has this in it")
    add_report_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="also where the storage has volumes already")
    return parser


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """What every check takes: the form of its report, and where it goes."""
    parser.add_argument("--report", choices=FORMATS, default="table", help="its form (default: table)")
    parser.add_argument(
        "--output", default="", metavar="FILE", help="where the report goes (default: stdout)"
    )


def _suite(args: argparse.Namespace) -> BackendSuite:
    """A suite on the storage that the options lead to. Raises InvalidArgument, FailedPrecondition."""
    from volkit.arguments import read_pairs
    from volkit.launch import read_settings
    from volkit.options import parse_size
    from volkit.registry import load_backend
    from volkit.testing.suite import BackendSuite
    from volkit.testing.witness import OwnListing, Storage

    if find_spec("hypothesis") is None:
        raise FailedPrecondition('this takes Hypothesis: `pip install "volkit-sdk[testing]"`')
    loaded = load_backend(args.backend)
    settings = read_settings(loaded, args.option)
    controller_class = loaded.controller_class(settings)
    if controller_class is None:
        raise FailedPrecondition(f"backend {args.backend!r} makes no volumes: there is nothing to check")
    controller = controller_class(settings, "")  # a storage that cannot be used is refused once
    witness = loaded.witness(settings)
    if witness is None:
        try:
            witness = OwnListing(controller)
        except TypeError as error:
            raise FailedPrecondition(f"{error}: define {loaded.__name__}.witness()") from None
        print(
            "The backend has no witness: its own listing is believed, and hides what it hides.",
            file=sys.stderr,
        )

    class Suite(BackendSuite):
        backend = loaded
        parameters = read_pairs(args.parameter)
        mutable = read_pairs(args.mutable)
        secrets = read_pairs(args.secret)
        size = parse_size(args.size)

        def storage(self, directory: Path) -> Storage:
            return Storage(settings=settings, witness=witness)

    return Suite()


def _refuse_to_disturb(suite: BackendSuite, args: argparse.Namespace) -> None:
    there = len(suite.storage(Path()).witness.volumes())
    if there and not args.yes:
        raise FailedPrecondition(
            f"the storage has {there} volumes: others are made and removed beside them; give --yes if that is fine"
        )


def run(suite: BackendSuite, *, faults: str = "sampled", only: str = "") -> Iterator[Outcome]:
    """The outcome of every case, in the order of their names; nothing is left of any of them."""
    from volkit.testing.suite import CASES

    for name, case in CASES.items():
        injects = name.startswith(("test_faults_", "test_kill_"))
        if only not in name or (faults == "none" and injects):
            continue
        directory = Path(tempfile.mkdtemp(prefix="volkit-check-"))
        try:
            yield _outcome(suite, name, case, directory, full=faults == "full")
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _outcome(
    suite: BackendSuite, name: str, case: Callable[..., None], directory: Path, *, full: bool
) -> Outcome:
    from volkit.testing.kit import Fault, Kit, missing

    begun = time.monotonic()
    facts: Mapping[str, Any] = {"id": name, "title": name.removeprefix("test_").replace("_", " ")}
    try:
        kit = Kit(suite, directory, full=full)
        if reason := missing(case, kit.has):
            kit.close(judge=False)
            return Outcome(**facts, status="skipped", detail=reason)
        try:
            case(suite, kit)
        except BaseException:
            kit.close(judge=False)
            raise
        kit.close()
    except Exception as error:  # the backend's, or the witness's: the next case goes on
        told = error.message if isinstance(error, VolkitError) else str(error)
        detail = told if isinstance(error, Fault) else f"{type(error).__name__}: {told}"
        return Outcome(**facts, status="failed", detail=detail, seconds=time.monotonic() - begun)
    return Outcome(**facts, status="passed", seconds=time.monotonic() - begun)
