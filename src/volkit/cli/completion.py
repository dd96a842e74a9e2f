"""`volkit completion`: a shell's completion of all commands and flags, of backends' names, of files and directories."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import shtab

from volkit.arguments import Parser
from volkit.cli import check, deploy, explain, recovery, top, volumes
from volkit.registry import adapters, backends

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]

_PATHS = {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE, "PATH": shtab.FILE}


def script(parser: argparse.ArgumentParser, commands: Commands, shell: str) -> str:
    """For `bash`, `zsh` or `fish`; of `commands` those that read their words themselves get parsers that know them."""
    for name, make in _makers():
        commands.choices[name] = make()
    for one in _all(parser):
        _describe(one)
    text: str = shtab.complete(parser, shell)
    return text


def _makers() -> Iterator[tuple[str, Callable[[], argparse.ArgumentParser]]]:
    own: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "check": check.make_parser,
        "deploy": _deploy,
        "explain": _explain,
        "top": top.make_parser,
        "volumes": volumes.make_parser,
        **{name: partial(recovery.make_parser, name) for name in recovery.SUMMARIES},
    }
    for found in adapters():
        for name, make in found.loaded.parsers.items() if found.loaded else ():
            own[name] = partial(_both, name, own[name], make) if name in own else make
    return iter(own.items())


def _both(name: str, *makers: Callable[[], argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parents = [make() for make in makers]
    return Parser(prog=f"volkit {name}", parents=parents, conflict_handler="resolve", add_help=False)


def _deploy() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(prog="volkit deploy")
    platforms = parser.add_subparsers()
    for name, platform in deploy.platforms().items():
        whole = deploy.make_parser(platform, platform.values())
        platforms.add_parser(name, help=platform.summary, parents=[whole], add_help=False)
    return parser


def _explain() -> argparse.ArgumentParser:
    parser = explain.make_parser()
    for action in parser._actions:
        if action.dest == "name":
            action.choices = [*_backends(), *explain.names()]
    return parser


def _all(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _all(one)


def _describe(parser: argparse.ArgumentParser) -> None:
    """Say of arguments what they take, where their parser checks it otherwise."""
    for action in parser._actions:
        if action.dest == "backend" and action.choices is None:
            action.choices = _backends()
        if action.metavar in _PATHS:
            vars(action)["complete"] = _PATHS[action.metavar]  # read by shtab


def _backends() -> list[str]:
    return sorted(one.name for one in backends() if one.loaded is not None)
