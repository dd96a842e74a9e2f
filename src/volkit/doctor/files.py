"""What nobody needs any more: FUSE programs, their directories and caches, sockets of dead drivers, old journals."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from volkit.doctor.finding import Finding
from volkit.doctor.node import Places
from volkit.doctor.records import removing
from volkit.engine import Engine
from volkit.errors import Aborted
from volkit.host import fuse
from volkit.mending import Mending
from volkit.model import FuseConnection


def examine_programs(engine: Engine) -> Iterator[Finding]:
    """FUSE programs that died under a volume, and those, and what they left, that no record tells of."""
    known = set()
    for one in Places(engine.node_journal):
        if not isinstance(one.connection, FuseConnection) or one.connection.directory in known:
            continue
        known.add(one.connection.directory)
        if one.settled and fuse.has_died(one.connection.directory):
            what = f"the program that serves volume {one.volume_id} at {one.path} has died"
            command = "volkit doctor --repair"
            yield Finding(sort="stuck", what=what, command=command, repair=_mending(engine))
    for found in sorted(Path(fuse.run_directory(), engine.backend.name).glob("*")):
        if str(found) in known or str(found) in _directories(
            engine
        ):  # as of now: one may just have been started
            continue
        if target := fuse.target_of(str(found)):
            what = f"a program serves {target}, and no record tells of it"
            command, repair = shlex.join(["umount", target]), _stopping(target, str(found))
        else:
            what = f"{found} is left of a program, and no record tells of it"
            command, repair = shlex.join(["rm", "-r", str(found)]), _clearing(found)
        yield Finding(sort="leaked", what=what, command=command, repair=repair)
    known = {Path(one).name for one in _directories(engine)}
    for cache in sorted((engine.state_dir / "cache").glob("*")):
        if (
            cache.name not in known
            and not Path(fuse.run_directory(), engine.backend.name, cache.name).exists()
        ):
            # what a write-back cache holds may be nowhere else
            what = f"{cache} is a cache of a program that is gone, and may hold what was not written to the storage"
            yield Finding(sort="leaked", what=what, command=shlex.join(["rm", "-r", str(cache)]))


def _directories(engine: Engine) -> set[str]:
    connections = [one.connection for one in Places(engine.node_journal)]
    return {one.directory for one in connections if isinstance(one, FuseConnection)}


def _mending(engine: Engine) -> Callable[[], str]:
    def repair() -> str:
        assert engine.node_state is not None
        if not Mending(engine.node_state).mend():
            raise Aborted("it cannot be started again now: see the driver's log")
        return "it is started again"

    return repair


def _stopping(target: str, directory: str) -> Callable[[], str]:
    def repair() -> str:
        fuse.stop(target, directory=directory, timeout=fuse.STOP_SECONDS)
        return "it is unmounted and ended"

    return repair


def _clearing(directory: Path) -> Callable[[], str]:
    def repair() -> str:
        shutil.rmtree(directory, ignore_errors=True)
        return "it is removed"

    return repair


def examine_state_directory(engine: Engine) -> Iterator[Finding]:
    """Sockets that nobody listens on, and journals that were set aside."""
    for note in sorted((engine.state_dir / "sockets").glob("*")):
        with suppress(OSError):
            path = note.read_text()
            if is_stale(path):
                what = f"nobody listens on {path}: its driver was killed"
                repair = _forgetting(note, path)
                yield Finding(sort="leaked", what=what, command=shlex.join(["rm", path]), repair=repair)
    for aside in sorted(engine.state_dir.glob("*.damaged-*")):
        if not aside.name.endswith(("-wal", "-shm")):
            what = f"{aside} is a damaged journal that was set aside"
            yield Finding(
                sort="stuck", what=what, command=f"rm {shlex.quote(str(aside))}*  # after a look at it"
            )


def is_stale(path: str) -> bool:
    """Is a socket there that nobody listens on? Nothing is waited for, and a long path is as good as any."""
    directory, name = os.path.split(path)
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        around = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(f"/proc/self/fd/{around}/{name}")
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    finally:
        os.close(around)
    return False


def _forgetting(note: Path, path: str) -> Callable[[], str]:
    def repair() -> str:
        if not is_stale(path):
            return "it was settled meanwhile"
        Path(path).unlink(missing_ok=True)
        return removing(note)()

    return repair
