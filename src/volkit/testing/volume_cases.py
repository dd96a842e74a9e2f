"""What every controller has to keep to: volumes, their names, sizes, listing and growth."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from volkit import requests as r
from volkit.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
    InvalidToken,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    VolkitError,
)
from volkit.interfaces import (
    Clones,
    Expands,
    FindsByName,
    Lists,
    Modifies,
    ReportsCapacity,
    ReportsHealth,
    TakesIds,
    TakesTokens,
)
from volkit.model import MAX_BYTES, CapacityRange, CloneSource, Volume
from volkit.testing.kit import SINGLE, Fault, Kit, check, needs

ODD_IDS = ("no-such-volume", "../etc", "a/b", ".", "x" * 300, "ü", "'; --")
"""Ids of nothing; some of them would be a path or a statement where a backend trusts them."""

ODD_NAMES = (
    "with space",
    "a/b",
    "../up",
    "UPPER",
    "upper",
    "ü-日本",
    "-dash",
    ".hidden",
    "a'b\"c;d",
)
"""Names that an orchestrator may give; no two of them are the same volume."""


class VolumeCases:
    """Volumes, without regard to who uses them."""

    def test_create_makes_one_complete_volume(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        volume = kit.create_as(request)
        kit.expect("after a create", volumes=1)
        check(type(volume.id) is str and len(volume.id) > 0, f"the volume's id is {volume.id!r}: give a text")
        check_record(volume, request)
        found = kit.get(volume.id)
        check(found.id == volume.id, f"get_volume of {volume.id!r} returns {found.id!r}")
        check(
            found.capacity == volume.capacity,
            f"create_volume says {volume.capacity} bytes, get_volume says {found.capacity}",
        )
        real = kit.witness.capacity(volume.id)
        check(
            real is None or real >= volume.capacity,
            f"the volume is said to have {volume.capacity} bytes, and the witness sees {real}",
        )

    def test_create_repeated_is_the_same_volume(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        first = kit.create_as(request)
        check_same(first, kit.run("create_volume", request), "the same create again")
        kit.stop()
        check_same(first, kit.run("create_volume", request), "the same create after a restart")
        kit.expect("after a repeated create", volumes=1)

    @needs(a=(FindsByName, TakesIds, TakesTokens))
    def test_create_repeated_without_a_journal_is_the_same_volume(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        first = kit.create_as(request)
        kit.lose_journal()
        check_same(first, kit.run("create_volume", request), "the same create with an empty journal")
        kit.expect("after a create repeated with an empty journal", volumes=1)

    def test_create_of_another_size_is_refused(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        volume = kit.create_as(request)
        if not volume.capacity:
            return  # unbounded: any size is met
        larger = CapacityRange(required=kit.larger(volume))
        with kit.refused("a create of the same name and a larger size", AlreadyExists, OutOfRange):
            kit.run("create_volume", kit.request(request.name, capacity_range=larger))
        kit.expect("after a refused create", volumes=1)

    def test_create_with_bad_fields_makes_nothing(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        bad: dict[str, dict[str, Any]] = {
            "a name with a control character": {"name": "a\x00b"},
            "no capability": {"capabilities": ()},
            "an unknown parameter": {"parameters": {**kit.suite.parameters, "volkitNoSuchKey": "1"}},
            "a negative size": {"capacity_range": CapacityRange(required=-1)},
            "a limit below the size": {"capacity_range": CapacityRange(required=2, limit=1)},
        }
        for what, fields in bad.items():
            with kit.refused(f"a create with {what}", InvalidArgument):
                kit.run("create_volume", kit.request(**fields))
        if kit.backend.limits.max_size < MAX_BYTES:
            with kit.refused("a create beyond the largest size", OutOfRange):
                huge = CapacityRange(required=kit.backend.limits.max_size + 1)
                kit.run("create_volume", kit.request(capacity_range=huge))
        kit.expect("after refused creates")

    def test_odd_names_are_volumes_of_their_own(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        names = (*ODD_NAMES, "n" * kit.suite.longest_name)
        made = {name: kit.create(name).id for name in names}
        check(len(set(made.values())) == len(made), f"different names give one volume: {made}")
        kit.expect("after creates with odd names", volumes=len(made))
        for name, id_ in made.items():
            again = kit.run("create_volume", kit.request(name)).id
            check(again == id_, f"name {name!r} is {id_!r}, and at its repeat {again!r}")

    def test_a_volume_that_is_not_there(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        for id_ in ODD_IDS:
            with kit.refused(f"get_volume of {id_[:20]!r}, which is nothing", NotFound):
                kit.get(id_)
            kit.delete(id_)  # is success
        kit.expect("after looking for what is not there")

    def test_delete_removes_it_and_may_be_repeated(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        kept, volume = kit.create(), kit.create()
        kit.delete(volume.id)
        kit.expect("after a delete", volumes=1)
        kit.delete(volume.id)
        kit.stop()
        kit.delete(volume.id)
        with kit.refused("get_volume after the delete", NotFound):
            kit.get(volume.id)
        check_same(kept, kit.get(kept.id), "the other volume")

    def test_a_name_is_free_after_the_delete(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        name = kit.name()
        kit.delete(kit.create(name).id)
        volume = kit.create(name)
        kit.expect("after create, delete, create", volumes=1)
        check_same(volume, kit.get(volume.id), "the volume made anew")

    def test_delete_without_a_journal(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        kit.lose_journal()
        kit.delete(volume.id)
        kit.expect("after a delete with an empty journal")

    def test_creates_of_one_name_at_once_make_one(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        results = at_once(kit, *[lambda: kit.run("create_volume", request)] * 4)
        errors = [one for one in results if isinstance(one, Exception)]
        wrong = [one for one in errors if not isinstance(one, Aborted)]
        check(not wrong, f"creates of one name at once: {wrong}")
        volume = kit.until_done(lambda: kit.create_as(request))
        for one in results:
            check(isinstance(one, Exception) or one.id == volume.id, f"two ids for one name: {one}")
        kit.expect("after creates of one name at once", volumes=1)

    def test_creates_of_several_names_at_once(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        results = at_once(kit, *[kit.create] * 6)
        wrong = [one for one in results if isinstance(one, Exception)]
        check(not wrong, f"creates of several names at once: {wrong}")
        check(len({one.id for one in results}) == 6, "creates of several names at once share an id")
        kit.expect("after creates of several names at once", volumes=6)

    def test_create_and_delete_at_once(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        volume = kit.create_as(request)
        for one in at_once(kit, lambda: kit.delete(volume.id), lambda: kit.run("create_volume", request)):
            check(
                not isinstance(one, Exception) or isinstance(one, Aborted),
                f"create and delete at once: {one!r}",
            )
        again = kit.until_done(lambda: kit.create_as(request))
        check_same(again, kit.get(again.id), "after create and delete at once")
        kit.expect("after create and delete at once", volumes=1)

    def test_size_limits(self, volkit_kit: Kit) -> None:
        kit, limits = volkit_kit, volkit_kit.backend.limits
        base = max(limits.min_size, kit.suite.size, 1)
        for request in (
            CapacityRange(required=base),
            CapacityRange(required=base + 1),
            CapacityRange(required=base, limit=base + limits.granularity),
        ):
            volume = kit.create(capacity_range=request)
            check(
                not volume.capacity or volume.capacity in request,
                f"asked for {request}, the volume has {volume.capacity} bytes",
            )

    # -- lists

    @needs(Lists)
    def test_list_has_every_volume_once(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        made = {kit.create().id for _ in range(5)}
        for limit in (0, 1, 2, 5, 100):
            ids = pages(kit, "list_volumes", r.ListRequest, limit)
            check(len(set(ids)) == len(ids), f"pages of {limit}: a volume is listed twice: {ids}")
            check(made <= set(ids), f"pages of {limit}: not listed: {sorted(made - set(ids))}")

    @needs(Lists)
    def test_a_page_is_stable_while_others_go(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        made = [kit.create().id for _ in range(5)]
        first = kit.run("list_volumes", r.ListRequest(limit=2))
        seen = [one.volume.id for one in first.entries]
        gone = next((one for one in seen if one in made), "")
        if gone:
            kit.delete(gone)
        token = first.next_token
        check(token, "a page of 2 of 5 volumes and more has no token")
        while token:
            page = kit.run("list_volumes", r.ListRequest(limit=2, token=token))
            seen += [one.volume.id for one in page.entries]
            token = page.next_token
        check(len(set(seen)) == len(seen), "a volume is listed twice after one was deleted between two pages")
        check(set(made) <= set(seen), "a volume is left out after another was deleted between two pages")

    @needs(Lists)
    def test_a_wrong_page_is_refused(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        with kit.refused("a listing with a token that no page gave out", InvalidToken):
            kit.run("list_volumes", r.ListRequest(token="volkit no such token"))
        with kit.refused("a listing of -1 entries", InvalidArgument):
            kit.run("list_volumes", r.ListRequest(limit=-1))

    # -- more capabilities

    @needs(Expands)
    def test_expand_grows_and_may_be_repeated(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        request = r.ExpandVolumeRequest(
            volume_id=volume.id, capacity_range=CapacityRange(required=kit.larger(volume))
        )
        capacity = 0
        for what in ("an expansion", "the same expansion again"):
            capacity = kit.run("expand_volume", request).capacity
            check(capacity >= request.capacity_range.required, f"{what}: {capacity} bytes: {request}")
            found = kit.get(volume.id).capacity
            check(found == capacity, f"{what}: expand_volume says {capacity} bytes, get_volume says {found}")
            real = kit.witness.capacity(volume.id)
            check(real is None or real >= capacity, f"{what}: {capacity} bytes, the witness sees {real}")
        back = r.ExpandVolumeRequest(volume_id=volume.id, capacity_range=CapacityRange(required=1))
        check(kit.run("expand_volume", back).capacity >= capacity, "an expansion to less makes it smaller")
        with kit.refused("to expand what is not there", NotFound):
            kit.run(
                "expand_volume",
                r.ExpandVolumeRequest(volume_id="no-such-volume", capacity_range=request.capacity_range),
            )

    @needs(Modifies)
    def test_modify(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume, mutable = kit.create(), kit.suite.mutable
        for _ in range(2):
            kit.run("modify_volume", r.ModifyVolumeRequest(volume_id=volume.id, parameters=mutable))
        with kit.refused("to modify an unknown parameter", InvalidArgument):
            unknown = {"volkitNoSuchKey": "1"}
            kit.run("modify_volume", r.ModifyVolumeRequest(volume_id=volume.id, parameters=unknown))
        with kit.refused("to modify what is not there", NotFound):
            kit.run("modify_volume", r.ModifyVolumeRequest(volume_id="no-such-volume", parameters=mutable))

    @needs(ReportsCapacity)
    def test_capacity_is_true(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = r.CapacityRequest(parameters=dict(kit.suite.parameters), capabilities=(SINGLE,))
        before: Any = kit.run("get_capacity", request).available
        check(isinstance(before, int) and before >= 0, f"get_capacity says {before!r}: give bytes")
        volume = kit.create()
        after = kit.run("get_capacity", request).available
        check(after <= before, f"the room that is left grew from {before} to {after} by a create")
        if volume.capacity <= before:
            beyond = CapacityRange(required=before + max(kit.backend.limits.granularity, before // 8, 1))
            with kit.refused(f"a create of more than the {before} bytes left", ResourceExhausted, OutOfRange):
                kit.create(capacity_range=beyond)
        kit.expect("after a create beyond the room", volumes=1)

    @needs(Clones)
    def test_clone(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        source = kit.create()
        request = kit.request(source=CloneSource(source.id))
        clone = kit.create_as(request)
        check_record(clone, request)
        check(clone.id != source.id, "a clone has the id of its source")
        check_same(clone, kit.run("create_volume", request), "the same clone again")
        with kit.refused("a clone of what is not there", NotFound):
            kit.create(source=CloneSource("no-such-volume"))
        kit.expect("after a clone", volumes=2)

    @needs(ReportsHealth)
    def test_health(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        volume = kit.create()
        health = kit.run("get_volume", r.GetVolumeRequest(volume_id=volume.id)).health
        check(health is not None, "get_volume tells no health")
        check(not health.abnormal, f"a new volume is not well: {health.message}")


def check_record(volume: Volume, request: r.CreateVolumeRequest[Any]) -> None:
    """Is the record what was asked for?"""
    check(
        not volume.capacity or volume.capacity in request.capacity_range,
        f"asked for {request.capacity_range}, the volume has {volume.capacity} bytes",
    )
    check(volume.source == request.source, f"made from {request.source}, the record says {volume.source}")
    texts: Mapping[Any, Any] = volume.context
    wrong = [key for key, value in texts.items() if not (isinstance(key, str) and isinstance(value, str))]
    check(not wrong, f"the volume's context is not all text: {wrong}")


def check_same(first: Volume, second: Volume, what: str) -> None:
    """The same id, size and source."""
    for part in ("id", "capacity", "source"):
        one, other = getattr(first, part), getattr(second, part)
        check(one == other, f"{what}: its {part} is {other!r} instead of {one!r}")


def pages(kit: Kit, operation: str, request: type[r.ListRequest], limit: int, **fields: Any) -> list[str]:
    """The ids of a whole listing, in pages of `limit`."""
    ids: list[str] = []
    token = ""
    for _ in range(1000):
        page = kit.run(operation, request(limit=limit, token=token, **fields))
        check(
            not limit or len(page.entries) <= limit,
            f"{operation}: {len(page.entries)} entries on a page of {limit}",
        )
        ids += [one.id if operation == "list_snapshots" else one.volume.id for one in page.entries]
        token = page.next_token
        if not token:
            return ids
    raise Fault(f"{operation}: 1000 pages of {limit}, and no end")


def at_once(kit: Kit, *calls: Any) -> list[Any]:
    """What several threads get that call at the same time: results, and errors."""
    results: list[Any] = []
    start = threading.Barrier(len(calls))
    _ = kit.driver  # started once

    def target(call: Any) -> None:
        start.wait()
        try:
            results.append(call())
        except (VolkitError, Fault) as error:
            results.append(error)

    threads = [threading.Thread(target=target, args=(call,), daemon=True) for call in calls]
    for one in threads:
        one.start()
    for one in threads:
        one.join(kit.suite.patience)
        check(not one.is_alive(), "calls at the same time hang")
    for one in results:
        if isinstance(one, Fault):
            raise one
    return results
