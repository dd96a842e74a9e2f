"""What is legal, and the way from one state to another: pure functions over the table.

A state that a backend lacks collapses into the one before it: without `Publishes` a created volume is
NODE_READY, and where connect runs per pod a NODE_READY one is VOL_READY.
"""

from __future__ import annotations

from collections.abc import Collection

from volkit.operations import OPERATIONS, Operation, Repeat, State


def canonical(state: State, operations: Collection[Operation]) -> State:
    """The furthest state that is the same as `state` for a backend that serves just these operations."""
    leads_on = {one.before for one in operations if one.before is not None and one.after == one.before + 1}
    while state in (State.CREATED, State.NODE_READY, State.VOL_READY) and state not in leads_on:
        state = State(state + 1)
    return state


def allowed(operation: Operation, state: State, operations: Collection[Operation]) -> bool:
    """Is `operation` legal for a volume in `state`, as a first call or as a repeat? A read always is, and so
    is to detach or to remove what may be there.
    """
    if operation not in operations:
        return False
    if operation.repeat is Repeat.READ or operation.name in ("controller_unpublish", "delete_snapshot"):
        return True
    if operation.before is None or operation.after is None:
        return state is not State.ABSENT
    here = canonical(state, operations)
    return here in (canonical(operation.before, operations), canonical(operation.after, operations))


def plan(start: State, end: State, operations: Collection[Operation]) -> tuple[Operation, ...]:
    """The operations that lead from `start` to `end`, in order. Docker's Mount is `plan(CREATED,
    PUBLISHED)`.
    """
    if start <= end:
        forward = (
            one for one in OPERATIONS.values() if one.before is not None and one.after == one.before + 1
        )
        return tuple(one for one in forward if one in operations and start <= one.before and one.after <= end)  # type: ignore[operator]
    backward = (one for one in OPERATIONS.values() if one.before is not None and one.after == one.before - 1)
    steps = [one for one in backward if one in operations and end <= one.after and one.before <= start]  # type: ignore[operator]
    return tuple(sorted(steps, key=lambda one: -one.before))  # type: ignore[operator]
