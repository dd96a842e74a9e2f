"""Mounts and records: what is mounted over a volume, inside it, beside it, or of it elsewhere; what does not answer.

A record is written before the mount that it stands for and removed after it, and before the target's directory is
made; so whatever volkit mounted has a record, unless the journal was lost. Hence what no record tells of is never
touched: it may be somebody else's, or in use in a pod. A staging directory is the orchestrator's to make and remove.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from volkit.doctor.finding import ANSWER_SECONDS, Finding, ask_apart, hangs, settling, unmount_command
from volkit.doctor.node import Exclusive, Place, Places, Siblings, Table, is_remote
from volkit.doctor.processes import named
from volkit.engine import Engine
from volkit.errors import Aborted, VolkitError
from volkit.host import devices, fuse, mounts, rebind
from volkit.host.mounts import Mount
from volkit.journal import key
from volkit.model import BlockConnection, FuseConnection
from volkit.recovery import described

_SUB_PATH: Final = re.compile(r"(.+/pods/[^/]+)/volume-subpaths/.+")
_DEVICE: Final = re.compile(r"(.+/volumeDevices)/([^/]+)/dev(/[^/]+)")


def examine_places(engine: Engine, table: Table) -> Iterator[Finding]:
    """Mounts that do not fit. What was seen is looked at once more, under the volume's lock where there is one: a
    volume that is being worked on is left out.
    """
    seen = [what for what, _ in _strangers(Places(engine.node_journal), table)]
    if not seen:
        return
    again = dict(_strangers(Places(engine.node_journal), table.again()))
    for what in seen:
        if what in again:
            volume_id, mount = again[what]
            if not volume_id or _is_idle(engine, volume_id):
                yield Finding(sort="foreign", what=what, command=unmount_command(mount.mount_point))


def _is_idle(engine: Engine, volume_id: str) -> bool:
    try:
        with engine.locks.hold(key("volume", volume_id), wait=0):
            return True
    except Aborted:
        return False


def _strangers(places: Places, table: Table) -> Iterator[tuple[str, tuple[str, Mount]]]:
    """What is mounted and not ours: in words, with the volume that it stands in the way of ("" for none)."""
    known, exclusive, siblings = places.spelled(table), Exclusive(places, table), Siblings(places, table)
    at: dict[str, list[str]] = {}
    for path, one in known.items():
        at.setdefault(one.volume_id, []).append(path)
    for one in places:
        top = table.top(one.path)
        if top is not None and one.settled and not one.shown_by(top, table):
            what = f"{_called(top)} is mounted at {one.path}, over or instead of volume {one.volume_id}"
            yield what, (one.volume_id, top)
    for mount in table.all:
        if mount.mount_point in known:
            continue
        if (holder := _around(mount.mount_point, known)) is not None:
            what = f"{_called(mount)} is mounted at {mount.mount_point}, inside volume {holder.volume_id}"
            yield what, (holder.volume_id, mount)
        elif (shown := exclusive.shown(mount)) is not None:
            if _is_kubelets(mount.mount_point, at.get(shown.volume_id, ())):
                continue
            what = f"volume {shown.volume_id} is mounted at {mount.mount_point} too, by somebody else"
            yield what, (shown.volume_id, mount)
        elif mount.mount_point in siblings:
            place = f"{mount.mount_point}, beside staged volumes"
            what = f"{_called(mount)} is mounted at {place}, and no record tells of it"
            yield what, ("", mount)


def _is_kubelets(path: str, published: Sequence[str]) -> bool:
    """Is it one of kubelet's own binds of what is published there: for a container's subPath (pkg/volume/util/subpath),
    or of a raw volume's node (pkg/volume/util/volumepathhandler)?
    """
    if found := _SUB_PATH.fullmatch(path):
        return any(one.startswith(f"{found[1]}/volumes/") for one in published)
    found = _DEVICE.fullmatch(path)
    return found is not None and f"{found[1]}/publish/{found[2]}{found[3]}" in published


def _called(mount: Mount) -> str:
    return f"{mount.source} ({mount.fs_type})"


def _around(path: str, known: dict[str, Place]) -> Place | None:
    parent = path.rpartition("/")[0]
    while parent:
        if parent in known:
            return known[parent]
        parent = parent.rpartition("/")[0]
    return None


def examine_copies(engine: Engine, table: Table) -> Iterator[Finding]:
    """Devices of volumes that are not mounted here any more, and still are in another mount namespace: a container that
    was started meanwhile has copies of all mounts, and where they are private no unmount reaches them.
    """
    held = {}
    for one in Places(engine.node_journal).stages:
        if isinstance(one.connection, BlockConnection) and not table.showing(one.connection):
            held[devices.number(one.connection.device)] = one
    held.pop(None, None)
    if not held:
        return
    own = os.readlink("/proc/self/ns/mnt")
    for pid in rebind.one_process_of_each_namespace(own):
        for mount in mounts.of_process(pid) if pid != os.getpid() else ():
            place = held.get(mount.device)
            if place is not None:
                what = (
                    f"volume {place.volume_id} is still mounted in the mount namespace of {named(pid)}, at "
                    f"{mount.mount_point}: its device stays in use"
                )
                command = shlex.join(["nsenter", "-t", str(pid), "-m", "umount", mount.mount_point])
                yield Finding(sort="stuck", what=what, command=command)


# -- what answers no more ------------------------------------------------------------------------------------


def examine_answers(engine: Engine, table: Table) -> Iterator[Finding]:
    """Recorded mounts whose server or program is gone, or does not answer; each file system is asked once."""
    asked: dict[tuple[int, int], list[Place]] = {}
    for one in Places(engine.node_journal):
        top = table.top(one.path)
        if top is not None and is_remote(top) and one.shown_by(top, table):
            asked.setdefault(top.device, []).append(one)
    answers = ask_apart(fuse.is_served, [(places[0].path,) for places in asked.values()])
    for places, answer in zip(asked.values(), answers, strict=True):
        if isinstance(places[0].connection, FuseConnection) and _died(places[0].connection):
            continue  # it is found by its program, which is started again
        for one in places:
            if hangs(answer):
                what = (
                    f"volume {one.volume_id} at {one.path} does not answer within {ANSWER_SECONDS:g} s"
                    f"{_served_by(one.connection)}"
                )
                yield Finding(sort="stuck", what=what, command=_waking(one))
            elif answer is False:
                what = f"nobody serves volume {one.volume_id} at {one.path} any more"
                command = unmount_command(one.path, "-l")
                yield Finding(sort="stuck", what=what, command=command, repair=_giving_up(engine, one))


def _died(connection: FuseConnection) -> bool:
    try:
        return fuse.has_died(connection.directory)
    except VolkitError:
        return False


def _served_by(connection: object) -> str:
    found = fuse.process_of(connection.directory) if isinstance(connection, FuseConnection) else None
    return f" (its program is pid {found.pid}, state {found.state})" if found else ""


def _waking(place: Place) -> str:
    if isinstance(place.connection, FuseConnection):
        found = fuse.process_of(place.connection.directory)
        if found and found.state == "T":
            return f"kill -CONT {found.pid}"
    return f"{unmount_command(place.path, '-f')}  # gives up what its server has not got yet"


def _giving_up(engine: Engine, place: Place) -> Callable[[], str]:
    """A dead mount goes, and its record is settled as one that was cut short."""

    def repair() -> str:
        lock = place.entry.key if place.kind == "target" else key("volume", place.volume_id)
        with engine.locks.hold(lock, wait=0):
            entry = engine.node_journal.get(place.entry.key)
            if entry is None or entry.revision != place.entry.revision or not fuse.is_dead(place.path):
                return "it was settled meanwhile"
            mounts.unmount(place.path, lazy=True)
        return settling(engine, described(place.entry))()

    return repair
