"""Pages of a listing, walked while entries come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import requests
from volkit.errors import Ambiguous, InvalidToken
from volkit.operations import OPERATIONS
from volkit.requests import ListRequest, Page

IDS = st.text(st.sampled_from("ab%:/ü\U0010ffff"), min_size=1, max_size=3)


def test_the_last_page_has_no_token() -> None:
    ids = ["a", "b", "c", "d"]
    first: Page[str] = Page.of(ids, ListRequest(limit=2), str)
    assert (first.entries, bool(first.next_token)) == (("a", "b"), True)
    second: Page[str] = Page.of(ids, ListRequest(limit=2, token=first.next_token), str)
    assert (second.entries, second.next_token) == (("c", "d"), "")
    assert Page.of(ids, ListRequest(), str).entries == tuple(ids)
    assert Page.of([], ListRequest(limit=5), str) == Page(entries=())
    assert Page.of(ids, ListRequest(limit=99), str).next_token == ""


def test_a_token_outlives_its_entry() -> None:
    token = Page.of(["a", "b", "c"], ListRequest(limit=2), str).next_token
    assert Page.of(["a", "c"], ListRequest(limit=2, token=token), str).entries == ("c",)
    assert Page.of([], ListRequest(limit=2, token=token), str) == Page(entries=())


@given(IDS)
def test_a_token_is_read_as_it_was_made(id_: str) -> None:
    token = Page.of([id_, f"{id_}b"], ListRequest(limit=1), str).next_token
    assert ListRequest(token=token).after == id_


def test_no_more_is_taken_than_the_page_holds_and_one() -> None:
    taken: list[str] = []

    def entries() -> Iterator[tuple[str, str]]:
        for id_ in "abcdef":
            taken.append(id_)
            yield id_, id_

    assert Page.take(entries(), ListRequest(limit=2)).entries == ("a", "b")
    assert taken == ["a", "b", "c"]


@pytest.mark.parametrize("token", ["x", "5", "after", "after:", "After:a", " after:a", ":a", "\0"])
def test_a_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken, match="begin again"):
        Page.of(["a"], ListRequest(token=token), str)
    assert issubclass(InvalidToken, Ambiguous)


REQUESTS = [
    one
    for one in vars(requests).values()
    if isinstance(one, type) and attrs.has(one) and one.__name__.endswith("Request")
]


@pytest.mark.parametrize("cls", REQUESTS, ids=lambda cls: cls.__name__)
def test_a_new_field_breaks_nobody(cls: Any) -> None:
    """All fields are given by name, and secrets have a default that shows nothing."""
    fields = attrs.fields(cls)
    assert all(field.kw_only for field in fields)
    assert all(repr(field.default) == "Secrets()" for field in fields if field.name == "secrets")


def test_every_operation_has_its_own_request() -> None:
    used = [row.request for row in OPERATIONS.values()]
    assert len(set(used)) == len(used)
    assert set(used) <= set(REQUESTS)
