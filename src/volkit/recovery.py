"""What an operator does after a crash: see what is unfinished, resolve it by looking, and find what does not fit.

Everything here may run beside a live driver: each record is settled under the same locks, decided anew under
them, and nobody is waited for.
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
from volkit.journal import Delete, Entry, Journal, key
from volkit.journal.records import QUARANTINE, parts
from volkit.mending import Mending
from volkit.model import NO_SECRETS
from volkit.requests import GetVolumeRequest, ListPublishedRequest, ListPublishedResult, ListRequest, Page

MIN_AGE = 60.0
"""Seconds that an intent is left to the orchestrator, which repeats its calls, before anybody else settles it."""

_PAGE = 1000


@frozen(kw_only=True)
class Record:
    """A record of the journal as an operator sees it. `age` in seconds, None where it is not known; `id` is the name
    or id it is about, and for an attachment or a target the node or the path too.
    """

    kind: str
    id: str
    state: str
    age: float | None
    key: str
    unfinished: bool


@frozen(kw_only=True)
class Finding:
    """Something that does not fit: `sort` is leaked, stuck or foreign; `command` repairs it, and so does `repair`
    where volkit itself made it.
    """

    sort: str
    what: str
    command: str
    repair: Callable[[], str] | None = None


def records(journal: Journal) -> list[Record]:
    """Every record, those in the quarantine included."""
    return [_described(entry) for entry in journal.scan("")]


def _described(entry: Entry) -> Record:
    kind, *names = parts(entry.key)
    since = entry.value.get("since")
    state = _state(kind, entry)
    return Record(
        kind=kind,
        id=" ".join(names),
        state=state,
        age=max(0.0, time.time() - since) if isinstance(since, int | float) and since else None,
        key=entry.key,
        unfinished=state not in ("made", "attached", "staged", "published"),
    )


def _state(kind: str, entry: Entry) -> str:
    value = entry.value
    match kind:
        case "volume-name" | "snapshot-name":
            return "made" if value.get("id") else "creating"
        case "volume" | "snapshot":
            return str(value.get("state", "made"))
        case "attach":
            return "attached" if "context" in value else "attaching"
        case "stage" if value.get("format"):
            return f"formatting {value['format']}"
        case "stage":
            here = value["capability"][1] == "block" or mounts.is_mount_point(value["path"])
            return "staged" if value["state"] == "connected" and here else "staging"
        case "target" if value.get("state") == "cancelled":
            return "cancelled"
        case "target":
            return "published" if mounts.is_mount_point(value["path"]) else "publishing"
        case "quarantine":
            return f"cannot be read: {value.get('why')}"
    return "of no known kind"


# -- recover -------------------------------------------------------------------------------------------------


def recover(
    engine: Engine, *, dry_run: bool = False, min_age: float = MIN_AGE
) -> Iterator[tuple[Record, str, bool]]:
    """Settle every unfinished intent that is older than `min_age` seconds: the record, what was done or why not,
    and whether it is settled now.
    """
    for journal in dict.fromkeys((engine.journal, engine.node_journal)):
        for record in records(journal):
            if not record.unfinished or record.kind == QUARANTINE:
                continue
            if record.age is not None and record.age < min_age:
                yield record, "left: young enough that the orchestrator may repeat the call", False
            elif dry_run:
                yield record, "would be settled by looking", False
            else:
                yield record, *settle(engine, record)


def settle(engine: Engine, record: Record) -> tuple[str, bool]:
    """What was done about an unfinished record, and whether it is settled. Raises no VolkitError."""
    names = parts(record.key)[1:]
    try:
        match record.kind:
            case "volume-name" | "snapshot-name":
                return _settle_create(engine, record.kind.removesuffix("-name"), names[0])
            case "volume" | "snapshot":
                return _settle_delete(engine, record.kind, names[0])
            case "attach":
                return _settle_attach(engine, record.key, *names)
            case "stage" | "target":
                return _settle_node(engine, record.kind, names)
    except Aborted as error:
        return f"left: {error.message}", False
    except VolkitError as error:
        return f"not settled: {error.message}", False
    return f"left: volkit knows no {record.kind}", False


def _settle_create(engine: Engine, sort: str, name: str) -> tuple[str, bool]:
    if (provisioning := engine.provisioning) is None:
        return "left: the controller service is off", False
    making: Any = provisioning.volumes if sort == "volume" else provisioning.snapshots
    with making.lock_name(name, 0.0):
        found = making.resolve(name, NO_SECRETS)
    return {
        "found": ("it was made: its id is recorded", True),
        "absent": ("nothing was made: the intent is removed", True),
        "done": ("it was settled meanwhile", True),
    }.get(found, ("left: only a repeat of the call can tell what was made", False))


def _settle_delete(engine: Engine, sort: str, id_: str) -> tuple[str, bool]:
    if (provisioning := engine.provisioning) is None:
        return "left: the controller service is off", False
    making: Any = provisioning.volumes if sort == "volume" else provisioning.snapshots
    with making.lock_id(id_, 0.0):
        entry = engine.journal.get(key(sort, id_))
        if entry is None or entry.value.get("state") != "deleting":  # its id may be another one's by now
            return "it was settled meanwhile", True
        if sort == "volume":
            provisioning.remove_volume(id_, NO_SECRETS)
        else:
            making.delete(id_, NO_SECRETS)
    return "the deletion is finished", True


def _settle_attach(engine: Engine, record_key: str, volume_id: str, node: str) -> tuple[str, bool]:
    list_published = getattr(engine.controller, "list_published", None)
    if engine.provisioning is None or list_published is None:
        return (
            "left: this storage does not tell what is attached: the next publish or unpublish settles it",
            False,
        )
    with engine.provisioning.volumes.lock_id(volume_id, 0.0):
        entry = engine.journal.get(record_key)
        if entry is None or "context" in entry.value:
            return "it was settled meanwhile", True
        request = ListPublishedRequest(volume_ids=(volume_id,))
        result: ListPublishedResult = call_backend(list_published, request, ListPublishedResult)
        if node in result.node_ids.get(volume_id, ()):
            return "left: it is attached; the next publish or unpublish settles it", False
        engine.journal.write(Delete(record_key, revision=entry.revision), durable=False)
    return "it is not attached: the intent is removed", True


def _settle_node(engine: Engine, kind: str, names: list[str]) -> tuple[str, bool]:
    if engine.staging is None or engine.publishing is None:
        return "left: the node service is off", False
    if kind == "target":
        undone = engine.publishing.undo_unfinished_publish(names[0], names[1])
        return ("what was begun is undone" if undone else "it was settled meanwhile"), True
    undone = engine.staging.undo_unfinished_stage(names[0])
    left = engine.node_journal.get(key("stage", names[0]))
    if undone and left is not None:
        return "it is unmounted and disconnected; the next stage makes its file system anew", False
    return ("what was begun is undone" if undone else "it was settled meanwhile"), True


# -- doctor --------------------------------------------------------------------------------------------------


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
        record, volume_id = _described(entry), parts(entry.key)[1]
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
