"""Records: what is unfinished and who works on it, what cannot be read, and calls that hang in a driver."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from volkit.doctor.finding import Finding, settling
from volkit.doctor.node import Table
from volkit.doctor.processes import Drivers
from volkit.engine import Engine
from volkit.errors import Aborted
from volkit.journal import Journal, key
from volkit.journal.records import QUARANTINE, parts
from volkit.locks import byte_of
from volkit.recovery import Record, described, records

_INTENTS = ("attaching", "cancelled", "creating", "deleting", "formatting", "staging", "publishing")


def examine_records(
    engine: Engine, journal: Journal, table: Table, drivers: Drivers, min_age: float
) -> Iterator[Finding]:
    """What is unfinished in a journal for longer than `min_age` seconds, and what is in the quarantine."""
    for record in records(journal, table.is_mounted):
        if record.kind == QUARANTINE:
            command = f"volkit journal --forget {shlex.quote(record.key)}"
            yield Finding(sort="stuck", what=f"the record {record.id} {record.state}", command=command)
        elif (
            record.unfinished
            and (record.age is None or record.age >= min_age)
            and (found := _unfinished(engine, journal, record, table, drivers))
        ):
            yield found


def _unfinished(
    engine: Engine, journal: Journal, record: Record, table: Table, drivers: Drivers
) -> Finding | None:
    """Looked at once more under its lock. One that is being worked on is shown where it is known since when."""
    age = "" if record.age is None else f" for {record.age:.0f} s"
    try:
        with _lock(engine, record):
            entry = journal.get(record.key)
            now = described(entry, table.again().is_mounted) if entry else None
    except Aborted:
        if record.state.split()[0] not in _INTENTS or record.kind == "target":
            return None  # a target's record tells when it was published, not since when it is unpublished
        who = drivers.at(byte_of(key(record.kind, *parts(record.key)[1:])), byte_of(_lock_keys(record)[-1]))
        what = f"{record.kind} {record.id} is {record.state}{age}, and {who or 'another process'} works on it"
        return Finding(sort="stuck", what=what, command=_watch(drivers, record))
    if now is None or not now.unfinished:
        return None
    what = f"{record.kind} {record.id} is {record.state}{age}"
    return Finding(sort="stuck", what=what, command="volkit recover", repair=settling(engine, record))


def _watch(drivers: Drivers, record: Record) -> str:
    pids = sorted(drivers.holding(byte_of(_lock_keys(record)[-1])))
    return f"ps -o pid,stat,wchan,etime,args -p {','.join(map(str, pids))}" if pids else "volkit journal"


def _lock(engine: Engine, record: Record) -> AbstractContextManager[None]:
    """The lock under which this record changes, taken at once. Raises Aborted."""
    provisioning: Any = engine.provisioning
    names = parts(record.key)[1:]
    if record.kind in ("stage", "target") or provisioning is None:
        return engine.locks.hold(*_lock_keys(record), wait=0)
    making = (
        provisioning.snapshotting.snapshots if record.kind.startswith("snapshot") else provisioning.volumes
    )
    if record.kind.endswith("-name"):
        return making.lock_name(names[0], 0.0)  # type: ignore[no-any-return]
    return making.lock_id(names[0], 0.0)  # type: ignore[no-any-return]


def _lock_keys(record: Record) -> tuple[str, ...]:
    names = parts(record.key)[1:]
    return (key("volume", names[0]),) if record.kind in ("stage", "attach") else (record.key,)


def examine_calls(engine: Engine, drivers: Drivers) -> Iterator[Finding]:
    """Calls that hang in a driver which lives; what a driver that was killed had told of its calls is removed."""
    for report in sorted((engine.state_dir / "left-behind").glob("*")):
        with suppress(OSError, ValueError, KeyError):
            pid = int(report.name.partition(".")[0])
            if pid not in drivers.pids and pid != os.getpid():
                what = f"{report} is of a driver that is gone (pid {pid})"
                yield Finding(
                    sort="leaked", what=what, command=shlex.join(["rm", str(report)]), repair=removing(report)
                )
                continue
            for call in json.loads(report.read_text())["calls"] if report.suffix == ".json" else ():
                seconds = max(0.0, time.time() - call["since"])
                about = f"{call['operation']} of {call['subject']}"
                what = f"{about} hangs for {seconds:.0f} s in the driver (pid {pid})"
                yield Finding(sort="stuck", what=what, command=f"kill {pid}  # after a look at the storage")


def removing(file: Path) -> Callable[[], str]:
    """A repair: remove a file of volkit's own."""

    def repair() -> str:
        file.unlink(missing_ok=True)
        return "it is removed"

    return repair
