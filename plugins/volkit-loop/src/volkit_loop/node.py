"""An image file as a loop device of this node."""

from __future__ import annotations

from collections.abc import Iterator

from volkit import (
    BlockConnection,
    FailedPrecondition,
    ListsConnections,
    Node,
    NotFound,
    ReportsTopology,
    Topology,
    requests,
)
from volkit.host import devices, files, loop
from volkit_loop.options import LoopSettings
from volkit_loop.pool import VOLUMES, Pool


class LoopNode(Node[LoopSettings], ListsConnections, ReportsTopology):
    """Attaches the images of the pool on this node."""

    def __init__(self, settings: LoopSettings, node_id: str) -> None:
        super().__init__(settings, node_id)
        self.pool: Pool = Pool(
            settings.pool, overcommit=settings.overcommit, freeze_limit=settings.freeze_limit
        )

    def connect(self, request: requests.ConnectRequest) -> BlockConnection:
        image = self.pool.get(VOLUMES, request.volume_id)
        identity = {"backing_inode": image.inode}
        # nothing else keeps a raw device from being written; a file system may have a log to replay first
        mode = request.capability.access_mode
        read_only = request.capability.block and (request.readonly or mode.read_only)
        # not only when resumed: a second device on one image has its own cache, and two mounts destroy it
        for device in loop.find(image.path):
            found = loop.status(device)
            if found and found.read_only == read_only:
                return BlockConnection(device=device, identity=identity)
            loop.detach(device, expect=identity)
        zeroed = files.reads_as_zeros(image.path)
        device = loop.attach(image.path, read_only=read_only, direct_io=self.settings.direct_io)
        return BlockConnection(device=device, identity=identity, zeroed=zeroed)

    def disconnect(self, request: requests.DisconnectRequest) -> None:
        known = request.connection
        # a device's number goes to another file once it is free: what it shows decides, not its name
        if isinstance(known, BlockConnection) and loop.detach(known.device, expect=known.identity):
            return
        try:
            path = self.pool.path(VOLUMES, request.volume_id)
        except NotFound:
            return
        for device in loop.find(path):
            loop.detach(device)

    def resize(self, request: requests.ResizeRequest) -> None:
        if not isinstance(request.connection, BlockConnection):
            raise FailedPrecondition(f"volume {request.volume_id} is not connected as a block device")
        device = devices.verify(request.connection.device, request.connection.identity)
        if (size := loop.resize(device)) < request.size:
            raise FailedPrecondition(
                f"{device} has {size} bytes, not {request.size}: expand the volume first"
            )

    def list_connections(self) -> Iterator[tuple[str, BlockConnection]]:
        for device, backing in loop.attached():
            if (volume_id := self.pool.volume_of(backing)) and (found := loop.status(device)):
                yield volume_id, BlockConnection(device=device, identity=found.identity)

    def topology(self) -> Topology:
        return Topology.of_node(self.node_id)
