"""`volkit-csi`: the process that serves a backend, and how a vendor makes a driver of its own out of it."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import volkit
from volkit import Backend, InvalidArgument

if TYPE_CHECKING:
    from volkit import Engine
    from volkit.arguments import Parser
    from volkit_csi.server import Server

ENDPOINT: Final = "unix:///run/volkit/csi.sock"
VARIABLES: Final = {"endpoint": "CSI_ENDPOINT"}
"""What is asked for in the environment after `VOLKIT_…` (CSI spec, "Architecture": the CO sets
CSI_ENDPOINT).
"""

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9.-]{0,61}[A-Za-z])?", re.ASCII)


def driver(
    *,
    backend: str | type[Backend[Any, Any]] = "",
    name: str = "",
    version: str = "",
    prog: str = "volkit-csi",
) -> Callable[[], int]:
    """The main function of a driver whose backend (its name or class), own name and version are fixed.

    ```python
    # acme/csi.py, with `acme-csi = "acme.csi:main"` under [project.scripts]
    main = volkit_csi.driver(backend="acme", name="csi.acme.com", version="1.2", prog="acme-csi")
    ```
    """

    def main() -> int:
        return run(backend=backend, name=name, version=version, prog=prog)

    return main


def main() -> int:
    """The console script `volkit-csi`."""
    return run()


def run(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    backend: str | type[Backend[Any, Any]] = "",
    name: str = "",
    version: str = "",
    prog: str = "volkit-csi",
) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 stopped, 1 could not serve, 2 bad arguments."""
    return volkit.launch.as_command(prog, lambda: _serve(argv, environ, backend, name, version, prog))


def _serve(
    argv: Sequence[str] | None,
    environ: Mapping[str, str],
    backend: str | type[Backend[Any, Any]],
    name: str,
    version: str,
    prog: str,
) -> int:
    """Returns how many calls still run."""
    fixed = volkit.launch.fixed_backend(backend)
    args = make_parser(prog, fixed, name).parse(argv, environ, variables=VARIABLES)
    volkit.launch.configure_logging(args.log_level, args.log_format)
    if args.cpus == "one":
        volkit.launch.keep_to_one_cpu()
    engine = volkit.launch.open_engine(args, fixed)
    left = 0
    try:
        engine.watch()
        server = make_server(engine, args, version)
        with (
            volkit.launch.observed(engine, args, lambda: server.turned_away),
            engine.listening(server.endpoint.path),
        ):
            left = server.run()
    finally:
        if not left:
            left = engine.close(1.0)  # what its caller left behind has had its time
    return left


def make_parser(prog: str, backend: type[Backend[Any, Any]] | None = None, name: str = "") -> Parser:
    """The flags of the driver, fewer where backend and name are fixed."""
    parser = volkit.arguments.Parser(prog=prog, description="Serves a volkit backend as a CSI driver.")
    volkit.arguments.add_arguments(parser, backend)
    volkit.arguments.add_serving_arguments(parser)
    parser.add_argument(
        "--endpoint", default=ENDPOINT, metavar="URL", help=f"the socket to serve on (default: {ENDPOINT})"
    )
    parser.add_argument(
        "--socket-mode",
        type=_mode,
        default=0o660,
        metavar="MODE",
        help="its permissions, octal (default: 0660)",
    )
    parser.add_argument(
        "--socket-owner",
        default="",
        metavar="USER[:GROUP]",
        help="whom it belongs to (default: this process)",
    )
    parser.add_argument(
        "--driver-name",
        type=_name,
        default=name,
        metavar="NAME",
        help=f"what the driver is called (default: {name or default_name('BACKEND')})",
    )
    parser.add_argument(
        "--headless",
        action="store_true",
        help="with --services node: no controller runs anywhere, and none is reported",
    )
    parser.add_argument(
        "--threads", type=_count, default=128, metavar="N", help="calls that run at once (default: 128)"
    )
    parser.add_argument(
        "--cpus",
        choices=("one", "all"),
        default="one",
        help="where the driver's threads run; programs such as mkfs always get all (default: one, which is faster)",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long SIGTERM waits for running calls (default: 30)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {volkit.__version__}")
    return parser


def make_server(engine: Engine, args: Namespace, version: str = "") -> Server:
    """A server for the engine that is not started yet. Raises InvalidArgument, FailedPrecondition."""
    from volkit_csi.endpoint import Endpoint
    from volkit_csi.server import Options, Server
    from volkit_csi.services import Plugin, handlers

    backend = engine.backend
    owner, _, group = args.socket_owner.partition(":")
    endpoint = Endpoint.parse(args.endpoint, mode=args.socket_mode, owner=owner, group=group)
    plugin = Plugin(
        name=args.driver_name or default_name(backend.name),
        version=version or backend_version(backend),
        manifest={"backend": backend.name, "volkit": volkit.__version__},
    )
    if args.headless and engine.controller is not None:
        raise InvalidArgument("--headless says that no controller runs: give --services node with it")
    services = handlers(engine, plugin, headless=args.headless)
    return Server(services, endpoint, Options(threads=args.threads, grace=args.grace))


def default_name(backend: str) -> str:
    """What a driver is called that was given no name."""
    return f"{backend}.csi.volkit.io"


def backend_version(backend: type[Backend[Any, Any]]) -> str:
    """The version of the distribution that brings the backend; volkit's own for one without a
    distribution.
    """
    found = volkit.registry.distributions(backend.name)
    return found[0].version if found else volkit.__version__


def _mode(text: str) -> int:
    try:
        mode = int(text.removeprefix("0o"), 8)
    except ValueError:
        mode = 0
    if not 0 < mode <= 0o777:
        raise ArgumentTypeError(f"{text!r} is not a mode: write octal permissions such as 0660")
    return mode


def _name(text: str) -> str:
    if text and not _NAME.fullmatch(text):  # CSI spec, GetPluginInfoResponse.name; csi-sanity: letters
        raise ArgumentTypeError(
            f"{text!r} is not a driver name: write a domain name such as csi.acme.com, 63 characters at "
            "most, a letter first and last"
        )
    return text


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 1024:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to 1024")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
