"""What a node tells of itself, inside its id."""

from __future__ import annotations

import pytest

from volkit.errors import FailedPrecondition, InvalidArgument
from volkit.node_ids import MAX_BYTES, decode_node_id, encode_node_id


@pytest.mark.parametrize(
    "text", ["n1", "n1?", "?", "", "n1?iqn", "i-0?zone", "n1?b=2&a=1", "n1?a=%2", "a?b?c", "n1?a=1&a=2"]
)
def test_two_foreign_ids_are_never_one_node(text: str) -> None:
    assert decode_node_id(text) == (text, {})


def test_it_reads_well() -> None:
    facts = {"wwn": "50:01:43", "iqn": "iqn.1993-08.org.debian:01:a/b", "empty": ""}
    text = encode_node_id("n1", facts)
    assert text == "n1?empty=&iqn=iqn.1993-08.org.debian:01:a/b&wwn=50:01:43"
    assert decode_node_id(text) == ("n1", facts)


def test_the_order_of_facts_does_not_matter() -> None:
    assert encode_node_id("n", {"a": "1", "b": "2"}) == encode_node_id("n", {"b": "2", "a": "1"})


def test_what_does_not_fit_is_refused() -> None:
    assert len(encode_node_id("n" * MAX_BYTES, {})) == MAX_BYTES
    with pytest.raises(FailedPrecondition, match=r"'n1'.*iqn.*256 bytes"):
        encode_node_id("n1", {"iqn": "x" * 251})
    with pytest.raises(FailedPrecondition):
        encode_node_id("ü" * 129, {})


def test_the_mark_is_not_for_names() -> None:
    with pytest.raises(InvalidArgument, match=r"'n\?1'"):
        encode_node_id("n?1", {})
