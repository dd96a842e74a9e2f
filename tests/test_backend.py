"""What a Backend class is refused for, at its definition, and what it says of itself."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from attrs import frozen

from volkit import (
    OPERATIONS,
    Backend,
    BlockVolume,
    Connection,
    ConnectRequest,
    ConnectsPerPod,
    Controller,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    DisconnectRequest,
    Expands,
    ExpandVolumeRequest,
    ExpandVolumeResult,
    GetVolumeRequest,
    Limits,
    Node,
    Volume,
)
from volkit.backend import mixins, supported


class Plain(Controller[Any, Any]):
    def create_volume(self, request: CreateVolumeRequest[Any]) -> Volume:
        return BlockVolume(id=request.name)

    def delete_volume(self, request: DeleteVolumeRequest) -> None: ...

    def get_volume(self, request: GetVolumeRequest) -> Volume:
        return BlockVolume(id=request.volume_id)


class Growing(Plain, Expands):
    def expand_volume(self, request: ExpandVolumeRequest) -> ExpandVolumeResult:
        return ExpandVolumeResult(capacity=request.size)


class Local(Node[Any]):
    def connect(self, request: ConnectRequest) -> Connection:
        raise AssertionError

    def disconnect(self, request: DisconnectRequest) -> None: ...


class PerPod(Local, ConnectsPerPod): ...


def define(**members: Any) -> type[Backend[Any, Any]]:
    return type("Acme", (Backend,), {"name": "acme", "controller": Plain, **members})


@pytest.mark.parametrize("name", ["acme", "a1", "a-b-c", "x" * 32])
def test_a_name_that_fits_everywhere(name: str) -> None:
    assert define(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "a", "A", "1a", "-a", "a-", "a_b", "a.b", "a/b", "ä1", "a ", "a\n", "x" * 33]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="2 to 32 of a-z"):
        define(name=name)


def test_options_are_frozen_attrs_classes() -> None:
    @attrs.define
    class Mutable:
        pool: str = ""

    @attrs.define
    class Converted:
        pool: str = attrs.field(default="", converter=str)  # attrs gives this one a __setattr__ of its own

    @frozen
    class Unreadable:
        blob: bytes = b""

    class Bare:
        pool = ""

    for role in ("settings", "parameters"):
        for options in (Mutable, Converted, Bare, dict, None):
            with pytest.raises(TypeError, match=rf"Acme.{role} is not a frozen attrs class"):
                define(**{role: options})
        with pytest.raises(TypeError, match="blob"):
            define(**{role: Unreadable})


def test_it_has_a_controller_or_a_node() -> None:
    with pytest.raises(TypeError, match="neither a controller nor a node"):
        define(controller=None)
    assert define(controller=None, node=Local).controller is None
    for role, wrong in (("controller", Local), ("controller", Plain({})), ("node", Plain), ("node", "Local")):
        with pytest.raises(TypeError, match=rf"Acme.{role} is .*name a subclass of volkit.{role.title()}"):
            define(**{role: wrong})


def test_it_describes_what_its_classes_can_do() -> None:
    class Acme(Backend[Any, Any]):
        """Arrays by Acme.

        And more.
        """

        name = "acme"
        controller = Growing
        node = PerPod

    told = Acme.describe()
    assert (told["name"], told["summary"], told["kind"]) == ("acme", "Arrays by Acme.", "block")
    assert told["capabilities"] == ["ConnectsPerPod", "Expands"]
    assert {"create_volume", "expand_volume", "node_publish"} <= set(told["operations"])
    assert not {"controller_publish", "node_stage", "node_unstage", "list_volumes"} & set(told["operations"])


def test_what_is_served_depends_on_the_side() -> None:
    rows = list(OPERATIONS.values())
    assert supported(None, None) == ()
    assert {one.side for one in supported(Plain, None)} == {"controller"}
    assert {one.side for one in supported(None, Local)} == {"node"}
    assert list(supported(Growing, Local)) == [one for one in rows if one.mixin in (None, Expands)]
    assert mixins(None) == frozenset()
    assert mixins(Plain) == frozenset()


def test_limits_are_values() -> None:
    limits = Limits(fs_types=["xfs"], access_modes=[])
    assert limits.fs_types == ("xfs",)
    assert limits.access_modes == frozenset()
    assert hash(limits) == hash(Limits(fs_types=("xfs",), access_modes=frozenset()))
