"""The CSI drivers that csi.py measures: how each is started, and how nothing of it is left.

`PEERS` is the table. A new peer is one row: a name, its program, and the arguments it needs to serve a
controller and a node on one socket.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MS_BIND, MS_PRIVATE, MNT_DETACH = 0x1000, 1 << 18, 2  # linux/mount.h
LOOP_CLR_FD = 0x4C01  # linux/loop.h
SOCKET_PATH_MAX = 107  # sun_path, less its NUL
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Peer:
    """One row of the table. `hidden` are programs taken from the driver's PATH; a `variant` differs from the
    row before it only in what its node calls cost, and is measured only there."""

    name: str
    program: str
    arguments: Callable[[Path, str], list[str]]
    hidden: tuple[str, ...] = ()
    variant: bool = False


def _volkit(home: Path, endpoint: str) -> list[str]:
    pool, state = home / "pool", home / "state"
    pool.mkdir(exist_ok=True)
    promised = "overcommit=100"  # 100,000 thin volumes of 1 MiB are promised, not written
    return [
        *("--backend", "loop", "-o", f"pool={pool}", "-o", promised),
        *("--state-dir", str(state), "--endpoint", endpoint),
        *("--services", "controller,node", "--node-id", "n1"),
    ]


def _hostpath(home: Path, endpoint: str) -> list[str]:
    state = home / "state"
    state.mkdir(exist_ok=True)
    return ["-drivername=hostpath.csi.k8s.io", f"-endpoint={endpoint}", "-nodeid=n1", f"-statedir={state}"]


# hostpath mounts through systemd-run if that is on PATH, at twice the cost; volkit is held to its best.
REFERENCE = "hostpath"
PEERS = (
    Peer("volkit", "volkit-csi", _volkit),
    Peer(REFERENCE, "hostpathplugin", _hostpath, hidden=("systemd-run",)),
    Peer("hostpath, systemd-run", "hostpathplugin", _hostpath, variant=True),
)


def search_path() -> str:
    """PATH, after the directory of this interpreter: its environment's console scripts come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def present() -> list[Peer]:
    """The peers whose program is installed; a variant only where what it is about is on PATH."""
    return [
        peer
        for peer in PEERS
        if shutil.which(peer.program, path=search_path())
        and (not peer.variant or shutil.which("systemd-run"))
    ]


def hide(programs: tuple[str, ...], directory: Path) -> str:
    """A PATH of one directory of links to every program on PATH but these."""
    directory.mkdir(exist_ok=True)
    for place in map(Path, search_path().split(os.pathsep)):
        for program in place.iterdir() if place.is_dir() else ():
            link = directory / program.name
            if program.name not in programs and not link.is_symlink():
                link.symlink_to(program)
    return str(directory)


class LoadError(Exception):
    """csiload, or the driver under it, failed; says with what."""


class Driver:
    """One running driver in a directory of its own below `root`, and the load client that talks to it."""

    def __init__(self, peer: Peer, root: Path, csiload: Path) -> None:
        self.peer = peer
        self.home = root / f"{sum(1 for _ in root.iterdir())}"
        self.home.mkdir()
        self.endpoint = f"unix://{self.home}/csi.sock"
        self._csiload = csiload
        self._process: subprocess.Popen[bytes] | None = None
        path = hide(peer.hidden, self.home / "bin") if peer.hidden else search_path()
        self._environment = {**os.environ, "PATH": path}
        program = shutil.which(peer.program, path=search_path())
        assert program is not None, "present() checked it"
        self.command = [program, *peer.arguments(self.home, self.endpoint)]
        if len(self.endpoint) - len("unix://") > SOCKET_PATH_MAX:
            raise LoadError(f"{self.endpoint}: longer than a socket's path may be; give a shorter --dir")

    def __enter__(self) -> Driver:
        with open(self.home / "log", "wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=self._environment,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + 30
            while not (self.home / "csi.sock").exists():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise LoadError(f"{self.peer.name} does not listen: {self._log()}")
                time.sleep(0.01)
            self.load("probe", "--duration", "10ms")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM; after ten seconds SIGKILL; then SIGKILL to whatever else is in its session."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in self._session():
            with _gone_is_fine():
                os.kill(pid, signal.SIGKILL)

    def load(self, mode: str, *flags: str, after: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run one csiload mode against this driver; its JSON."""
        places = ("--staging-dir", str(self.home / "staging"), "--target-dir", str(self.home / "target"))
        done = subprocess.run(
            [self._csiload, mode, "--endpoint", self.endpoint, *places, *flags, *after],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self.home,
            check=False,
        )
        if done.returncode != 0:
            raise LoadError(f"{self.peer.name}: {done.stderr.strip()[-600:]} {self._log()}".strip())
        return dict(json.loads(done.stdout))

    def rss(self) -> float:
        """Resident memory of the driver and its children, in MB (10^6 bytes)."""
        pages = 0
        for pid in self._session():
            with _gone_is_fine():
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def left(self) -> list[str]:
        """Mounts and loop devices of this driver that are there now."""
        return [*map(str, mounts_below(self.home)), *(device for device, _ in loops_below(self.home))]

    def _session(self) -> Iterator[int]:
        assert self._process is not None
        for entry in Path("/proc").glob("[0-9]*"):
            with _gone_is_fine():
                if os.getsid(int(entry.name)) == self._process.pid:
                    yield int(entry.name)

    def _log(self) -> str:
        log = self.home / "log"
        return log.read_text(errors="replace").strip()[-1500:] if log.exists() else ""


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """A process may end between being found and being asked."""
    try:
        yield
    except (ProcessLookupError, FileNotFoundError):
        pass


def _mount(source: str, target: Path, kind: str, flags: int) -> None:
    if _libc.mount(source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount: {os.strerror(error)}", str(target))


@contextmanager
def unrelated_mounts(count: int, root: Path) -> Iterator[None]:
    """`count` mounts that no driver knows: binds below a tmpfs, which takes them all along when it goes."""
    base = root / "unrelated"
    base.mkdir(exist_ok=True)
    _mount("tmpfs", base, "tmpfs", 0)
    try:
        _mount("", base, "", MS_PRIVATE)
        source = base / "source"
        source.mkdir()
        for i in range(count - 1):  # The tmpfs is one as well.
            target = base / str(i)
            target.mkdir()
            _mount(str(source), target, "", MS_BIND)
        yield
    finally:
        _libc.umount2(bytes(base), MNT_DETACH)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points below the directory, in the order in which they were mounted."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    paths = [Path(point.encode().decode("unicode_escape")) for point in points]  # \040 is a blank
    return [path for path in paths if directory in path.parents]


def loops_below(directory: Path) -> list[tuple[str, str]]:
    """(device, backing file) of the loop devices whose file is below the directory."""
    found = []
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        with _gone_is_fine():
            backing = attribute.read_text().strip()
            if directory in Path(backing).parents:
                found.append((f"/dev/{attribute.parts[3]}", backing))
    return found


def sweep(root: Path) -> None:
    """Unmount, detach and delete everything below `root`; the drivers have been stopped."""
    for point in reversed(mounts_below(root)):
        _libc.umount2(bytes(point), MNT_DETACH)
    for device, _ in loops_below(root):
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, LOOP_CLR_FD)
        finally:
            os.close(descriptor)
    shutil.rmtree(root)
