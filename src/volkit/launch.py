"""How every adapter starts: from what `volkit.arguments` has read to an engine that serves, and how its command ends.

```python
configure_logging(args.log_level, args.log_format)
try:
    engine = open_engine(args)
except VolkitError as error:
    parser.error(error.message)  # one sentence on stderr, exit code 2
```

Apart from the reading of arguments, which a process that lives as long as one call does without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volkit import options
from volkit.backend import Backend
from volkit.engine import Engine, can_find_again
from volkit.errors import FailedPrecondition, InvalidArgument, NotFound, VolkitError
from volkit.guard import declared_secrets
from volkit.journal import open_journal
from volkit.logs import OperationLog, configure_logging, hide

if TYPE_CHECKING:
    import argparse

__all__ = [
    "STATE_DIR", "as_command", "configure_logging", "fixed_backend", "hide", "keep_to_one_cpu",
    "observe", "observed", "open_engine", "read_file", "read_settings", "read_value",
]  # fmt: skip

STATE_DIR = Path("/var/lib/volkit")
_MAX_FILE_BYTES = 1024 * 1024


def keep_to_one_cpu() -> None:
    """For a daemon, before it starts threads: see `volkit.host.process.keep_to_one_cpu`."""
    from volkit.host import process

    process.keep_to_one_cpu()


def fixed_backend(backend: str | type[Backend[Any, Any]]) -> type[Backend[Any, Any]] | None:
    """The backend that a command has for good: its class, or its name; None for "", where `--backend` says it.

    Raises NotFound for a name that is not installed.
    """
    if isinstance(backend, str):
        from volkit.registry import load_backend

        return load_backend(backend) if backend else None
    return backend


def as_command(prog: str, work: Callable[[], int]) -> int:
    """Do what a driver's command does; `work` returns how many calls it has left behind (`Engine.close`).

    Returns the exit code: 0 done, 1 it could not be done, 2 it was not asked for rightly; what was wrong is one line on
    stderr. Ends the process at once where calls are left: their threads are stuck, perhaps in the kernel.
    """
    try:
        left = work()
    except VolkitError as error:
        print(f"{prog}: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, InvalidArgument | NotFound) else 1
    if left:
        sys.stderr.flush()
        os._exit(0)
    return 0


def open_engine(args: argparse.Namespace, backend: type[Backend[Any, Any]] | None = None) -> Engine:
    """The engine that the arguments of `Parser.parse` ask for; `backend` where the driver is made for one.

    Makes the state directory, for its owner only. Raises InvalidArgument, NotFound and FailedPrecondition.
    """
    if backend is None:
        if not args.backend:
            raise InvalidArgument(
                "no backend: give --backend NAME or set VOLKIT_BACKEND; `volkit backends` lists them"
            )
        from volkit.registry import load_backend

        backend = load_backend(args.backend)
    settings = read_settings(backend, args.option)
    state_dir = args.state_dir or STATE_DIR / backend.name
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"state directory {state_dir} cannot be made: {error.strerror}") from None
    journal = None
    if args.journal:
        controller = backend.controller_class(settings) if "controller" in args.services else None
        journal = open_journal(args.journal, set_aside=can_find_again(controller))
    engine = Engine(
        backend,
        settings,
        state_dir=state_dir,
        journal=journal,
        node_id=args.node_id,
        services=frozenset(args.services),
    )
    observe(engine)
    return engine


def observe(engine: Engine) -> None:
    """Log the operations of an engine that was made without `open_engine`."""
    engine.listen(OperationLog())


@contextmanager
def observed(
    engine: Engine, args: argparse.Namespace, rejected: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Serve what `add_serving_arguments` asks for, until the block is left; also while the driver drains. `rejected`
    counts the calls that the adapter itself turned away.

    Raises InvalidArgument, and FailedPrecondition where the address is taken or an extra is not installed.
    """
    with ExitStack() as serving:
        if args.traces:
            from volkit.tracing import tracing

            serving.enter_context(tracing(engine, args.traces))
        if args.metrics:
            from volkit.metrics import serve

            serving.enter_context(serve(engine, args.metrics, rejected))
        yield


def read_settings(backend: type[Backend[Any, Any]], given: Iterable[tuple[str, str, str]]) -> Any:
    """The backend's settings out of (source, key, text) triples, the most important source first.

    Raises InvalidArgument for an unknown option, with the valid ones; for one that is given twice in one
    place; for a secret one on the command line.
    """
    spelled = {spelling: one for one in options.declared(backend.settings) for spelling in one.spellings}
    chosen: dict[str, tuple[str, str]] = {}
    for source, key, text in given:
        one = spelled.get(key)
        name = one.key if one else key
        if one and one.secret and source == "-o" and not text.startswith("@/"):
            raise InvalidArgument(
                f"option {key!r} is secret and every user can read the command line: write -o {key}=@/FILE, "
                f"or set {one.variable}"
            )
        if name in chosen and chosen[name][0] == source:
            raise InvalidArgument(f"option {name!r} is given twice by {source}")
        chosen.setdefault(name, (source, text))
    values = {name: read_value(name, text) for name, (_, text) in chosen.items()}
    hide(*(text for name, text in values.items() if name in spelled and spelled[name].secret))
    settings: Any = options.read(backend.settings, values, what="option")
    hide(*declared_secrets(settings))
    return settings


def read_value(name: str, text: str) -> str:
    """An option's text, or what is in the file it names, less the line's end. Raises InvalidArgument."""
    if text.startswith("@/"):
        try:
            return read_file(Path(text[1:])).removesuffix("\n").removesuffix("\r")
        except InvalidArgument as error:
            raise InvalidArgument(f"option {name!r}: {error}") from None
    return text[1:] if text.startswith("@@") else text


def read_file(path: Path) -> str:
    """A small text. Raises InvalidArgument where it cannot be read, is not UTF-8, or is larger than 1 MiB."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise InvalidArgument(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
