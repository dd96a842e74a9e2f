"""What a node does for a volume that is there: grows it and tells how full it is; and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from volkit import requests, validate
from volkit.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, VolkitError
from volkit.guard import call_backend
from volkit.host import apart, devices, filesystems, fuse, mounts
from volkit.interfaces import ReportsTopology
from volkit.journal import key
from volkit.model import BlockConnection, FuseConnection, Usage, VolumeHealth
from volkit.node_ids import encode_node_id
from volkit.node_state import NodeState, from_record, is_raw


class Upkeep:
    """The operations of the table that look at a node or grow its volumes, each `(request, call)`."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def node_expand(
        self, request: requests.NodeExpandRequest, call: requests.Call
    ) -> requests.NodeExpandResult:
        validate.check_id(request.volume_id)
        validate.check_capacity_range(request.capacity_range)
        required = request.capacity_range.required
        with self._state.locks.hold(key("volume", request.volume_id), wait=call.patience()):
            record = self._known(request.volume_id, request.volume_path)
            connection = from_record(record["connection"])
            resize = requests.ResizeRequest(volume_id=request.volume_id, connection=connection, size=required)
            call_backend(self._state.node.resize, resize, type(None))
            if not isinstance(connection, BlockConnection):
                return requests.NodeExpandResult(
                    capacity=required or filesystems.usage(request.volume_path).total
                )
            devices.verify(connection.device, connection.identity)
            size = devices.size(connection.device)
            if size < required:
                raise FailedPrecondition(
                    f"{connection.device} has {size} bytes, asked for are {required}: expand the volume first"
                )
            if request.capacity_range.limit and size > request.capacity_range.limit:
                raise OutOfRange(
                    f"{connection.device} has {size} bytes, the limit is {request.capacity_range.limit}"
                )
            if record.get("fs_type"):
                filesystems.grow(connection.device, record["fs_type"], record["path"])
            return requests.NodeExpandResult(capacity=size)

    def node_stats(self, request: requests.NodeStatsRequest, call: requests.Call) -> requests.NodeStats:
        validate.check_id(request.volume_id)
        record = self._known(request.volume_id, request.volume_path)
        connection = from_record(record["connection"])
        if isinstance(connection, FuseConnection) and fuse.is_dead(request.volume_path):
            message = "the program that served it died, and is started again"
            return requests.NodeStats(
                usage=Usage(total=0), health=VolumeHealth(abnormal=True, message=message)
            )
        usage: Usage | None = call_backend(
            lambda _: self._state.node.usage(request.volume_id, connection), request, (Usage, type(None))
        )
        try:
            if usage is None and is_raw(record):
                usage = Usage(total=devices.size(str(record["connection"]["device"])))
            usage = usage or apart.reach(connection, filesystems.usage, request.volume_path)
        except VolkitError as error:
            return requests.NodeStats(
                usage=Usage(total=0), health=VolumeHealth(abnormal=True, message=error.message)
            )
        return requests.NodeStats(usage=usage)

    def _known(self, volume_id: str, path: str) -> Mapping[str, Any]:
        """The record that has the volume's connection, where the volume really is at `path`. Raises
        NotFound.
        """
        if not path:
            raise validate.missing("volume_path")
        staged, published = (
            self._state.stage_record(volume_id),
            self._state.record(key("target", volume_id, path)),
        )
        record = published if self._state.per_pod else staged
        if not record or not record.get("connection") or not self._is_at(path, staged, published):
            raise NotFound(f"volume {volume_id!r} is not at {path!r} on this node")
        return record

    def _is_at(
        self, path: str, staged: Mapping[str, Any] | None, published: Mapping[str, Any] | None
    ) -> bool:
        """Is the volume really there: staged, published, or where somebody bound it, as kubelet does with the node of a
        raw block volume and asks for its usage there?
        """
        if published and mounts.is_mount_point(path):
            return True
        if not staged or not self._state.really_staged(staged):
            return False
        if staged["path"] == path:
            return True
        if is_raw(staged):
            return devices.number(path) == devices.number(staged["connection"]["device"])
        try:
            return mounts.is_mount_point(path) and mounts.same_mount(staged["path"], path)
        except InvalidArgument:  # it can be no path
            return False

    def node_info(self, request: requests.NodeInfoRequest, call: requests.Call) -> requests.NodeInfo:
        info: requests.NodeInfo = call_backend(lambda _: self._state.node.info(), request, requests.NodeInfo)
        place = self._state.node.topology() if isinstance(self._state.node, ReportsTopology) else None
        return attrs.evolve(info, node_id=encode_node_id(self._state.node_id, info.facts), topology=place)
