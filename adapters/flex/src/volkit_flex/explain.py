"""`volkit-flex explain`: what a call would do, by looking. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import asdict, frozen

from volkit import State, carrying, format_size
from volkit.guard import hiding
from volkit.host import mounts
from volkit.redaction import redact
from volkit_flex import records, token, wire
from volkit_flex.opening import open_engine
from volkit_flex.options import Options, secret_values
from volkit_flex.service import Service
from volkit_flex.wire import Callout


@frozen(kw_only=True)
class Step:
    """One thing that would be done; `operation` is a row of volkit's table, or "" for what is none."""

    operation: str
    text: str


@frozen(kw_only=True)
class Explanation:
    """A call, the volume that it is about, and its steps in order."""

    call: str
    volume: str
    steps: tuple[Step, ...]


def explain(settings: Mapping[str, Any], words: list[str], *, as_json: bool) -> int:
    """Print what the call would do. Raises what is wrong with it."""
    call = wire.read(words)
    engine = open_engine(settings)
    try:
        secrets = secret_values(call.options, engine.backend)
        with hiding(*secrets):
            found = explained(Service(engine, attaches=settings["attaches"]), call)
    finally:
        engine.close()
    if as_json:
        text = json.dumps(asdict(found), indent=2)
    else:
        lines = [f"{found.call}", f"  volume: {found.volume}"]
        lines += [
            f"  {number}. {one.operation or '-':20} {one.text}" for number, one in enumerate(found.steps, 1)
        ]
        text = "\n".join(lines)
    print(redact(text, *secrets))
    return 0


def explained(service: Service, call: Callout) -> Explanation:
    """Raises InvalidArgument for what no call could be."""
    if not service.does(call.operation):
        steps = (Step(operation="", text='answers "Not supported": this driver never does that'),)
        return Explanation(call=call.operation, volume="-", steps=steps)
    volume, exists = _volume(service, call)
    return Explanation(call=call.operation, volume=volume, steps=tuple(_steps(service, call, exists)))


def _volume(service: Service, call: Callout) -> tuple[str, bool]:
    """The volume in words, and whether it is there."""
    if call.operation == "init":
        return "-", True
    if not call.options and (call.path or call.name):
        kind, subject = (records.PATH, call.path) if call.path else (records.PV, call.name)
        store = service.node_records if call.path else service.controller_records
        known = store.get(kind, subject).get("volume", "")
        return (str(known), True) if known else (f"not recorded; looked for by {subject!r}", True)
    options = service.volumes.options(call)
    if service.engine.provisioning is None:
        return f"{options.volume!r}: no controller here, so this is its id", True
    found = service.volumes.find(options.volume, service.limits(), options.secrets)
    if found is not None:
        size = format_size(found.capacity) if found.capacity else "unbounded"
        return f"{options.volume!r} is {found.id} ({found.kind}, {size})", True
    return f"{options.volume!r} does not exist", False


def _steps(service: Service, call: Callout, exists: bool) -> Iterator[Step]:
    operations = service.engine.operations
    options = service.volumes.options(call) if call.options else None
    if not exists and call.operation in ("attach", "mount", "mountdevice") and options is not None:
        lost = bool(service.controller_records.get(records.MADE, options.volume))
        yield _creation(options, lost=lost)
        if lost or not options.create:
            return
    match call.operation:
        case "init" | "getvolumename":
            yield Step(operation="", text="answered by the driver alone")
        case "attach" | "detach":
            name = "controller_publish" if call.operation == "attach" else "controller_unpublish"
            if name in operations:
                yield Step(operation=name, text=f"node {call.node}")
            else:
                yield Step(operation="", text=f"recorded for node {call.node}: the storage attaches nothing")
        case "isattached":
            yield Step(operation="", text=f"looks whether it is attached to {call.node}")
        case "waitforattach":
            attachment = token.decode(call.device)
            told = attachment.volume_id if attachment else call.device or "no device"
            yield Step(operation="", text=f"passes on what attach answered: {told}")
        case "mountdevice":
            yield from _named(operations, "node_stage", f"at {call.path}, {_way(service, options)}")
        case "unmountdevice":
            yield from _named(operations, "node_unstage", f"from {call.path}")
        case "mount":
            yield from _mount(service, call, options)
        case "unmount":
            yield from _unmount(service, call)
        case "expandvolume" | "expandfs":
            yield from _named(operations, "expand_volume", f"to {format_size(call.new_size)}")
            if call.operation == "expandfs":
                yield from _named(operations, "node_expand", f"at {call.path}")


def _creation(options: Options, *, lost: bool) -> Step:
    if lost:
        return Step(operation="", text="fails: it was there, and is gone from the storage")
    if not options.create:
        return Step(operation="", text="fails: neither 'size' nor 'create: \"true\"' asks for it to be made")
    size = options.wanted.capacity.required
    text = f"named {options.volume!r}, {format_size(size) if size else 'of the default size'}"
    return Step(operation="create_volume", text=text + (", for this pod alone" if options.inline else ""))


def _mount(service: Service, call: Callout, options: Options | None) -> Iterator[Step]:
    if mounts.is_mount_point(call.path):
        yield Step(
            operation="", text=f"something is mounted at {call.path} already: it is kept where it is the same"
        )
    names: tuple[str, ...] = ("node_publish",)
    if not service.attaches:
        names = carrying.steps(service.engine, State.CREATED, State.PUBLISHED)
    for name in names:
        where = {"node_publish": f"at {call.path}, {_way(service, options)}"}
        yield Step(operation=name, text=where.get(name, "once for all pods of this node"))


def _unmount(service: Service, call: Callout) -> Iterator[Step]:
    yield Step(operation="node_unpublish", text=f"from {call.path}")
    if service.attaches:
        return
    for name in carrying.steps(service.engine, State.PUBLISHED, State.CREATED)[1:]:
        yield Step(operation=name, text="where no other pod of this node has it")
    if service.node_records.get(records.PATH, call.path).get("ephemeral"):
        yield Step(operation="delete_volume", text="it is this pod's alone, and ephemeral")


def _named(operations: Mapping[str, object], name: str, text: str) -> Iterator[Step]:
    if name in operations:
        yield Step(operation=name, text=text)


def _way(service: Service, options: Options | None) -> str:
    if options is None:
        return ""
    capability = service.volumes.capability(options, "")
    words = [
        capability.fs_type,
        "read-only" if options.readonly else "writable",
        *(() if not capability.mount_flags else ("with mount options",)),
    ]
    return ", ".join(filter(None, words))
