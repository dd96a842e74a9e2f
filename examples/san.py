"""A SAN-like array, whole: attached per initiator, found on the node by its serial number, logged out by record.

`ArrayClient` stands for the vendor's SDK (its methods are REST calls there); everything else is what the vendor writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from volkit import (
    Backend,
    BlockConnection,
    BlockVolume,
    Controller,
    ControllerPublishResult,
    Expands,
    ExpandVolumeResult,
    FindsByName,
    Limits,
    Node,
    NodeInfo,
    NotFound,
    Publishes,
    Size,
    Volume,
    option,
    requests,
)
from volkit.host import devices


class ArrayClient(Protocol):
    """The vendor's SDK: each LUN a dict with id, name, size and serial. Raises KeyError for what is not there."""

    def create(self, name: str, size: int, tier: str) -> dict[str, Any]: ...
    def find(self, *, id: str = "", name: str = "") -> dict[str, Any]: ...
    def delete(self, id: str) -> None: ...
    def resize(self, id: str, size: int) -> None: ...
    def map(self, id: str, initiator: str) -> int: ...
    def unmap(self, id: str, initiator: str) -> None: ...


CLIENTS: dict[str, ArrayClient] = {}
"""One per endpoint; a vendor logs in here."""


@frozen
class Settings:
    endpoint: str = option(help="the array's management address")
    initiator: Path = option(default="/etc/iscsi/initiatorname.iscsi", help="where this node's IQN is")


@frozen
class Parameters:
    tier: str = option(default="ssd", help="which disks")
    stripe: Size = option(default="64Ki", help="bytes per stripe")


class SanController(Controller[Settings, Parameters], FindsByName, Publishes, Expands):
    def create_volume(self, request: requests.CreateVolumeRequest[Parameters]) -> Volume:
        return self.volume(self.array.create(request.name, request.size, request.parameters.tier))

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        self.array.delete(self.lun(id=request.volume_id)["id"])

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        return self.volume(self.lun(id=request.volume_id, name=request.name))

    def expand_volume(self, request: requests.ExpandVolumeRequest) -> ExpandVolumeResult:
        self.array.resize(request.volume_id, request.size)
        return ExpandVolumeResult(capacity=request.size)

    def controller_publish(self, request: requests.ControllerPublishRequest) -> ControllerPublishResult:
        lun = self.array.map(self.lun(id=request.volume_id)["id"], request.node_facts["iqn"])
        return ControllerPublishResult(publish_context={"lun": str(lun)})

    def controller_unpublish(self, request: requests.ControllerUnpublishRequest) -> None:
        self.array.unmap(self.lun(id=request.volume_id)["id"], request.node_facts.get("iqn", ""))

    @property
    def array(self) -> ArrayClient:
        return CLIENTS[self.settings.endpoint]

    def lun(self, *, id: str = "", name: str = "") -> dict[str, Any]:
        try:
            return self.array.find(id=id, name=name)
        except KeyError:
            raise NotFound(f"the array has no LUN {id or name!r}") from None

    def volume(self, lun: dict[str, Any]) -> Volume:
        return BlockVolume(id=lun["id"], capacity=lun["size"], context={"serial": lun["serial"]})


class SanNode(Node[Settings]):
    def info(self) -> NodeInfo:
        line = self.settings.initiator.read_text().strip()
        return NodeInfo(facts={"iqn": line.removeprefix("InitiatorName=")}, max_volumes=255)

    def connect(self, request: requests.ConnectRequest) -> BlockConnection:
        serial = request.volume_context["serial"]
        link = f"/dev/disk/by-id/scsi-S{serial}"
        # a vendor logs in and rescans here; then the device is waited for, and known by its serial, not by the link
        return BlockConnection(
            device=devices.wait_for(link, identity={"serial": serial}, timeout=30),
            identity={"serial": serial},
        )

    def disconnect(self, request: requests.DisconnectRequest) -> None:
        if isinstance(request.connection, BlockConnection):
            Path(f"/sys/class/block/{Path(request.connection.device).name}/device/delete").write_text("1")


class San(Backend[Settings, Parameters]):
    """LUNs of an array."""

    name, settings, parameters = "san", Settings, Parameters
    controller, node = SanController, SanNode
    limits = Limits(granularity=1 << 20)
