"""What is cut short: each operation with what it needs before it, the call, and what must be true after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve, frozen

from volkit import requests as r
from volkit.interfaces import (
    Clones,
    ConnectsPerPod,
    Expands,
    FindsByName,
    Lists,
    ListsPublished,
    ListsSnapshots,
    Mixin,
    Modifies,
    Node,
    Publishes,
    ReportsCapacity,
    Snapshots,
    TakesIds,
    TakesTokens,
)
from volkit.model import AccessType, Capability, CapacityRange, CloneSource, SnapshotSource, Volume
from volkit.testing.kit import SINGLE, Kit, check, lacking
from volkit.testing.sharing_cases import Used, publish_request

_SAFE: tuple[type[Mixin], ...] = (FindsByName, TakesIds, TakesTokens)


def _nothing(kit: Kit, given: Any, result: Any) -> None: ...


@frozen(kw_only=True)
class Scenario:
    """One operation: `prepare` what it takes, `call` it (again and again), and `verify` what is there after it.

    `other` is a different call that the first one, cut short, may have made impossible; `again` is what an
    orchestrator does after the machine was restarted, where that is more than the call. `makes` says that a final
    refusal has to leave nothing. `needs` is as in `volkit.testing.kit.needs`.
    """

    prepare: Callable[[Kit], Any]
    call: Callable[[Kit, Any], Any]
    other: Callable[[Kit, Any], Any]
    again: Callable[[Kit, Any], Any] | None = None
    verify: Callable[[Kit, Any, Any], None] = _nothing
    makes: bool = False
    needs: tuple[Any, ...] = ((), (), None)

    def lacking(self, kit: Kit) -> str:
        """Why this cannot be asked of the kit's backend, or ""."""
        return lacking(self.needs, kit.has)


def _needs(*mixins: type, a: tuple[type, ...] = (), lacks: type | None = None) -> tuple[Any, ...]:
    return mixins, a, lacks


def _same_again(operation: Callable[[Kit, Any], Any]) -> Callable[[Kit, Any, Any], None]:
    def verify(kit: Kit, given: Any, result: Any) -> None:
        again = operation(kit, given).id
        check(again == result.id, f"the repeated call made {result.id!r}, the next one says {again!r}")

    return verify


# -- volumes


def _create(kit: Kit, request: Any) -> Volume:
    return kit.create_as(request)


def _create_larger(kit: Kit, request: Any) -> Volume:
    size = (kit.suite.size or kit.backend.limits.default_size) + kit.backend.limits.granularity
    return kit.create_as(evolve(request, capacity_range=CapacityRange(required=size)))


def _create_blank(kit: Kit, request: Any) -> Volume:
    return kit.create_as(evolve(request, source=None))


def _to_restore(kit: Kit) -> Any:
    return kit.request(source=SnapshotSource(kit.cut(kit.create().id).id))


def _expansion(kit: Kit) -> r.ExpandVolumeRequest:
    volume = kit.create()
    size = CapacityRange(required=kit.larger(volume))
    return r.ExpandVolumeRequest(volume_id=volume.id, capacity_range=size, secrets=kit.secrets)


def _expand(kit: Kit, request: r.ExpandVolumeRequest) -> Any:
    return kit.run("expand_volume", request)


def _grown(kit: Kit, request: r.ExpandVolumeRequest, result: Any) -> None:
    capacity = kit.get(request.volume_id).capacity
    check(capacity >= request.capacity_range.required, f"the expanded volume has {capacity} bytes")


def _modify(kit: Kit, volume_id: str) -> None:
    kit.run(
        "modify_volume",
        r.ModifyVolumeRequest(volume_id=volume_id, parameters=kit.suite.mutable, secrets=kit.secrets),
    )


def _read(kit: Kit, volume_id: str) -> None:
    """Whatever can be asked without changing anything."""
    kit.get(volume_id)
    request = r.ValidateCapabilitiesRequest(volume_id=volume_id, capabilities=(SINGLE,), secrets=kit.secrets)
    check(kit.run("validate_capabilities", request).confirmed, "a volume's own capability is not confirmed")
    if kit.has(Lists):
        listed = kit.run("list_volumes", r.ListRequest()).entries
        check(volume_id in {one.volume.id for one in listed}, "a volume is not listed")
    if kit.has(ListsSnapshots):
        kit.run("list_snapshots", r.ListSnapshotsRequest(source_volume_id=volume_id))
    if kit.has(ReportsCapacity):
        kit.run("get_capacity", r.CapacityRequest(parameters=dict(kit.suite.parameters)))


# -- attachments


def _to_attach(kit: Kit) -> r.ControllerPublishRequest:
    volume = kit.create()
    gone = r.ControllerUnpublishRequest(volume_id=volume.id, secrets=kit.secrets)
    kit.later(lambda: kit.run("controller_unpublish", gone))
    return publish_request(volume, kit.suite.nodes[0], secrets=kit.secrets)


def _attach(kit: Kit, request: r.ControllerPublishRequest) -> Any:
    return kit.run("controller_publish", request)


def _detach(kit: Kit, request: r.ControllerPublishRequest) -> None:
    gone = r.ControllerUnpublishRequest(
        volume_id=request.volume_id, node_id=request.node_id, secrets=kit.secrets
    )
    kit.run("controller_unpublish", gone)


def _attach_elsewhere(kit: Kit, request: r.ControllerPublishRequest) -> Any:
    return _attach(kit, evolve(request, node_id=kit.suite.nodes[1]))


def _attached(kit: Kit) -> r.ControllerPublishRequest:
    request = _to_attach(kit)
    _attach(kit, request)
    return request


def _on(*nodes: int) -> Callable[[Kit, Any, Any], None]:
    def verify(kit: Kit, request: r.ControllerPublishRequest, result: Any) -> None:
        if kit.has(ListsPublished):
            wanted = tuple(kit.suite.nodes[one] for one in nodes)
            entry = kit.run(
                "get_volume", r.GetVolumeRequest(volume_id=request.volume_id, secrets=kit.secrets)
            )
            check(
                entry.published_node_ids == wanted,
                f"the volume is attached to {entry.published_node_ids}, not to {wanted}",
            )

    return verify


# -- snapshots


@frozen
class _Cut:
    name: str
    source: str
    other_source: str


def _to_cut(kit: Kit) -> _Cut:
    return _Cut(kit.name(), kit.create().id, kit.create().id)


def _cut(kit: Kit, given: _Cut) -> Any:
    return kit.cut(given.source, given.name)


def _look_at_snapshot(kit: Kit, snapshot_id: str) -> Any:
    return kit.run("get_snapshot", r.GetSnapshotRequest(snapshot_id=snapshot_id, secrets=kit.secrets))


# -- on this node


def _used(*steps: str, data: bool = False, raw: bool = False) -> Callable[[Kit], Used]:
    """A volume that was taken so far; with `data` in it, written in an earlier use; `raw` where it can be."""

    def prepare(kit: Kit) -> Used:
        wanted = Capability(access_type=AccessType.BLOCK) if raw and kit.block else SINGLE
        used = Used(kit, kit.create(capabilities=(wanted,)), wanted)
        if data:
            used.begin()
            used.write()
            used.end()
        for step in ("attach", *steps):
            getattr(used, step)()
        return used

    return prepare


def _then(*steps: str) -> Callable[[Kit, Used], None]:
    def call(kit: Kit, used: Used) -> None:
        for step in steps:
            getattr(used, step)()

    return call


def _as_staged(kit: Kit, used: Used, result: Any) -> None:
    used.publish()
    used.check_written()
    used.unpublish()
    check(str(used.target) not in used.mounted(), "after unpublish the target is mounted")


def _as_published(kit: Kit, used: Used, result: Any) -> None:
    check(str(used.target) in used.mounted(), "after publish the target is not mounted")
    used.check_written()
    used.write()


def _as_unpublished(kit: Kit, used: Used, result: Any) -> None:
    check(not used.target.exists(), "after unpublish the target is still there")


def _as_unstaged(kit: Kit, used: Used, result: Any) -> None:
    check(not used.mounted(), f"after unstage these are mounted: {used.mounted()}")


def _to_grow(kit: Kit) -> Used:
    # raw: to grow a mounted ext4 takes a capability that not every container has
    used = _used("stage", "publish", data=True, raw=True)(kit)
    size = CapacityRange(required=kit.larger(used.volume))
    kit.run(
        "expand_volume",
        r.ExpandVolumeRequest(volume_id=used.volume.id, capacity_range=size, secrets=kit.secrets),
    )
    used.volume = kit.get(used.volume.id)
    return used


SCENARIOS: Mapping[str, Scenario] = {
    "create": Scenario(
        prepare=lambda kit: kit.request(),
        call=_create,
        other=_create_larger,
        verify=_same_again(_create),
        makes=True,
        needs=_needs(a=_SAFE),
    ),
    "delete": Scenario(
        prepare=lambda kit: kit.create().id,
        call=lambda kit, id_: kit.delete(id_),
        other=lambda kit, id_: kit.get(id_),
    ),
    "expand": Scenario(
        prepare=_expansion,
        call=_expand,
        other=lambda kit, request: kit.delete(request.volume_id),
        verify=_grown,
        needs=_needs(Expands),
    ),
    "modify": Scenario(
        prepare=lambda kit: kit.create().id,
        call=_modify,
        other=lambda kit, id_: kit.delete(id_),
        needs=_needs(Modifies),
    ),
    "attach": Scenario(
        prepare=_to_attach, call=_attach, other=_attach_elsewhere, verify=_on(0), needs=_needs(Publishes)
    ),
    "detach": Scenario(
        prepare=_attached, call=_detach, other=_attach_elsewhere, verify=_on(), needs=_needs(Publishes)
    ),
    "snapshot": Scenario(
        prepare=_to_cut,
        call=_cut,
        other=lambda kit, given: kit.cut(given.other_source, given.name),
        verify=_same_again(_cut),
        makes=True,
        needs=_needs(Snapshots, a=_SAFE),
    ),
    "delete_snapshot": Scenario(
        prepare=lambda kit: kit.cut(kit.create().id).id,
        call=lambda kit, id_: kit.uncut(id_),
        other=_look_at_snapshot,
        needs=_needs(Snapshots),
    ),
    "restore": Scenario(
        prepare=_to_restore,
        call=_create,
        other=_create_blank,
        verify=_same_again(_create),
        makes=True,
        needs=_needs(Snapshots, a=_SAFE),
    ),
    "clone": Scenario(
        prepare=lambda kit: kit.request(source=CloneSource(kit.create().id)),
        call=_create,
        other=_create_blank,
        verify=_same_again(_create),
        makes=True,
        needs=_needs(Clones, a=_SAFE),
    ),
    "stage": Scenario(
        prepare=_used(),
        call=_then("stage"),
        other=_then("unstage"),
        verify=_as_staged,
        needs=_needs(Node, lacks=ConnectsPerPod),
    ),
    "stage_with_data": Scenario(
        prepare=_used(data=True),
        call=_then("stage"),
        other=_then("unstage"),
        verify=_as_staged,
        needs=_needs(Node, lacks=ConnectsPerPod),
    ),
    "publish": Scenario(
        prepare=_used("stage", data=True),
        call=_then("publish"),
        other=_then("unpublish"),
        again=_then("stage", "publish"),
        verify=_as_published,
        needs=_needs(Node),
    ),
    "unpublish": Scenario(
        prepare=_used("stage", "publish"),
        call=_then("unpublish"),
        other=_then("stage", "publish"),
        again=_then("stage", "unpublish"),
        verify=_as_unpublished,
        needs=_needs(Node),
    ),
    "unstage": Scenario(
        prepare=_used("stage"),
        call=_then("unstage"),
        other=_then("stage"),
        verify=_as_unstaged,
        needs=_needs(Node, lacks=ConnectsPerPod),
    ),
    "node_expand": Scenario(
        prepare=_to_grow,
        call=_then("grow"),
        other=_then("unpublish"),
        again=_then("stage", "publish", "grow"),
        verify=_as_published,
        needs=_needs(Node, Expands),
    ),
    "reads": Scenario(
        prepare=lambda kit: kit.create().id, call=_read, other=lambda kit, id_: kit.delete(id_)
    ),
}
"""Every operation that can leave something behind, by the name of its case (`test_faults_in_…`), and the reads."""
