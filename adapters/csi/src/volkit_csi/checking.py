"""What a check from outside works with: the driver, a volume in use, and the table that checks are put into."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from volkit.host import mounts
from volkit_csi.client import CallError, Client
from volkit_csi.lean import csi_pb2

pb: Any = csi_pb2
UNKNOWN_ID: Final = "volkit-check-no-such-volume"
SECRET: Final = "volkit-check-secret-7c1f"
AGAIN: Final = frozenset({"ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
_BAD: Final = ("INVALID_ARGUMENT",)


class Failed(AssertionError):
    """Something was seen that must not be."""


@frozen
class Row:
    """One check: `needs` are capabilities as the driver reports them, "node" and "controller" among them; `strict` is
    False for what breaks no rule.
    """

    id: str
    title: str
    source: str
    check: Callable[[Driver], None]
    needs: tuple[str, ...] = ()
    strict: bool = True


def expect(fine: object, message: str) -> None:
    """Raises Failed unless `fine`."""
    if not fine:
        raise Failed(message)


@define(eq=False)
class Driver:
    """The driver under check, and what was made in it. Paths are of directories that exist."""

    controller: Client
    node: Client
    staging: Path
    targets: Path
    parameters: Mapping[str, str] = field(factory=dict)
    secrets: Mapping[str, str] = field(factory=dict)
    size: int = 0
    log: Path | None = None
    capabilities: frozenset[str] = frozenset()
    node_id: str = ""
    said: list[str] = field(factory=list)
    _undo: list[Callable[[], object]] = field(factory=list)
    _number: int = 0

    def learn(self) -> None:
        """Ask what it can do."""
        found = set()
        for one in self.call("GetPluginCapabilities").capabilities:
            if one.HasField("service"):
                found.add(pb.PluginCapability.Service.Type.Name(one.service.type))
        if "CONTROLLER_SERVICE" in found:
            found.add("controller")
            rows = self.call("ControllerGetCapabilities").capabilities
            found |= {
                "controller:" + pb.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in rows
            }
        with suppress(CallError):
            rows = self.call("NodeGetCapabilities").capabilities
            found |= {
                "node",
                *("node:" + pb.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in rows),
            }
            self.node_id = self.call("NodeGetInfo").node_id
        self.capabilities = frozenset(found)

    def has(self, need: str) -> bool:
        return need in self.capabilities

    # -- calls

    def call(self, method: str, request: Any = None, timeout: float = 60.0) -> Any:
        """One RPC. Raises CallError."""
        client = self.node if method.startswith("Node") else self.controller
        try:
            answer = client.call(method, request, timeout)
        except CallError as error:
            self.said.append(f"{method}: {error.message}")
            raise
        self.said.append(f"{method}: {answer}")
        return answer

    def code(self, method: str, request: Any = None, timeout: float = 60.0) -> str:
        """How one RPC ends: the name of its status."""
        try:
            self.call(method, request, timeout)
        except CallError as error:
            return error.code
        return "OK"

    def patiently(self, method: str, request: Any = None) -> Any:
        """An RPC, repeated as an orchestrator does while its end is not known."""
        for pause in (0.1, 0.3, 1.0, 2.0, 4.0):
            try:
                return self.call(method, request)
            except CallError as error:
                if error.code not in AGAIN:
                    raise
            time.sleep(pause)
        return self.call(method, request)

    def refused(self, method: str, request: Any, what: str, codes: Collection[str] = _BAD) -> None:
        """The call must end with one of `codes`."""
        code = self.code(method, request)
        expect(code in codes, f"{method} {what} is answered with {code}, not with {' or '.join(codes)}")

    # -- making

    def name(self) -> str:
        self._number += 1
        return f"volkit-check-{os.getpid()}-{self._number}"

    def capability(
        self, *, block: bool = False, mode: str = "SINGLE_NODE_WRITER", flags: tuple[str, ...] = ()
    ) -> Any:
        made = pb.VolumeCapability(access_mode={"mode": mode})
        if block:
            made.block.SetInParent()
        else:
            made.mount.mount_flags.extend(flags)
            made.mount.SetInParent()
        return made

    def creation(self, name: str = "", **fields: Any) -> Any:
        given: dict[str, Any] = {
            "name": name or self.name(),
            "volume_capabilities": [self.capability()],
            "parameters": self.parameters,
            "secrets": self.secrets,
            **({"capacity_range": {"required_bytes": self.size}} if self.size else {}),
        }
        return pb.CreateVolumeRequest(**{**given, **fields})

    def volume(self, name: str = "", **fields: Any) -> Any:
        """Make a volume, which goes away at the end."""
        request = self.creation(name, **fields)
        volume = self.patiently("CreateVolume", request).volume
        self.later(lambda: self.delete(volume.volume_id))
        return volume

    def delete(self, volume_id: str) -> None:
        self.patiently("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume_id, secrets=self.secrets))

    def snapshot(self, volume_id: str, name: str = "") -> Any:
        request = pb.CreateSnapshotRequest(
            name=name or self.name(), source_volume_id=volume_id, secrets=self.secrets
        )
        made = self.patiently("CreateSnapshot", request).snapshot
        delete = pb.DeleteSnapshotRequest(snapshot_id=made.snapshot_id, secrets=self.secrets)
        self.later(lambda: self.patiently("DeleteSnapshot", delete))
        return made

    def later(self, undo: Callable[[], object]) -> None:
        """Have it done at the end of the row, last first."""
        self._undo.append(undo)

    def undo(self) -> list[str]:
        """Take away what was made; what could not be taken away."""
        left = []
        while self._undo:
            try:
                self._undo.pop()()
            except CallError as error:
                left.append(str(error))
        return left

    def listed(self, limit: int = 0) -> list[str]:
        """The ids of all volumes, page by page."""
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListVolumesRequest(max_entries=limit, starting_token=token)
            answer = self.call("ListVolumes", request)
            found += [entry.volume.volume_id for entry in answer.entries]
            token = answer.next_token
            if not token:
                return found
            expect(len(found) < 1_000_000, "the pages of ListVolumes do not end")

    # -- a volume on this node

    def used(self, volume: Any, **fields: Any) -> Used:
        """A volume, staged where the driver stages; it is taken down at the end of the row."""
        used = Used(self, volume, **fields)
        self.later(used.down)
        used.attach()
        used.stage()
        return used


@define(eq=False)
class Used:
    """A volume with its places on this node."""

    driver: Driver
    volume: Any
    capability: Any = None
    context: Mapping[str, str] = field(factory=dict)
    staging: Path = field(init=False)
    target: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.capability = self.capability or self.driver.capability()
        short = re.sub(r"[^\w.-]", "_", self.volume.volume_id)[:64]
        self.staging = self.driver.staging / short
        self.target = self.driver.targets / short
        self.staging.mkdir(parents=True, exist_ok=True)
        self.driver.targets.mkdir(parents=True, exist_ok=True)

    def attach(self) -> None:
        if self.driver.has("controller:PUBLISH_UNPUBLISH_VOLUME"):
            request = pb.ControllerPublishVolumeRequest(
                volume_id=self.volume.volume_id,
                node_id=self.driver.node_id,
                volume_capability=self.capability,
                volume_context=self.volume.volume_context,
                secrets=self.driver.secrets,
            )
            self.context = self.driver.patiently("ControllerPublishVolume", request).publish_context

    def stage(self) -> None:
        if self.driver.has("node:STAGE_UNSTAGE_VOLUME"):
            self.driver.patiently("NodeStageVolume", self.staging_request())

    def staging_request(self, **fields: Any) -> Any:
        given = {
            "volume_id": self.volume.volume_id,
            "staging_target_path": str(self.staging),
            "volume_capability": self.capability,
            "volume_context": self.volume.volume_context,
            "publish_context": self.context,
            "secrets": self.driver.secrets,
        }
        return pb.NodeStageVolumeRequest(**{**given, **fields})

    def publishing(self, **fields: Any) -> Any:
        given = {
            "volume_id": self.volume.volume_id,
            "target_path": str(self.target),
            "volume_capability": self.capability,
            "volume_context": self.volume.volume_context,
            "publish_context": self.context,
            "secrets": self.driver.secrets,
        }
        if self.driver.has("node:STAGE_UNSTAGE_VOLUME"):
            given["staging_target_path"] = str(self.staging)
        return pb.NodePublishVolumeRequest(**{**given, **fields})

    def publish(self, **fields: Any) -> None:
        self.driver.patiently("NodePublishVolume", self.publishing(**fields))

    def unpublish(self, target: Path | None = None) -> None:
        request = pb.NodeUnpublishVolumeRequest(
            volume_id=self.volume.volume_id, target_path=str(target or self.target)
        )
        self.driver.patiently("NodeUnpublishVolume", request)

    def mounted(self) -> int:
        """How many mounts there are at the target."""
        return sum(one.mount_point == str(self.target) for one in mounts.mounts(under=str(self.target)))

    def down(self) -> None:
        """Unpublish, unstage, detach. What the driver leaves mounted is unmounted all the same."""
        try:
            self._down()
        finally:
            for path in (self.target, self.staging):
                mounts.unmount(str(path), lazy=True)
            with suppress(OSError):
                self.staging.rmdir()

    def _down(self) -> None:
        driver, id_ = self.driver, self.volume.volume_id
        self.unpublish()
        if driver.has("node:STAGE_UNSTAGE_VOLUME"):
            unstage = pb.NodeUnstageVolumeRequest(volume_id=id_, staging_target_path=str(self.staging))
            driver.patiently("NodeUnstageVolume", unstage)
        if driver.has("controller:PUBLISH_UNPUBLISH_VOLUME"):
            detach = pb.ControllerUnpublishVolumeRequest(
                volume_id=id_, node_id=driver.node_id, secrets=driver.secrets
            )
            driver.patiently("ControllerUnpublishVolume", detach)


@contextmanager
def nothing_made(driver: Driver, what: str) -> Iterator[None]:
    """No volume may come into being in here."""
    if not driver.has("controller:LIST_VOLUMES"):
        yield
        return
    before = set(driver.listed())
    yield
    new = set(driver.listed()) - before
    for volume_id in new:
        driver.later(partial(driver.delete, volume_id))
    expect(not new, f"{what} makes a volume: {sorted(new)}")


def without(message: Any, path: str) -> Any:
    """A copy of a message without the field that a dotted path leads to."""
    made = type(message)()
    made.CopyFrom(message)
    *way, last = path.split(".")
    at: Any = made
    for name in way:
        at = getattr(at, name)
        at = at[0] if hasattr(at, "__len__") and not isinstance(at, str) else at
    at.ClearField(last)
    return made


def missing_fields(driver: Driver, method: str, request: Any, *paths: str) -> None:
    """Each of the required fields left out alone is INVALID_ARGUMENT."""
    for path in paths:
        driver.refused(method, without(request, path), f"without {path}")
