"""What does not fit between journal, backend and node, with the command that repairs it (`volkit doctor`).

Nothing here waits for a storage or a mount that hangs: what is looked at is the kernel's own tables.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from volkit.engine import Engine
from volkit.errors import Aborted, NotFound, VolkitError
from volkit.guard import call_backend
from volkit.host import fuse, loop, mounts
from volkit.interfaces import Lists
from volkit.journal import key
from volkit.journal.records import QUARANTINE, parts
from volkit.mending import Mending
from volkit.model import NO_SECRETS
from volkit.recovery import MIN_AGE, Record, described, records, settle
from volkit.requests import GetVolumeRequest, ListRequest, Page

_PAGE = 1000


@frozen(kw_only=True)
class Finding:
    """Something that does not fit: `sort` is leaked, stuck or foreign; `command` repairs it, and so does `repair`
    where volkit itself made it.
    """

    sort: str
    what: str
    command: str
    repair: Callable[[], str] | None = None


def examine(engine: Engine, *, min_age: float = MIN_AGE) -> Iterator[Finding]:
    """What does not fit between journal, backend and node. Nothing is changed."""
    for journal in dict.fromkeys((engine.journal, engine.node_journal)):
        for record in records(journal):
            if record.kind == QUARANTINE:
                command = f"volkit journal --forget '{record.key}'"
                yield Finding(sort="stuck", what=f"the record {record.id} {record.state}", command=command)
            elif record.unfinished and (record.age is None or record.age >= min_age):
                what = f"{record.kind} {record.id} is {record.state}"
                yield Finding(
                    sort="stuck", what=what, command="volkit recover", repair=_settling(engine, record)
                )
    yield from _left_behind(engine)
    if engine.provisioning is not None:
        yield from _examine_backend(engine)
    if engine.node_state is not None:
        yield from _examine_node(engine)
        yield from _devices(engine)
        yield from _leaked_devices(engine)
        yield from _orphans(engine)
        yield from _programs(engine)


def _settling(engine: Engine, record: Record) -> Callable[[], str]:
    def repair() -> str:
        did, settled = settle(engine, record)
        if not settled:
            raise Aborted(did)
        return did

    return repair


def _examine_backend(engine: Engine) -> Iterator[Finding]:
    assert engine.provisioning is not None
    recorded = {}
    for entry in engine.journal.scan(key("volume", "")):
        volume_id = parts(entry.key)[1]
        recorded[volume_id] = entry
        if entry.value.get("state") is None and (fault := _look(engine, volume_id)):
            yield fault
    controller: object = engine.controller
    if not isinstance(controller, Lists):
        return
    begun = {
        entry.value.get("id") or engine.provisioning.volumes.id_for(parts(entry.key)[1])
        for entry in engine.journal.scan(key("volume-name", ""))
    }
    for volume_id in _listed(controller):
        if volume_id not in recorded and volume_id not in begun:
            yield Finding(
                sort="foreign",
                what=f"volume {volume_id} is in the storage and not in the journal",
                command=f"volkit call delete-volume --volume-id {volume_id}  # if nobody needs it",
            )


def _listed(controller: Lists) -> Iterator[str]:
    request = ListRequest(limit=_PAGE)
    while True:
        page: Page[Any] = call_backend(controller.list_volumes, request, Page)
        yield from (volume.id for volume in page.entries)
        if not page.next_token:
            return
        request = ListRequest(limit=_PAGE, token=page.next_token)


def _look(engine: Engine, volume_id: str) -> Finding | None:
    assert engine.controller is not None
    try:
        call_backend(engine.controller.get_volume, GetVolumeRequest(volume_id=volume_id), object)
    except NotFound:
        what = f"volume {volume_id} is in the journal and not in the storage"
        return Finding(
            sort="stuck", what=what, command="volkit doctor --repair", repair=_forgetting(engine, volume_id)
        )
    except VolkitError as error:
        what = f"volume {volume_id} cannot be looked at: {error.message}"
        return Finding(sort="stuck", what=what, command="volkit doctor  # when the storage answers")
    return None


def _forgetting(engine: Engine, volume_id: str) -> Callable[[], str]:
    """Removing what is not there removes its records."""

    def repair() -> str:
        assert engine.provisioning is not None
        with engine.provisioning.volumes.lock_id(volume_id, 0.0):
            if _look(engine, volume_id) is not None:
                engine.provisioning.remove_volume(volume_id, NO_SECRETS)
        return "its records are removed"

    return repair


def _examine_node(engine: Engine) -> Iterator[Finding]:
    """Stages whose device is gone, and mounts of a volume's device that no record tells of."""
    assert engine.node_state is not None
    targets = {entry.value["path"] for entry in engine.node_journal.scan(key("target", ""))}
    table = mounts.mounts()
    for entry in engine.node_journal.scan(key("stage", "")):
        record, volume_id = described(entry), parts(entry.key)[1]
        if record.state != "staged":
            continue
        if not engine.node_state.is_staged(volume_id):
            what = (
                f"volume {volume_id} is recorded as staged at {entry.value['path']}, and its device is gone"
            )
            yield Finding(
                sort="stuck", what=what, command="volkit doctor --repair", repair=_settling(engine, record)
            )
            continue
        here = mounts.mount_at(entry.value["path"]) if entry.value["capability"][1] != "block" else None
        for one in table if here is not None else ():
            known = one.mount_point == entry.value["path"] or one.mount_point in targets
            if here is not None and one.device == here.device and not known:
                what = f"volume {volume_id} is mounted at {one.mount_point} too, by somebody else"
                yield Finding(sort="foreign", what=what, command=f"umount '{one.mount_point}'")


def _left_behind(engine: Engine) -> Iterator[Finding]:
    """Calls that hang in a driver which lives; what a driver that was killed had told of its calls is removed."""
    for report in sorted((engine.state_dir / "left-behind").glob("*.json")):
        with suppress(OSError, ValueError, KeyError):
            told = json.loads(report.read_text())
            if not _holds_locks(engine, told["pid"]):
                what = f"{report} is of a driver that is gone (pid {told['pid']})"
                yield Finding(sort="leaked", what=what, command=f"rm '{report}'", repair=_removing(report))
                continue
            for call in told["calls"]:
                age = max(0.0, time.time() - call["since"])
                about = f"{call['operation']} of {call['subject']}"
                what = f"{about} hangs since {age:.0f} s in the driver (pid {told['pid']})"
                yield Finding(sort="stuck", what=what, command="# see to the storage, or restart the driver")


def _holds_locks(engine: Engine, pid: int) -> bool:
    """Is it a process that has files of this state directory open, and not another one with its number?"""
    below = f"{engine.state_dir}/"
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(link).startswith(below):
                    return True
    return False


def _removing(file: Path) -> Callable[[], str]:
    def repair() -> str:
        file.unlink(missing_ok=True)
        return "it is removed"

    return repair


def _devices(engine: Engine) -> Iterator[Finding]:
    """Devices of staged volumes that the kernel has given up (sysfs, SCSI and NVMe: `state`)."""
    for entry in engine.node_journal.scan(key("stage", "")):
        device = (entry.value.get("connection") or {}).get("device") or ""
        name = os.path.basename(os.path.realpath(device)) if device else ""
        for part in ("device/state", "device/device/state"):
            with suppress(OSError):
                state = Path("/sys/block", name, part).read_text().strip()
                if state not in ("running", "live", "configured"):
                    what = f"volume {parts(entry.key)[1]} is on {device}, whose state is {state}"
                    yield Finding(
                        sort="stuck", what=what, command=f"cat /sys/block/{name}/{part}  # see to the storage"
                    )


def _programs(engine: Engine) -> Iterator[Finding]:
    """FUSE programs that died under a volume, and those that no record tells of."""
    known = set()
    for kind in ("stage", "target"):
        for entry in engine.node_journal.scan(key(kind, "")):
            directory = (entry.value.get("connection") or {}).get("directory", "")
            if (entry.value.get("connection") or {}).get("kind") != "fuse":
                continue
            known.add(directory)
            if fuse.has_died(directory):
                what = (
                    f"the program that serves volume {parts(entry.key)[1]} at {entry.value['path']} has died"
                )
                command = "volkit doctor --repair"
                yield Finding(sort="stuck", what=what, command=command, repair=_mending(engine))
    for found in sorted(Path(fuse.run_directory(), engine.backend.name).glob("*")):
        if str(found) not in known and (target := fuse.target_of(str(found))):
            what = f"a program serves {target}, and no record tells of it"
            yield Finding(
                sort="leaked", what=what, command=f"umount '{target}'", repair=_stopping(target, str(found))
            )


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


def _leaked_devices(engine: Engine) -> Iterator[Finding]:
    """Loop devices of a file that is named after a volume of the journal, and that no record of this node tells of."""
    for device, backing in loop.attached():
        volume_id = backing.removesuffix(" (deleted)").rpartition("/")[2].partition(".")[0]
        if engine.journal.get(key("volume", volume_id)) is None or _known(engine, volume_id):
            continue
        what = f"{device} is attached to {backing}, and volume {volume_id} is not staged here"
        command = f"losetup -d {device}"
        yield Finding(
            sort="leaked", what=what, command=command, repair=_detaching(engine, volume_id, device, backing)
        )


def _known(engine: Engine, volume_id: str) -> bool:
    journal = engine.node_journal
    return journal.get(key("stage", volume_id)) is not None or bool(
        journal.scan(key("target", volume_id, ""))
    )


def _detaching(engine: Engine, volume_id: str, device: str, backing: str) -> Callable[[], str]:
    def repair() -> str:
        with engine.locks.hold(key("volume", volume_id), wait=0):
            found = loop.status(device)
            if found is None or (device, backing) not in loop.attached() or _known(engine, volume_id):
                return "it was settled meanwhile"
            loop.detach(device, expect=found.identity)
        return "it is detached"

    return repair


def _orphans(engine: Engine) -> Iterator[Finding]:
    """Programs that outlived the driver that started them: they work on the device of a stage that was cut short."""
    for entry in engine.node_journal.scan(key("stage", "")):
        device = (entry.value.get("connection") or {}).get("device")
        if not device or not entry.value.get("format"):
            continue
        for pid, program in _working_on(device):
            try:
                with engine.locks.hold(key("volume", parts(entry.key)[1]), wait=0):
                    what = f"pid {pid} ({program}) outlived its driver and works on {device}"
                    yield Finding(sort="leaked", what=what, command=f"kill {pid}")
            except Aborted:  # its driver lives
                break


def _working_on(device: str) -> Iterator[tuple[int, str]]:
    """The processes that were given this device as an argument (man 5 proc_pid_cmdline)."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            program, *words = (directory / "cmdline").read_bytes().split(b"\0")
            if device.encode() in words:
                yield int(directory.name), os.fsdecode(program).rpartition("/")[2]
