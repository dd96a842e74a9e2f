"""A driver that is tested, and an oracle, which is the memory backend: both get the same calls, and have to answer
alike. `volkit.testing.machine` says which calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from volkit import requests as r
from volkit.backend import Backend
from volkit.engine import Engine
from volkit.errors import Ambiguous, FailedPrecondition, VolkitError
from volkit.host import mounts
from volkit.interfaces import Clones, ConnectsPerPod, ExpandsOffline, Snapshots
from volkit.journal.memory import MemoryJournal
from volkit.lifecycle import plan
from volkit.model import (
    AccessMode,
    Capability,
    CapacityRange,
    CloneSource,
    Secrets,
    SnapshotSource,
    Source,
)
from volkit.operations import OPERATIONS, State
from volkit.testing.kit import Driver, Fault, Kit, check
from volkit.testing.memory import ARRAYS, MemoryBackend, MemoryController, MemoryNode, memory_settings

VOLUMES: Final = ("a", "b")
SNAPSHOTS: Final = ("s", "t")
PODS: Final = ("1", "2")
MODES: Final = (AccessMode.SINGLE_NODE_WRITER, AccessMode.SINGLE_NODE_MULTI_WRITER)

_CSI: Final[Mapping[str, str]] = {
    "create_volume": "CreateVolume",
    "delete_volume": "DeleteVolume",
    "get_volume": "ControllerGetVolume",
    "validate_capabilities": "ValidateVolumeCapabilities",
    "controller_publish": "ControllerPublishVolume",
    "controller_unpublish": "ControllerUnpublishVolume",
    "list_volumes": "ListVolumes",
    "expand_volume": "ControllerExpandVolume",
    "create_snapshot": "CreateSnapshot",
    "delete_snapshot": "DeleteSnapshot",
    "get_snapshot": "GetSnapshot",
    "list_snapshots": "ListSnapshots",
    "node_stage": "NodeStageVolume",
    "node_unstage": "NodeUnstageVolume",
    "node_publish": "NodePublishVolume",
    "node_unpublish": "NodeUnpublishVolume",
    "node_stats": "NodeGetVolumeStats",
}
"""What the operations that are tried are called on the wire."""

Draw = Mapping[str, Any]


@define(eq=False)
class Side:
    """One of the two: the driver, where it works, and what the names that were used stand for there."""

    driver: Driver
    directory: Path
    parameters: Mapping[str, str]
    nodes: tuple[str, str]
    secrets: Secrets
    ids: dict[str, str] = field(factory=dict)
    contexts: dict[str, Mapping[str, str]] = field(factory=dict)

    def id(self, name: str) -> str:
        """The id that a volume or a snapshot of this name had last."""
        return self.ids.get(name, f"none-{name}")

    def path(self, kind: str, volume: str, number: str = "") -> str:
        path = self.directory / kind / f"{volume}{number}"
        (path if kind == "staging" else path.parent).mkdir(parents=True, exist_ok=True)
        return str(path)


def _capability(draw: Draw) -> Capability:
    return Capability(access_mode=draw["mode"])


def _create(side: Side, draw: Draw) -> Any:
    sources: dict[str, Callable[[str], Source]] = {"clone": CloneSource, "restore": SnapshotSource}
    source = sources.get(draw["how"])
    return r.CreateVolumeRequest(
        name=draw["volume"],
        parameters=side.parameters,
        capabilities=(_capability(draw),),
        capacity_range=CapacityRange(required=draw["size"]),
        source=source(side.id(draw["from"])) if source else None,
        secrets=side.secrets,
    )


def _used(side: Side, draw: Draw) -> dict[str, Any]:
    return {
        "volume_id": side.id(draw["volume"]),
        "capability": _capability(draw),
        "volume_context": side.contexts.get(draw["volume"], {}),
    }


_REQUESTS: Final[Mapping[str, Callable[[Side, Draw], Any]]] = {
    "create_volume": _create,
    "delete_volume": lambda side, draw: r.DeleteVolumeRequest(
        volume_id=side.id(draw["volume"]), secrets=side.secrets
    ),
    "get_volume": lambda side, draw: r.GetVolumeRequest(volume_id=side.id(draw["volume"])),
    "validate_capabilities": lambda side, draw: r.ValidateCapabilitiesRequest(
        volume_id=side.id(draw["volume"]), capabilities=(_capability(draw),)
    ),
    "controller_publish": lambda side, draw: r.ControllerPublishRequest(
        node_id=side.nodes[draw["node"]], readonly=draw["readonly"], **_used(side, draw)
    ),
    "controller_unpublish": lambda side, draw: r.ControllerUnpublishRequest(
        volume_id=side.id(draw["volume"]), node_id=side.nodes[draw["node"]]
    ),
    "list_volumes": lambda side, draw: r.ListRequest(),
    "expand_volume": lambda side, draw: r.ExpandVolumeRequest(
        volume_id=side.id(draw["volume"]), capacity_range=CapacityRange(required=draw["size"])
    ),
    "create_snapshot": lambda side, draw: r.CreateSnapshotRequest(
        name=draw["snapshot"], source_volume_id=side.id(draw["volume"]), secrets=side.secrets
    ),
    "delete_snapshot": lambda side, draw: r.DeleteSnapshotRequest(
        snapshot_id=side.id(draw["snapshot"]), secrets=side.secrets
    ),
    "get_snapshot": lambda side, draw: r.GetSnapshotRequest(snapshot_id=side.id(draw["snapshot"])),
    "list_snapshots": lambda side, draw: r.ListSnapshotsRequest(source_volume_id=side.id(draw["volume"])),
    "node_stage": lambda side, draw: r.NodeStageRequest(
        staging_target_path=side.path("staging", draw["volume"]), **_used(side, draw)
    ),
    "node_unstage": lambda side, draw: r.NodeUnstageRequest(
        volume_id=side.id(draw["volume"]), staging_target_path=side.path("staging", draw["volume"])
    ),
    "node_publish": lambda side, draw: r.NodePublishRequest(
        staging_target_path=side.path("staging", draw["volume"]),
        target_path=side.path("pods", draw["volume"], draw["pod"]),
        readonly=draw["readonly"],
        **_used(side, draw),
    ),
    "node_unpublish": lambda side, draw: r.NodeUnpublishRequest(
        volume_id=side.id(draw["volume"]), target_path=side.path("pods", draw["volume"], draw["pod"])
    ),
    "node_stats": lambda side, draw: r.NodeStatsRequest(
        volume_id=side.id(draw["volume"]), volume_path=side.path("pods", draw["volume"], draw["pod"])
    ),
}
"""How a request of each operation that is tried is made from what was drawn."""


@frozen
class Answer:
    """How a call ended, as far as two backends must agree."""

    error: type[VolkitError] | None
    facts: Any = None

    def agrees(self, other: Answer) -> bool:
        if self.error is None or other.error is None:
            return self == other
        return issubclass(self.error, other.error) or issubclass(other.error, self.error)

    def __str__(self) -> str:
        return (
            self.error.__name__
            if self.error
            else f"OK {self.facts if self.facts is not None else ''}".strip()
        )


def _facts(operation: str, result: Any, side: Side) -> Any:
    """Of a result, what does not depend on whose it is: names instead of ids, and nothing of sizes. What others have on
    the same storage is listed too, and is not looked at: the witness counts.
    """
    names = {id_: name for name, id_ in side.ids.items()}
    match operation:
        case "create_volume" | "create_snapshot":
            return None
        case "list_volumes":
            return sorted(names[one.volume.id] for one in result.entries if one.volume.id in names)
        case "list_snapshots":
            return sorted(names[one.id] for one in result.entries if one.id in names)
        case "get_volume":
            return names.get(result.volume.id, "?")
        case "get_snapshot":
            return names.get(result.id, "?"), names.get(result.source_volume_id, "?")
        case "validate_capabilities":
            return result.confirmed
    return None


class Pair:
    """The driver that is tested, and the oracle, doing the same."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.script: list[str] = []
        self.states: dict[str, State] = {}
        self.sizes: dict[str, int] = {}
        self.unbounded: set[str] = set()
        self.requests: list[tuple[str, Draw, Any, Any]] = []
        suite = kit.suite
        nodes = suite.nodes
        secrets = Secrets(suite.secrets)
        self.tested: Side = Side(kit.driver, kit.directory / "tested", dict(suite.parameters), nodes, secrets)
        self._oracle_settings = memory_settings(root=kit.directory / "oracle-volumes")
        self._oracle_backend = oracle_for(kit)
        self._oracle_journal = MemoryJournal()
        self.oracle: Side = Side(
            self._oracle(), kit.directory / "oracle", {}, ("node-a", "node-b"), Secrets({})
        )
        self.before: dict[str, Counter[Any]] = (
            kit.seen()
        )  # what an earlier sequence has leaked is not this one's
        kit.spy.wrong.clear()

    def _oracle(self) -> Driver:
        state = self.kit.directory / "oracle-state"
        state.mkdir(exist_ok=True)
        return Engine(
            self._oracle_backend,
            self._oracle_settings,
            state_dir=state,
            journal=self._oracle_journal,
            node_journal=self._oracle_journal,
            node_id="oracle",
        )

    def operations(self) -> list[str]:
        """Those of the table that both serve and that are tried here."""
        kit = self.kit
        classes = {"controller": kit.controller_class, "node": kit.node_class}
        own = [name for name in _REQUESTS if OPERATIONS[name].served_by(classes[OPERATIONS[name].side])]
        return own if kit.has_node else [name for name in own if OPERATIONS[name].side == "controller"]

    def step(self, operation: str, draw: Draw) -> None:
        """Do it at both, and compare."""
        made = _REQUESTS[operation]
        self._both(operation, draw, made(self.tested, draw), made(self.oracle, draw))

    def way(self, volume: str, end: State) -> list[str]:
        """The operations of the plan that leads a volume to `end`."""
        rows = [OPERATIONS[name] for name in self.operations()]
        return [row.name for row in plan(self.states.get(volume, State.ABSENT), end, rows)]

    def again(self, number: int) -> None:
        """An earlier request once more, as it was. Where it speaks of what is there now, by an id that was used
        before, it has to at the oracle too, whose ids are always new.
        """
        if not self.requests:
            return
        operation, draw, tested, oracle = self.requests[number % len(self.requests)]
        if _REQUESTS[operation](self.tested, draw) == tested:
            oracle = _REQUESTS[operation](self.oracle, draw)
        self._both(operation, draw, tested, oracle, note="  # once more")

    def restart(self) -> None:
        """The process that serves ends, and another one begins."""
        self.script.append("# the driver is restarted")
        self.kit.stop()
        self.tested.driver = self.kit.driver
        self.oracle.driver = self._oracle()

    def _both(self, operation: str, draw: Draw, tested: Any, oracle: Any, note: str = "") -> None:
        self.requests.append((operation, draw, tested, oracle))
        words = " ".join(f"{name}={getattr(value, 'name', value)}" for name, value in draw.items())
        self.script.append(f"{_CSI[operation]} {words}{note}")
        answer = self._answer(self.tested, operation, draw, tested)
        if self._may_refuse(operation, answer):
            self.script[-1] += f"  -> {answer}"
            return
        wanted = self._answer(self.oracle, operation, draw, oracle)
        self.script[-1] += f"  -> {answer}"
        if operation == "create_volume" and answer.error is None:
            made = self.sizes.setdefault(draw["volume"], draw["size"])
            if draw["volume"] in self.unbounded and made != draw["size"]:
                return  # a volume without a size meets any
        row = OPERATIONS[operation]
        gone = operation == "delete_volume" and answer.error is None
        if gone and tested.volume_id == self.tested.id(draw["volume"]):  # and not one that was there before
            self.sizes.pop(draw["volume"], None)
        if answer.error is None and row.after is not None:
            self.states[draw["volume"]] = row.after
        check(answer.agrees(wanted), f"{_CSI[operation]} is answered with {answer}, not with {wanted}")

    def _may_refuse(self, operation: str, answer: Answer) -> bool:
        """CSI spec, DeleteVolume: a volume that snapshots or clones depend on may be refused, or deleted."""
        depends = operation == "delete_volume" and (self.kit.has(Snapshots) or self.kit.has(Clones))
        refused = answer.error is not None and issubclass(answer.error, FailedPrecondition)
        return depends and refused and not self._in_use()

    def _in_use(self) -> bool:
        return bool(self.mounted(self.tested)) or any(
            stored.nodes for stored in ARRAYS[self._oracle_settings.array].volumes.values()
        )

    def _answer(self, side: Side, operation: str, draw: Draw, request: Any) -> Answer:
        try:
            run = self.kit.within if side is self.tested else lambda work, what: work()
            result = run(lambda: self._patient(side, operation, request), operation)
        except Fault:
            raise
        except VolkitError as error:
            return Answer(type(error))
        if operation in ("create_volume", "create_snapshot"):
            name = draw["volume" if operation == "create_volume" else "snapshot"]
            side.ids[name] = result.id
            if operation == "create_volume":
                side.contexts[name] = result.context
                if side is self.tested and not result.capacity:
                    self.unbounded.add(name)
        return Answer(None, _facts(operation, result, side))

    @staticmethod
    def _patient(side: Side, operation: str, request: Any) -> Any:
        for _ in range(3):
            with suppress(Ambiguous):
                return side.driver.run(operation, request)
        return side.driver.run(operation, request)

    def compare(self) -> None:
        """The witness sees as many things as the oracle has, and as much is mounted."""
        if self.kit.spy.wrong:
            raise Fault("; ".join(dict.fromkeys(self.kit.spy.wrong)))
        array = ARRAYS[self._oracle_settings.array]
        seen = self.kit.seen()
        for sort, wanted in (("volumes", array.volumes), ("snapshots", array.snapshots)):
            count = sum(seen[sort].values()) - sum(self.before[sort].values())
            check(count == len(wanted), f"the witness sees {count} {sort}, not {len(wanted)}")
        if self.kit.has_node:
            here, there = self.mounted(self.tested), self.mounted(self.oracle)
            check(here == there, f"mounted are {here}, not {there}")

    @staticmethod
    def mounted(side: Side) -> list[str]:
        """What is mounted there, without the part of the path that is each one's own."""
        if not side.directory.exists():
            return []
        own = f"{side.directory}/"
        return sorted(one.mount_point.removeprefix(own) for one in mounts.mounts(under=str(side.directory)))

    def end(self) -> None:
        """Take everything away again, at the tested one; nothing may be left."""
        for side in (self.tested, self.oracle):
            for volume in VOLUMES:
                draw = {"volume": volume, "mode": MODES[0], "readonly": False}
                steps: list[tuple[str, dict[str, Any]]] = [
                    ("node_unpublish", {"pod": pod}) for pod in PODS
                ] + [("node_unstage", {})]
                steps += [("controller_unpublish", {"node": node}) for node in (0, 1)]
                self._quietly(side, steps, draw)
            self._quietly(side, [("delete_snapshot", {"snapshot": name}) for name in SNAPSHOTS], {})
            for _ in VOLUMES:  # a clone may keep its source from going
                self._quietly(side, [("delete_volume", {"volume": volume}) for volume in VOLUMES], {})
        for sort, seen in self.kit.seen().items():
            left = seen - self.before[sort]
            check(not left, f"after all is removed, the witness sees {sort}: {sorted(map(str, left))}")

    def _quietly(self, side: Side, steps: list[tuple[str, dict[str, Any]]], draw: Draw) -> None:
        served = self.operations()
        for operation, more in steps:
            if operation in served:
                with suppress(VolkitError):
                    side.driver.run(operation, _REQUESTS[operation](side, {**draw, **more}))


def oracle_for(kit: Kit) -> type[Backend[Any, Any]]:
    """The memory backend with the limits of the tested one, and without what that has not."""
    bases = (MemoryController, *([ExpandsOffline] if kit.has(ExpandsOffline) else []))
    node_bases = (MemoryNode, *([ConnectsPerPod] if kit.has(ConnectsPerPod) else []))
    make: Any = type(MemoryController)
    body = {
        "controller": make("OracleController", bases, {}),
        "node": make("OracleNode", node_bases, {}),
        "limits": kit.backend.limits,
        "name": "oracle",
        "__module__": __name__,
    }
    made: type[Backend[Any, Any]] = make("OracleBackend", (MemoryBackend,), body)
    return made
