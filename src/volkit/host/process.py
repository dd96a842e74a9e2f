"""Programs such as mkfs, fsck and cryptsetup: bounded in number, with a deadline, their output in the error.

```python
process.run(["mkfs.ext4", "-q", device], timeout=300)
process.run(["cryptsetup", "open", device, name, "--key-file=-"], timeout=60, input=key)
```

A program gets no environment of the driver's but PATH, HOME, TMPDIR and LD_LIBRARY_PATH (the driver's may
hold credentials), an English locale and a session of its own. A descriptor in `pass_fds` with a lock on it
(flock(2)) keeps that lock as long as the program lives, even where the driver is killed meanwhile.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from attrs import field, frozen

from volkit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from volkit.host._syscalls import refusal
from volkit.redaction import redact

if TYPE_CHECKING:
    from subprocess import Popen

MAX_OUTPUT: Final = 1 << 20
"""How many bytes of each of stdout and stderr are kept: the last ones."""

MAX_ABANDONED: Final = 64
"""How many killed processes may hang in the kernel before no more are started."""

_QUOTED: Final = 1024
_SEARCHED: Final = (
    64 * _QUOTED
)  # for secrets: what is quoted, and so much before it that no half of one gets there
_REAP_SECONDS: Final = 0.5
_PLACE_SECONDS: Final = 5.0
_TICK: Final = 0.02
_CHUNK: Final = 1 << 16
_INHERITED: Final = ("HOME", "LD_LIBRARY_PATH", "TMPDIR")
_DIRECTORIES: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

DEBIAN_PACKAGES: Final[Mapping[str, str]] = {
    program: package
    for package, programs in {
        "btrfs-progs": "btrfs btrfstune mkfs.btrfs",
        "ceph-common": "ceph mount.ceph rbd",
        "cifs-utils": "mount.cifs",
        "cryptsetup-bin": "cryptsetup veritysetup",
        "e2fsprogs": "chattr debugfs dumpe2fs e2fsck mke2fs mkfs.ext2 mkfs.ext3 mkfs.ext4 resize2fs tune2fs",
        "fuse3": "fusermount3",
        "glusterfs-client": "mount.glusterfs",
        "lvm2": "lvcreate lvextend lvremove lvs pvs vgs",
        "mount": "losetup mount umount",
        "multipath-tools": "multipath multipathd",
        "nfs-common": "mount.nfs mount.nfs4",
        "nvme-cli": "nvme",
        "open-iscsi": "iscsiadm",
        "qemu-utils": "qemu-img",
        "rclone": "rclone",
        "s3fs": "s3fs",
        "sshfs": "sshfs",
        "systemd": "systemctl systemd-run",
        "udev": "udevadm",
        "util-linux": "blkid blockdev fallocate flock fsck nsenter setpriv wipefs",
        "xfsprogs": "mkfs.xfs xfs_admin xfs_db xfs_info xfs_io xfs_repair",
    }.items()
    for program in programs.split()
}
"""Which Debian package brings a program."""


@frozen
class Result:
    """How a program ended. `stdout` and `stderr` are its last MAX_OUTPUT bytes as they came, secrets in them
    too.
    """

    returncode: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """stdout as text; what is not UTF-8 is replaced."""
        return self.stdout.decode("utf-8", "replace")


class ProgramMissing(FailedPrecondition):
    """The program is not installed; the text names the Debian package where it is known."""


class ProcessFailed(FailedPrecondition):
    """A program ended with a status that was not expected. `stderr` is its last KiB, without secrets."""

    def __init__(self, message: str, *, program: str, returncode: int, stderr: str) -> None:
        super().__init__(message)
        self.program = program
        self.returncode = returncode
        self.stderr = stderr


class ProcessKilled(Unavailable):
    """A signal ended the program (the OOM killer, an administrator); how far it came is not known."""


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Iterable[int] = (),
    secrets: Iterable[str] | Mapping[str, str] = (),
    ok: Iterable[int] = (0,),
) -> Result:
    """Run a program to its end and return its status and output; `ok` are the statuses that count as success.

    `timeout` is seconds, the wait for a free place included: at most two processes per core run of one
    program, more where those take longer than some seconds. `env` is added to the environment. Every
    occurrence of a secret (of a mapping: of its values) is replaced in the errors' texts. A daemon that it
    leaves behind does not prolong the call and is not killed when it succeeds, but loses the pipes it had as
    stdout and stderr.

    Raises ProgramMissing, ProcessFailed, ProcessKilled; DeadlineExceeded after the program with all its
    process group was killed, which may leave one that hangs in the kernel (`abandoned`); Unavailable where
    too many hang already.
    """
    if not argv or any("\0" in word for word in argv):
        raise InvalidArgument("a program's arguments must not be empty, nor contain a NUL character")
    from subprocess import DEVNULL, PIPE

    deadline = time.monotonic() + timeout
    hidden = _values(secrets)
    program = find_program(argv[0])
    refuse_too_many(argv[0])
    with _place(os.path.basename(program), deadline, timeout):
        process = start(
            [program, *argv[1:]], stdin=PIPE if input else DEVNULL, output=PIPE, env=env, pass_fds=pass_fds
        )
        kept = bytearray(), bytearray()
        try:
            in_time = _communicate(process, input or b"", kept, deadline)
        finally:
            end(process)
    returncode, out, err = process.returncode, bytes(kept[0][-MAX_OUTPUT:]), bytes(kept[1][-MAX_OUTPUT:])
    if not in_time:
        raise DeadlineExceeded(
            f"{_shown(argv, hidden)} did not end within {timeout:g} s and was killed{_said(out, err, hidden)}"
        )
    if returncode in ok:
        return Result(returncode, out, err)
    if returncode < 0:
        name = signal.strsignal(-returncode) or -returncode
        raise ProcessKilled(f"{_shown(argv, hidden)} was ended by a signal ({name}){_said(out, err, hidden)}")
    raise ProcessFailed(
        f"{_shown(argv, hidden)} failed with status {returncode}{_said(out, err, hidden)}",
        program=os.path.basename(program),
        returncode=returncode,
        stderr=_tail(err, hidden),
    )


def find_program(name: str) -> str:
    """The absolute path of a program on PATH or in the usual system directories. Raises ProgramMissing."""
    candidates = [name] if "/" in name else [f"{directory}/{name}" for directory in _search_path()]
    for path in candidates:
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    package = DEBIAN_PACKAGES.get(os.path.basename(name))
    hint = f"install the package {package} (Debian's name)" if package else "install it or put it on PATH"
    raise ProgramMissing(f"the program {name} is not there: {hint}")


def refuse_too_many(program: str) -> None:
    """Raises Unavailable where too many killed processes hang to start one more."""
    if abandoned() >= MAX_ABANDONED:
        raise Unavailable(f"{MAX_ABANDONED} killed processes hang in the kernel: not starting {program}")


def abandoned() -> int:
    """How many killed processes still hang in the kernel, waiting for a device or a server that does not
    answer.
    """
    with _lock:
        _abandoned[:] = [process for process in _abandoned if process.poll() is None]
        return len(_abandoned)


starting: Final = threading.Lock()
"""Held while a program is started. Until it executes it has a copy of every descriptor of this process: whoever opens
a device exclusively for a moment holds this lock too, or it stays in use for as long as somebody else's start takes.
"""

_cpus: frozenset[int] = frozenset(os.sched_getaffinity(0))
"""Those that programs may run on; this process may keep to fewer."""

_lock: Final = threading.Lock()
_abandoned: Final[list[Popen[bytes]]] = []
_places: Final[dict[str, threading.BoundedSemaphore]] = {}
_more_places: Final = threading.BoundedSemaphore(MAX_ABANDONED)


@contextmanager
def _place(program: str, deadline: float, timeout: float) -> Iterator[None]:
    """One of the places for this program; DeadlineExceeded where none becomes free in time."""
    with _lock:
        places = _places.setdefault(program, threading.BoundedSemaphore(2 * len(_cpus)))
    taken = next((one for one in (places, _more_places) if _taken(one, deadline)), None)
    if taken is None:
        raise DeadlineExceeded(f"{program} was not started within {timeout:g} s: too many of it are running")
    try:
        yield
    finally:
        taken.release()


def _taken(places: threading.Semaphore, deadline: float) -> bool:
    """Those that hold its places may hang: after some seconds others are tried, so that they hold up nobody else."""
    left = deadline - time.monotonic()
    return left > 0 and places.acquire(timeout=min(left, _PLACE_SECONDS))


def start(
    argv: Sequence[str],
    *,
    stdin: int,
    output: int,
    env: Mapping[str, str] | None = None,
    pass_fds: Iterable[int] = (),
) -> Popen[bytes]:
    """Start a program that has a session of its own and little of this process's environment; its caller ends it
    (`end`). `stdin` and `output` (stdout and stderr) are as subprocess takes them. Raises FailedPrecondition and
    the like where it cannot be started.
    """
    # subprocess, by vfork: os.posix_spawn is 8 % faster (0.76 against 0.83 ms), but would let the program
    # inherit a descriptor that some C library opened without close-on-exec
    from subprocess import Popen

    try:
        with starting, _on_all_cpus():
            return Popen(
                argv,
                stdin=stdin,
                stdout=output,
                stderr=output,
                bufsize=0,
                env=_environment(env),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
    except OSError as error:
        raise refusal(error, f"cannot start {argv[0]}") from None


def keep_to_one_cpu() -> None:
    """Have the calling thread, and those it makes from now on, run on one CPU; programs still get them all.

    The threads of a Python process take turns. Where they are spread over several CPUs, each turn costs an
    interrupt to another one, in a virtual machine more than the work between two system calls: with 16
    callers a driver did half as much (docs/performance.md). Which CPU it is depends on the process id, so that
    several drivers of a node spread. Nothing happens where the kernel refuses (sched_setaffinity(2)).
    """
    cpus = sorted(_cpus)
    with suppress(OSError):
        os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})


@contextmanager
def _on_all_cpus() -> Iterator[None]:
    """What the calling thread starts meanwhile may run wherever this process might at first."""
    kept = os.sched_getaffinity(0)
    if kept == _cpus:
        yield
        return
    with suppress(OSError):
        os.sched_setaffinity(0, _cpus)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, kept)


def _communicate(
    process: Popen[bytes], data: bytes, kept: tuple[bytearray, bytearray], deadline: float
) -> bool:
    """Feed and read until the program has ended; False at the deadline. Who else holds its pipes does not
    matter.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    poller = select.poll()
    reads = [_reader(process.stdout, kept[0]), _reader(process.stderr, kept[1])]
    transfers = {process.stdout.fileno(): reads[0], process.stderr.fileno(): reads[1]}
    for descriptor in transfers:
        poller.register(descriptor, select.POLLIN)
    if process.stdin is not None:
        poller.register(process.stdin.fileno(), select.POLLOUT)
        transfers[process.stdin.fileno()] = _writer(process.stdin, data)
    with _end_of(process) as end:
        if end is not None:
            poller.register(end, select.POLLIN)
        while process.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for descriptor, _ in poller.poll(1000 * (left if end is not None else min(left, _TICK)) + 1):
                if descriptor != end and not transfers[descriptor]():
                    poller.unregister(descriptor)
    for read in reads:
        for _ in range(MAX_OUTPUT // _CHUNK):  # what is left in the pipe; a daemon may go on writing for ever
            if not read():
                break
    return True


@contextmanager
def _end_of(process: Popen[bytes]) -> Iterator[int | None]:
    """A descriptor that is readable once the process ended (pidfd_open(2), Linux 5.3); None before that."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reader(pipe: IO[bytes], kept: bytearray) -> Callable[[], bool]:
    """A function that reads what is there, keeping the last bytes, and returns False at the end."""
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, False)

    def read() -> bool:
        try:
            piece = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        kept.extend(piece)
        if len(kept) > 2 * MAX_OUTPUT:
            del kept[:-MAX_OUTPUT]
        return bool(piece)

    return read


def _writer(pipe: IO[bytes], data: bytes) -> Callable[[], bool]:
    """A function that writes what the pipe takes, and closes it and returns False when there is no more to
    say.
    """
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, False)
    left = memoryview(data)

    def write() -> bool:
        nonlocal left
        try:
            left = left[os.write(descriptor, left[:_CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it read as much as it wanted
            left = left[:0]
        if not left:
            pipe.close()
        return bool(left)

    return write


def end(process: Popen[bytes]) -> None:
    """Kill what still runs, with its process group, and close the pipes.

    A process that hangs in the kernel (state D) does not end by that: it is set aside, not waited for.
    """
    from subprocess import TimeoutExpired

    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        try:
            process.wait(_REAP_SECONDS)
        except TimeoutExpired:
            with _lock:
                _abandoned.append(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _search_path() -> list[str]:
    own = [directory for directory in os.environ.get("PATH", "").split(":") if directory.startswith("/")]
    return list(dict.fromkeys((*own, *_DIRECTORIES)))


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, "PATH": ":".join(_search_path()), "LANG": "C", "LC_ALL": "C", **(more or {})}


def _values(secrets: Iterable[str] | Mapping[str, str]) -> list[str]:
    if isinstance(secrets, str):
        secrets = (secrets,)
    return list(secrets.values() if isinstance(secrets, Mapping) else secrets)


def _tail(output: bytes, hidden: list[str]) -> str:
    """The end of an output for a person; masked first and cut then, so that no half of a secret is left."""
    return redact(output[-_SEARCHED:].decode("utf-8", "replace"), *hidden).strip()[-_QUOTED:]


def _said(out: bytes, err: bytes, hidden: list[str]) -> str:
    """Both outputs: e2fsck, for one, explains itself on stdout."""
    text = "; ".join(filter(None, (_tail(out, hidden), _tail(err, hidden))))
    return f": {text}" if text else ""


def _shown(argv: Sequence[str], hidden: list[str]) -> str:
    text = " ".join(shlex.quote(redact(word, *hidden)) for word in argv)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"
