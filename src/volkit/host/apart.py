"""What may hang in the kernel, done by a small process that can be given up.

```python
apart.reach(connection, mounts.unmount, staging)  # here for a loop device, in a process apart for a SAN's
```

A thread that waits in the kernel for a device or a server that does not answer cannot be stopped, and keeps
its process from ending (man 2 exit_group). So what touches a remote storage by a system call is asked of a
helper process: one call at a time each, kept for the next one, killed at the deadline and then only counted
(`volkit.host.process.abandoned`). It is a Python process with `volkit.host` alone, and ends with the driver's.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

from volkit.errors import DeadlineExceeded, Unavailable, VolkitError
from volkit.host import process
from volkit.model import BlockConnection, Connection, FuseConnection

P = ParamSpec("P")
T = TypeVar("T")

REACH_SECONDS: Final = 60.0
"""How long one system call on a remote storage is waited for."""

_KEPT: Final = 2
_LENGTH: Final = struct.Struct("=I")
_LOCAL: Final = ("loop", "ram", "zram")
_BOOT: Final = (
    "import sys; sys.path[:] = {path!r}; from volkit.host import apart; apart.serve({descriptor}, {owner!r})"
)
_owner = ""

_idle: Final[list[_Helper]] = []
_guard: Final = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)  # they answer the parent


def is_remote(connection: Connection) -> bool:
    """Whether it leads to something that may cease to answer: not a directory, and not a loop device or the like."""
    if isinstance(connection, BlockConnection):
        return not os.path.basename(connection.device).startswith(_LOCAL)
    return isinstance(connection, FuseConnection) or not connection.directory


def reach(connection: Connection, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(…)` of volkit.host, apart where the connection is remote. Raises what it raises, DeadlineExceeded."""
    if is_remote(connection):
        return call(function, *args, timeout=REACH_SECONDS, **kwargs)
    return function(*args, **kwargs)


def call(function: Callable[..., T], *args: Any, timeout: float, **kwargs: Any) -> T:
    """`function(*args, **kwargs)`, a function of a module, in a helper process.

    Raises what it raises; DeadlineExceeded where it has not returned after `timeout` seconds: it was killed then,
    and may still do what it was asked when the kernel lets it go; Unavailable where its process ended.
    """
    helper = _take()
    try:
        answer = helper.ask((function, args, kwargs), timeout)
    except TimeoutError:
        helper.kill()
        raise DeadlineExceeded(
            f"{function.__name__} did not return within {timeout:g} s: its storage does not answer"
        ) from None
    except (EOFError, OSError) as error:
        helper.kill()
        raise Unavailable(
            f"the process that was asked for {function.__name__} ended ({type(error).__name__})"
        ) from None
    with _guard:
        kept = len(_idle) < _KEPT
        if kept:
            _idle.append(helper)
    if not kept:
        helper.kill()
    if isinstance(answer, VolkitError):
        raise answer
    return answer  # type: ignore[no-any-return]


def once(function: Callable[..., T], *args: Any, timeout: float) -> T:
    """As `call`, by a process that is used for nothing else, since it enters another namespace, say."""
    helper = _Helper()
    try:
        answer = helper.ask((function, args, {}), timeout)
    except (TimeoutError, EOFError, OSError) as error:
        raise Unavailable(f"{function.__name__} did not end well ({type(error).__name__})") from None
    finally:
        helper.kill()
    if isinstance(answer, VolkitError):
        raise answer
    return answer  # type: ignore[no-any-return]


def close() -> None:
    """End the helpers that nobody uses. They end with this process anyway."""
    with _guard:
        idle, _idle[:] = list(_idle), []
    for helper in idle:
        helper.kill()


class _Helper:
    """The process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        boot = _BOOT.format(path=sys.path, descriptor=theirs.fileno(), owner=_owner)
        with theirs:
            self.process = process.start(
                [sys.executable, "-I", "-S", "-c", boot],
                stdin=subprocess.DEVNULL,
                output=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: Any, timeout: float) -> Any:
        end = time.monotonic() + timeout
        data = pickle.dumps(request)
        self._socket.settimeout(timeout)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)
        return _receive(self._socket, end)

    def kill(self) -> None:
        self._socket.close()
        process.end(self.process)


def _take() -> _Helper:
    with _guard:
        while _idle:
            helper = _idle.pop()
            if helper.alive():
                return helper
            helper.kill()
    process.refuse_too_many("a helper process")
    return _Helper()


def _receive(connection: socket.socket, end: float | None) -> Any:
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, end))
    return pickle.loads(_read(connection, length, end))


def _read(connection: socket.socket, length: int, end: float | None) -> bytes:
    data = b""
    while len(data) < length:
        connection.settimeout(None if end is None else max(0.001, end - time.monotonic()))
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def belong_to(owner: str) -> None:
    """Give the helpers that are started from now on a word by which theirs can be told from others (`is_helper_of`):
    the state directory, of which a process has one as a rule.
    """
    global _owner
    _owner = owner


def is_helper_of(owner: str, words: Sequence[str]) -> bool:
    """Are these the arguments of a helper process that belongs to `owner`?"""
    return bool(words) and words[-1].endswith(f", {owner!r})") and "apart.serve(" in words[-1]


def serve(descriptor: int, owner: str = "") -> None:
    """The helper's side: answer until nobody asks any more."""
    connection = socket.socket(fileno=descriptor)
    with suppress(EOFError, OSError):
        while True:
            function, args, kwargs = _receive(connection, None)
            try:
                answer = function(*args, **kwargs)
            except VolkitError as error:
                answer = error
            except Exception as error:
                answer = Unavailable(f"{function.__name__} failed unexpectedly ({type(error).__name__})")
            data = pickle.dumps(answer)
            connection.sendall(_LENGTH.pack(len(data)) + data)
