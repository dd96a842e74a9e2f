"""`volkit-flex serve`: answers the calls that the launchers of `--mode daemon` hand on (see `launcher`)."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import select
import signal
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from volkit import Engine, FailedPrecondition
from volkit_flex import wire
from volkit_flex.service import Service

if TYPE_CHECKING:
    from volkit_flex.wire import Answer

CALLS: Final = "calls"
SERVES: Final = "daemon"
THREADS: Final = 256
"""Calls at once; how many of one volume run is the engine's to limit."""

_NAME = re.compile(r"\d{1,10}\.\d{1,20}")
_MAX_CALL = 4 << 20  # the kernel takes 2 MiB of arguments
_LOOK_SECONDS = 1.0  # between two looks whether a caller still lives
_GRACE_SECONDS = 30.0
_TIDY_SECONDS = 30.0  # between two looks for what is left of calls that were cut short

_log = logging.getLogger("volkit.flex")


class Daemon:
    """Serves one engine in `directory`. Raises FailedPrecondition where another daemon does, or the directory is
    not this user's alone.
    """

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.directory = directory
        self._services = {
            "attach": Service(engine, attaches=True),
            "mount": Service(engine, attaches=False),
        }
        self._lock = _alone_in(directory)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="volkit-flex")
        self._wake = os.pipe()
        os.set_blocking(self._wake[1], False)
        self._calls = -1
        self._rest = b""

    def obey(self) -> None:
        """SIGTERM and SIGINT end `serve`, also where it has not begun. To be called before `start`: from there on
        callers rely on it that nobody who waits is left alone.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def start(self) -> None:
        """Be there for callers; those that a daemon before this one left waiting are answered."""
        with suppress(FileNotFoundError):
            os.unlink(self.directory / SERVES)
        stale = [one.name for one in self._callers()]
        calls = self.directory / CALLS
        calls.unlink(missing_ok=True)
        os.mkfifo(calls, 0o600)
        self._calls = os.open(
            calls, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        )  # a writer of its own: never at an end
        for name in stale:
            self._soon(self._turn_away, name)
        draft = self.directory / f".{SERVES}"
        draft.write_text(f"{os.getpid()} {started(os.getpid())}\n")
        draft.rename(self.directory / SERVES)

    def prepare(self) -> None:
        """Tell the controller's side of this node, and finish what another daemon left."""
        service = self._services["attach"]
        service.volumes.register(service.limits())
        service.finish_left()

    def tidy(self) -> None:
        """Finish what calls left, and take away the FIFOs of callers that died before they announced themselves."""
        self._services["attach"].finish_left()
        for caller in self._callers():
            if not _lives(caller):
                caller.unlink(missing_ok=True)

    def serve(self) -> None:
        """Answer calls until `stop`."""
        poll = select.poll()
        poll.register(self._calls, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        tidied = time.monotonic()
        while self._wake[0] not in (ready := dict(poll.poll(_TIDY_SECONDS * 1000))):
            if time.monotonic() - tidied >= _TIDY_SECONDS:
                tidied = time.monotonic()
                self._soon(self.tidy)
            if self._calls in ready:
                self._take()

    def stop(self) -> None:
        """Have `serve` return; also from a signal's handler."""
        with suppress(BlockingIOError):
            os.write(self._wake[1], b"\0")

    def close(self) -> None:
        """Be gone for new callers, and wait a while for those that are here, or about to announce themselves."""
        with suppress(FileNotFoundError):
            os.unlink(self.directory / SERVES)
        deadline = time.monotonic() + _GRACE_SECONDS
        while any(map(_lives, self._callers())) and time.monotonic() < deadline:
            self._take()
            time.sleep(0.02)
        self._pool.shutdown(wait=False)
        for end in (self._calls, *self._wake, self._lock):
            os.close(end)

    def _callers(self) -> list[Path]:
        """The FIFOs of those that call, or have died."""
        return [Path(self.directory, name) for name in os.listdir(self.directory) if _NAME.fullmatch(name)]

    def _take(self) -> None:
        """The callers that have announced themselves."""
        with suppress(BlockingIOError):
            *names, self._rest = (self._rest + os.read(self._calls, 1 << 16)).split(b"\n")
            for name in names:
                self._soon(self._call, name.decode("ascii", "replace"))

    def _soon(self, work: Callable[..., None], *about: str) -> None:
        """On a thread of its own; where none can be started, on the next that is free."""
        try:
            self._pool.submit(work, *about)
        except RuntimeError as error:
            _log.error("a call has to wait for a thread: %s", error)

    # -- one call

    def _call(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            _log.warning("a caller announced itself in no way that a launcher does")
            return
        path = self.directory / name
        try:
            words = _heard(path)
            out = _opened(path)  # before the work: where this process dies, the caller reads an end
            if out < 0:
                _log.info("caller %s was gone before its call began: nothing was done", name)
                return
            answer = self._answer(words)
            if _say(out, answer) and words[0] in self._services:
                self._services[words[0]].heard(words[1:], answer)
        except Exception:
            _log.exception("a call could not be answered")
        finally:
            path.unlink(missing_ok=True)

    def _answer(self, words: list[str]) -> Answer:
        form, *call = words or ["", ""]
        service = self._services.get(form)
        if service is None:
            return {
                "status": wire.FAILURE,
                "message": "the launcher is of another version: install the driver again",
            }
        return service.handle(call)

    def _turn_away(self, name: str) -> None:
        """Answer a caller of a daemon before this one, wherever it waits."""
        path = self.directory / name
        try:
            _heard(path)
            out = _opened(path)
            if out >= 0:
                message = "the driver's daemon was started again meanwhile: repeat the call"
                _say(out, {"status": wire.FAILURE, "message": message})
        except OSError as error:
            _log.warning("caller %s cannot be answered: %s", name, error.strerror)
        finally:
            path.unlink(missing_ok=True)


def started(pid: int) -> str:
    """When a process began, in ticks since the boot (man 5 proc_pid_stat): with its id, what it is known by."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _alone_in(directory: Path) -> int:
    """A lock on the directory, which is made for this user alone. Raises FailedPrecondition."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        here = directory.stat()
        if here.st_uid != os.geteuid() or stat.S_IMODE(here.st_mode) & 0o077:
            raise FailedPrecondition(
                f"{directory} carries secrets and is open to others: chmod 0700 and chown it"
            )
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"{directory} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FailedPrecondition(f"another daemon serves in {directory} already") from None
    return lock


def _lives(caller: Path) -> bool:
    """Is the process there that made this FIFO?"""
    pid, _, since = caller.name.partition(".")
    try:
        return started(int(pid)) == since
    except (OSError, IndexError):
        return False


def _heard(path: Path) -> list[str]:
    """What a caller says, up to its end; [] where that is not what a launcher says, or the caller died."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    said = b""
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while len(said) <= _MAX_CALL:
            if not poll.poll(_LOOK_SECONDS * 1000):
                if not _lives(path):
                    return []
                continue
            part = os.read(fd, 1 << 16)
            if not part:
                *words, rest = said.split(b"\0")
                return [] if rest else [os.fsdecode(word) for word in words]
            said += part
        return []
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    """The other direction, once the caller reads; -1 where it died."""
    look = time.monotonic()
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return -1
            if time.monotonic() > look:
                if not _lives(path):
                    return -1
                look = time.monotonic() + _LOOK_SECONDS
            time.sleep(0.0002)
        else:
            os.set_blocking(fd, True)
            return fd


def _say(out: int, answer: Answer) -> bool:
    """Was there still a caller?"""
    try:
        with os.fdopen(out, "wb") as caller:
            caller.write(wire.encode(answer))
    except BrokenPipeError:
        return False
    return True
