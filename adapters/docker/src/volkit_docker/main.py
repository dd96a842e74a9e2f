"""`volkit-docker`: reads its flags, and serves a backend until SIGTERM."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import volkit
from volkit import Backend, FailedPrecondition, InvalidArgument
from volkit.arguments import Parser
from volkit.sockets import MAX_PATH, UnixSocket, group_id, user_id

PLUGINS = "/run/docker/plugins"


def volume_plugin(
    *, backend: str | type[Backend[Any, Any]], name: str = "", prog: str = "volkit-docker"
) -> Callable[[], int]:
    """A console script for one backend; no code is copied."""

    def main() -> int:
        return run(backend=backend, name=name, prog=prog)

    return main


def main() -> int:
    """The console script `volkit-docker`."""
    return run()


def run(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    backend: str | type[Backend[Any, Any]] = "",
    name: str = "",
    prog: str = "volkit-docker",
) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 stopped, 1 could not serve, 2 bad arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bundle"]:
        from volkit_docker.bundle import main as bundle

        return bundle(words[1:])

    def serve() -> int:
        fixed = volkit.launch.fixed_backend(backend)
        args = make_parser(prog, fixed, name).parse(words, environ)
        volkit.launch.configure_logging(args.log_level, args.log_format)
        return _serve(args, fixed, name)

    return volkit.launch.as_command(prog, serve)


def make_parser(prog: str, backend: type[Backend[Any, Any]] | None = None, name: str = "") -> Parser:
    """The flags of the plugin."""
    parser = Parser(prog=prog, description="Serves a volkit backend as a volume plugin of Docker and Podman.")
    volkit.arguments.add_arguments(parser, backend)
    volkit.arguments.add_serving_arguments(parser)
    parser.add_argument("--name", default=name, help="what the plugin is called (default: volkit-BACKEND)")
    parser.add_argument(
        "--socket", default="", metavar="PATH", help=f"where to listen (default: {PLUGINS}/NAME.sock)"
    )
    parser.add_argument(
        "--socket-mode", type=_mode, default=0o600, metavar="MODE", help="octal (default: 0600)"
    )
    parser.add_argument(
        "--socket-owner", default="", metavar="USER:GROUP", help="whom the socket belongs to (:docker)"
    )
    parser.add_argument("--tcp", default="", metavar="HOST:PORT", help="listen there instead of on a socket")
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="the server's certificate, for --tcp")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key")
    parser.add_argument("--tls-ca", default="", metavar="FILE", help="who signs the clients' certificates")
    parser.add_argument(
        "--tls-client-cert", default="", metavar="FILE", help="Docker's certificate, for --spec-dir"
    )
    parser.add_argument("--tls-client-key", default="", metavar="FILE", help="its key")
    parser.add_argument(
        "--spec-dir", default="", metavar="DIR", help="announce the plugin there (/etc/docker/plugins)"
    )
    parser.add_argument(
        "--mount-root",
        default="",
        metavar="DIR",
        help="where volumes are mounted (default: in the state directory)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {volkit.__version__}")
    return parser


def _serve(args: Namespace, backend: type[Backend[Any, Any]] | None, name: str) -> int:
    from volkit_docker.server import App, Server
    from volkit_docker.service import Service

    tcp = _tcp(args)
    owner, _, group = args.socket_owner.partition(":")
    ids = user_id(owner), group_id(group)
    given = _socket_path(args.socket) if args.socket else ""
    engine = volkit.launch.open_engine(args, backend)
    called = args.name or name or f"volkit-{engine.backend.name}"
    try:
        service = Service(engine, Path(args.mount_root or engine.state_dir / "mounts"))
        address = tcp or UnixSocket(given or _socket_path(f"{PLUGINS}/{called}.sock"), args.socket_mode, *ids)
        server = Server(
            App(service), address, tls=(args.tls_cert, args.tls_key, args.tls_ca) if args.tls_cert else None
        )
        server.start()
        with ExitStack() as ending:
            ending.callback(server.stop)
            if server.made:
                ending.enter_context(engine.listening(server.made))
            if spec := announce(args, called, address):
                ending.callback(spec.unlink, missing_ok=True)
            engine.watch()
            ending.callback(service.uses.close)
            service.uses.watch()
            with volkit.launch.observed(engine, args):
                server.serve()
    finally:
        left = engine.close(1.0)
    return left


def _socket_path(text: str) -> str:
    """Raises InvalidArgument where no socket can be there."""
    path = os.path.abspath(text)
    if len(os.fsencode(path)) > MAX_PATH or "\0" in path:
        raise InvalidArgument(
            f"--socket {path!r}: a unix socket's path has at most {MAX_PATH} bytes, and no NUL"
        )
    return path


def _tcp(args: Namespace) -> tuple[str, int] | None:
    """Where to listen instead of on a socket. Raises InvalidArgument: a plugin is root for whoever reaches it."""
    files = (args.tls_cert, args.tls_key, args.tls_ca)
    if not args.tcp:
        if any(files):
            raise InvalidArgument("--tls-… is for --tcp: a unix socket has its permissions")
        return None
    host, _, port = args.tcp.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise InvalidArgument(f"--tcp {args.tcp!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    if any(files) and not all(files):
        raise InvalidArgument("--tls-cert, --tls-key and --tls-ca go together")
    from volkit_docker.server import is_loopback

    if not all(files) and not is_loopback(host):
        raise InvalidArgument(
            f"--tcp {args.tcp} would give root to whoever reaches it: give --tls-cert, --tls-key and --tls-ca"
        )
    if all(files) and args.spec_dir and not (args.tls_client_cert and args.tls_client_key):
        raise InvalidArgument(
            "Docker needs a certificate too: --spec-dir with --tls-… takes --tls-client-cert and --tls-client-key"
        )
    return host, int(port)


def announce(args: Namespace, name: str, address: UnixSocket | tuple[str, int]) -> Path | None:
    """Write the file by which Docker finds a plugin that is not in its directory of sockets."""
    if not args.spec_dir:
        return None
    place = address if isinstance(address, UnixSocket) else _url_host(*address)
    path = Path(args.spec_dir, f"{name}.spec")
    spec = str(place) if isinstance(address, UnixSocket) else f"tcp://{place}"
    if args.tls_cert:
        path = path.with_name(f"{name}.json")
        tls = {
            "InsecureSkipVerify": False,
            "CAFile": os.path.abspath(args.tls_ca),
            "CertFile": os.path.abspath(args.tls_client_cert),
            "KeyFile": os.path.abspath(args.tls_client_key),
        }
        spec = json.dumps({"Name": name, "Addr": f"https://{place}", "TLSConfig": tls})
    draft = path.with_name(f".{name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(spec + "\n")
        draft.rename(path)
    except OSError as error:
        raise FailedPrecondition(f"cannot write {path}: {error.strerror}") from None
    return path


def _url_host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _mode(text: str) -> int:
    try:
        mode = int(text.removeprefix("0o"), 8)
    except ValueError:
        mode = 0
    if not 0 < mode <= 0o777:
        raise ArgumentTypeError(f"{text!r} is not a mode: write octal permissions such as 0600")
    return mode


if __name__ == "__main__":
    sys.exit(main())
