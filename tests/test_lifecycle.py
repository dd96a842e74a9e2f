"""plan() and allowed(), for every backend that can be built from the table's rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from volkit import OPERATIONS, Operation, State, plan
from volkit.lifecycle import allowed, canonical

ROWS = tuple(OPERATIONS.values())
PAIRS = {one: OPERATIONS[one.undo] for one in ROWS if one.undo and one.before is not None}
OPTIONAL = ("controller_publish", "node_stage")
states = st.sampled_from(State)


@st.composite
def backends(draw: st.DrawFn) -> tuple[Operation, ...]:
    """All that a backend can serve: with or without attaching, with or without staging, read-only or static
    ones too.
    """
    left_out = draw(st.sets(st.sampled_from(OPTIONAL)))
    gone = {
        name
        for forward, undo in PAIRS.items()
        if forward.name in left_out
        for name in (forward.name, undo.name)
    }
    return tuple(one for one in ROWS if one.name not in gone)


@given(backends(), states, states)
def test_a_plan_is_legal_at_each_step_and_arrives(
    ops: tuple[Operation, ...], start: State, end: State
) -> None:
    here = canonical(start, ops)
    for step in plan(start, end, ops):
        assert step in ops
        assert allowed(step, here, ops)
        assert step.before is not None
        assert step.after is not None
        assert canonical(step.before, ops) == here
        here = canonical(step.after, ops)
    assert here == canonical(end, ops)


@given(backends(), states, states)
def test_the_way_back_undoes_the_way_there(ops: tuple[Operation, ...], start: State, end: State) -> None:
    assume(start <= end)
    there, back = plan(start, end, ops), plan(end, start, ops)
    assert [one.name for one in back] == [one.undo for one in reversed(there)]


@given(backends(), states, states, states)
def test_a_way_through_is_a_way_to_and_a_way_from(
    ops: tuple[Operation, ...], a: State, b: State, c: State
) -> None:
    a, b, c = sorted((a, b, c))
    assert plan(a, b, ops) + plan(b, c, ops) == plan(a, c, ops)
    assert plan(c, b, ops) + plan(b, a, ops) == plan(c, a, ops)
    assert plan(b, b, ops) == ()


@given(backends(), states)
def test_canonical_is_a_state_that_can_be_left(ops: tuple[Operation, ...], state: State) -> None:
    found = canonical(state, ops)
    assert canonical(found, ops) == found
    assert found >= state
    assert plan(state, found, ops) == ()
    if found is not State.PUBLISHED:
        assert any(one.before == found for one in ops)


@given(backends())
def test_canonical_keeps_the_order(ops: tuple[Operation, ...]) -> None:
    for lower, upper in pairwise(State):
        assert canonical(lower, ops) <= canonical(upper, ops)


@given(backends(), states)
def test_a_repeat_is_as_legal_as_the_first_call(ops: tuple[Operation, ...], state: State) -> None:
    for one in ops:
        if one.before is not None and one.after is not None and allowed(one, one.before, ops):
            assert allowed(one, one.after, ops)


@given(backends(), states)
def test_nothing_is_skipped(ops: tuple[Operation, ...], state: State) -> None:
    """A change is legal only next to where it leads from or to."""
    for one in ops:
        if one.before is None or one.after is None or one.name == "controller_unpublish":
            continue
        near = {canonical(one.before, ops), canonical(one.after, ops)}
        assert allowed(one, state, ops) == (canonical(state, ops) in near)


def test_docker_mounts_by_the_table() -> None:
    mount = [one.name for one in plan(State.CREATED, State.PUBLISHED, ROWS)]
    assert mount == ["controller_publish", "node_stage", "node_publish"]
    unmount = [one.name for one in plan(State.PUBLISHED, State.CREATED, ROWS)]
    assert unmount == ["node_unpublish", "node_unstage", "controller_unpublish"]
    fewer = [one for one in ROWS if one.without is None and one.mixin is None]
    assert [one.name for one in plan(State.ABSENT, State.PUBLISHED, fewer)] == [
        "create_volume",
        "node_publish",
    ]


@pytest.mark.parametrize("state", State)
def test_controller_unpublish_is_always_legal(state: State) -> None:
    assert allowed(OPERATIONS["controller_unpublish"], state, ROWS)
    without = [one for one in ROWS if one.mixin is None]
    assert not allowed(OPERATIONS["controller_unpublish"], state, without)


def test_a_published_volume_is_not_deleted() -> None:
    for state in (State.NODE_READY, State.VOL_READY, State.PUBLISHED):
        assert not allowed(OPERATIONS["delete_volume"], state, ROWS)
    assert allowed(OPERATIONS["delete_volume"], State.ABSENT, ROWS)
    assert allowed(OPERATIONS["expand_volume"], State.PUBLISHED, ROWS)
    assert not allowed(OPERATIONS["expand_volume"], State.ABSENT, ROWS)
