"""What the doctor finds, and how it asks without waiting for what hangs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, TypeVar

from attrs import frozen

from volkit.engine import Engine
from volkit.errors import Aborted, DeadlineExceeded, VolkitError
from volkit.host import apart
from volkit.recovery import Record, settle

T = TypeVar("T")

ANSWER_SECONDS: Final = 5.0
"""How long a mount or a device is waited for."""

STORAGE_SECONDS: Final = 15.0
"""How long the backend is waited for, each time it is asked."""

_AT_ONCE: Final = 8


@frozen(kw_only=True)
class Finding:
    """Something that does not fit: `sort` is leaked, stuck or foreign, unfit (of the platform), or advice, which may
    be left as it is; `command` repairs it, and so does `repair` where volkit itself made it.
    """

    sort: Literal["leaked", "stuck", "foreign", "unfit", "advice"]
    what: str
    command: str
    repair: Callable[[], str] | None = None


def unmount_command(path: str, *words: str) -> str:
    """`umount PATH`, fit for a shell."""
    return shlex.join(["umount", *words, path])


def settling(engine: Engine, record: Record) -> Callable[[], str]:
    """A repair: settle the record as `volkit recover` does. Raises Aborted where it is left."""

    def repair() -> str:
        did, settled = settle(engine, record)
        if not settled:
            raise Aborted(did)
        return did

    return repair


def ask_storage(engine: Engine, operation: str, subject: str, work: Callable[[], T]) -> T:
    """`work()`, a call of the backend, for STORAGE_SECONDS at most. Raises DeadlineExceeded."""
    return engine.lanes.run(operation, subject, work, until=time.monotonic() + STORAGE_SECONDS)


def ask_apart(
    function: Callable[..., T], argument_lists: Iterable[tuple[object, ...]]
) -> Iterator[T | VolkitError]:
    """`function(*arguments)` of each, in processes apart, several at once: what it returned, or the error it raised;
    DeadlineExceeded where it did not answer in ANSWER_SECONDS.
    """

    def ask(arguments: tuple[object, ...]) -> T | VolkitError:
        try:
            return apart.call(function, *arguments, timeout=ANSWER_SECONDS)
        except VolkitError as error:
            return error

    lists = list(argument_lists)
    if lists:
        with ThreadPoolExecutor(min(_AT_ONCE, len(lists))) as threads:
            yield from threads.map(ask, lists)


def hangs(answer: object) -> bool:
    """Did nothing come in time?"""
    return isinstance(answer, DeadlineExceeded)
