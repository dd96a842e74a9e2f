"""The table agrees with the interfaces, the requests and itself."""

from __future__ import annotations

import inspect

import pytest

from volkit import OPERATIONS, Controller, Node, Operation, State, interfaces, model, requests
from volkit.operations import Lock, Repeat

SIDES: dict[str, type] = {"controller": Controller, "node": Node}
ROWS = list(OPERATIONS.values())
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
def test_a_row_names_what_is_there(row: Operation) -> None:
    assert OPERATIONS[row.name] is row
    assert inspect.getmodule(row.request) is requests
    assert row.result is None or inspect.getmodule(row.result) in (requests, model)
    home = row.mixin or SIDES[row.side]
    if row.method:
        assert callable(getattr(home, row.method))
    for mixin in (row.mixin, row.without):
        assert mixin is None or mixin in SIDES[row.side].mixins  # type: ignore[attr-defined]


@rows
def test_the_method_takes_and_returns_what_the_row_says(row: Operation) -> None:
    if not row.method or row.method in ("connect", "disconnect"):  # these get requests of their own
        return
    hints = inspect.signature(getattr(row.mixin or SIDES[row.side], row.method))
    assert str(hints.parameters["request"].annotation).partition("[")[0] == row.request.__name__
    returned = str(hints.return_annotation).partition("[")[0]
    # volkit adds to a volume what the storage told of it
    expected = {"get_volume": "Volume"}.get(row.name, row.result.__name__ if row.result else "None")
    assert returned == expected


@rows
def test_what_leads_somewhere_has_an_undo_that_leads_back(row: Operation) -> None:
    assert (row.before is None) == (row.after is None)
    if row.before is not None and row.after is not None:
        assert abs(row.before - row.after) == 1
        if row.after > row.before:
            undo = OPERATIONS[row.undo]
            assert (undo.before, undo.after) == (row.after, row.before)
            assert (undo.side, undo.mixin, undo.without) == (row.side, row.mixin, row.without)
            assert undo.repeat is Repeat.GONE
            assert row.repeat is Repeat.COMPATIBLE
    if row.undo:
        assert OPERATIONS[row.undo].undo == ""


@rows
def test_reads_hold_nothing_and_changes_hold_something(row: Operation) -> None:
    assert (row.lock is Lock.NONE) == (row.repeat is Repeat.READ)
    if row.before is not None:
        assert row.lock is not Lock.NONE


def test_every_state_is_reached_and_left() -> None:
    assert {row.after for row in ROWS if row.after is not None} == set(State)
    assert {row.before for row in ROWS if row.before is not None} == set(State)
    assert [one.before for one in ROWS if one.after == (one.before or 0) + 1 and one.before is not None] == [
        State.ABSENT, State.CREATED, State.NODE_READY, State.VOL_READY,
    ]  # fmt: skip


def test_every_method_a_vendor_writes_is_asked_for_by_a_row() -> None:
    asked = {row.method for row in ROWS}
    of_the_engine = {
        "list_published",
        "volume_health",
        "topology",
        "list_connections",
    }  # parts of list_volumes, get_volume, node_info; and the doctor's
    for side in SIDES.values():
        offered = {name for mixin in (side, *side.mixins) for name in interfaces._abstract(mixin)}  # type: ignore[attr-defined]
        assert offered - of_the_engine <= asked


def test_every_request_has_a_row_or_is_one_for_the_backend() -> None:
    of_the_engine = {"ListPublishedRequest", "ConnectRequest", "DisconnectRequest", "ResizeRequest"}
    defined = {
        name for name, value in vars(requests).items() if isinstance(value, type) and name.endswith("Request")
    }
    assert defined == {row.request.__name__ for row in ROWS} | of_the_engine


def test_who_serves_what() -> None:
    class PerPod(Node, interfaces.ConnectsPerPod, abstract=True):  # type: ignore[type-arg]
        pass

    stage = OPERATIONS["node_stage"]
    assert stage.served_by(Node)
    assert not stage.served_by(PerPod)
    assert not stage.served_by(None)
    assert not OPERATIONS["list_volumes"].served_by(Controller)
