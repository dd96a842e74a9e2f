"""The matrix of faults: every operation, cut short at every point of its way by everything that can happen there,
and followed by the same call or by another one.

In this process an exception stands for what fails, and one that nothing catches for what ends; a child process is
killed by SIGKILL at a system call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from volkit.errors import Ambiguous, VolkitError
from volkit.interfaces import FindsByName, TakesIds
from volkit.journal import open_journal
from volkit.testing.children import Ending, in_child
from volkit.testing.faults import (
    FAILURES,
    INSIDE_FAILURES,
    JOURNAL_FAILURES,
    KILL,
    POWER_CUT,
    Failure,
    Killed,
    Point,
)
from volkit.testing.journals import VolatileJournal
from volkit.testing.kit import Fault, Kit, check
from volkit.testing.scenarios import Scenario

SAMPLE = 24
"""How many faults in one operation are tried on a real storage, unless its suite says otherwise."""

Sequel = Callable[[Kit, Scenario, Failure, Any, dict[str, int]], None]


@frozen
class Faults:
    """What can go wrong on the way of one operation: `each`, at the `points` before and after a call or a write, and
    at `inside` events; and how many things there are at its `end` where nothing does.
    """

    points: tuple[Point, ...]
    inside: int
    each: tuple[tuple[Point, Failure], ...]
    end: dict[str, int]


def faults_of(kit: Kit, scenario: Scenario) -> Faults:
    """Let it run once, and see where it comes along."""
    given = scenario.prepare(kit)
    kit.spy.count_events = not kit.storage.outlives  # elsewhere a killed child is cut inside
    kit.spy.begin()
    scenario.call(kit, given)
    points, events = tuple(kit.spy.reached), dict(kit.spy.events)
    kit.spy.count_events = False
    end = kit.more()
    kit.undo()
    each: list[tuple[Point, Failure]] = []
    findable = kit.has(FindsByName) or kit.has(TakesIds)
    for point in points:
        # where nothing can be looked up, the engine has to believe a backend that refuses
        each += [
            (point, failure)
            for failure in (JOURNAL_FAILURES if point.place == "journal" else FAILURES)
            if findable or not (failure.final and point.when == "after")
        ]
    for (place, number), count in events.items():
        for event in range(1, count + 1):
            each += [(Point(place, number, event), failure) for failure in INSIDE_FAILURES]
    return Faults(points, sum(events.values()), tuple(each), end)


# -- in this process


def matrix(kit: Kit, scenario: Scenario) -> None:
    """Every failure at every point, one after the other, and each sequel. Raises a Fault at the first that ends
    badly.
    """
    faults = faults_of(kit, scenario)
    tried = [(point, failure, sequel) for point, failure in faults.each for sequel in SEQUELS]
    for point, failure, sequel in tried[:: _step(kit, len(tried), kit.suite.sample_faults)]:
        kit.tried += 1
        try:
            given = _cut_short(kit, scenario, point, failure)
            sequel(kit, scenario, failure, given, faults.end)
        except (Fault, VolkitError) as error:
            raise Fault(f"{failure.name} {point}, then {sequel.__doc__} {error}") from error


def _step(kit: Kit, number: int, sample: int | None) -> int:
    """Each how manieth is tried: an odd one, so that both of what alternates come along."""
    if sample is None:
        sample = SAMPLE if kit.storage.outlives else 0
    if kit.full or not sample:
        return 1
    return max(1, -(-number // sample)) | 1


def _cut_short(kit: Kit, scenario: Scenario, point: Point, failure: Failure) -> Any:
    if isinstance(kit.journal, VolatileJournal):
        kit.journal.sync()  # what the last fault was about
    given = scenario.prepare(kit)
    before = kit.more()
    kit.spy.fail(point, failure)
    try:
        scenario.call(kit, given)
    except (Killed, Ambiguous):
        pass
    except VolkitError as error:
        check(
            failure.final,
            f"{type(error).__name__} ({error.message}) says that it did not happen: nobody knows",
        )
        if scenario.makes:
            kit.spy.begin()
            kit.expect("after a final refusal", **before)
    finally:
        kit.spy.begin()
    if failure.ends:
        kit.stop()
    if failure.power_cut:
        kit.power_cut(failure.lost)
    return given


def _same(kit: Kit, scenario: Scenario, failure: Failure, given: Any, end: dict[str, int]) -> None:
    """the same call:"""
    call = (failure.power_cut and scenario.again) or scenario.call
    result = kit.until_done(lambda: call(kit, given))
    kit.expect("after the repeat", **end)
    scenario.verify(kit, given, result)
    _nothing_left(kit, failure)


def _other(kit: Kit, scenario: Scenario, failure: Failure, given: Any, end: dict[str, int]) -> None:
    """another call:"""
    # either may be impossible now, and says so
    with suppress(VolkitError):
        kit.until_done(lambda: scenario.other(kit, given))
    with suppress(VolkitError):
        kit.until_done(lambda: scenario.call(kit, given))
    if scenario.makes:
        kit.expect("after another call", **end)
    _nothing_left(kit, failure)


SEQUELS: tuple[Sequel, ...] = (_same, _other)


def _nothing_left(kit: Kit, failure: Failure) -> None:
    """All is as if nothing had happened, and goes without a trace: of a power cut, when it was recovered from."""
    kit.undo()
    kit.expect("after all is removed")
    if failure.power_cut and kit.recorded():
        kit.recover()
        kit.expect("after `volkit recover`")
    left = kit.recorded()
    check(not left, f"after all is removed, the journal still has {left}")


# -- in a process that is killed


def kills(kit: Kit, scenario: Scenario) -> None:
    """SIGKILL to a child process at its system calls, all of them or some all over the way; every other time the
    machine's power goes with it, and a part of what the journal had not synced.
    """
    journal = kit.directory / "killed.db"
    kit.stop()
    kit.open_journal = lambda: open_journal(f"sqlite://{journal}")
    end: dict[str, int] = {}
    total = _killed(kit, scenario, journal, 0, KILL, _same, end).calls
    step = _step(kit, total, kit.suite.sample_kills)
    for count, number in enumerate(range(1 + step // 2, total + 1, step)):
        failure, sequel = (KILL, POWER_CUT)[count % 2], SEQUELS[(count // 2) % 2]
        kit.tried += 1
        try:
            _killed(kit, scenario, journal, number, failure, sequel, end)
        except (Fault, VolkitError) as error:
            raise Fault(
                f"{failure.name} at system call {number} of {total}, then {sequel.__doc__} {error}"
            ) from error


def _killed(
    kit: Kit,
    scenario: Scenario,
    journal: Path,
    number: int,
    failure: Failure,
    sequel: Sequel,
    end: dict[str, int],
) -> Ending:
    """The call in a child that is killed at its `number`-th system call (0: not at all), and the sequel."""
    given = scenario.prepare(kit)
    kit.stop()

    def work() -> None:
        scenario.call(kit, given)
        kit.stop()

    ending = in_child(
        work,
        kill_at=number,
        orphans=not failure.power_cut,
        seconds=kit.suite.patience,
        journal=journal,
    )
    if not number:
        end.update(kit.more())
    if failure.power_cut:
        kit.power_cut(None)
        kit.tear_log(journal, ending.synced, number)
    sequel(kit, scenario, failure, given, end)
    return ending


# -- what hangs


def hangs(kit: Kit, scenario: Scenario) -> None:
    """Each method of the backend that takes part hangs once: other volumes go on, and it ends well when it returns."""
    faults = faults_of(kit, scenario)
    places = dict.fromkeys(point.place for point in faults.points if point.place != "journal")
    for place in places:
        try:
            _hung(kit, scenario, Point(place, 1), faults.end)
        except (Fault, VolkitError) as error:
            raise Fault(f"{place} hangs: {error}") from error


def _hung(kit: Kit, scenario: Scenario, point: Point, end: dict[str, int]) -> None:
    given = scenario.prepare(kit)
    there, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        there.set()
        go_on.wait(kit.suite.patience)

    def call() -> None:
        with suppress(VolkitError):
            scenario.call(kit, given)

    kit.spy.begin(point, hang)
    hung = threading.Thread(target=call, daemon=True)
    hung.start()
    try:
        check(there.wait(kit.suite.patience), f"{point.place} is never called")
        other = kit.create()
        check(kit.get(other.id).id == other.id, "another volume is not found meanwhile")
        kit.delete(other.id)
    finally:
        go_on.set()
        hung.join(kit.suite.patience)
    _same(kit, scenario, KILL, given, end)
