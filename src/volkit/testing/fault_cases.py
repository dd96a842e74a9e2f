"""What is cut short, wherever it is: after a repeat of the call there is one thing, or none."""

from __future__ import annotations

import io
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import field, frozen

from volkit import requests as r
from volkit.errors import Aborted, Ambiguous, VolkitError
from volkit.interfaces import (
    Clones,
    ConnectsPerPod,
    Expands,
    FindsByName,
    Mixin,
    Modifies,
    Node,
    Publishes,
    Snapshots,
    TakesIds,
    TakesTokens,
)
from volkit.journal import open_journal
from volkit.model import Capability, CapacityRange, CloneSource, Secrets, SnapshotSource, Volume
from volkit.operations import OPERATIONS
from volkit.testing.faults import (
    FAILURES,
    JOURNAL_FAILURES,
    KILL,
    POWER_CUT,
    Failure,
    Killed,
    Point,
    Volatile,
    in_child,
)
from volkit.testing.kit import Fault, Kit, check, needs
from volkit.testing.sharing_cases import Used, publish_request

SAMPLE = 24
"""How many faults are tried for one operation on a real storage, unless all are asked for."""

SAMPLE_KILLS = 8
"""How many child processes are killed for one operation, unless all are asked for."""

_GETS_SECRETS = (
    *(
        "create_volume",
        "delete_volume",
        "get_volume",
        "expand_volume",
        "controller_publish",
        "controller_unpublish",
    ),
    *("create_snapshot", "delete_snapshot", "get_snapshot"),
)
"""Methods that are called with the secrets of the operation."""

_SAFE: tuple[type[Mixin], ...] = (FindsByName, TakesIds, TakesTokens)


@frozen
class Scenario:
    """One operation: `prepare` what it takes, `call` it (again and again), and what is there after it."""

    prepare: Callable[[Kit], Any]
    call: Callable[[Kit, Any], Any]
    after: Mapping[str, int] = field(factory=dict)
    makes: bool = False
    verify: Callable[[Kit, Any, Any], None] = lambda kit, given, result: None


def _same_again(operation: Callable[[Kit, Any], Any]) -> Callable[[Kit, Any, Any], None]:
    def verify(kit: Kit, given: Any, result: Any) -> None:
        again = operation(kit, given).id
        check(again == result.id, f"the repeated call made {result.id!r}, the next one says {again!r}")

    return verify


def _create(kit: Kit, request: Any) -> Volume:
    return kit.create_as(request)


def _expand(kit: Kit, request: r.ExpandVolumeRequest) -> Any:
    return kit.run("expand_volume", request)


def _expansion(kit: Kit) -> r.ExpandVolumeRequest:
    volume = kit.create()
    return r.ExpandVolumeRequest(
        volume_id=volume.id, capacity_range=CapacityRange(required=kit.larger(volume))
    )


def _grown(kit: Kit, request: r.ExpandVolumeRequest, result: Any) -> None:
    capacity = kit.get(request.volume_id).capacity
    check(capacity >= request.capacity_range.required, f"the expanded volume has {capacity} bytes")


def _to_attach(kit: Kit) -> r.ControllerPublishRequest:
    volume = kit.create()
    kit.later(lambda: kit.run("controller_unpublish", r.ControllerUnpublishRequest(volume_id=volume.id)))
    return publish_request(volume, kit.suite.nodes[0])


def _attach(kit: Kit, request: Any) -> Any:
    return kit.run("controller_publish", request)


def _attached(kit: Kit) -> r.ControllerUnpublishRequest:
    request = _to_attach(kit)
    _attach(kit, request)
    return r.ControllerUnpublishRequest(volume_id=request.volume_id, node_id=request.node_id)


def _to_cut(kit: Kit) -> tuple[str, str]:
    return kit.create().id, kit.name()


def _cut(kit: Kit, given: tuple[str, str]) -> Any:
    return kit.cut(*given)


def _used(*steps: str) -> Callable[[Kit], Used]:
    def prepare(kit: Kit) -> Used:
        used = Used(kit, kit.create())
        for step in ("attach", *steps):
            getattr(used, step)()
        return used

    return prepare


def _to_restore(kit: Kit) -> r.CreateVolumeRequest[Any]:
    return kit.request(source=SnapshotSource(kit.cut(kit.create().id).id))


def _to_clone(kit: Kit) -> r.CreateVolumeRequest[Any]:
    return kit.request(source=CloneSource(kit.create().id))


def _modification(kit: Kit) -> r.ModifyVolumeRequest:
    return r.ModifyVolumeRequest(volume_id=kit.create().id, parameters=dict(kit.suite.mutable))


CREATE = Scenario(lambda kit: kit.request(), _create, {"volumes": 1}, makes=True, verify=_same_again(_create))
DELETE = Scenario(lambda kit: kit.create().id, lambda kit, id_: kit.delete(id_))
RESTORE = Scenario(
    _to_restore, _create, {"volumes": 2, "snapshots": 1}, makes=True, verify=_same_again(_create)
)
CLONE = Scenario(_to_clone, _create, {"volumes": 2}, makes=True, verify=_same_again(_create))
MODIFY = Scenario(_modification, lambda kit, request: kit.run("modify_volume", request), {"volumes": 1})
EXPAND = Scenario(_expansion, _expand, {"volumes": 1}, verify=_grown)
ATTACH = Scenario(_to_attach, _attach, {"volumes": 1, "attachments": 1})
DETACH = Scenario(_attached, lambda kit, request: kit.run("controller_unpublish", request), {"volumes": 1})
CUT = Scenario(_to_cut, _cut, {"volumes": 1, "snapshots": 1}, makes=True, verify=_same_again(_cut))
UNCUT = Scenario(lambda kit: kit.cut(kit.create().id).id, lambda kit, id_: kit.uncut(id_), {"volumes": 1})
STAGE = Scenario(_used(), lambda kit, used: used.stage())
PUBLISH = Scenario(_used("stage"), lambda kit, used: used.publish())
UNPUBLISH = Scenario(_used("stage", "publish"), lambda kit, used: used.unpublish())
UNSTAGE = Scenario(_used("stage"), lambda kit, used: used.unstage())


class FaultCases:
    """Before, inside and after every call of the backend and every write of the journal."""

    @needs(a=_SAFE)
    def test_faults_in_create(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, CREATE)

    def test_faults_in_delete(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, DELETE)

    @needs(Expands)
    def test_faults_in_expand(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, EXPAND)

    @needs(Publishes)
    def test_faults_in_attach(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, ATTACH)

    @needs(Publishes)
    def test_faults_in_detach(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, DETACH)

    @needs(Snapshots, a=_SAFE)
    def test_faults_in_snapshot(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, CUT)

    @needs(Snapshots)
    def test_faults_in_delete_snapshot(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, UNCUT)

    @needs(Node, lacks=ConnectsPerPod)
    def test_faults_in_stage(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, STAGE)

    @needs(Modifies)
    def test_faults_in_modify(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, MODIFY)

    @needs(Snapshots, a=_SAFE)
    def test_faults_in_restore(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, RESTORE)

    @needs(Clones, a=_SAFE)
    def test_faults_in_clone(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, CLONE)

    @needs(Node)
    def test_faults_in_publish(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, PUBLISH)

    @needs(Node)
    def test_faults_in_unpublish(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, UNPUBLISH)

    @needs(Node, lacks=ConnectsPerPod)
    def test_faults_in_unstage(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, UNSTAGE)

    @needs(a=_SAFE)
    def test_kill_in_create(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, CREATE)

    def test_kill_in_delete(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, DELETE)

    @needs(Expands)
    def test_kill_in_expand(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, EXPAND)

    @needs(Modifies)
    def test_kill_in_modify(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, MODIFY)

    @needs(Publishes)
    def test_kill_in_attach(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, ATTACH)

    @needs(Publishes)
    def test_kill_in_detach(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, DETACH)

    @needs(Snapshots, a=_SAFE)
    def test_kill_in_restore(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, RESTORE)

    @needs(Clones, a=_SAFE)
    def test_kill_in_clone(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, CLONE)

    @needs(Snapshots, a=_SAFE)
    def test_kill_in_snapshot(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, CUT)

    @needs(Snapshots)
    def test_kill_in_delete_snapshot(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, UNCUT)

    @needs(Node, lacks=ConnectsPerPod)
    def test_kill_in_stage(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, STAGE)

    @needs(Node)
    def test_kill_in_publish(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, PUBLISH)

    @needs(Node)
    def test_kill_in_unpublish(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, UNPUBLISH)

    @needs(Node, lacks=ConnectsPerPod)
    def test_kill_in_unstage(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, UNSTAGE)

    def test_random_sequences_are_answered_as_the_oracle_does(self, volkit_kit: Kit) -> None:
        from volkit.testing.machine import random_sequences

        many = 100 if volkit_kit.full or not volkit_kit.storage.outlives else 10
        random_sequences(volkit_kit, examples=volkit_kit.suite.sequences or many)

    def test_no_secret_is_told(self, volkit_kit: Kit) -> None:
        """By no answer, error, log record or record of the journal, also where every method fails once."""
        kit = volkit_kit
        secret = "volkit-kit-Zq7"
        given = Secrets({**kit.suite.secrets, "volkitKit": secret})
        capability = Capability(mount_flags=(f"password={secret}",))
        with recorded() as said:
            for method in ("", *(name for name in _GETS_SECRETS if hasattr(kit.controller_class, name))):
                kit.spy.begin(Point(method, 1, "after"), lambda: _tell(secret)) if method else kit.spy.begin()
                told = _with_secrets(kit, given, capability)
                kit.spy.begin()
                check(
                    secret not in told, f"a secret is told{f' when {method} fails' if method else ''}: {told}"
                )
                kit.undo()
        check(secret not in said.getvalue(), "a secret is in the log")
        records = [repr(entry.value) for entry in kit.journal.scan("")]
        check(secret not in "".join(records), "a secret is in the journal")

    def test_a_call_that_hangs_holds_up_its_own_volume(self, volkit_kit: Kit) -> None:
        kit = volkit_kit
        request = kit.request()
        there, go_on = threading.Event(), threading.Event()

        def hang() -> None:
            there.set()
            go_on.wait(kit.suite.patience)

        kit.spy.begin(Point("create_volume", 1), hang)
        driver = kit.driver
        hung = threading.Thread(
            target=lambda: _quiet(lambda: driver.run("create_volume", request)), daemon=True
        )
        hung.start()
        try:
            check(there.wait(kit.suite.patience), "create_volume is never called")
            other = kit.create()
            check(kit.get(other.id).id == other.id, "another volume is not found while one create hangs")
            with kit.refused("the same create while the first one hangs", Aborted):
                kit.run("create_volume", request)
        finally:
            go_on.set()
            hung.join(kit.suite.patience)
        kit.until_done(lambda: kit.create_as(request))
        kit.expect("after a create that hung", volumes=2)


@contextmanager
def recorded() -> Iterator[io.StringIO]:
    """All that is logged in here, at every level, with its exceptions."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _tell(secret: str) -> None:
    raise RuntimeError(f"cannot log in with {secret}")


def _with_secrets(kit: Kit, secrets: Secrets, capability: Capability) -> str:
    """Everything that is answered to calls with these secrets, errors included."""
    told: list[object] = []

    def call(operation: str, request: Any) -> Any:
        if not OPERATIONS[operation].served_by(kit.controller_class):
            return None
        try:
            told.append(result := kit.run(operation, request))
        except VolkitError as error:
            told.append("".join(traceback.format_exception(error)))
            return None
        return result

    request = kit.request(secrets=secrets, capabilities=(capability,))
    made = call("create_volume", request) or call("create_volume", request)
    id_ = made.id if made else "volkit-kit-none"
    if made:
        kit.later(lambda: kit.delete(id_))
    node = kit.suite.nodes[0]
    publish = {"volume_id": id_, "node_id": node, "secrets": secrets}
    call("get_volume", r.GetVolumeRequest(volume_id=id_, secrets=secrets))
    call("controller_publish", r.ControllerPublishRequest(capability=capability, **publish))  # type: ignore[arg-type]
    call("controller_unpublish", r.ControllerUnpublishRequest(**publish))  # type: ignore[arg-type]
    kit.until_done(lambda: call("controller_unpublish", r.ControllerUnpublishRequest(volume_id=id_)))
    larger = CapacityRange(required=kit.larger(made)) if made else CapacityRange(required=1)
    call("expand_volume", r.ExpandVolumeRequest(volume_id=id_, capacity_range=larger, secrets=secrets))
    cut = r.CreateSnapshotRequest(name=kit.name(), source_volume_id=id_, secrets=secrets)
    if snapshot := call("create_snapshot", cut) or call("create_snapshot", cut):
        kit.later(lambda: kit.uncut(snapshot.id))
        call("delete_snapshot", r.DeleteSnapshotRequest(snapshot_id=snapshot.id, secrets=secrets))
    call("delete_volume", r.DeleteVolumeRequest(volume_id=id_, secrets=secrets))
    return " ".join(map(repr, told))


def _quiet(call: Callable[[], Any]) -> None:
    try:
        call()
    except VolkitError:
        return


# -- in this process


def matrix(kit: Kit, scenario: Scenario) -> None:
    """Every failure at every point, one after the other. Raises a Fault at the first that ends badly."""
    faults = _faults(kit, scenario)
    step = 1 if kit.full or not kit.storage.outlives else max(1, -(-len(faults) // SAMPLE))
    for point, failure in faults[::step]:
        kit.tried += 1
        try:
            _one(kit, scenario, point, failure)
        except (Fault, VolkitError) as error:
            raise Fault(f"{failure.name} {point}: {error}") from error


def _faults(kit: Kit, scenario: Scenario) -> list[tuple[Point, Failure]]:
    """Let it run once, and see where it comes along."""
    given = scenario.prepare(kit)
    kit.spy.count_events = not kit.storage.outlives  # elsewhere a killed child is cut inside
    kit.spy.begin()
    scenario.call(kit, given)
    reached, events = list(kit.spy.reached), dict(kit.spy.events)
    kit.spy.count_events = False
    kit.undo()
    found: list[tuple[Point, Failure]] = []
    findable = kit.has(FindsByName) or kit.has(TakesIds)
    for point in reached:
        # where nothing can be looked up, the engine has to believe a backend that refuses
        found += [
            (point, failure)
            for failure in (JOURNAL_FAILURES if point.place == "journal" else FAILURES)
            if findable or not (failure.final and point.when == "after")
        ]
    for (place, number), count in events.items():
        for event in range(1, count + 1):
            found += [(Point(place, number, event), failure) for failure in FAILURES[:2]]
    return found


def _one(kit: Kit, scenario: Scenario, point: Point, failure: Failure) -> None:
    given = scenario.prepare(kit)
    if isinstance(kit.journal, Volatile):
        kit.journal.sync()
    mounted = isinstance(given, Used)  # mounts that stay are no power cut
    before = {sort: sum(seen.values()) - sum(kit.before[sort].values()) for sort, seen in kit.seen().items()}

    def act() -> None:
        raise failure.make()

    kit.spy.begin(point, act)
    try:
        scenario.call(kit, given)
    except Killed:
        kit.stop()
    except Ambiguous:
        pass
    except VolkitError as error:
        check(
            failure.final,
            f"{type(error).__name__} ({error.message}) says that it did not happen: nobody knows",
        )
        if scenario.makes:
            kit.expect("after a final refusal", **before)
    finally:
        kit.spy.begin()
    if failure in (KILL, POWER_CUT):
        kit.stop()
    if failure is POWER_CUT and isinstance(kit.journal, Volatile) and not mounted:
        kit.journal.cut_power()
    _settled(kit, scenario, given)


def _settled(kit: Kit, scenario: Scenario, given: Any) -> None:
    """A repeat of the call finishes it; then all is as if nothing had happened, and goes without a trace."""
    result = kit.until_done(lambda: scenario.call(kit, given))
    if scenario.after:
        kit.expect("after the repeat", **scenario.after)
    scenario.verify(kit, given, result)
    kit.undo()
    kit.expect("after all is removed")
    left = [entry.key for entry in kit.journal.scan("")]
    check(not left, f"after all is removed, the journal still has {left}")


# -- in a process that is killed


def kills(kit: Kit, scenario: Scenario) -> None:
    """SIGKILL to a child process at its system calls: all of them, or some all over the way."""
    journal = f"sqlite://{kit.directory / 'killed.db'}"
    kit.stop()
    kit.open_journal = lambda: open_journal(journal)
    total, _ = _in_child(kit, scenario, 0)
    wanted = range(1, total + 1)
    if not kit.full:
        wanted = range(max(1, total // (2 * SAMPLE_KILLS)), total + 1, max(1, total // SAMPLE_KILLS))
    for number in wanted:
        kit.tried += 1
        try:
            _in_child(kit, scenario, number)
        except (Fault, VolkitError) as error:
            raise Fault(f"kill -9 at system call {number} of {total}: {error}") from error


def _in_child(kit: Kit, scenario: Scenario, kill_at: int) -> tuple[int, bool]:
    given = scenario.prepare(kit)
    kit.stop()

    def work() -> None:
        scenario.call(kit, given)
        kit.stop()

    done = in_child(work, kill_at=kill_at, seconds=kit.suite.patience)
    _settled(kit, scenario, given)
    return done
