"""A directory of the pool, on the node that it is on."""

from __future__ import annotations

from volkit import (
    Connection,
    FileConnection,
    MountsForGroup,
    Node,
    ReportsTopology,
    Topology,
    Usage,
    requests,
)
from volkit_local.options import LocalSettings
from volkit_local.pool import VOLUMES, Pool


class LocalNode(Node[LocalSettings], MountsForGroup, ReportsTopology):
    """Says where the directories are: they are reached without doing anything."""

    def __init__(self, settings: LocalSettings, node_id: str) -> None:
        super().__init__(settings, node_id)
        self.pool: Pool = Pool(settings)

    def connect(self, request: requests.ConnectRequest) -> FileConnection:
        return FileConnection(directory=self.pool.get(VOLUMES, request.volume_id).data)

    def disconnect(self, request: requests.DisconnectRequest) -> None:
        """Nothing was connected."""

    def usage(self, volume_id: str, connection: Connection) -> Usage | None:
        return self.pool.usage(self.pool.get(VOLUMES, volume_id))

    def topology(self) -> Topology:
        return Topology.of_node(self.node_id)
