"""`volkit-flex`: installs a driver for kubelet, serves as its daemon, explains a call, migrates a PV to CSI."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import volkit
from volkit import Backend, Expands, FailedPrecondition, InvalidArgument
from volkit.arguments import Parser
from volkit_flex.install import PLUGIN_DIR

_USAGE: Final = """\
usage: {prog} COMMAND [flags]

  install    write the driver where kubelet finds it
  uninstall  take it away
  serve      the daemon of a driver that was installed with --mode daemon
  explain    what a call would do: {prog} explain mount DIR '{{…}}'
  migrate    from a FlexVolume PV to the CSI PV of the same volume: {prog} migrate pv.yaml

`{prog} COMMAND --help` tells the flags.
"""


def driver(
    *,
    backend: str | type[Backend[Any, Any]] = "",
    vendor: str = "",
    name: str = "",
    prog: str = "volkit-flex",
) -> Callable[[], int]:
    """The main function of a command whose backend (its name or class), vendor and driver's name are fixed.

    ```python
    # acme/flex.py, with `acme-flex = "acme.flex:main"` under [project.scripts]
    main = volkit_flex.driver(backend="acme", vendor="acme.com", prog="acme-flex")
    ```
    """

    def main() -> int:
        return run(backend=backend, vendor=vendor, name=name, prog=prog)

    return main


def main() -> int:
    """The console script `volkit-flex`."""
    return run()


def run(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    backend: str | type[Backend[Any, Any]] = "",
    vendor: str = "",
    name: str = "",
    prog: str = "volkit-flex",
) -> int:
    """One command. Returns the exit code: 0 done, 1 it did not succeed, 2 it was not asked for rightly."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = _COMMANDS.get(words[0]) if words else None
    if words[:1] == ["--version"]:
        print(f"{prog} {volkit.__version__}")
        return 0
    if command is None:
        asked = bool(words) and words[0] in ("-h", "--help", "help")
        print(_USAGE.format(prog=prog), end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2

    def work() -> int:
        fixed = volkit.launch.fixed_backend(backend)
        parser = _parser(f"{prog} {words[0]}", words[0], fixed, vendor, name)
        return command(parser.parse(words[1:], environ), fixed)

    return volkit.launch.as_command(prog, work)


def _parser(
    prog: str, command: str, backend: type[Backend[Any, Any]] | None, vendor: str, name: str
) -> Parser:
    parser = Parser(prog=prog)
    volkit.arguments.add_arguments(parser, backend)
    parser.add_argument(
        "--vendor", default=vendor, metavar="NAME", help="whose driver it is, such as acme.com"
    )
    parser.add_argument(
        "--driver", default=name, metavar="NAME", help="what it is called (default: the backend's name)"
    )
    parser.add_argument(
        "--plugin-dir",
        type=Path,
        default=PLUGIN_DIR,
        metavar="DIR",
        help=f"where kubelet looks (--volume-plugin-dir; default: {PLUGIN_DIR})",
    )
    parser.add_argument(
        "--attach",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the controller manager attaches volumes by this driver (default: where the storage attaches)",
    )
    _add_own(parser, command)
    return parser


def _add_own(parser: Parser, command: str) -> None:
    if command == "install":
        parser.add_argument(
            "--mode",
            choices=("direct", "daemon"),
            default="direct",
            help="start Python for each call, or hand it to `serve` (default: direct)",
        )
        parser.add_argument(
            "--python",
            type=_program,
            default=sys.executable,
            metavar="PATH",
            help="the interpreter of --mode direct",
        )
        parser.add_argument(
            "--log",
            default="",
            metavar="FILE",
            help="FILE or syslog (default: flex.log in the state directory)",
        )
    if command in ("install", "serve"):
        parser.add_argument(
            "--run-dir",
            type=Path,
            default=None,
            metavar="DIR",
            help="where launchers and daemon meet (default: flex.run in the state directory)",
        )
    if command == "serve":
        volkit.arguments.add_serving_arguments(parser)
    if command in ("install", "uninstall"):
        parser.add_argument(
            "--force", action="store_true", help="also while volumes are mounted by what is installed"
        )
    if command == "explain":
        parser.add_argument(
            "words", nargs="+", metavar="CALL", help="a call with its arguments, as kubelet makes it"
        )
        parser.add_argument("--json", action="store_true", help="as JSON")
    if command == "migrate":
        parser.add_argument(
            "files", nargs="+", metavar="FILE", help="PersistentVolumes as YAML or JSON; - for stdin"
        )
        parser.add_argument(
            "--csi-driver",
            default="",
            metavar="NAME",
            help="what it is called (default: BACKEND.csi.volkit.io)",
        )
        parser.add_argument("--name", default="", metavar="NAME", help="of the new PV (default: the same)")


# -- what a driver is made of


def settings_of(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> dict[str, Any]:
    """What a launcher carries; read from the one that is installed where no backend is given."""
    from volkit_flex import install
    from volkit_flex.service import attaches_by_itself

    if fixed is None and not args.backend:
        if not args.driver:
            raise InvalidArgument(
                "no backend: give --backend NAME, or the --vendor and --driver of an installed driver"
            )
        return install.installed(_place(args, args.driver))
    backend = fixed if fixed is not None else volkit.load_backend(args.backend)
    given = volkit.launch.read_settings(backend, args.option)
    state_dir = (args.state_dir or volkit.launch.STATE_DIR / backend.name).absolute()
    attaches = attaches_by_itself(backend, given) if args.attach == "auto" else args.attach == "yes"
    return {
        "backend": f"{backend.__module__}:{backend.__qualname__}",
        "options": [list(one) for one in args.option],
        "state_dir": str(state_dir),
        "journal": args.journal,
        "node_id": args.node_id,
        "services": list(args.services),
        "attaches": attaches,
        "log": getattr(args, "log", "") or str(state_dir / "flex.log"),
        "log_level": args.log_level,
        "log_format": args.log_format,
    }


def _place(args: Namespace, driver: str) -> Path:
    from volkit_flex import install

    if args.vendor:
        install.check_part("vendor", args.vendor)
    return install.place(args.plugin_dir, args.vendor, install.check_part("driver", driver))


def _run_dir(args: Namespace, settings: Mapping[str, Any]) -> Path:
    return (args.run_dir or Path(settings["state_dir"]) / "flex.run").absolute()


def _refuse_stored_secrets(backend: type[Backend[Any, Any]], given: Sequence[tuple[str, str, str]]) -> None:
    """What is installed holds settings, and no secret: those stay in the files that the settings name."""
    secret = {
        spelling
        for one in volkit.options.declared(backend.settings)
        if one.secret
        for spelling in one.spellings
    }
    for _, key, text in given:
        if key in secret and not text.startswith("@/"):
            raise InvalidArgument(
                f"option {key!r} is secret, and would be stored in the driver: write -o {key}=@/FILE"
            )


# -- the commands


def _install(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> int:
    from volkit_flex import install, launcher
    from volkit_flex.opening import open_engine
    from volkit_flex.service import Service

    if fixed is None and not args.backend:
        raise InvalidArgument("no backend: give --backend NAME; `volkit backends` lists them")
    settings = settings_of(args, fixed)
    backend = fixed if fixed is not None else volkit.load_backend(args.backend)
    _refuse_stored_secrets(backend, args.option)
    path = _place(args, args.driver or backend.name)
    if not args.force:
        _refuse_to_orphan(path, settings)
    engine = open_engine(settings)  # what is wrong with the settings shows now, and not when a pod waits
    try:
        service = Service(engine, attaches=settings["attaches"])
        service.volumes.register(service.limits())
        init = service.handle(["init"])
        expands = engine.has(Expands)
    finally:
        engine.close()
    common: dict[str, Any] = {
        "name": path.name,
        "version": install.version(),
        "init": init,
        "settings": settings,
    }
    if args.mode == "daemon":
        text = launcher.daemon(directory=str(_run_dir(args, settings)), **common)
    else:
        modules = ("volkit", "volkit_flex", "attr", backend.__module__)
        text = launcher.direct(python=str(args.python), path=install.module_path(modules), **common)
    install.install(path, text, complete=args.mode == "direct")
    print(f"installed {path}")
    print(f"  in a PV or a pod:  driver: {install.spelled(args.vendor, path.name)}")
    forms = "attach" if settings["attaches"] else "no attach"
    print(f"  {forms}, {'growth by expandfs' if expands else 'no growth'}, --mode {args.mode}")
    return 0


def _refuse_to_orphan(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises FailedPrecondition where another driver is installed there, and volumes are mounted by it."""
    from volkit_flex import install

    if not path.is_file():
        return
    old = install.installed(path)
    same = all(old.get(one) == settings[one] for one in ("backend", "state_dir", "attaches"))
    if not same and (used := _mounted(old)):
        raise FailedPrecondition(
            f"volumes are mounted by what is installed at {path} now (state in {old['state_dir']}), such as at {used}, "
            "and the new driver would not know them: end their pods first, or give --force"
        )


def _uninstall(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> int:
    from volkit_flex import install

    name = args.driver or (fixed.name if fixed is not None else args.backend)
    if not name:
        raise InvalidArgument("which driver? give --driver, and --vendor where it has one")
    path = _place(args, name)
    settings = install.installed(path)
    if not args.force and (used := _mounted(settings)):
        raise FailedPrecondition(
            f"volumes are mounted by this driver, such as at {used}, and only by it kubelet can unmount them: end "
            "their pods first, or give --force"
        )
    install.uninstall(path)
    print(f"removed {path}")
    return 0


def _mounted(settings: Mapping[str, Any]) -> str:
    """A path that the driver has mounted, or ""."""
    from volkit.host import mounts
    from volkit_flex import records

    journal = Path(settings["state_dir"]) / "journal.db"
    if not journal.exists():
        return ""
    store = volkit.open_journal(f"sqlite://{journal}")
    try:
        paths = records.Records(store).all(records.PATH)
        return next((path for path in paths if mounts.is_mount_point(path)), "")
    finally:
        store.close()


def _serve(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> int:
    from volkit_flex.daemon import Daemon
    from volkit_flex.opening import open_engine

    settings = settings_of(args, fixed)
    volkit.launch.configure_logging(args.log_level, args.log_format)
    engine = open_engine(settings)
    try:
        daemon = Daemon(engine, _run_dir(args, settings))
        daemon.prepare()
        daemon.obey()
        daemon.start()
        engine.watch()
        try:
            with volkit.launch.observed(engine, args):
                daemon.serve()
        finally:
            daemon.close()
    finally:
        left = engine.close(1.0)
    return left


def _explain(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> int:
    from volkit_flex.explain import explain

    return explain(settings_of(args, fixed), args.words, as_json=args.json)


def _migrate(args: Namespace, fixed: type[Backend[Any, Any]] | None) -> int:
    from volkit_flex.install import spelled
    from volkit_flex.migrate import migrate

    name = args.driver or (fixed.name if fixed is not None and args.vendor else "")
    flex = spelled(args.vendor, name) if name else ""
    return migrate(
        settings_of(args, fixed), args.files, flex_driver=flex, csi_driver=args.csi_driver, name=args.name
    )


_COMMANDS: Final[Mapping[str, Callable[[Namespace, type[Backend[Any, Any]] | None], int]]] = {
    "install": _install,
    "uninstall": _uninstall,
    "serve": _serve,
    "explain": _explain,
    "migrate": _migrate,
}


def _program(text: str) -> Path:
    path = Path(text).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise ArgumentTypeError(f"{text!r} is no program: give the path of a Python interpreter")
    return path


if __name__ == "__main__":
    sys.exit(main())
