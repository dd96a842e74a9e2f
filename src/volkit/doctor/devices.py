"""Devices: recorded ones that are gone, exchanged or given up by the kernel, and attached ones without a record."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from volkit.doctor.finding import ANSWER_SECONDS, Finding, ask_apart, hangs, settling, unmount_command
from volkit.doctor.node import Place, Places, Table, is_node_of, is_on
from volkit.engine import Engine
from volkit.errors import Aborted, FailedPrecondition, NotFound, VolkitError
from volkit.host import devices, loop
from volkit.journal import key
from volkit.model import BlockConnection
from volkit.recovery import described


def examine_devices(engine: Engine) -> Iterator[Finding]:
    """The devices of staged volumes: as sysfs has them, and whether they are still the recorded ones."""
    staged = [
        (one, one.connection)
        for one in Places(engine.node_journal).stages
        if one.settled and isinstance(one.connection, BlockConnection)
    ]
    answers = ask_apart(devices.verify, [(known.device, dict(known.identity)) for _, known in staged])
    for (one, known), answer in zip(staged, answers, strict=True):
        device, volume_id = known.device, one.volume_id
        if isinstance(answer, NotFound | FailedPrecondition):
            if _is_unchanged(engine, one):
                why = "is gone" if isinstance(answer, NotFound) else "is another device now"
                what = (
                    f"volume {volume_id} is recorded as staged at {one.path}, and its device {device} {why}"
                )
                repair = settling(engine, described(one.entry))
                yield Finding(sort="stuck", what=what, command="volkit recover", repair=repair)
            continue
        if fault := devices.fault(device):
            what = f"volume {volume_id} is on {device}: {fault}"
            yield Finding(sort="stuck", what=what, command=_shown_by_kernel(device))
        elif hangs(answer):
            what = f"the device {device} of volume {volume_id} does not answer within {ANSWER_SECONDS:g} s"
            yield Finding(sort="stuck", what=what, command=_shown_by_kernel(device))
        elif isinstance(answer, VolkitError):
            what = f"the device {device} of volume {volume_id} cannot be looked at: {answer.message}"
            yield Finding(sort="stuck", what=what, command=_shown_by_kernel(device))
        yield from _made_of_it(one, device)


def _is_unchanged(engine: Engine, place: Place) -> bool:
    """Is the record still the same, and nobody at work on the volume?"""
    try:
        with engine.locks.hold(key("volume", place.volume_id), wait=0):
            now = engine.node_journal.get(place.entry.key)
            return now is not None and now.revision == place.entry.revision
    except Aborted:
        return False


def _shown_by_kernel(device: str) -> str:
    return f"lsblk -s -o NAME,STATE,TYPE,SIZE,MOUNTPOINTS {shlex.quote(device)}  # and see to the storage"


def _made_of_it(place: Place, device: str) -> Iterator[Finding]:
    """Device mapper leftovers: what is made of a staged device keeps it from being disconnected."""
    for name in devices.made_of(device):
        called = name
        with suppress(OSError):
            called = Path("/sys/block", name, "dm/name").read_text().strip()
        command = shlex.join(["dmsetup", "remove", called]) if name.startswith("dm-") else f"ls /dev/{name}"
        what = f"/dev/{name} ({called}) is made of {device}, the device of volume {place.volume_id}"
        yield Finding(sort="foreign", what=what, command=command)


# -- attached, and recorded nowhere ----------------------------------------------------------------------------


def examine_leaked_devices(engine: Engine, table: Table) -> Iterator[Finding]:
    """Loop devices of a file that is named after a volume of the journal, and that no record of this node tells of.
    One that is mounted, or bound somewhere, may be in a pod's use: it is shown and left alone.
    """
    for device, backing in loop.attached():
        volume_id = backing.removesuffix(" (deleted)").rpartition("/")[2].partition(".")[0]
        if engine.journal.get(key("volume", volume_id)) is None or not _is_unknown(engine, volume_id):
            continue
        what = f"{device} is attached to {backing}, and volume {volume_id} is not staged here"
        command = f"losetup -d {device}"
        used = [one for one in table.all if is_on(one, device) or is_node_of(one, device)]
        for one in used:
            yield Finding(
                sort="leaked",
                what=f"volume {volume_id} is mounted at {one.mount_point}, and no record tells of it",
                command=unmount_command(one.mount_point),
            )
        repair = None if used else _detaching(engine, volume_id, device, backing)
        yield Finding(sort="leaked", what=what, command=command, repair=repair)


def _is_unknown(engine: Engine, volume_id: str) -> bool:
    """Has nobody recorded the volume here, and does nobody work on it?"""
    try:
        with engine.locks.hold(key("volume", volume_id), wait=0):
            return not _known(engine, volume_id)
    except Aborted:
        return False


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
