"""Processes: drivers that are stopped, what outlived its driver, and what hangs in the kernel."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from volkit.doctor.finding import ANSWER_SECONDS, Finding
from volkit.doctor.node import Places
from volkit.engine import Engine
from volkit.errors import Aborted, VolkitError
from volkit.host import apart, processes
from volkit.host.processes import Process
from volkit.journal import key
from volkit.model import BlockConnection

_END_SECONDS = 2.0


class Drivers:
    """The processes that have this state directory open, this one left out, and the locks that they hold."""

    def __init__(self, engine: Engine) -> None:
        self.pids: set[int] = set()
        self._holding: dict[int, set[int]] = {}
        for pid, descriptor, path in processes.open_files(str(engine.state_dir)):
            self.pids.add(pid)
            if path == str(engine.locks.path):
                for byte in processes.locked_ranges(pid, descriptor):
                    self._holding.setdefault(byte, set()).add(pid)

    def holding(self, byte: int) -> set[int]:
        """Who holds the lock of this byte."""
        return self._holding.get(byte, set())

    def at(self, *locks: int) -> str:
        """ "pid 12 (volkit-csi)", who holds one of these locks; "" where that cannot be seen from here."""
        return ", ".join(named(pid) for pid in sorted(set().union(*map(self.holding, locks))))

    def locks_of(self, pid: int) -> int:
        """How many locks a process holds."""
        return sum(pid in pids for pids in self._holding.values())


def named(pid: int) -> str:
    """ "pid 12 (volkit-csi)"."""
    found = processes.read(pid)
    return f"pid {pid} ({found.name})" if found else f"pid {pid}"


def examine_processes(engine: Engine, drivers: Drivers) -> Iterator[Finding]:
    """Stopped drivers, orphans, and what cannot end."""
    try:
        table = apart.call(processes.table, timeout=ANSWER_SECONDS)
    except VolkitError:  # one of them cannot even be read: without their arguments, then
        table = processes.table(words=False)
    for one in table:
        if one.pid in drivers.pids and one.state in "Tt":
            locks = drivers.locks_of(one.pid)
            what = f"the driver, pid {one.pid} ({one.name}), is stopped and holds {locks} locks"
            yield Finding(sort="stuck", what=what, command=f"kill -CONT {one.pid}")
        elif one.state == "D" and one.killed and _is_ours(engine, one, drivers):
            what = f"pid {one.pid} ({one.name}) was killed and hangs in the kernel"
            yield Finding(sort="stuck", what=what, command=f"cat /proc/{one.pid}/stack  # what it waits for")
        elif apart.is_helper_of(str(engine.state_dir), one.words) and one.parent <= 1 and _stays(one):
            what = f"pid {one.pid}, a helper of a driver that is gone, does not end (state {one.state})"
            yield Finding(sort="stuck", what=what, command=f"kill -9 {one.pid}")
    yield from _orphans(engine, table, drivers)


def _stays(process: Process) -> bool:
    """A helper ends with its driver, in a moment, unless it hangs."""
    until = time.monotonic() + _END_SECONDS
    while found := processes.read(process.pid):
        if time.monotonic() > until or found.name != process.name:
            return found.name == process.name
        time.sleep(0.05)
    return False


def _is_ours(engine: Engine, process: Process, drivers: Drivers) -> bool:
    if process.parent in drivers.pids or apart.is_helper_of(str(engine.state_dir), process.words):
        return True
    places = Places(engine.node_journal)
    named = {one.path for one in places}
    named |= {one.connection.device for one in places if isinstance(one.connection, BlockConnection)}
    return any(word in named for word in process.words)


def _orphans(engine: Engine, table: list[Process], drivers: Drivers) -> Iterator[Finding]:
    """Programs that outlived the driver that started them: they work on the device of a stage that was cut short."""
    for one in Places(engine.node_journal).stages:
        if not isinstance(one.connection, BlockConnection) or not one.entry.value.get("format"):
            continue
        for process in table:
            if one.connection.device not in process.words or process.parent in drivers.pids:
                continue
            try:
                with engine.locks.hold(key("volume", one.volume_id), wait=0):
                    pass
            except Aborted:  # its driver lives
                break
            device = one.connection.device
            what = f"pid {process.pid} ({process.name}) outlived its driver and works on {device}"
            repair = _ending(process, device) if process.name.startswith(("mkfs", "mke2fs")) else None
            yield Finding(sort="leaked", what=what, command=f"kill {process.pid}", repair=repair)


def _ending(process: Process, device: str) -> Callable[[], str]:
    """An orphaned mkfs: its intent is recorded, so that the next stage makes the file system anew."""

    def repair() -> str:
        with suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            try:
                now = apart.call(processes.table, timeout=ANSWER_SECONDS)
                if any(one.pid == process.pid and device in one.words for one in now):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    return "it is ended"
            finally:
                os.close(descriptor)
        return "it has ended meanwhile"

    return repair
