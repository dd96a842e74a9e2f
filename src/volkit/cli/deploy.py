"""`volkit deploy`: one description, a backend with a few values, as the files of a platform that an adapter brings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volkit import options
from volkit.deployment import Deployment, Platform
from volkit.errors import FailedPrecondition, InvalidArgument, NotFound, VolkitError

if TYPE_CHECKING:
    import argparse

    from volkit.arguments import Parser
    from volkit.backend import Backend

_DESCRIBED = ("backend", "options", "parameters")
"""The keys of a description that every platform has; the others are its own values."""


def main(argv: Sequence[str]) -> int:
    """Write or print the files; 0 where they are, 1 where they cannot be, 2 for what was not asked for rightly."""
    try:
        known = platforms()
        if not argv or argv[0].startswith("-") or argv[0] not in known:
            return _lost(argv, known)
        return _deployed(known[argv[0]], argv[1:])
    except VolkitError as error:
        print(f"volkit deploy: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument | NotFound) else 1


def platforms() -> dict[str, Platform]:
    """All that installed adapters can write for, by name."""
    from volkit.registry import adapters

    return {
        one.name: one for found in adapters() if found.loaded is not None for one in found.loaded.platforms
    }


def _lost(argv: Sequence[str], known: Mapping[str, Platform]) -> int:
    """Say what there is to choose from."""
    asked = argv[:1] in (["-h"], ["--help"])
    out = sys.stdout if asked else sys.stderr
    if asked or not argv:
        print("usage: volkit deploy PLATFORM --backend NAME [-o KEY=VALUE …] [--out DIR] …\n", file=out)
        for one in known.values():
            print(f"  {one.name:<12} {one.summary}", file=out)
        print("\n`volkit deploy PLATFORM --help` tells the flags.", file=out)
        return 0 if asked else 2
    there = ", ".join(known) or "none: install an adapter such as volkit-csi"
    raise InvalidArgument(f"there is no platform {argv[0][:64]!r}: there are {there}")


def _deployed(platform: Platform, argv: Sequence[str]) -> int:
    from volkit.rendering import write_tree

    values = platform.values()
    args = make_parser(platform, values).parse_args(argv)
    deployment = _described(args, values, _read(args.file))
    if platform.write is not None:
        if not args.out:
            raise InvalidArgument(f"{platform.name} is written as a directory: give --out DIR")
        platform.write(deployment, Path(args.out))
    elif platform.render is not None:
        files = platform.render(deployment)
        if not args.out:
            sys.stdout.write(next(iter(files.values())))
            return 0
        write_tree(Path(args.out), files)
    for path in sorted(one for one in Path(args.out).rglob("*") if one.is_file())[:40]:
        print(path)
    return 0


def make_parser(platform: Platform, values: type) -> Parser:
    """What `volkit deploy PLATFORM` takes."""
    from volkit.arguments import Parser, add_option_argument

    parser = Parser(prog=f"volkit deploy {platform.name}", description=platform.summary)
    parser.add_argument("--backend", default="", metavar="NAME", help="what is deployed")
    add_option_argument(parser)
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the volumes, repeatable",
    )
    parser.add_argument(
        "--file", default="", metavar="FILE", help="a description in YAML; flags count before it"
    )
    parser.add_argument("--out", default="", metavar="DIR", help="is made (default: print the most needed)")
    for one in options.declared(values):
        flag = f"--{one.field.replace('_', '-')}"
        default = f" (default: {_text(one.default)})" if one.default not in (None, "", ()) else ""
        parser.add_argument(flag, dest=f"value_{one.field}", metavar="VALUE", help=f"{one.help}{default}")
    return parser


def _text(value: object) -> str:
    value = getattr(value, "value", value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(path: str) -> dict[str, Any]:
    """A description. Raises InvalidArgument for what is none, FailedPrecondition where YAML cannot be read."""
    if not path:
        return {}
    try:
        import yaml
    except ImportError:
        raise FailedPrecondition('--file takes YAML: `pip install "volkit-sdk[deploy]"`') from None
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InvalidArgument(f"{path} is no description: write keys such as backend, options and parameters")
    return found


def _described(args: argparse.Namespace, values: type, file: dict[str, Any]) -> Deployment:
    """Flags before the file. Raises InvalidArgument, NotFound."""
    from volkit.registry import load_backend

    name = args.backend or file.get("backend", "")
    if not name or not isinstance(name, str):
        raise InvalidArgument("no backend: give --backend NAME; `volkit backends` lists them")
    backend = load_backend(name)
    texts = {key: _scalar(key, value) for key, value in file.items() if key not in _DESCRIBED}
    own = options.read_fields(values, texts, what="value")
    given = {
        one.field: text
        for one in options.declared(values)
        if (text := getattr(args, f"value_{one.field}")) is not None
    }
    own |= options.read_fields(values, given, what="value")
    settings = {**_pairs(file, "options"), **dict(args.option or ())}
    parameters = {**_pairs(file, "parameters"), **_words(args.parameter)}
    checked = _settings(backend, settings)
    controller, node = _classes(backend, checked)
    return Deployment(
        backend=backend,
        controller=controller,
        node=node,
        settings=checked,
        parameters=_parameters(backend, parameters),
        values=options.complete(values, own, what="value"),
    )


def _pairs(file: Mapping[str, Any], key: str) -> dict[str, str]:
    found = file.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"{key!r} in the description is not a table of keys and values")
    return {str(name): _scalar(f"{key}.{name}", value) for name, value in found.items()}


def _scalar(key: str, value: object) -> str:
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return ",".join(_scalar(key, one) for one in value)
    if value is None or isinstance(value, list | dict):
        raise InvalidArgument(f"{key!r} in the description is no text, number or list of them")
    return _text(value)


def _words(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if bad := [key for key, separator, _ in pairs if not separator or not key]:
        raise InvalidArgument(f"{bad[0]!r} has no value: write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _settings(backend: type[Backend[Any, Any]], given: Mapping[str, str]) -> dict[str, str]:
    """By key, in the order of the class. Secret ones belong to the platform's secrets, or to a file."""
    spelled = {spelling: one for one in options.declared(backend.settings) for spelling in one.spellings}
    given = {
        key: _read_text(key, text) if key in spelled and not spelled[key].secret else text
        for key, text in given.items()
    }
    here = {key: text for key, text in given.items() if not text.startswith("@/")}
    for key in given:
        one = spelled.get(key)
        if one is not None and one.secret and key in here:
            raise InvalidArgument(
                f"option {key!r} is secret, and what is written here is not: see the platform's secret"
            )
    options.read_fields(backend.settings, here, what="option")
    options.read_fields(backend.settings, {key: "" for key in given if key not in spelled}, what="option")
    texts = {spelled[key].key: text for key, text in given.items()}
    for one in options.declared(backend.settings):
        if one.required and not one.secret and one.key not in texts:
            raise InvalidArgument(f"option {one.key!r} is required: {one.help or 'give -o'}")
    return {one.key: texts[one.key] for one in options.declared(backend.settings) if one.key in texts}


def _read_text(key: str, text: str) -> str:
    """What a file of this machine says, which may not be there where the driver runs."""
    if not text.startswith("@/"):
        return text
    from volkit.arguments import read_pairs

    found = read_pairs([f"{key}={text}"])[key]
    return f"@{found}" if found.startswith("@") else found


def _parameters(backend: type[Backend[Any, Any]], given: Mapping[str, str]) -> dict[str, str]:
    declared = options.declared(backend.parameters)
    for one in declared:
        if one.secret and set(one.spellings) & given.keys():
            raise InvalidArgument(f"parameter {one.key!r} is secret: put it into the Secret of the volumes")
    options.read_fields(backend.parameters, given)
    return dict(given)


def _classes(backend: type[Backend[Any, Any]], settings: Mapping[str, str]) -> tuple[Any, Any]:
    """Those that these settings choose; where they are not all known here, those that are declared."""
    try:
        known: Any = options.read(backend.settings, settings, what="option")
    except InvalidArgument:  # secret ones, or those in files of the node, are missing
        return backend.controller, backend.node
    return backend.controller_class(known), backend.node_class(known)
