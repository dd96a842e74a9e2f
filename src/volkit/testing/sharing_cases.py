"""Snapshots, and who uses a volume: attachments, stage and publish."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from volkit import requests as r
from volkit.errors import AlreadyExists, FailedPrecondition, InUse, InvalidArgument, InvalidToken, NotFound
from volkit.interfaces import (
    ConnectsPerPod,
    ListsConnections,
    ListsPublished,
    ListsSnapshots,
    Node,
    Publishes,
    ReportsTopology,
    Snapshots,
)
from volkit.model import AccessMode, AccessType, Capability, CapacityRange, SnapshotSource, Topology, Volume
from volkit.testing.kit import SINGLE, Kit, check, needs
from volkit.testing.volume_cases import check_record, pages


class SnapshotCases:
    """Snapshots, and volumes made from them."""

    @needs(Snapshots)
    def test_snapshot_is_cut_once(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        name = kit.name()
        first = kit.cut(volume.id, name)
        check(first.id, "the snapshot has no id")
        check(
            first.source_volume_id == volume.id,
            f"a snapshot of {volume.id!r} says {first.source_volume_id!r}",
        )
        check(first.created_at.tzinfo is not None, "the snapshot's created_at has no time zone: give UTC")
        check(kit.cut(volume.id, name).id == first.id, "the same snapshot again has another id")
        kit.stop()
        check(kit.cut(volume.id, name).id == first.id, "the same snapshot after a restart has another id")
        kit.expect("after a repeated snapshot", volumes=1, snapshots=1)

    @needs(Snapshots)
    def test_snapshot_of_another_volume_is_refused(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        first, second, name = kit.create(), kit.create(), kit.name()
        kit.cut(first.id, name)
        with kit.refused("a snapshot of the same name of another volume", AlreadyExists):
            kit.cut(second.id, name)
        with kit.refused("a snapshot of what is not there", NotFound):
            kit.cut("no-such-volume")
        with kit.refused("a snapshot without a source", InvalidArgument):
            kit.cut("")
        kit.expect("after refused snapshots", volumes=2, snapshots=1)

    @needs(Snapshots)
    def test_snapshots_stay(self, volkit_kit: Kit) -> None:
        """Neither a restart, nor another snapshot, nor the deletion of another one takes one away."""
        kit = volkit_kit
        volume = kit.create()
        made = [kit.cut(volume.id) for _ in range(3)]
        kit.uncut(made[1].id)
        kit.uncut(made[1].id)
        kit.stop()
        for one in (made[0], made[2]):
            found = kit.run("get_snapshot", r.GetSnapshotRequest(snapshot_id=one.id))
            check(
                (found.id, found.source_volume_id) == (one.id, volume.id),
                f"snapshot {one.id!r} became {found}",
            )
        with kit.refused("get_snapshot after the delete", NotFound):
            kit.run("get_snapshot", r.GetSnapshotRequest(snapshot_id=made[1].id))
        kit.expect("after one of three snapshots is deleted", volumes=1, snapshots=2)

    @needs(Snapshots)
    def test_restore(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        snapshot = kit.cut(volume.id)
        check(
            snapshot.size <= volume.capacity or not volume.capacity,
            f"a snapshot of {volume.capacity} bytes needs {snapshot.size}",
        )
        if not snapshot.ready:
            return
        request = kit.request(source=SnapshotSource(snapshot.id))
        restored = kit.create_as(request)
        check_record(restored, request)
        with kit.refused("a volume from a snapshot that is not there", NotFound):
            kit.create(source=SnapshotSource("no-such-snapshot"))
        kit.expect("after a restore", volumes=2, snapshots=1)

    @needs(ListsSnapshots)
    def test_snapshot_list(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        first, second = kit.create(), kit.create()
        of_first = {kit.cut(first.id).id for _ in range(3)}
        of_second = {kit.cut(second.id).id}
        for limit in (0, 1, 2, 100):
            ids = pages(kit, "list_snapshots", r.ListSnapshotsRequest, limit)
            check(len(set(ids)) == len(ids), f"pages of {limit}: a snapshot is listed twice")
            check(of_first | of_second <= set(ids), f"pages of {limit}: a snapshot is not listed")
            ids = pages(kit, "list_snapshots", r.ListSnapshotsRequest, limit, source_volume_id=first.id)
            check(sorted(ids) == sorted(of_first), f"pages of {limit}: the snapshots of one volume are {ids}")
        check(
            not pages(kit, "list_snapshots", r.ListSnapshotsRequest, 0, source_volume_id="no-such-volume"),
            "snapshots are listed of a volume that is not there",
        )
        with kit.refused("a listing with a token that no page gave out", InvalidToken):
            kit.run("list_snapshots", r.ListSnapshotsRequest(token="volkit no such token"))


def publish_request(volume: Volume, node: str = "node-a", **fields: Any) -> r.ControllerPublishRequest:
    """A ControllerPublish for a single writer."""
    return r.ControllerPublishRequest(
        **{
            "volume_id": volume.id,
            "node_id": node,
            "capability": SINGLE,
            "volume_context": volume.context,
            **fields,
        }
    )


class AttachmentCases:
    """Volumes that the storage attaches to nodes."""

    @needs(Publishes)
    def test_attach_and_detach(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        request = publish_request(volume, kit.suite.nodes[0])
        kit.later(lambda: kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id)))
        first = kit.run("controller_publish", request)
        kit.expect("after an attach", volumes=1, attachments=1)
        again = kit.run("controller_publish", request)
        check(first == again, f"the same attach again says {dict(again.publish_context)}")
        kit.expect("after a repeated attach", volumes=1, attachments=1)
        with kit.refused("to delete an attached volume", FailedPrecondition):
            kit.delete(volume.id)
        undo = r.ControllerUnpublishRequest(volume_id=volume.id, node_id=kit.suite.nodes[0])
        for _ in range(2):
            kit.run("controller_unpublish", undo)
            kit.expect("after a detach", volumes=1)
        with kit.refused("to attach what is not there", NotFound):
            kit.run(
                "controller_publish", publish_request(volume, kit.suite.nodes[0], volume_id="no-such-volume")
            )
        kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id="no-such-volume", node_id="n"))

    @needs(Publishes)
    def test_a_single_node_volume_is_not_attached_twice(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        one, other = kit.suite.nodes
        volume = kit.create()
        kit.later(lambda: kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id)))
        kit.run("controller_publish", publish_request(volume, one))
        with kit.refused("to attach a single-node volume to a second node", FailedPrecondition):
            kit.run("controller_publish", publish_request(volume, other))
        kit.expect("after a refused attach", volumes=1, attachments=1)
        kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id, node_id=one))
        kit.run("controller_publish", publish_request(volume, other))
        kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id))
        kit.expect("after a detach from all nodes", volumes=1)

    @needs(ListsPublished)
    def test_the_nodes_of_a_volume_are_told(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume, apart = kit.create(), kit.create()
        kit.later(lambda: kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id)))
        kit.run("controller_publish", publish_request(volume, kit.suite.nodes[0]))
        for id_, nodes in ((volume.id, (kit.suite.nodes[0],)), (apart.id, ())):
            entry = kit.run("get_volume", r.GetVolumeRequest(volume_id=id_))
            check(
                entry.published_node_ids == nodes, f"attached to {nodes}, told are {entry.published_node_ids}"
            )


class Used:
    """A volume on this node, with its paths."""

    def __init__(self, kit: Kit, volume: Volume, capability: Capability = SINGLE) -> None:
        self.kit: Kit = kit
        self.volume: Volume = volume
        self.capability: Capability = capability
        self.staging: Path = kit.directory / "staging" / volume.id.replace("/", "_")
        self.target: Path = kit.directory / "pods" / volume.id.replace("/", "_")
        self.staging.mkdir(parents=True, exist_ok=True)
        self.target.parent.mkdir(exist_ok=True)
        self.context: Any = {}
        self.written: bool = False
        kit.later(self.end)

    @property
    def per_pod(self) -> bool:
        return self.kit.has(ConnectsPerPod)

    def attach(self) -> None:
        if self.kit.has(Publishes):
            node = self.kit.run("node_info", r.NodeInfoRequest()).node_id
            request = publish_request(self.volume, node, capability=self.capability, secrets=self.kit.secrets)
            self.context = self.kit.run("controller_publish", request).publish_context

    def stage(self, **fields: Any) -> None:
        if self.per_pod:
            return
        given = {
            "volume_id": self.volume.id,
            "staging_target_path": str(self.staging),
            "capability": self.capability,
            "volume_context": self.volume.context,
            "publish_context": self.context,
            "secrets": self.kit.secrets,
        }
        self.kit.run("node_stage", r.NodeStageRequest(**{**given, **fields}))

    def publish(self, target: Path | None = None, **fields: Any) -> None:
        given = {
            "volume_id": self.volume.id,
            "staging_target_path": str(self.staging),
            "target_path": str(target or self.target),
            "capability": self.capability,
            "volume_context": self.volume.context,
            "publish_context": self.context,
            "secrets": self.kit.secrets,
        }
        self.kit.run("node_publish", r.NodePublishRequest(**{**given, **fields}))

    def unpublish(self, target: Path | None = None) -> None:
        request = r.NodeUnpublishRequest(volume_id=self.volume.id, target_path=str(target or self.target))
        self.kit.run("node_unpublish", request)

    def unstage(self) -> None:
        if not self.per_pod:
            request = r.NodeUnstageRequest(volume_id=self.volume.id, staging_target_path=str(self.staging))
            self.kit.run("node_unstage", request)

    def detach(self) -> None:
        if self.kit.has(Publishes):
            request = r.ControllerUnpublishRequest(volume_id=self.volume.id, secrets=self.kit.secrets)
            self.kit.run("controller_unpublish", request)

    def grow(self) -> None:
        """Have the node notice the size that the volume has now."""
        request = r.NodeExpandRequest(
            volume_id=self.volume.id,
            volume_path=str(self.target),
            staging_target_path=str(self.staging),
            capacity_range=CapacityRange(required=self.volume.capacity),
            capability=self.capability,
            secrets=self.kit.secrets,
        )
        self.kit.run("node_expand", request)

    def write(self) -> None:
        """Leave something in the volume, as it is published."""
        descriptor = os.open(self._place, os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(descriptor, self._mark, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.written = True

    def check_written(self) -> None:
        """Is it still there?"""
        if self.written:
            found = b""
            with suppress(FileNotFoundError), open(self._place, "rb") as file:
                found = file.read(len(self._mark))
            check(found == self._mark, "what was written to the volume is gone")

    @property
    def _place(self) -> Path:
        return self.target if self.capability.block else self.target / "volkit"

    @property
    def _mark(self) -> bytes:
        return self.volume.id.encode().ljust(512, b"\0")

    def begin(self) -> None:
        """All the way up."""
        self.attach()
        self.stage()
        self.publish()

    def end(self) -> None:
        """All the way down."""
        self.unpublish()
        self.unstage()
        self.detach()

    def mounted(self) -> list[str]:
        """What of it the kernel has mounted."""
        from volkit.host import mounts

        return [path for path in (str(self.staging), str(self.target)) if mounts.is_mount_point(path)]


class NodeCases:
    """A volume on this very machine, really mounted."""

    @needs(Node)
    def test_stage_and_publish(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        used = Used(kit, kit.create())
        used.begin()
        used.stage()
        used.publish()
        attached = self._attached(kit)
        file = used.target / "volkit"
        file.write_text("kept")
        kit.stop()
        used.publish()
        check(
            file.exists() and file.read_text() == "kept",
            "a repeated publish hides or removes what was written",
        )
        with kit.refused("to delete a published volume", InUse):
            kit.delete(used.volume.id)
        check(self._attached(kit) == attached, "repeated calls attach the volume to this node once more")
        for _ in range(2):
            used.unpublish()
            used.unstage()
        check(not used.mounted(), f"after unpublish and unstage these are mounted: {used.mounted()}")
        check(not used.target.exists(), "after unpublish the target is still there")
        used.detach()
        kit.expect("after unpublish and unstage", volumes=1)
        used.begin()
        check(
            file.exists() and file.read_text() == "kept",
            "what was written is gone when the volume is mounted again",
        )

    @staticmethod
    def _attached(kit: Kit) -> int:
        return sum(kit.seen()["attachments"].values())

    @needs(Node)
    def test_publish_read_only(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        used = Used(kit, kit.create())
        used.attach()
        used.stage()
        used.publish(readonly=True)
        try:
            (used.target / "volkit").write_text("x")
        except OSError:
            pass
        else:
            check(False, "a volume that is published read-only can be written to")

    @needs(Node)
    def test_a_second_target(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        shared = Capability(access_mode=AccessMode.SINGLE_NODE_MULTI_WRITER)
        if shared.access_mode not in kit.backend.limits.access_modes:
            return
        used = Used(kit, kit.create(capabilities=(shared,)), shared)
        used.begin()
        second = used.target.with_name(f"{used.target.name}-2")
        kit.later(lambda: used.unpublish(second))
        used.publish(second)
        (used.target / "volkit").write_text("seen")
        check((second / "volkit").read_text() == "seen", "two targets of one volume show different things")
        used.unpublish()
        check((second / "volkit").read_text() == "seen", "an unpublish takes the other target away")

    @needs(Node)
    def test_raw_block(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        raw = Capability(access_type=AccessType.BLOCK)
        if not kit.block:
            with kit.refused("a raw block device from a volume that is none", InvalidArgument):
                kit.create(capabilities=(raw,))
            return
        used = Used(kit, kit.create(capabilities=(raw,)), raw)
        used.begin()
        for data in (b"volkit" + bytes(506), b"again!" + bytes(506)):
            descriptor = os.open(used.target, os.O_RDWR)
            try:
                os.pwrite(descriptor, data, 0)
                os.fsync(descriptor)
                check(
                    os.pread(descriptor, 512, 0) == data,
                    "a raw block device does not return what was written",
                )
            finally:
                os.close(descriptor)
        used.end()
        kit.expect("after a raw block device is unpublished", volumes=1)

    @needs(Node)
    def test_stats_and_info(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        used = Used(kit, kit.create())
        used.begin()
        request = r.NodeStatsRequest(volume_id=used.volume.id, volume_path=str(used.target))
        stats = kit.run("node_stats", request)
        bounded = stats.usage.total > 0 or not used.volume.capacity  # an empty bucket has nothing at all
        check(bounded and not stats.health.abnormal, f"a published volume's usage is {stats}")
        with kit.refused("the usage of what is not there", NotFound):
            kit.run(
                "node_stats", r.NodeStatsRequest(volume_id="no-such-volume", volume_path=str(used.target))
            )
        check(kit.run("node_info", r.NodeInfoRequest()).node_id, "the node has no id")

    @needs(Node)
    def test_publish_without_stage_is_refused(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        used = Used(kit, kit.create())
        if used.per_pod:
            return
        with kit.refused("a publish before the stage", FailedPrecondition):
            used.publish()
        used.unpublish()
        used.unstage()
        kit.expect("after a refused publish", volumes=1)

    @needs(Node, ListsConnections)
    def test_connections_are_told(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        node_class: Any = kit.node_class
        node = node_class(kit.storage.settings, "n1")
        used, others = Used(kit, kit.create()), list(node.list_connections())
        check(
            all(volume_id != used.volume.id for volume_id, _ in others),
            "a volume that was never staged is connected",
        )
        used.begin()
        found = [volume_id for volume_id, _ in node.list_connections()]
        check(found.count(used.volume.id) == 1, f"a staged volume is connected as {found}")
        used.end()
        left = list(node.list_connections())
        check(len(left) == len(others), f"after the unstage, {left} is connected")

    @needs(ReportsTopology)
    def test_topology(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        here = kit.run("node_info", r.NodeInfoRequest()).topology
        check(isinstance(here, Topology) and here.segments, f"the node's topology is {here}")
        volume = kit.create()
        check(
            not volume.topology or any(place.within(here) for place in volume.topology),
            f"a new volume at {volume.topology} cannot be used on this node at {here}",
        )
