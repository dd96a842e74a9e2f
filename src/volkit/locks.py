"""One operation per volume at a time, among the threads of a process and the processes of a host.

A lock is a byte of one file, locked by an open file description (man 2 fcntl, F_OFD_SETLK): it excludes other
processes, goes away with its holder, and leaves no file per volume behind. Two keys that share a byte (one in
2**62) merely wait for each other. Threads of one process wait for each other in memory first, so that a wait
is woken rather than polled.

With a journal that several hosts share, a lock is also a lease in it, taken after the byte: see
`volkit.journal.Lease`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from volkit.digests import digest
from volkit.errors import Aborted, Unavailable
from volkit.journal import Lease, SharedJournal

_FLOCK = "hhqqi"  # struct flock: type, whence, start, len, pid; native alignment
_POLL_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


class _Turn:
    """A thread's lock of one key, and how many want it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class _Held:
    """A key that is held, and by what."""

    __slots__ = ("fd", "key", "lease", "turn")

    def __init__(self, key: str, turn: _Turn) -> None:
        self.key = key
        self.turn = turn
        self.fd = -1
        self.lease: Lease | None = None


class Locks:
    """All locks of one state directory. `path` is the lock file, or None for locks among threads alone;
    `journal`, where one is shared among hosts, makes them exclude each other too.

    Raises Unavailable where the file cannot be made.
    """

    def __init__(self, path: Path | None = None, journal: SharedJournal | None = None) -> None:
        self.path = path
        self._journal = journal
        self._turns: dict[str, _Turn] = {}
        self._guard = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise _unusable(path, error) from error

    @contextmanager
    def hold(self, *keys: str, wait: float) -> Iterator[None]:
        """Hold all of `keys`, taken in the order given, waiting up to `wait` seconds in all.

        Everybody names keys in the same order (a name before an id, a target before its volume), so that
        nobody waits in a ring; a lock is never held twice by one thread. Raises Aborted where somebody else
        holds one of them for longer, Unavailable where the lock file or the shared journal cannot be used.
        """
        deadline = time.monotonic() + wait
        held: list[_Held] = []
        try:
            for key in dict.fromkeys(keys):
                held.append(self._take(key, deadline))  # noqa: PERF401 (what is taken has to be known to `finally`)
            yield
        finally:
            for one in reversed(held):
                self._release(one)

    def _take(self, key: str, deadline: float) -> _Held:
        with self._guard:
            turn = self._turns.setdefault(key, _Turn())
            turn.users += 1
        if not turn.lock.acquire(timeout=min(_left(deadline), threading.TIMEOUT_MAX)):
            self._leave(key, turn)
            raise _busy(key)
        held = _Held(key, turn)
        try:
            if self.path is not None:
                held.fd = _lock_byte(self.path, key, deadline)
            if self._journal is not None:
                held.lease = self._journal.lease(key, wait=_left(deadline))
                if held.lease is None:
                    raise _busy(key)
        except BaseException:
            self._release(held)
            raise
        return held

    def _release(self, held: _Held) -> None:
        if held.lease is not None:
            held.lease.release()
        if held.fd >= 0:
            os.close(held.fd)
        held.turn.lock.release()
        self._leave(held.key, held.turn)

    def _leave(self, key: str, turn: _Turn) -> None:
        with self._guard:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


def byte_of(key: str) -> int:
    """The byte of the lock file that stands for a key."""
    return int.from_bytes(digest(key, 8)) >> 2


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _busy(key: str) -> Aborted:
    kind, _, name = key.partition("/")
    return Aborted(f"another operation on {kind} {name!r} is under way: repeat the call in a moment")


def _lock_byte(path: Path, key: str, deadline: float) -> int:
    """A new open file description of `path` that holds the byte of `key`."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte_of(key), 1, 0)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        for attempt in range(1 << 30):
            with suppress(BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the file system likes
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
                return fd
            pause = _POLL_SECONDS[min(attempt, len(_POLL_SECONDS) - 1)]
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise _busy(key)


def _unusable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(f"the lock file {path} cannot be opened ({error.strerror})")
