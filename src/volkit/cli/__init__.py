"""The `volkit` command. Adapters add their subcommands to it through the hook `volkit_adapter`.

Exit codes: 0 done, 1 it did not succeed, 2 it was not asked for rightly. `--json` gives any answer to
machines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

_RECOVERY = ("journal", "recover", "doctor")
_WATCHING = ("volumes", "top")
_OWN = ("backends", "check", "deploy", "explain", "mounter", "new", "table", *_RECOVERY, *_WATCHING)
_ELSEWHERE = {"call": "volkit-csi", "demo": "volkit-csi"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, or raises SystemExit with 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    broken = [] if arguments and arguments[0] in _OWN else _add_adapters(commands)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands.choices:
        parser.error(_unknown(arguments[0], list(commands.choices), broken))
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of `volkit … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[Any]]:
    from volkit import __version__
    from volkit.arguments import Parser

    parser = Parser(prog="volkit", description="Look at volkit's backends and lifecycle, and at drivers.")
    parser.add_argument("--version", action="version", version=f"volkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    listing = commands.add_parser(
        "backends", help="list the installed backends, the broken ones with the reason"
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_backends)
    table = commands.add_parser(
        "table", help="show the lifecycle: every operation, what it takes and where it leads"
    )
    form = table.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", dest="form", const="json", help="as JSON")
    form.add_argument(
        "--markdown", action="store_const", dest="form", const="markdown", help="as a Markdown table"
    )
    form.add_argument(
        "--mermaid", action="store_const", dest="form", const="mermaid", help="the states as a diagram"
    )
    table.set_defaults(run=_table)
    mounter = commands.add_parser(
        "mounter", help="run FUSE programs for drivers in containers, and outlive them"
    )
    mounter.add_argument(
        "--socket", default="", metavar="PATH", help="where to listen (default: /run/volkit/mounter.sock)"
    )
    mounter.set_defaults(run=_mounter)
    new = commands.add_parser("new", help="write a new backend's distribution, which passes its own tests")
    new.add_argument("name", metavar="NAME", help="the backend's name, such as acme")
    new.add_argument(
        "--kind",
        choices=("file", "block"),
        default="file",
        help="what a volume is: shares that are mounted, or disks (default: file)",
    )
    new.add_argument("--out", default="", metavar="DIR", help="is made (default: volkit-NAME)")
    new.set_defaults(run=_new)
    completion = commands.add_parser("completion", help="print what completes `volkit` in a shell")
    completion.add_argument(
        "shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"
    )
    completion.set_defaults(run=_completion)
    for name, summary in (
        ("explain", "show all there is to know of a backend, an operation, a capability or an error"),
        ("deploy", "write what a platform needs to run a driver: Kubernetes, Docker, Nomad"),
        ("check", "run the conformance suite on a backend, or checks on any driver"),
        ("journal", "list what is unfinished in a driver's journal"),
        ("recover", "settle what a crash left unfinished, by looking"),
        ("doctor", "find what is leaked, stuck or foreign, and repair it"),
        ("volumes", "show every volume, where it is and who uses it"),
        ("top", "show the operations that run in drivers"),
    ):
        # with another prefix character every word after it is a plain word, read with the flags of a driver
        command = commands.add_parser(name, help=summary, prefix_chars="\0", add_help=False)
        command.add_argument("words", nargs="...")
        command.set_defaults(run=_WITH_WORDS.get(name, _recovery))
    return parser, commands


def _backends(args: argparse.Namespace) -> int:
    from volkit.cli.backends import show

    return show(json=args.json)


def _table(args: argparse.Namespace) -> int:
    from volkit.cli.table import show

    return show(args.form)


def _mounter(args: argparse.Namespace) -> int:
    from volkit.cli.mounter import main
    from volkit.host.fuse import mounter_socket

    return main(args.socket or mounter_socket())


def _new(args: argparse.Namespace) -> int:
    from volkit.cli.new import main

    return main(args)


def _completion(args: argparse.Namespace) -> int:
    from volkit.cli.completion import script

    parser, commands = _parser()
    _add_adapters(commands)
    print(script(parser, commands, args.shell))
    return 0


def _check(args: argparse.Namespace) -> int:
    from volkit.cli.check import main

    return main(args.words)


def _explain(args: argparse.Namespace) -> int:
    from volkit.cli.explain import main

    return main(args.words)


def _deploy(args: argparse.Namespace) -> int:
    from volkit.cli.deploy import main

    return main(args.words)


def _recovery(args: argparse.Namespace) -> int:
    from volkit.cli.recovery import main

    return main(args.command, args.words)


def _volumes(args: argparse.Namespace) -> int:
    from volkit.cli.volumes import main

    return main(args.words)


def _top(args: argparse.Namespace) -> int:
    from volkit.cli.top import main

    return main(args.words)


def _add_adapters(commands: argparse._SubParsersAction[Any]) -> list[str]:
    """Let each adapter add its commands; returns what is wrong with those that cannot."""
    from volkit.registry import adapters

    broken = []
    for found in adapters():
        if found.loaded is None:
            broken.append(f"adapter {found.name}: {found.error}")
            continue
        try:
            found.loaded.add_commands(commands)
        except Exception as error:
            broken.append(f"adapter {found.name} cannot add its commands: {type(error).__name__}: {error}")
    return broken


def _unknown(command: str, known: list[str], broken: list[str]) -> str:
    if broken:
        return f"there is no command {command!r}, perhaps since {'; '.join(broken)}"
    if command in _ELSEWHERE:
        home = _ELSEWHERE[command]
        return f"the command {command!r} comes with {home}: `pip install {home}`"
    return f"there is no command {command!r}: choose {', '.join(sorted(known))}"


_WITH_WORDS = {
    "check": _check,
    "deploy": _deploy,
    "explain": _explain,
    "top": _top,
    "volumes": _volumes,
}
