"""Options: sizes there and back, every type read and refused, and declarations that could only mislead."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import MAX_BYTES, InvalidArgument, Mode, NoOptions, Size, format_size, option, parse_size
from volkit.options import declared, read, read_fields

UNITS = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "P": 1000**5, "E": 1000**6}
UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)}


# -- sizes ---------------------------------------------------------------------------------------------------


@given(st.integers(0, MAX_BYTES))
def test_a_size_is_read_back_from_what_is_shown(size: int) -> None:
    assert parse_size(format_size(size)) == size
    assert parse_size(str(size)) == size
    assert len(format_size(size)) <= len(str(size))


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "B"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, suffix: str) -> None:
    text = f"{number}{unit}{suffix}"
    if number * UNITS[unit] > MAX_BYTES:
        with pytest.raises(InvalidArgument, match="beyond the largest size"):
            parse_size(text)
    else:
        assert parse_size(f" {text}\n") == number * UNITS[unit]


@given(st.integers(0, 999), st.integers(0, 999_999_999), st.sampled_from(sorted(UNITS)))
def test_a_fraction_is_rounded_up_and_never_lost(whole: int, fraction: int, unit: str) -> None:
    exact = (whole * 10**9 + fraction) * UNITS[unit]  # in billionths of a byte
    if exact <= MAX_BYTES * 10**9:
        assert parse_size(f"{whole}.{fraction:09}{unit}") == -(-exact // 10**9)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Gi", "-1", "+1", "1e9", "0x10", "1_000", "1,5G", "1.G", ".5G", "1.2.3", "10 Gi", "10gi",
        "10GI", "10Xi", "10iB", "10BB", "1Gi1", "inf", "nan", "٣", "1\n2", "1\0", "9" * 20, "9" * 5000,
        f"1.{'1' * 10}G", "8Ei", "9223372036854775808",
    ],
)  # fmt: skip
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_the_largest_size_is_a_size() -> None:
    assert parse_size(str(MAX_BYTES)) == MAX_BYTES
    assert parse_size("7.999999999Ei") < MAX_BYTES


# -- declared options ----------------------------------------------------------------------------------------


class Tier(enum.Enum):
    GOLD = "gold"
    SILVER = "silver"


class Speed(enum.IntEnum):
    SLOW = 1
    FAST = 2


@attrs.frozen
class Everything:
    pool: Path
    access_key: str = option(secret=True)
    name: str = ""
    count: int = option(default=3, at_least=1, at_most=9)
    ratio: float = 0.5
    thin: bool = True
    stripe: Size = option(default="64Ki", help="bytes per stripe")
    tier: Tier = option(default=Tier.SILVER, mutable=True)
    speed: Speed = Speed.SLOW
    hosts: tuple[str, ...] = ()
    limit: Size | None = None
    old_name: str | None = option(default=None, aliases=["legacy"])


GOOD = {"pool": "/p", "accessKey": "K"}


def test_what_is_not_given_has_its_default_in_its_type() -> None:
    value = read(Everything, GOOD)
    assert value == Everything(pool=Path("/p"), access_key="K", stripe=Size(65536))
    assert value.stripe == 65536


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("pool", "/var/lib/x y", "pool", Path("/var/lib/x y")),
        ("access_key", "a=b,c", "access_key", "a=b,c"),
        ("access-key", "", "access_key", ""),
        ("count", " 9 ", "count", 9),
        ("ratio", "-1.5e3", "ratio", -1500.0),
        ("thin", "No", "thin", False),
        ("thin", "1", "thin", True),
        ("stripe", "1.5Mi", "stripe", 1536 * 1024),
        ("tier", "GOLD", "tier", Tier.GOLD),
        ("speed", "2", "speed", Speed.FAST),
        ("hosts", " a, b,,c ", "hosts", ("a", "b", "c")),
        ("limit", "1Gi", "limit", 1024**3),
        ("legacy", "x", "old_name", "x"),
    ],
)
def test_a_text_is_read_as_the_annotation_says(key: str, text: str, field: str, value: object) -> None:
    assert read_fields(Everything, {key: text}) == {field: value}


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("pool", "relative", "'relative' is not an absolute path"),
        ("pool", "/a/../b", "not an absolute path without '..'"),
        ("pool", "/a\0b", "not an absolute path"),
        ("pool", "", "not an absolute path"),
        ("count", "0", "'0' is not at least 1 and at most 9"),
        ("count", "10", "at most 9"),
        ("count", "2.0", "'2.0' is not an integer"),
        ("count", "1_0", "is not an integer"),
        ("count", "٣", "is not an integer"),
        ("count", "9" * 10_000, "is not an integer"),
        ("ratio", "nan", "is not a number"),
        ("ratio", "inf", "is not a number"),
        ("ratio", "1e999", "is not a number"),
        ("ratio", "", "is not a number"),
        ("thin", "maybe", "'maybe' is not true or false"),
        ("thin", "", "is not true or false"),
        ("stripe", "64KiB!", "is not a size"),
        ("tier", "bronze", "'bronze' is not one of gold, silver"),
        ("tier", "Tier.GOLD", "is not one of"),
        ("limit", "None", "is not a size"),
        ("poool", "/p", "unknown parameter 'poool': valid are accessKey, count"),
        ("poool", "/p", "did you mean 'pool'?"),
        ("", "x", "unknown parameter ''"),
        ("POOL", "/p", "unknown parameter"),
    ],
)
def test_anything_else_is_refused_with_the_value_and_the_choice(key: str, text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(Everything, {**GOOD, key: text})
    assert reason in caught.value.message
    assert len(caught.value.message) < 500


def test_an_endless_key_is_cut_and_costs_nothing() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(Everything, {"x" * 1_000_000: "1"})
    assert len(caught.value.message) < 500


def test_required_ones_are_asked_for_by_name() -> None:
    with pytest.raises(InvalidArgument, match="option 'pool' is required"):
        read(Everything, {"accessKey": "K"}, what="option")
    with pytest.raises(InvalidArgument, match="it takes none"):
        read(NoOptions, {"pool": "/p"})


def test_two_spellings_of_one_are_one_too_many() -> None:
    with pytest.raises(InvalidArgument, match="'accessKey' is given twice"):
        read(Everything, {"pool": "/p", "accessKey": "a", "access_key": "a"})


def test_a_secret_is_in_no_message_and_no_repr() -> None:
    @attrs.frozen
    class Settings:
        pin: int = option(secret=True, at_least=1000)
        count: int = attrs.field(default=1, validator=attrs.validators.lt(10))

    for values in ({"pin": "hunter2"}, {"pin": "42"}, {"pin": "4242", "count": "11"}):
        with pytest.raises(InvalidArgument) as caught:
            read(Settings, values)
        assert not any(secret in caught.value.message for secret in ("hunter2", "42", "4242"))
    assert "4242" not in repr(read(Settings, {"pin": "4242"}))
    [pin, _] = declared(Settings)
    assert pin.secret


def test_what_the_class_itself_refuses_is_an_invalid_argument() -> None:
    @attrs.frozen
    class Settings:
        low: int = attrs.field(default=1, validator=attrs.validators.lt(10))
        high: int = 5

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low is {self.low}, above high, {self.high}")

    with pytest.raises(InvalidArgument, match="refused by Settings: low is 6, above high, 5"):
        read(Settings, {"low": "6"})
    with pytest.raises(InvalidArgument, match="'low' must be < 10: 11"):
        read(Settings, {"low": "11"})


def test_declarations_tell_all_there_is() -> None:
    by_field = {one.field: one for one in declared(Everything)}
    assert [one.key for one in declared(Everything)][:3] == ["pool", "accessKey", "name"]
    assert by_field["pool"].required
    assert not by_field["name"].required
    assert by_field["tier"].mutable
    assert by_field["stripe"].help == "bytes per stripe"
    assert by_field["access_key"].spellings == {"accessKey", "access_key", "access-key"}
    assert "legacy" in by_field["old_name"].spellings


def test_a_computed_field_is_no_option() -> None:
    @attrs.frozen
    class Settings:
        pool: str = "p"
        place: str = attrs.field(init=False, default="x")

    assert [one.key for one in declared(Settings)] == ["pool"]
    assert read(Settings, {}).place == "x"


def test_a_declaration_that_no_text_can_satisfy_is_refused() -> None:
    @attrs.frozen
    class OfBytes:
        blob: bytes = b""

    @attrs.frozen
    class OfTwo:
        either: int | str = 1

    @attrs.frozen
    class Private:
        _pool: str = ""

    @attrs.frozen
    class SameKey:
        a_b: str = ""
        aB: str = ""  # noqa: N815

    @attrs.frozen
    class SameAlias:
        pool: str = ""
        other: str = option(default="", aliases=["pool"])

    classes: list[type[Any]] = [OfBytes, OfTwo, Private, SameKey, SameAlias]
    for cls in classes:
        with pytest.raises(TypeError, match=cls.__name__):
            declared(cls)


@given(
    st.dictionaries(
        st.text(max_size=12) | st.sampled_from(["pool", "count", "tier", "limit"]), st.text(max_size=20)
    )
)
def test_no_mapping_makes_it_fail_in_another_way(values: dict[str, str]) -> None:
    try:
        value = read(Everything, {"accessKey": "K"} | values)
    except InvalidArgument:
        return
    assert value.pool.is_absolute()
    assert 1 <= value.count <= 9


@attrs.frozen
class WithMode:
    mode: Mode = option(default="0750")


@pytest.mark.parametrize(("text", "mode"), [("0755", 0o755), ("777", 0o777), ("1777", 0o1777), ("000", 0)])
def test_permissions_are_octal(text: str, mode: int) -> None:
    assert read(WithMode, {"mode": text}).mode == mode
    assert read(WithMode, {}).mode == 0o750


@pytest.mark.parametrize("text", ["", "7", "0o755", "u+x", "888", "07777 7", "77777", "-755", "٧٥٥"])
def test_what_is_no_octal_permissions_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="octal"):
        read(WithMode, {"mode": text})
