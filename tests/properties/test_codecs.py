"""Ids and keys that carry several things in one text: what goes in comes out, and foreign ones are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit.errors import FailedPrecondition, InvalidArgument
from volkit.journal import key
from volkit.journal.records import QUARANTINE, parts, unquoted
from volkit.node_ids import MAX_BYTES, decode_node_id, encode_node_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORD = st.one_of(
    TEXT, st.text(st.sampled_from("a?&=;%/:+ \u00fc\n\0"), max_size=8), st.text("x", max_size=300)
)
NAME = WORD.filter(lambda name: "?" not in name)
FACTS = st.dictionaries(WORD, WORD, max_size=4)


# -- node ids ------------------------------------------------------------------------------------------------


@given(NAME, FACTS)
def test_a_node_id_is_read_as_it_was_made_or_is_too_long(name: str, facts: dict[str, str]) -> None:
    try:
        text = encode_node_id(name, facts)
    except FailedPrecondition as error:
        least = len(name.encode()) + sum(len(f"{word}{value}".encode()) for word, value in facts.items())
        assert 3 * least + 2 * len(facts) > MAX_BYTES  # a byte takes three at most
        assert len(error.message) < 3000
        return
    assert len(text.encode()) <= MAX_BYTES
    assert decode_node_id(text) == (name, facts)
    assert encode_node_id(name, dict(reversed(facts.items()))) == text


@given(st.one_of(WORD, st.text(max_size=30), st.text("n?a=1&%2zZ+", max_size=12)))
def test_a_foreign_id_passes_as_it_is(text: str) -> None:
    """Whatever a text is taken for, it is the only id that is taken for it: two nodes never become one."""
    name, facts = decode_node_id(text)
    if facts:
        assert encode_node_id(name, facts) == text or len(text.encode()) > MAX_BYTES
    else:
        assert name == text


@given(st.text(max_size=12), st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
def test_what_is_no_text_is_refused(name: str, facts: dict[str, str]) -> None:
    def is_text(text: str) -> bool:
        return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)

    try:
        encode_node_id(name, facts)
    except InvalidArgument as error:
        assert "?" in name or not all(map(is_text, [name, *facts, *facts.values()]))
        assert error.message.isprintable()
    except FailedPrecondition:
        pass
    else:
        assert all(map(is_text, [name, *facts, *facts.values()]))


@pytest.mark.parametrize(
    "text", ["n?\ud800=1", "\ud800", "n?a=\udcff", "n?a=%ff", "n?a=%00", "n?=", "n?a=1;b=2"]
)
def test_odd_ids_are_names_or_come_back_the_same(text: str) -> None:
    name, facts = decode_node_id(text)
    assert (name, facts) == (text, {}) or encode_node_id(name, facts) == text


# -- keys of the journal -------------------------------------------------------------------------------------

PARTS = st.lists(st.one_of(TEXT, st.text("/%25F2 ", max_size=6)), min_size=1, max_size=4)


@given(PARTS)
def test_a_key_is_taken_apart_as_it_was_made(given_parts: list[str]) -> None:
    assert parts(key(*given_parts)) == given_parts
    assert unquoted(key(QUARANTINE, key(*given_parts))) == key(*given_parts)


@given(PARTS, PARTS)
def test_two_things_never_have_one_key(one: list[str], two: list[str]) -> None:
    assert (key(*one) == key(*two)) == (one == two)


@given(PARTS, PARTS)
def test_a_prefix_is_that_of_its_own_things_alone(prefix: list[str], other: list[str]) -> None:
    assert key(*other).startswith(key(*prefix, "")) == (
        other[: len(prefix)] == prefix and len(other) > len(prefix)
    )
