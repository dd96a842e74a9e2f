"""A class whose methods and mixins do not match is refused when it is defined, with what to change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import Controller, Mixin, Node, interfaces
from volkit.backend import mixins


def block(self: object, request: object) -> Any:
    raise AssertionError


async def wait(self: object, request: object) -> Any:
    raise AssertionError


async def stream(self: object, request: object) -> Any:
    yield


BASE: dict[str, Any] = {"create_volume": block, "delete_volume": block, "get_volume": block}
NODE: dict[str, Any] = {"connect": block, "disconnect": block}
OFFERED = Controller.mixins


def methods(mixin: type[Mixin]) -> set[str]:
    return interfaces._abstract(mixin)


def needs(mixin: type[Mixin]) -> set[type[Mixin]]:
    return {other for name in mixin.needs for other in OFFERED if other.__name__ == name}


def define(*bases: type, **members: Any) -> type:
    return type("Acme", (Controller, *bases), {**BASE, **members})


def test_every_mixin_belongs_to_a_side() -> None:
    roots = {
        value
        for value in vars(interfaces).values()
        if isinstance(value, type) and issubclass(value, Mixin) and value is not Mixin
    }
    assert roots == {*Controller.mixins, *Node.mixins}
    assert not set(Controller.mixins) & set(Node.mixins)
    for mixin in roots:
        assert set(mixin.needs) <= {other.__name__ for other in roots}
        assert mixin.__doc__
    assert not [
        name
        for one in OFFERED
        for other in OFFERED
        if one is not other
        for name in methods(one) & methods(other)
    ]


def test_the_least_there_is() -> None:
    assert mixins(define()) == frozenset()
    assert issubclass(type("Acme", (Node,), NODE), Node)


@pytest.mark.parametrize("name", BASE)
def test_a_controller_without_its_method(name: str) -> None:
    with pytest.raises(TypeError, match=f"Acme lacks {name}: define it"):
        type("Acme", (Controller,), {key: value for key, value in BASE.items() if key != name})


@pytest.mark.parametrize("name", NODE)
def test_a_node_without_its_method(name: str) -> None:
    with pytest.raises(TypeError, match=f"Acme lacks {name}: define it"):
        type("Acme", (Node,), {key: value for key, value in NODE.items() if key != name})


@given(
    st.sets(st.sampled_from(OFFERED)),
    st.sets(st.sampled_from(sorted({m for one in OFFERED for m in methods(one)}))),
)
def test_methods_and_mixins_match_or_it_is_refused(inherited: set[type[Mixin]], defined: set[str]) -> None:
    asked = {name for mixin in inherited for name in methods(mixin)}
    complete = all(needs(mixin) <= inherited for mixin in inherited)
    bases = sorted(inherited, key=lambda mixin: mixin.__name__)
    try:
        cls = define(*bases, **dict.fromkeys(defined, block))
    except TypeError:
        assert asked != defined or not complete
        return
    assert asked == defined
    assert complete
    assert mixins(cls) == {mixin.__name__ for mixin in inherited}
    cls({})  # and nothing abstract is left


@pytest.mark.parametrize("mixin", [mixin for mixin in OFFERED if methods(mixin)])
def test_the_refusal_says_what_to_do(mixin: type[Mixin]) -> None:
    everything = dict.fromkeys(methods(mixin), block)
    bases = (mixin, *needs(mixin))
    other = {name: block for base in needs(mixin) for name in methods(base)}
    with pytest.raises(TypeError, match=f"without {mixin.__name__}: add {mixin.__name__} to its bases"):
        define(*needs(mixin), **everything, **other)
    for name in methods(mixin):
        fewer = {key: value for key, value in everything.items() if key != name}
        with pytest.raises(TypeError, match=f"has {mixin.__name__} but not {name}: define it, or remove"):
            define(*bases, **fewer, **other)


@pytest.mark.parametrize("mixin", [mixin for mixin in OFFERED if mixin.needs])
def test_a_mixin_without_the_one_it_needs(mixin: type[Mixin]) -> None:
    with pytest.raises(
        TypeError, match=f"has {mixin.__name__} without {mixin.needs[0]}: add {mixin.needs[0]}"
    ):
        define(mixin, **dict.fromkeys(methods(mixin), block))


@pytest.mark.parametrize("function", [wait, stream, staticmethod(wait), classmethod(wait)])
@pytest.mark.parametrize("name", ["create_volume", "helper"])
def test_an_async_def_is_refused(function: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"Acme.{name} is an async def"):
        define(**{name: function})


def test_an_async_def_is_refused_where_it_is_inherited() -> None:
    class Elsewhere:
        create_volume = wait

    with pytest.raises(TypeError, match=r"Acme\.create_volume is an async def"):
        type("Acme", (Elsewhere, Controller), {"delete_volume": block, "get_volume": block})


def test_a_mixin_of_the_other_side_is_refused() -> None:
    with pytest.raises(TypeError, match="Acme cannot have ConnectsPerPod"):
        define(interfaces.ConnectsPerPod)
    with pytest.raises(TypeError, match="Acme cannot have Lists"):
        type("Acme", (Node, interfaces.Lists), {**NODE, "list_volumes": block})
    own = type("Own", (Mixin,), {})
    with pytest.raises(TypeError, match="Acme cannot have Own"):
        define(own)


def test_a_vendor_may_share_code_in_bases_of_its_own() -> None:
    half = type("Half", (Controller,), {"create_volume": block}, abstract=True)
    whole = type("Acme", (half,), {"delete_volume": block, "get_volume": block})
    assert issubclass(whole, Controller)
    with pytest.raises(TypeError, match="Acme lacks delete_volume"):
        type("Acme", (half,), {"get_volume": block})
    growing = type("Growing", (interfaces.Expands,), {"expand_volume": block})
    assert mixins(define(growing)) == {"Expands"}
    child = type("Child", (define(growing),), {})
    assert mixins(child) == {"Expands"}


def test_a_method_taken_away_again_is_missed() -> None:
    with pytest.raises(TypeError, match="Child has Expands but not expand_volume"):
        type("Child", (define(interfaces.Expands, expand_volume=block),), {"expand_volume": None})


def test_a_refused_class_does_not_change_what_others_are() -> None:
    """abc remembers a wrong answer about a class that it is asked of while a refused one still lingers."""
    refused = []
    for mixin in OFFERED:
        try:
            define(mixin)
        except TypeError as error:
            refused.append(error)  # and so the half-made class lives on
    assert refused
    good = define(interfaces.Expands, expand_volume=block)
    assert issubclass(good, Controller)
    assert issubclass(good, interfaces.Expands)
    assert not issubclass(good, interfaces.Lists)
