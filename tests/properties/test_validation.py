"""Whatever comes from outside is taken by the rule, or refused as an invalid argument that names the field."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from volkit import validate
from volkit.errors import InvalidArgument, NotFound, OutOfRange, UnsupportedVolume, quoted
from volkit.model import (
    MAX_BYTES,
    AccessMode,
    AccessType,
    BlockVolume,
    Capability,
    CapacityRange,
    FileVolume,
    ObjectVolume,
    Volume,
)
from volkit.options import format_size, parse_size

# CSI spec, CreateVolumeRequest.name: the characters that a name must not have
FORBIDDEN = {*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)}
SECRET = "correct-horse"

ANYTHING = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(categories=["Cc", "Cs", "Zl", "Zs"]), max_size=10),
    st.text(st.sampled_from("/.a\u00fc\n\0"), max_size=20),
    st.builds(
        lambda text, times: text * times, st.text(min_size=1, max_size=5), st.sampled_from([60, 1000, 20_000])
    ),
)
NO_TEXT = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.binary(max_size=5).map(bytearray),
    st.integers(),
    st.lists(st.text(), max_size=2),
)
FIELD = st.sampled_from(["name", "volume_id", "snapshot_id", "source_volume_id", "node_id"])


def is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not FORBIDDEN & set(map(ord, text))


def refusal(check: Any, *arguments: Any) -> str:
    """The message of a refusal, "" where it is taken; that it is one that a person can read and a log can hold."""
    try:
        check(*arguments)
    except InvalidArgument as error:
        assert error.message
        assert error.message.isprintable()
        assert len(error.message) < 1000
        return error.message
    return ""


# -- texts ---------------------------------------------------------------------------------------------------


@given(ANYTHING, FIELD)
def test_a_name_is_taken_by_the_rule_of_the_specification(text: str, field: str) -> None:
    for check, limit in (
        (validate.check_name, validate.MAX_NAME_BYTES),
        (validate.check_id, validate.MAX_ID_BYTES),
    ):
        good = is_text(text) and 1 <= len(text.encode()) <= limit
        message = refusal(check, text, field)
        assert (not message) == good
        assert good or message.startswith(f"{field} ")


@given(ANYTHING, st.sampled_from(["target_path", "staging_target_path", "volume_path"]))
def test_a_path_is_taken_where_it_is_absolute_and_leads_nowhere_else(text: str, field: str) -> None:
    good = is_text(text) and 1 <= len(text.encode()) <= 4095 and text.startswith("/")
    good = good and ".." not in text.split("/") and os.path.normpath(text) not in ("/", "//")
    message = refusal(validate.check_path, text, field)
    assert (not message) == good
    assert good or message.startswith(f"{field} ")


@given(NO_TEXT, st.sampled_from([validate.check_name, validate.check_id, validate.check_path]), FIELD)
def test_what_is_no_text_is_refused(value: Any, check: Any, field: str) -> None:
    assert refusal(check, value, field).startswith(f"{field} ")


@given(ANYTHING)
def test_an_id_becomes_a_file_name_only_where_it_names_one_file(text: str) -> None:
    try:
        name = validate.file_name(text)
    except NotFound as error:
        assert len(error.message) < 1000
        return
    assert name == text
    assert os.path.basename(name) == name
    assert name not in ("", ".", "..")
    assert "\0" not in name
    assert len(os.fsencode(name)) <= 255


@given(st.one_of(ANYTHING, NO_TEXT, st.integers(-(10**6000), 10**6000)))
@example("\U0001b2fc" * 64)
def test_whatever_an_error_quotes_is_short_and_on_one_line(value: Any) -> None:
    text = quoted(value)
    assert len(text) < 700
    assert text.isprintable()
    if isinstance(value, str):
        assert text == repr(value[:64]) + "…" * (len(value) > 64)


# -- capabilities --------------------------------------------------------------------------------------------

FLAG = st.one_of(
    st.sampled_from(
        ["ro", "noatime", "", f"password={SECRET}\0", f"password={SECRET}\x1b", f"password={SECRET}" * 400]
    ),
    st.text(max_size=10),
)
capabilities = st.builds(
    Capability,
    access_mode=st.sampled_from(AccessMode),
    access_type=st.sampled_from(AccessType),
    fs_type=st.one_of(st.sampled_from(["", "ext4", "xfs", "ntfs"]), ANYTHING),
    mount_flags=st.lists(FLAG, max_size=3),
)


@given(
    st.one_of(st.just(()), st.lists(capabilities, max_size=3).map(tuple)),
    st.sampled_from([BlockVolume, FileVolume, ObjectVolume]),
    st.frozensets(st.sampled_from(AccessMode), min_size=1),
)
def test_capabilities_are_possible_or_refused_without_showing_a_flag(
    wanted: tuple[Capability, ...], kind: type[Volume], modes: frozenset[AccessMode]
) -> None:
    def possible(one: Capability) -> bool:
        flags = all(
            flag and len(flag) <= 4096 and not FORBIDDEN & set(map(ord, flag)) for flag in one.mount_flags
        )
        if not flags or one.access_mode not in modes or (one.block and kind is not BlockVolume):
            return False
        if one.block or kind is not BlockVolume:
            return True
        shared = one.access_mode.value.startswith("multi-node") and not one.access_mode.value.endswith(
            "reader-only"
        )
        return one.fs_type in ("", "ext4", "xfs") and not shared

    def check() -> None:
        validate.check_capabilities(wanted, kind, modes=modes, fs_types=("ext4", "xfs"))

    message = refusal(check)
    assert (not message) == (bool(wanted) and all(map(possible, wanted)))
    assert SECRET not in message
    if not wanted:
        assert message.startswith("volume_capabilities")


@given(st.one_of(st.none(), st.integers(), st.binary(min_size=1, max_size=9)))
def test_a_flag_that_is_no_text_is_refused(flag: Any) -> None:
    capability = Capability(mount_flags=(flag,))
    with pytest.raises(InvalidArgument, match=r"^mount_flags"):
        validate.check_capability(capability, FileVolume, modes=frozenset(AccessMode), fs_types=())


# -- sizes ---------------------------------------------------------------------------------------------------

NUMBER = st.one_of(
    *(st.integers(-1, 1), st.integers(0, MAX_BYTES), st.integers(MAX_BYTES - 2, MAX_BYTES + 2)),
    *(st.integers(), st.sampled_from([10**5000, -(10**5000)])),
)


@given(st.one_of(NUMBER, NO_TEXT, st.floats(), st.booleans()), st.one_of(NUMBER, st.floats(), st.just("1")))
def test_a_range_is_taken_where_both_ends_are_sizes_in_order(required: Any, limit: Any) -> None:
    sizes = all(type(one) is int and 0 <= one <= MAX_BYTES for one in (required, limit))
    good = sizes and (not limit or limit >= required)
    message = refusal(validate.check_capacity_range, CapacityRange(required=required, limit=limit))
    assert (not message) == good
    assert good or message.startswith("capacity_range")


SIZE = st.one_of(st.integers(0, 60), st.integers(0, MAX_BYTES), st.integers(MAX_BYTES - 60, MAX_BYTES))
limits = st.fixed_dictionaries(
    {
        "minimum": st.one_of(st.integers(0, 60), st.integers(0, MAX_BYTES)),
        "maximum": st.one_of(st.integers(1, 60), st.integers(1, MAX_BYTES), st.just(MAX_BYTES)),
        "default": st.one_of(st.integers(1, 60), st.integers(1, MAX_BYTES)),
        "granularity": st.sampled_from([1, 2, 3, 8, 512, 4096, 1 << 20, 1 << 30, 1 << 62]),
    }
).map(lambda one: {**one, "maximum": max(one["minimum"], one["maximum"])})


def choose(required: int, limit: int, words: dict[str, int]) -> int | None:
    try:
        return validate.choose_size(CapacityRange(required=required, limit=limit), **words)
    except OutOfRange:
        return None


@given(SIZE, SIZE, limits)
def test_the_size_is_the_smallest_that_will_do(required: int, limit: int, words: dict[str, int]) -> None:
    """By a search among the multiples around each bound, in place of arithmetic."""
    limit = max(limit, required) if limit else 0
    low, high = max(required, words["minimum"]), min(limit or words["maximum"], words["maximum"])
    step = words["granularity"]
    near = {
        bound // step * step + more * step for bound in (low, high, words["default"]) for more in (-1, 0, 1)
    }
    possible = sorted(size for size in near if low <= size <= high)
    chosen = choose(required, limit, words)
    if chosen is None:
        assert not possible
        return
    assert chosen in possible
    assert chosen in CapacityRange(required=required, limit=limit)
    if required:
        assert chosen == possible[0]
    else:
        wanted = [size for size in possible if size >= words["default"]]
        assert chosen == (wanted[0] if wanted else possible[-1])


@given(SIZE, SIZE, limits)
def test_who_asks_for_more_never_gets_less(one: int, two: int, words: dict[str, int]) -> None:
    smaller, larger = sorted((max(one, 1), max(two, 1)))
    few, many = choose(smaller, 0, words), choose(larger, 0, words)
    assert few is None or many is None or few <= many
    assert few is not None or many is None  # where the smaller one is too large, so is the larger one


@given(SIZE, limits)
def test_an_exact_size_is_made_exactly_or_not_at_all(size: int, words: dict[str, int]) -> None:
    """required = limit (CSI spec, CapacityRange: "To specify an exact size")."""
    size = max(size, 1)
    possible = words["minimum"] <= size <= words["maximum"] and size % words["granularity"] == 0
    assert choose(size, size, words) == (size if possible else None)


@given(SIZE, SIZE, limits)
def test_a_size_that_was_chosen_is_chosen_again(required: int, limit: int, words: dict[str, int]) -> None:
    limit = max(limit, required) if limit else 0
    chosen = choose(required, limit, words)
    if chosen:
        assert choose(chosen, limit, words) == chosen
        assert choose(chosen, chosen, words) == chosen


UNITS = {"k": 1000} | {unit: 1000**power for power, unit in enumerate("KMGTPE", 1)}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}


@given(st.integers(0, MAX_BYTES // 2), st.integers(0, MAX_BYTES))
def test_texts_of_sizes_are_read_in_their_order(one: int, two: int) -> None:
    assert parse_size(format_size(one)) == one
    assert (parse_size(format_size(one)) < parse_size(format_size(two))) == (one < two)
    for unit, factor in UNITS.items():
        units, rest = divmod(one, factor)
        assert parse_size(f"{units}{unit}") == one - rest
        assert parse_size(f"{units}.5{unit}") - (one - rest) == -(-factor // 2)


@given(ANYTHING)
def test_any_text_is_a_size_or_an_invalid_argument(text: str) -> None:
    message = refusal(parse_size, text)
    if not message:
        assert 0 <= parse_size(text) <= MAX_BYTES
        assert text.strip().isascii()
        assert text.strip()[0].isdigit()


@pytest.mark.parametrize("value", ["x" * 100_000, "9" * 100_000, "1." + "1" * 100_000, "\ud800" * 100_000])
def test_an_over_long_size_is_quoted_shortened(value: str) -> None:
    message = refusal(parse_size, value)
    assert message
    assert "…" in message


def test_a_range_without_a_bound_is_no_size_when_a_volume_is_made() -> None:
    """The specification asks for at least one of them (CapacityRange), yet `docker volume create` of a Swarm cluster
    volume without --required-bytes and --limit-bytes sends the range with both at 0, and Swarm's API says that the
    plugin then decides. Kubernetes always asks for a size. So it is taken, as no range is.
    """
    words = {"minimum": 1, "maximum": MAX_BYTES, "default": 4096, "granularity": 1}
    validate.check_capacity_range(CapacityRange(required=0, limit=0))
    assert choose(0, 0, words) == 4096


@pytest.mark.parametrize("kind", [FileVolume, ObjectVolume])
def test_what_a_kind_cannot_do_is_told_from_what_is_malformed(kind: type[Volume]) -> None:
    with pytest.raises(UnsupportedVolume):
        validate.check_capability(
            Capability(access_type=AccessType.BLOCK), kind, modes=frozenset(AccessMode), fs_types=()
        )
