"""A process that is really killed: a child of this one, at a system call."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from attrs import frozen

from volkit.errors import Ambiguous

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_SYSTEM = frozenset({"posix", "fcntl", "sqlite3", "_sqlite3", "_posixsubprocess", "shutil"})


@frozen(kw_only=True)
class Ending:
    """How a child ended: after `calls` system calls begun or ended, `killed` at the last of them or not; it had
    `synced` so many bytes of its journal's log.
    """

    calls: int
    killed: bool
    synced: int


def in_child(
    work: Callable[[], Any],
    *,
    kill_at: int = 0,
    orphans: bool = True,
    seconds: float = 60.0,
    journal: Path | None = None,
) -> Ending:
    """Run `work` in a child process; SIGKILL it at its `kill_at`-th system call (0: never). What it has started goes
    on if `orphans`, or dies with it. `journal` is the SQLite file that it works with.

    Its ambiguous errors are its own affair. Raises TimeoutError where it takes longer than `seconds`, RuntimeError
    where it fails otherwise.
    """
    reader, writer = os.pipe()
    synced = os.memfd_create("volkit-synced")
    try:
        with nullcontext() if orphans else _orphans_killed():
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # of a fork with threads: it starts afresh
                pid = os.fork()
            if pid == 0:
                if journal is not None:
                    _note_syncs(f"{journal}-wal", synced)
                _child(work, kill_at, seconds, writer)
            os.close(writer)
            with os.fdopen(reader, "rb") as pipe:
                answer = pipe.read()
            _, status = os.waitpid(pid, 0)
        known = int.from_bytes(os.pread(synced, 8, 0), sys.byteorder)
    finally:
        os.close(synced)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise TimeoutError(f"the child process did not end in {seconds:.0f} s")
    if os.WIFSIGNALED(status):
        return Ending(calls=kill_at, killed=True, synced=known)
    calls, error = pickle.loads(answer)
    if error:
        raise RuntimeError(f"in the child process: {error}")
    return Ending(calls=int(calls), killed=False, synced=known)


@contextmanager
def _orphans_killed() -> Iterator[None]:
    """Adopt what a child leaves behind (man 2 prctl), and kill it at the end."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    before = _children()
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        while left := _children() - before:
            for pid in left:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    """The processes whose parent is this one (man 5 proc_pid_stat)."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            _, _, rest = (directory / "stat").read_text(errors="replace").rpartition(")")
            if int(rest.split()[1]) == os.getpid():
                found.add(int(directory.name))
    return found


def _note_syncs(log: str, descriptor: int) -> None:
    """Have each sync of the file `log` leave its size in `descriptor`, which the parent reads."""
    sync = os.fdatasync

    def noted(file: Any) -> None:
        size = os.fstat(file).st_size
        sync(file)
        if os.readlink(f"/proc/self/fd/{file}") == log:
            os.pwrite(descriptor, size.to_bytes(8, sys.byteorder), 0)

    os.fdatasync = noted  # type: ignore[assignment]


def _child(work: Callable[[], Any], kill_at: int, seconds: float, writer: int) -> None:
    calls, error = 0, ""

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        if event in ("c_call", "c_return"):
            module = getattr(arg, "__module__", None) or type(getattr(arg, "__self__", None)).__module__
            if module not in _SYSTEM:
                return
        elif event not in ("call", "return") or frame.f_globals.get("__name__") != "volkit.host._syscalls":
            return
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        gc.disable()  # it would copy the parent's memory, and what is left of its gRPC server hangs in a fork
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    except Ambiguous:
        pass
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        os.write(writer, pickle.dumps((calls, error)))
        os._exit(0)
