"""Mount options against a model that knows only the table of words, and against the kernel that is here."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volkit.errors import InvalidArgument
from volkit.host import _mount_options as words
from volkit.host import mounts

SECRET = "correct-horse"
FLAG = st.sampled_from(sorted(words.FLAGS))
FOR_PROGRAMS = st.sampled_from(
    ["auto", "noauto", "user", "nofail", "_netdev", "x-systemd.automount", "comment=a", ""]
)
DATA = st.from_regex(r"[a-z_]{1,9}(=[ -+./-~]{0,9})?", fullmatch=True).filter(
    lambda word: word not in words.FLAGS and not word.startswith("comment")
)
BAD = st.one_of(
    st.sampled_from(
        ["bind", "remount", "loop", "rshared", "move", f"password={SECRET}\0", f"password={SECRET}\n"]
    ),
    st.just("a\ud800"),
)
WORD = st.one_of(FLAG, FOR_PROGRAMS, DATA)


@given(st.lists(WORD, max_size=8))
def test_each_word_goes_where_it_belongs_and_the_last_one_wins(options: list[str]) -> None:
    flags, data = words.flags_and_data(options)
    bits: dict[int, bool] = {}
    for word in options:
        on, off = words.FLAGS.get(word, (0, 0))
        for bit in range(32):
            if off >> bit & 1:
                bits[bit] = False
            if on >> bit & 1:
                bits[bit] = True
    assert flags == sum(1 << bit for bit, on in bits.items() if on)
    unknown = [word for word in options if word in words.FLAGS or word in words._FOR_PROGRAMS or not word]
    rest = [word for word in options if word not in unknown and not word.startswith(("x-", "X-", "comment="))]
    assert data == ",".join(rest)


@given(st.lists(WORD, max_size=3), BAD, st.lists(WORD, max_size=3))
def test_one_bad_word_spoils_all_and_its_value_is_not_shown(
    before: list[str], bad: str, after: list[str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        words.flags_and_data([*before, bad, *after])
    assert SECRET not in caught.value.message
    assert caught.value.message.isprintable()


@given(st.lists(st.text(max_size=2000), max_size=8))
def test_any_words_are_taken_or_an_invalid_argument(options: list[str]) -> None:
    try:
        flags, data = words.flags_and_data(options)
    except InvalidArgument as error:
        assert len(error.message) < 1000
        return
    assert 0 <= flags < 1 << 32
    assert "\0" not in data
    assert len(data.encode("utf-8", "surrogateescape")) <= 4095


@given(st.lists(st.sampled_from(sorted(words.ATTRIBUTES)), max_size=6))
def test_attributes_of_a_mount_are_set_or_cleared_never_both_ways(options: list[str]) -> None:
    """mount_setattr(2): what is to be set of the access time must be cleared as a whole."""
    setting, clearing = words.attributes(options)
    for word in reversed(options):
        on, _ = words.ATTRIBUTES[word]
        if on and not any(words.ATTRIBUTES[later][1] & on for later in options[options.index(word) + 1 :]):
            assert setting & on == on
    atime = setting & words._MOUNT_ATTR_ATIME
    assert atime in (0, 0x10, 0x20)
    assert not atime or clearing & words._MOUNT_ATTR_ATIME == words._MOUNT_ATTR_ATIME


@pytest.mark.root
@settings(max_examples=40)
@given(options=st.lists(st.sampled_from(sorted(words.ATTRIBUTES)), max_size=5))
def test_the_kernel_means_the_same_by_them(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Mounted, bound and remounted so, a tmpfs says of itself what the words say: by flags and by attributes."""
    base = tmp_path_factory.getbasetemp() / "words"
    base.mkdir(exist_ok=True)
    source, target = base / "source", base / "target"
    source.mkdir(exist_ok=True)
    target.mkdir(exist_ok=True)
    try:
        mounts.mount("none", str(source), "tmpfs", options)
        mounts.bind(str(source), str(target), options=options)
        mounted, bound = mounts.mount_at(str(source)), mounts.mount_at(str(target))
        assert mounted is not None
        assert bound is not None
        last: dict[str, str] = {}
        for word in options:
            group = (
                "atime"
                if word in ("atime", "noatime", "relatime", "strictatime")
                else word.removeprefix("no")
            )
            group = "write" if word in ("ro", "rw") else group
            last[group] = word
        for word in last.values():
            if word in (
                "ro",
                "rw",
                "nosuid",
                "nodev",
                "noexec",
                "nosymfollow",
                "noatime",
                "nodiratime",
                "relatime",
            ):
                assert word in mounted.options, (word, options)
                assert word in bound.options, (word, options)
            elif word in ("suid", "dev", "exec", "symfollow", "diratime"):
                assert f"no{word}" not in mounted.options
                assert f"no{word}" not in bound.options
    finally:
        for path in (target, source):
            with suppress(FileNotFoundError):
                mounts.unmount(str(path), lazy=True)
