"""plan() and allowed(), exhaustively: every backend that the table allows, every pair of states."""

from __future__ import annotations

from collections import deque
from itertools import chain, combinations, product

import pytest

from volkit import OPERATIONS, Operation, State, plan
from volkit.lifecycle import allowed, canonical

ROWS = tuple(OPERATIONS.values())
UNDO = {one.name: one.undo for one in ROWS if one.undo and one.before is not None}
OPTIONAL = ("controller_publish", "node_stage")
REST = sorted(one.name for one in ROWS if one.before is None and one.name not in ("get_volume", "node_info"))

# with or without attaching, with or without staging; and of the rest everything, nothing, or all but one
BACKENDS = [
    tuple(one for one in ROWS if one.name not in gone)
    for missing in chain.from_iterable(combinations(OPTIONAL, count) for count in range(3))
    for rest in ((), tuple(REST), *((name,) for name in REST))
    for gone in [{*missing, *(UNDO[name] for name in missing), *rest}]
]
EVERY = list(product(BACKENDS, State, State))


def shortest(start: State, end: State, ops: tuple[Operation, ...]) -> list[str] | None:
    """The fewest operations from one state to another by the table, found by trying them all; None: no way."""
    here, there = canonical(start, ops), canonical(end, ops)
    ways: deque[tuple[State, list[str]]] = deque([(here, [])])
    seen = {here}
    while ways:
        state, way = ways.popleft()
        if state == there:
            return way
        for one in ops:
            if one.before is None or one.after is None or canonical(one.before, ops) != state:
                continue
            after = canonical(one.after, ops)
            if after not in seen:
                seen.add(after)
                ways.append((after, [*way, one.name]))
    return None


def names(start: State, end: State, ops: tuple[Operation, ...]) -> list[str]:
    return [one.name for one in plan(start, end, ops)]


def test_every_backend_is_tried() -> None:
    assert len({tuple(one.name for one in ops) for ops in BACKENDS}) == len(BACKENDS) >= 40
    assert len(EVERY) == len(BACKENDS) * 25


def test_a_plan_is_the_shortest_way() -> None:
    for ops, start, end in EVERY:
        assert names(start, end, ops) == shortest(start, end, ops), (start, end)


def test_a_plan_is_legal_at_each_step_and_arrives() -> None:
    for ops, start, end in EVERY:
        here = canonical(start, ops)
        for step in plan(start, end, ops):
            assert step in ops
            assert allowed(step, here, ops)
            assert step.before is not None
            assert step.after is not None
            assert canonical(step.before, ops) == here
            here = canonical(step.after, ops)
        assert here == canonical(end, ops)


def test_the_way_back_undoes_the_way_there() -> None:
    for ops, start, end in EVERY:
        if start <= end:
            back = [UNDO[name] for name in reversed(names(start, end, ops))]
            assert names(end, start, ops) == back


def test_a_way_through_is_a_way_to_and_a_way_from() -> None:
    for ops in BACKENDS:
        for a, b, c in combinations(State, 3):
            assert plan(a, b, ops) + plan(b, c, ops) == plan(a, c, ops)
            assert plan(c, b, ops) + plan(b, a, ops) == plan(c, a, ops)


def test_a_collapsed_state_is_the_one_that_can_be_left() -> None:
    for ops, state, other in EVERY:
        found = canonical(state, ops)
        assert canonical(found, ops) == found >= state
        assert plan(state, found, ops) == plan(found, state, ops) == ()
        assert (canonical(state, ops) <= canonical(other, ops)) or state > other  # the order stays
        if found is not State.PUBLISHED:
            assert any(one.before == found for one in ops)


def test_a_change_is_legal_only_next_to_where_it_leads_and_so_is_its_repeat() -> None:
    for ops, state, _ in EVERY:
        for one in ops:
            if one.before is None or one.after is None or one.name == "controller_unpublish":
                continue
            near = {canonical(one.before, ops), canonical(one.after, ops)}
            assert allowed(one, state, ops) == (canonical(state, ops) in near)
            assert allowed(one, one.before, ops)
            assert allowed(one, one.after, ops)


def test_what_a_backend_does_not_serve_is_never_legal_and_never_planned() -> None:
    for ops, start, end in EVERY:
        others = set(ROWS) - set(ops)
        assert not any(allowed(one, start, ops) for one in others)
        assert not others & set(plan(start, end, ops))


@pytest.mark.parametrize("name", sorted(UNDO))
def test_an_undo_leads_back(name: str) -> None:
    there, back = OPERATIONS[name], OPERATIONS[UNDO[name]]
    assert (there.before, there.after) == (back.after, back.before)
    assert (there.side, there.mixin, there.without) == (back.side, back.mixin, back.without)
