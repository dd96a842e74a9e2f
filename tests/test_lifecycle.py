"""plan() and allowed() by example; tests/properties/test_planner.py tries all there is."""

from __future__ import annotations

import pytest

from volkit import OPERATIONS, State, plan
from volkit.lifecycle import allowed

ROWS = tuple(OPERATIONS.values())


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
