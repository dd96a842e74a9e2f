"""Devices: recorded ones that are gone, exchanged or given up by the kernel, and attached ones without a record."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from volkit.doctor.finding import (
    ANSWER_SECONDS,
    Finding,
    ask_apart,
    ask_storage,
    hangs,
    settling,
    unmount_command,
)
from volkit.doctor.node import Place, Places, Table
from volkit.engine import Engine
from volkit.errors import Aborted, FailedPrecondition, InUse, NotFound, VolkitError
from volkit.host import devices
from volkit.interfaces import ListsConnections
from volkit.journal import key
from volkit.model import BlockConnection, Connection
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
                yield _not_as_recorded(engine, one, device, what)
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


def _not_as_recorded(engine: Engine, place: Place, device: str, what: str) -> Finding:
    assert engine.node_state is not None
    if engine.node_state.really_staged(
        place.entry.value
    ):  # mounted from it all the same: nothing is to be undone
        return Finding(sort="stuck", what=what, command=_shown_by_kernel(device))
    repair = settling(engine, described(place.entry))
    return Finding(sort="stuck", what=what, command="volkit recover", repair=repair)


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


def examine_connections(engine: Engine, table: Table) -> Iterator[Finding]:
    """What the backend has connected on this node, and no record tells of. A device that is mounted or bound somewhere
    may be in a pod's use, and a volume that is not in the journal another driver's: those are shown and left alone.
    """
    node: Any = engine.node
    if not isinstance(node, ListsConnections):
        return
    listed = _connected(engine, node)
    recorded = _by_volume(engine)
    seen = [(volume_id, one) for volume_id, one in listed if not _is_among(one, recorded.get(volume_id, ()))]
    seen = [one for one in seen if _is_idle(engine, one[0])]
    if not seen:
        return
    # once more, all at once: it may have been in the middle of being connected, or disconnected
    listed, recorded, table = _connected(engine, node), _by_volume(engine), table.again()
    there: dict[str, list[Connection]] = {}
    for volume_id, connection in listed:
        there.setdefault(volume_id, []).append(connection)
    for volume_id, connection in seen:
        known = recorded.get(volume_id, ())
        if _is_among(connection, known) or connection not in there.get(volume_id, ()):
            continue
        used = table.showing(connection)
        for mount in used:
            yield Finding(
                sort="leaked",
                what=f"volume {volume_id} is mounted at {mount.mount_point}, and no record tells of it",
                command=unmount_command(mount.mount_point),
            )
        name = connection.device if isinstance(connection, BlockConnection) else connection.source
        ours = engine.journal.get(key("volume", volume_id)) is not None and not known and not used
        yield Finding(
            sort="leaked",
            what=f"volume {volume_id} is connected as {name}, and no record tells of it",
            command=f"losetup -d {name}" if name.startswith("/dev/loop") else "volkit doctor --repair",
            repair=_disconnecting(engine, volume_id, connection) if ours else None,
        )


def _connected(engine: Engine, node: ListsConnections) -> Sequence[tuple[str, Connection]]:
    return ask_storage(engine, "list_connections", "", lambda: tuple(node.list_connections()))


def _by_volume(engine: Engine) -> dict[str, list[Place]]:
    recorded: dict[str, list[Place]] = {}
    for one in Places(engine.node_journal):
        recorded.setdefault(one.volume_id, []).append(one)
    return recorded


def _is_among(connection: Connection, recorded: Iterable[Place]) -> bool:
    """Is there a record of this connection, or one that does not say yet which it is?"""
    return any(one.connection is None or _same(one.connection, connection) for one in recorded)


def _same(recorded: Connection, connection: Connection) -> bool:
    if isinstance(recorded, BlockConnection) and isinstance(connection, BlockConnection):
        return devices.number(recorded.device) == devices.number(connection.device)
    return type(recorded) is type(connection)


def _is_idle(engine: Engine, volume_id: str) -> bool:
    try:
        with engine.locks.hold(key("volume", volume_id), wait=0):
            return True
    except Aborted:
        return False


def _disconnecting(engine: Engine, volume_id: str, connection: Connection) -> Callable[[], str]:
    def repair() -> str:
        assert engine.node_state is not None
        with engine.locks.hold(key("volume", volume_id), wait=0):
            node: Any = engine.node
            journal = engine.node_journal
            known = journal.get(key("stage", volume_id)) or journal.scan(key("target", volume_id, ""))
            if known or (volume_id, connection) not in node.list_connections():
                return "it was settled meanwhile"
            if Table().showing(connection):
                raise InUse("it is mounted: unmount it first")
            engine.node_state.disconnect(volume_id, connection)
        return "it is disconnected"

    return repair
