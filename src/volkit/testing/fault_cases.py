"""What is cut short, wherever it is: after a repeat of the call there is one thing, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from volkit.errors import Aborted, VolkitError
from volkit.testing.faults import Point
from volkit.testing.kit import Kit, check
from volkit.testing.matrix import hangs, kills, matrix
from volkit.testing.scenarios import SCENARIOS

C = TypeVar("C", bound=Callable[..., Any])


def scenario(name: str) -> Callable[[C], C]:
    """Marks a case for backends that can do this scenario."""

    def mark(case: C) -> C:
        case.needs = SCENARIOS[name].needs  # type: ignore[attr-defined]
        return case

    return mark


class FaultCases:
    """Before, inside and after every call of the backend and every write of the journal: what fails for a moment,
    for good, and what ends there; and every call of the backend that hangs.
    """

    @scenario("create")
    def test_faults_in_create(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["create"])

    @scenario("delete")
    def test_faults_in_delete(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["delete"])

    @scenario("expand")
    def test_faults_in_expand(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["expand"])

    @scenario("modify")
    def test_faults_in_modify(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["modify"])

    @scenario("attach")
    def test_faults_in_attach(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["attach"])

    @scenario("detach")
    def test_faults_in_detach(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["detach"])

    @scenario("snapshot")
    def test_faults_in_snapshot(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["snapshot"])

    @scenario("delete_snapshot")
    def test_faults_in_delete_snapshot(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["delete_snapshot"])

    @scenario("restore")
    def test_faults_in_restore(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["restore"])

    @scenario("clone")
    def test_faults_in_clone(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["clone"])

    @scenario("stage")
    def test_faults_in_stage(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["stage"])

    @scenario("stage_with_data")
    def test_faults_in_stage_with_data(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["stage_with_data"])

    @scenario("publish")
    def test_faults_in_publish(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["publish"])

    @scenario("unpublish")
    def test_faults_in_unpublish(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["unpublish"])

    @scenario("unstage")
    def test_faults_in_unstage(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["unstage"])

    @scenario("node_expand")
    def test_faults_in_node_expand(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["node_expand"])

    @scenario("reads")
    def test_faults_in_reads(self, volkit_kit: Kit) -> None:
        matrix(volkit_kit, SCENARIOS["reads"])

    @scenario("create")
    def test_kill_in_create(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["create"])

    @scenario("delete")
    def test_kill_in_delete(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["delete"])

    @scenario("expand")
    def test_kill_in_expand(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["expand"])

    @scenario("modify")
    def test_kill_in_modify(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["modify"])

    @scenario("attach")
    def test_kill_in_attach(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["attach"])

    @scenario("detach")
    def test_kill_in_detach(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["detach"])

    @scenario("snapshot")
    def test_kill_in_snapshot(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["snapshot"])

    @scenario("delete_snapshot")
    def test_kill_in_delete_snapshot(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["delete_snapshot"])

    @scenario("restore")
    def test_kill_in_restore(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["restore"])

    @scenario("clone")
    def test_kill_in_clone(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["clone"])

    @scenario("stage")
    def test_kill_in_stage(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["stage"])

    @scenario("stage_with_data")
    def test_kill_in_stage_with_data(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["stage_with_data"])

    @scenario("publish")
    def test_kill_in_publish(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["publish"])

    @scenario("unpublish")
    def test_kill_in_unpublish(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["unpublish"])

    @scenario("unstage")
    def test_kill_in_unstage(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["unstage"])

    @scenario("node_expand")
    def test_kill_in_node_expand(self, volkit_kit: Kit) -> None:
        kills(volkit_kit, SCENARIOS["node_expand"])

    @scenario("create")
    def test_hang_in_create(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["create"])

    @scenario("delete")
    def test_hang_in_delete(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["delete"])

    @scenario("expand")
    def test_hang_in_expand(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["expand"])

    @scenario("modify")
    def test_hang_in_modify(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["modify"])

    @scenario("attach")
    def test_hang_in_attach(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["attach"])

    @scenario("detach")
    def test_hang_in_detach(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["detach"])

    @scenario("snapshot")
    def test_hang_in_snapshot(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["snapshot"])

    @scenario("delete_snapshot")
    def test_hang_in_delete_snapshot(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["delete_snapshot"])

    @scenario("stage")
    def test_hang_in_stage(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["stage"])

    @scenario("publish")
    def test_hang_in_publish(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["publish"])

    @scenario("unpublish")
    def test_hang_in_unpublish(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["unpublish"])

    @scenario("unstage")
    def test_hang_in_unstage(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["unstage"])

    @scenario("node_expand")
    def test_hang_in_node_expand(self, volkit_kit: Kit) -> None:
        hangs(volkit_kit, SCENARIOS["node_expand"])

    def test_random_sequences_are_answered_as_the_oracle_does(self, volkit_kit: Kit) -> None:
        from volkit.testing.machine import random_sequences

        many = 100 if volkit_kit.full or not volkit_kit.storage.outlives else 10
        random_sequences(volkit_kit, examples=volkit_kit.sequences or volkit_kit.suite.sequences or many)

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


def _quiet(call: Callable[[], Any]) -> None:
    try:
        call()
    except VolkitError:
        return
