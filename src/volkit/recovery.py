"""What an operator does after a crash: see what is unfinished, resolve it by looking, and find what does not fit.

Everything here may run beside a live driver: each record is settled under the same locks, decided anew under
them, and nobody is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from volkit.engine import Engine
from volkit.errors import Aborted, VolkitError
from volkit.guard import call_backend
from volkit.host import mounts
from volkit.journal import Delete, Entry, Journal, key
from volkit.journal.records import QUARANTINE, parts
from volkit.model import NO_SECRETS
from volkit.node_state import is_only_format
from volkit.requests import ListPublishedRequest, ListPublishedResult

MIN_AGE = 60.0
"""Seconds that an intent is left to the orchestrator, which repeats its calls, before anybody else settles it."""


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


def records(journal: Journal, is_mounted: Callable[[str], bool] = mounts.is_mount_point) -> list[Record]:
    """Every record, those in the quarantine included. `is_mounted` tells whether something is mounted at a path."""
    found = {entry.key: entry for entry in journal.scan("")}
    found |= {
        entry.key: entry for entry in journal.scan(key(QUARANTINE, ""))
    }  # what was moved there just now too
    return [described(found[one], is_mounted) for one in sorted(found)]


def described(entry: Entry, is_mounted: Callable[[str], bool] = mounts.is_mount_point) -> Record:
    """One record, as `records` has it."""
    kind, *names = parts(entry.key)
    since = entry.value.get("since")
    state = _state(kind, entry, is_mounted)
    return Record(
        kind=kind,
        id=" ".join(names),
        state=state,
        age=max(0.0, time.time() - since) if isinstance(since, int | float) and since else None,
        key=entry.key,
        unfinished=not state.startswith("half-made")
        and state not in ("made", "attached", "staged", "published", "in use", "options of a volume"),
    )


def _state(kind: str, entry: Entry, is_mounted: Callable[[str], bool]) -> str:
    value = entry.value
    match kind:
        case "volume-name" | "snapshot-name":
            return "made" if value.get("id") else "creating"
        case "volume" | "snapshot":
            return str(value.get("state", "made"))
        case "attach":
            return "attached" if "context" in value else "attaching"
        case "stage" if is_only_format(value):
            return f"half-made {value['format']}"
        case "stage" if value.get("format"):
            return f"formatting {value['format']}"
        case "stage":
            here = value["capability"][1] == "block" or is_mounted(value["path"])
            return "staged" if value["state"] == "connected" and here else "staging"
        case "target" if value.get("state") == "cancelled":
            return "cancelled"
        case "target":
            return "published" if is_mounted(value["path"]) else "publishing"
        case "quarantine":
            return f"cannot be read: {value.get('why')}"
        case "asked" | "asked-of":
            return "options of a volume"
        case (
            "use"
            | "node-of"
            | "flex-pv"
            | "flex-device"
            | "flex-path"
            | "flex-open"
            | "flex-made"
            | "flex-node"
        ):
            return "in use"
    return "of no known kind"


# -- recover -------------------------------------------------------------------------------------------------


def recover(
    engine: Engine, *, dry_run: bool = False, min_age: float = MIN_AGE
) -> Iterator[tuple[Record, str, bool]]:
    """Settle every unfinished intent that is older than `min_age` seconds: the record, what was done or why not,
    and whether it is settled now. Raises at the end where one of the journals is away.
    """
    away: VolkitError | None = None
    for journal in dict.fromkeys((engine.journal, engine.node_journal)):
        try:
            found = records(journal)
        except VolkitError as error:
            away = error
            continue
        for record in found:
            if not record.unfinished or record.kind == QUARANTINE:
                continue
            if record.age is not None and record.age < min_age:
                yield record, "left: young enough that the orchestrator may repeat the call", False
            elif dry_run:
                yield record, "would be settled by looking", False
            else:
                yield record, *settle(engine, record)
    if away is not None:
        raise away


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
    making: Any = provisioning.volumes if sort == "volume" else provisioning.snapshotting.snapshots
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
    making: Any = provisioning.volumes if sort == "volume" else provisioning.snapshotting.snapshots
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
        return "it is unmounted and disconnected; the next stage makes its file system anew", True
    return ("what was begun is undone" if undone else "it was settled meanwhile"), True
