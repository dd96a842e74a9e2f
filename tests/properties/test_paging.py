"""A listing walked in pages while it changes: exactly what stayed is seen, once; any token goes on or is refused."""

from __future__ import annotations

import bisect

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from volkit.errors import Aborted, InvalidToken
from volkit.requests import ListRequest, Page

IDS = st.one_of(
    st.text(st.sampled_from("ab%:/\u00fc\U0010ffff"), min_size=1, max_size=3),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.sampled_from(["after:", "after:a", "x" * 4096]),
)


@given(
    st.one_of(st.text(max_size=30), IDS.map("after:{}".format)), st.sets(IDS, max_size=8), st.integers(0, 3)
)
def test_any_token_goes_on_right_behind_it_or_is_aborted(token: str, ids: set[str], limit: int) -> None:
    request = ListRequest(limit=limit, token=token)
    try:
        page: Page[str] = Page.of(sorted(ids), request, str)
    except InvalidToken as error:
        assert isinstance(error, Aborted)  # CSI spec, ListVolumes: an invalid starting_token is ABORTED
        assert token != ""
        assert not token.startswith("after:") or token == "after:"
        assert len(token) < 5 or token not in error.message
        return
    rest = sorted(one for one in ids if not token or one > token.removeprefix("after:"))
    assert list(page.entries) == rest[: limit or None]
    assert bool(page.next_token) == (len(rest) > len(page.entries))


@given(st.sets(IDS, max_size=20), st.integers(1, 7))
def test_the_pages_add_up(ids: set[str], limit: int) -> None:
    """Sorted as the bytes of UTF-8 are, as SQLite and etcd do."""
    wanted = sorted(ids, key=str.encode)
    seen: list[str] = []
    pages, token = 0, ""
    while pages == 0 or token:
        page: Page[str] = Page.of(wanted, ListRequest(limit=limit, token=token), str)
        assert len(page.entries) <= limit
        assert not page.next_token or len(page.entries) == limit  # only the last is short
        seen += page.entries
        pages, token = pages + 1, page.next_token
    assert seen == wanted
    assert pages == max(1, -(-len(wanted) // limit))


class Walks(RuleBasedStateMachine):
    """Several walks through one listing, by `Page.of` and by `Page.take`, with pages of changing sizes."""

    walks = Bundle("walks")

    @initialize(ids=st.sets(IDS, max_size=10))
    def begin(self, ids: set[str]) -> None:
        self.ids = sorted(ids)
        self.open: list[tuple[list[str], set[str], set[str]]] = []

    @rule(target=walks)
    def start(self) -> tuple[str, int]:
        """What it has seen, what was there all along, what was there at some time."""
        self.open.append(([], set(self.ids), set(self.ids)))
        return "", len(self.open) - 1

    @rule(one=IDS)
    def insert(self, one: str) -> None:
        if one not in self.ids:
            bisect.insort(self.ids, one)
        for _, _, ever in self.open:
            ever.add(one)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.ids:
            one = data.draw(st.sampled_from(self.ids))
            self.ids.remove(one)
            for _, stayed, _ in self.open:
                stayed.discard(one)

    @rule(
        target=walks, walk=consumes(walks), limit=st.integers(0, 4), streamed=st.booleans(), gone=st.sets(IDS)
    )
    def go_on(self, walk: tuple[str, int], limit: int, streamed: bool, gone: set[str]) -> object:
        token, number = walk
        seen, stayed, _ = self.open[number]
        request = ListRequest(limit=limit, token=token)
        if streamed:
            after = request.after
            page: Page[str] = Page.take(((one, one) for one in self.ids if not after or one > after), request)
        else:
            gone -= stayed  # removed between the listing of the ids and the look at the entry
            page = Page.of(self.ids, request, lambda one: None if one in gone else one)
        seen += page.entries
        if page.next_token:
            return page.next_token, number
        assert stayed <= set(seen)
        return multiple()

    @invariant()
    def nothing_is_repeated_and_nothing_is_made_up(self) -> None:
        for seen, _, ever in getattr(self, "open", ()):
            assert seen == sorted(set(seen))
            assert set(seen) <= ever


TestWalks = Walks.TestCase
