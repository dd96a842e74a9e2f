"""The flags of every adapter, with the environment variables and the configuration file behind them.

```python
parser = Parser(prog="volkit-csi", description="…")
add_arguments(parser)
parser.add_argument("--endpoint", default="unix:///run/volkit/csi.sock", help="…")
args = parser.parse(argv, variables={"endpoint": "CSI_ENDPOINT"})
```

A setting is looked for in this order: the flag, the environment, the file of `--config`, the default.

| Flag | Environment | File (TOML) |
|---|---|---|
| `--state-dir DIR` | `VOLKIT_STATE_DIR` | `state-dir = "DIR"` |
| `-o accessKey=KEY` | `VOLKIT_OPTION_ACCESS_KEY` | `accessKey = "KEY"` in `[options]` |

An empty variable counts as not set. An option whose value begins with `@/` is read from that file (`@@`
begins a value that begins with `@`). A secret one is taken from a file or from the environment, never from
the command line, which every user of the machine can read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from volkit.backend import Backend
from volkit.engine import SERVICES
from volkit.errors import InvalidArgument
from volkit.launch import STATE_DIR, read_file, read_value
from volkit.options import VARIABLE

__all__ = ["LEVELS", "Parser", "add_arguments", "add_option_argument", "add_serving_arguments", "read_pairs"]

LEVELS = ("debug", "info", "warning", "error")
_VARIABLE = "VOLKIT_"


class Parser(argparse.ArgumentParser):
    """argparse with the environment and a configuration file behind the flags, and errors of one sentence.

    `any_config`: keys of the file that this command has no flag for are left out; for who reads a driver's file.
    """

    def __init__(self, *, any_config: bool = False, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})
        self._any_config = any_config

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence on stderr, and exit with 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def parse(
        self,
        argv: Sequence[str] | None = None,
        environ: Mapping[str, str] = os.environ,
        variables: Mapping[str, str] | None = None,
    ) -> argparse.Namespace:
        """The arguments; one not given comes from `environ`, the file of `--config`, or is its default.

        `variables` names a second variable for an argument, looked at where `VOLKIT_…` is not set. `option`
        becomes a list of (source, key, text) from all three. Exits with 2 for bad ones.
        """
        try:
            config = _read_config(self._config_path(argv, environ))
            table = config.pop("options", {})
            if not isinstance(table, dict):
                raise InvalidArgument(
                    "'options' in the configuration file is not a table: begin it with [options]"
                )
            found = {**self._from_config(config), **self._from_environ(environ, variables or {})}
            stored = [("[options]", key, _text(key, value)) for key, value in table.items()]
        except InvalidArgument as error:
            self.error(error.message)
        self.set_defaults(**found)
        for action in self._actions:
            action.required = action.required and action.dest not in found
        args = self.parse_args(argv)
        given = [("-o", key, text) for key, text in getattr(args, "option", None) or ()]
        args.option = [*given, *_from_variables(environ), *stored]
        return args

    def _config_path(self, argv: Sequence[str] | None, environ: Mapping[str, str]) -> str:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        first.add_argument("--config")
        try:
            given: str | None = first.parse_known_args(argv)[0].config
        except argparse.ArgumentError as error:
            self.error(str(error))
        return given if given is not None else environ.get(f"{_VARIABLE}CONFIG", "")

    def _flags(self) -> dict[str, argparse.Action]:
        others = ("help", "version", "config", "option")
        return {one.dest: one for one in self._actions if one.option_strings and one.dest not in others}

    def _from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        flags = {dest.replace("_", "-"): action for dest, action in self._flags().items()}
        unknown = sorted(config.keys() - flags.keys())
        if unknown and not self._any_config:
            raise InvalidArgument(
                f"unknown key {unknown[0]!r} in the configuration file: valid are "
                f"{', '.join(sorted(flags))} and the table options"
            )
        return {
            flags[key].dest: _convert(flags[key], _text(key, value), f"{key!r} in the configuration file")
            for key, value in config.items()
            if key not in unknown
        }

    def _from_environ(self, environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, Any]:
        found = {}
        for dest, action in self._flags().items():
            names = (_VARIABLE + dest.upper(), variables.get(dest, ""))
            if name := next((name for name in names if environ.get(name)), None):
                found[dest] = _convert(action, environ[name], name)
        return found


def add_arguments(parser: argparse.ArgumentParser, backend: type[Backend[Any, Any]] | None = None) -> None:
    """Add what all adapters share; without `--backend` where the driver is made for one `backend`."""
    if backend is None:
        parser.add_argument(
            "--backend", default="", metavar="NAME", help="the backend to serve; `volkit backends` lists them"
        )
    add_option_argument(parser)
    parser.add_argument(
        "--state-dir",
        type=_path,
        metavar="DIR",
        help=f"what must survive a restart (default: {STATE_DIR}/BACKEND)",
    )
    parser.add_argument(
        "--journal",
        default="",
        metavar="URL",
        help="sqlite:///PATH, etcd://HOST:PORT/PREFIX or memory:// (default: in the state directory)",
    )
    parser.add_argument(
        "--node-id",
        default=os.uname().nodename,
        metavar="ID",
        help="this node's id (default: the host's name)",
    )
    parser.add_argument(
        "--services",
        type=_services,
        default=SERVICES,
        metavar="LIST",
        help="controller, node or controller,node (default: both)",
    )
    parser.add_argument(
        "--config", default="", metavar="FILE", help="a TOML file: flags as keys, the table [options] for -o"
    )
    parser.add_argument(
        "--log-level", choices=LEVELS, default="info", help="how much is logged (default: info)"
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="for people or for machines (default: text)",
    )


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what everything that goes on running takes besides: where it can be watched."""
    parser.add_argument(
        "--metrics",
        default="",
        metavar="HOST:PORT",
        help="serve /metrics for Prometheus, /healthz and /readyz there (default: not at all)",
    )
    parser.add_argument(
        "--traces", default="", metavar="URL", help="send OpenTelemetry traces there, by OTLP over HTTP"
    )


def add_option_argument(parser: argparse.ArgumentParser) -> None:
    """Add `-o KEY=VALUE` alone: the backend's settings."""
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        type=_pair,
        metavar="KEY=VALUE",
        help="a setting of the backend, repeatable; KEY=@/FILE takes the value (a secret, say) from a file",
    )


def read_pairs(words: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` words, whose values may be in files as those of options. Raises InvalidArgument."""
    try:
        pairs = [_pair(word) for word in words]
    except argparse.ArgumentTypeError as error:
        raise InvalidArgument(str(error)) from None
    return {key: read_value(key, text) for key, text in pairs}


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{key!r} has no value: write KEY=VALUE")
    return key, value


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a directory")
    return Path(text)


def _services(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or set(names) - set(SERVICES):
        raise argparse.ArgumentTypeError(f"{text!r} is not controller, node or controller,node")
    return names


def _convert(action: argparse.Action, text: str, source: str) -> Any:
    """What the flag's own reading makes of a text from elsewhere. Raises InvalidArgument."""
    try:
        if action.nargs == 0:  # a flag without a value, such as --reflection
            return _read_switch(text)
        value = action.type(text) if callable(action.type) else text
    except (ValueError, TypeError, argparse.ArgumentTypeError, InvalidArgument) as error:
        raise InvalidArgument(f"{source}: {error}") from None
    if action.choices is not None and value not in action.choices:
        raise InvalidArgument(f"{source}: {text!r} is not one of {', '.join(map(str, action.choices))}")
    return value


def _read_switch(text: str) -> bool:
    if (word := text.strip().lower()) not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        raise ValueError(f"{text!r} is not true or false")
    return word in ("true", "yes", "on", "1")


def _from_variables(environ: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for name, text in environ.items():
        if name.startswith(VARIABLE) and text:
            yield name, name.removeprefix(VARIABLE).lower(), text


def _read_config(path: str) -> dict[str, Any]:
    if not path:
        return {}
    import tomllib

    try:
        return tomllib.loads(read_file(Path(path)))
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"configuration file {path}: {error}") from None


def _text(key: str, value: Any) -> str:
    """A TOML value as a user would write it in a flag."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return ",".join(_text(key, one) for one in value)
    if isinstance(value, list | dict):
        raise InvalidArgument(
            f"{key!r} in the configuration file is a table: give one value, or a list of them"
        )
    return str(value)
