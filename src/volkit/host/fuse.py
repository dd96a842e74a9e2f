"""File systems that a program serves (FUSE): started apart from the driver, watched, started again, stopped.

```python
fuse.start(connection, target, directory="/run/volkit/s3/3f2a", cache="/var/lib/volkit/s3/cache/3f2a")
fuse.is_running("/run/volkit/s3/3f2a")
fuse.stop(target, directory="/run/volkit/s3/3f2a", timeout=20)
```

The program must outlive the driver: who is killed or upgraded must not take the pods' files along. So it is run by
the host's systemd where that can be reached, by a mounter of its own (`volkit mounter`, in a pod or container that is
not the driver's) where one listens, and else as a process that belongs to nobody; the last only outside of containers,
whose pid namespace takes every process along when it ends (pid_namespaces(7)). `supervisor()` says which.

`directory` keeps what the program was started with, secrets among it: it is made for root alone, belongs on a tmpfs,
and is gone when the mount is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from volkit.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable, VolkitError
from volkit.host import apart, filesystems, mounts, process, processes, rebind
from volkit.host._syscalls import refusal
from volkit.host.processes import Process
from volkit.model import FuseConnection

MOUNTER_VARIABLE: Final = "VOLKIT_MOUNTER"
"""The environment variable that names the socket of a mounter; the default is MOUNTER_SOCKET."""

MOUNTER_SOCKET: Final = "/run/volkit/mounter.sock"

RUN_DIRECTORY: Final = "/run/volkit"
"""Below it are the directories of programs that run, unless VOLKIT_RUN_DIR names another place."""

STOP_SECONDS: Final = 20.0
_START_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 10.0
_QUOTED: Final = 1024
_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE})
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux/proc_ns.h
_SPAWN: Final = """log=$1 pid=$2; shift 2; "$@" </dev/null >>"$log" 2>&1 &
echo "$! $(sed 's/.*) //' /proc/$!/stat | cut -d' ' -f20)" >"$pid"
"""  # its number, and when it began (proc_pid_stat(5), starttime), since numbers are used again


def start(
    connection: FuseConnection, target: str, *, directory: str, cache: str, read_only: bool = False
) -> None:
    """Run the program of `connection` so that it serves `target`, an empty directory, and return when it answers.

    In its argv and environment, `{target}` becomes the mount point, `{files}` the directory with its files, and
    `{cache}` one of its own, made when argv asks for it. What was left of an earlier one in `directory` is stopped
    first.

    Raises FailedPrecondition where nobody could run it; Unavailable with the end of its output where it ended;
    DeadlineExceeded where it does not answer in `connection.ready` seconds, and was stopped.
    """
    keeper = supervisor()
    if os.path.exists(directory):
        stop(target, directory=directory, timeout=STOP_SECONDS)
    places = {"{target}": target, "{files}": f"{directory}/files", "{cache}": cache}
    argv = [_filled(word, places) for word in connection.argv]
    argv[0] = process.find_program(argv[0])
    if any("{cache}" in word for word in connection.argv):
        os.makedirs(cache, mode=0o700, exist_ok=True)
    with _refusing(f"cannot prepare {directory}"):
        os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
        for made in (directory, f"{directory}/files"):
            os.mkdir(made, mode=0o700)
        for name, content in connection.files.items():
            _write_private(f"{directory}/files/{name}", content.encode())
        started: dict[str, Any] = {
            "argv": argv,
            "environment": {name: _filled(word, places) for name, word in connection.environment.items()},
            "target": target,
            "cache": cache,
            "ready": connection.ready,
            "read_only": read_only,
            "supervisor": keeper.name,
        }
        _write_private(f"{directory}/started", json.dumps(started).encode())
    _run(keeper, started, directory)


def restart(directory: str) -> int:
    """Run again what `start` ran, with the same files at the same place, after it died, and put it in the place of each
    dead bind of it (`volkit.host.rebind`); returns how many those were. Where it fails, to repeat it is safe.

    Raises what `start` raises, and NotFound where nothing is known of it any more (a reboot).
    """
    started = _started(directory)
    target, keeper = started["target"], _KEEPERS[started["supervisor"]]()
    if dead := mounts.mount_at(target):
        with open(f"{directory}/dead", "a") as file:
            file.write("{} {}\n".format(*dead.device))
    keeper.end(directory)
    mounts.unmount(target, lazy=True)
    _run(keeper, started, directory)
    with suppress(FileNotFoundError):
        lines = Path(directory, "dead").read_text().splitlines()
        devices = {(int(major), int(minor)) for major, minor in map(str.split, lines)}
        replaced = rebind.replace_dead(target, devices)
        os.unlink(f"{directory}/dead")
        return replaced
    return 0


def is_running(directory: str) -> bool:
    """Whether the program that `start` ran still runs; False where nothing is known of it."""
    return os.path.exists(f"{directory}/started") and not has_died(directory)


def has_died(directory: str) -> bool:
    """Whether `start` ran a program that runs no more."""
    try:
        started = _started(directory)
    except NotFound:
        return False
    return not _KEEPERS[started["supervisor"]]().is_running(directory)


def target_of(directory: str) -> str:
    """Where the program serves that `start` ran with this directory; "" where nothing is known of one."""
    try:
        return str(_started(directory)["target"])
    except NotFound:
        return ""


def process_of(directory: str) -> Process | None:
    """The program that `start` ran with this directory, as a process; None where none can be seen from here."""
    try:
        pid = int(Path(directory, "pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return processes.read(pid)


def is_dead(target: str) -> bool:
    """Whether a mount is at `target` that nobody serves any more (ENOTCONN). One that merely hangs is not dead."""
    if not mounts.is_mount_point(target):
        return False
    try:
        return not apart.call(is_served, target, timeout=_ANSWER_SECONDS)
    except (DeadlineExceeded, Unavailable):
        return False


def stop(target: str, *, directory: str, timeout: float) -> None:
    """Unmount, wait for the program to end by itself as FUSE programs do then, end it where it does not, and remove
    its files and its cache.

    Raises InUse, DeadlineExceeded; then everything stays.
    """
    if is_running(directory):
        apart.call(mounts.unmount, target, timeout=timeout)
    else:
        mounts.unmount(target, lazy=True)  # nobody is there to answer
    with suppress(NotFound):
        started = _started(directory)
        keeper = _KEEPERS[started["supervisor"]]()
        until = time.monotonic() + timeout
        while keeper.is_running(directory) and time.monotonic() < until:
            time.sleep(0.02)
        keeper.end(directory)
        if started["cache"]:
            shutil.rmtree(started["cache"], ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def run_directory() -> str:
    """Where the directories of running programs belong: on a tmpfs, which forgets secrets with the power."""
    return os.environ.get("VOLKIT_RUN_DIR") or RUN_DIRECTORY


def _run(keeper: Keeper, started: Mapping[str, Any], directory: str) -> None:
    target = started["target"]
    until = time.monotonic() + started["ready"]
    keeper.start(started["argv"], started["environment"], directory)
    try:
        while not mounts.is_mount_point(target):
            if not keeper.is_running(directory):
                raise Unavailable(f"{started['argv'][0]} ended before it served {target}{_said(directory)}")
            if time.monotonic() > until:
                raise DeadlineExceeded(
                    f"{started['argv'][0]} did not serve {target} within {started['ready']:g} s{_said(directory)}"
                )
            time.sleep(0.01)
        apart.call(filesystems.usage, target, timeout=max(1.0, until - time.monotonic()))
        if started["read_only"]:
            mounts.remount(target, read_only=True)
    except VolkitError:
        mounts.unmount(target, lazy=True)
        keeper.end(directory)
        raise


def is_served(path: str) -> bool:
    """Whether somebody answers for the mount at `path`; False where its program or server is gone (ENOTCONN, ESTALE).
    Waits as long as that one does: to be asked in a process apart.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno not in _DEAD
    return True


def _filled(word: str, places: Mapping[str, str]) -> str:
    for mark, place in places.items():
        word = word.replace(mark, place)
    return word


def _started(directory: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(directory, "started").read_text())
    except (OSError, ValueError):
        raise NotFound(f"nothing is known in {directory} of a program that was started") from None
    return found


def _said(directory: str) -> str:
    """The end of what the program said, without what its files hold."""
    try:
        text = Path(directory, "log").read_bytes()[-8 * _QUOTED :].decode("utf-8", "replace")
        for file in Path(directory, "files").iterdir():
            lines = [line.strip() for line in file.read_text().splitlines()]
            values = [re.split("[:=]", line, maxsplit=1)[-1].strip() for line in lines]
            for secret in filter(None, (*lines, *values)):
                text = text.replace(secret, "***")
    except (OSError, ValueError):
        return ""
    text = text.strip()[-_QUOTED:]
    return f": {text}" if text else ""


def _write_private(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(error, sentence) from None


# -- who runs it -----------------------------------------------------------------------------------------------


class Keeper(ABC):
    """Runs a program that outlives this process. `directory` stands for it: its `pid` and `log` are there."""

    name = ""

    @abstractmethod
    def start(self, argv: Sequence[str], environment: Mapping[str, str], directory: str) -> None:
        """Start it; its output goes to `log` in the directory."""

    @abstractmethod
    def is_running(self, directory: str) -> bool:
        """Does it run?"""

    @abstractmethod
    def end(self, directory: str) -> None:
        """End it: SIGTERM, and SIGKILL some seconds later. Nothing where it does not run."""


class Detached(Keeper):
    """A process of nobody's: in a session of its own, and no child of this process."""

    name = "detached"

    def start(self, argv: Sequence[str], environment: Mapping[str, str], directory: str) -> None:
        words = ["/bin/sh", "-c", _SPAWN, "sh", f"{directory}/log", f"{directory}/pid", *argv]
        process.run(words, timeout=_START_SECONDS, env=environment)

    def is_running(self, directory: str) -> bool:
        return self._pid(directory) is not None

    def end(self, directory: str) -> None:
        for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 1.0)):
            pid = self._pid(directory)
            if pid is None:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            until = time.monotonic() + seconds
            while self._pid(directory) is not None and time.monotonic() < until:
                time.sleep(0.02)

    def _pid(self, directory: str) -> int | None:
        """Its process id; None where it is gone, also where the number is another process's by now."""
        try:
            pid, began = Path(directory, "pid").read_text().split()
            found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return int(pid) if found[0] != "Z" and found[19] == began else None


class Systemd(Keeper):
    """A transient service of the host's systemd (systemd-run(1))."""

    name = "systemd"

    def start(self, argv: Sequence[str], environment: Mapping[str, str], directory: str) -> None:
        settings = [f"StandardOutput=append:{directory}/log", f"StandardError=append:{directory}/log"]
        words = ["systemd-run", "--quiet", "--collect", f"--unit={self._unit(directory)}"]
        words += [f"--property={one}" for one in settings]
        words += [f"--setenv={name}={value}" for name, value in environment.items()]
        process.run([*words, "--", *argv], timeout=_START_SECONDS)

    def is_running(self, directory: str) -> bool:
        words = ["systemctl", "is-active", "--quiet", self._unit(directory)]
        return process.run(words, timeout=_START_SECONDS, ok=range(256)).returncode == 0

    def end(self, directory: str) -> None:
        process.run(["systemctl", "stop", self._unit(directory)], timeout=STOP_SECONDS, ok=range(256))

    @staticmethod
    def _unit(directory: str) -> str:
        return f"volkit-{'-'.join(Path(directory).parts[-2:])}.service"


class Remote(Keeper):
    """A mounter that listens on a socket: `volkit mounter`, in a pod or container of its own."""

    name = "mounter"

    def start(self, argv: Sequence[str], environment: Mapping[str, str], directory: str) -> None:
        self._ask("start", argv=list(argv), environment=dict(environment), directory=directory)

    def is_running(self, directory: str) -> bool:
        return bool(self._ask("is_running", directory=directory))

    def end(self, directory: str) -> None:
        self._ask("end", directory=directory)

    @staticmethod
    def _ask(method: str, **words: Any) -> Any:
        path = mounter_socket()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_START_SECONDS + 10)
                connection.connect(path)
                connection.sendall(json.dumps({"method": method, **words}).encode() + b"\n")
                with connection.makefile("rb") as reader:
                    answer = json.loads(reader.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise Unavailable(f"the mounter at {path} does not answer ({type(error).__name__})") from None
        if "result" not in answer:
            raise Unavailable(f"the mounter at {path}: {answer.get('error', 'it gave no answer')}")
        return answer["result"]


_KEEPERS: Final[Mapping[str, type[Keeper]]] = {one.name: one for one in (Detached, Systemd, Remote)}


def supervisor() -> Keeper:
    """Who runs programs that outlive this process. Raises FailedPrecondition where nobody can."""
    if os.environ.get(MOUNTER_VARIABLE) or os.path.exists(MOUNTER_SOCKET):
        return Remote()
    if os.path.isdir("/run/systemd/system") and shutil.which("systemd-run"):
        return Systemd()
    with suppress(OSError):
        if os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE:
            return Detached()
    raise FailedPrecondition(
        "a FUSE program started here would die with this container, and the pods' mounts with it: give the container "
        "the host's systemd (/run/systemd, /run/dbus), or run `volkit mounter` in a pod of its own and set "
        f"{MOUNTER_VARIABLE} to its socket, or run the driver on the host"
    )


def mounter_socket() -> str:
    return os.environ.get(MOUNTER_VARIABLE) or MOUNTER_SOCKET


def serve_mounter(listener: socket.socket) -> None:
    """Answer `Remote`s, one connection after the other, until the listener is closed: what `volkit mounter` does."""
    keeper = Detached()
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(5.0)
            with connection.makefile("rb") as reader:
                line = reader.readline(1 << 20)
            connection.settimeout(None)
            connection.sendall(json.dumps(_answered(keeper, line)).encode() + b"\n")


def _answered(keeper: Keeper, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        method = request.pop("method")
        if method not in ("start", "is_running", "end"):
            return {"error": f"there is no method {method!r}"}
        return {"result": getattr(keeper, method)(**request)}
    except VolkitError as error:
        return {"error": error.message}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {"error": f"the request cannot be read ({type(error).__name__})"}
