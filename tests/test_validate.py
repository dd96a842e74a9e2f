"""Field rules, mostly as properties."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import validate
from volkit.errors import InvalidArgument, OutOfRange, UnsupportedVolume
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

ALL_MODES = frozenset(AccessMode)


@pytest.mark.parametrize("bad", ["", "a\0", "\x01", "a\x1fb", "\x7f", "a\x80", "a\ud800", "a\x1b[31m"])
def test_a_name_without_a_fault_is_asked_for(bad: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^name "):
        validate.check_name(bad)
    with pytest.raises(InvalidArgument, match=r"^node_id "):
        validate.check_id(bad, "node_id")


def test_length_is_counted_in_bytes() -> None:
    validate.check_name("ü" * 127)
    with pytest.raises(InvalidArgument, match=r"256 bytes, at most 255"):
        validate.check_name("ü" * 128)
    validate.check_id("x" * 4096)
    with pytest.raises(InvalidArgument, match="4097 bytes"):
        validate.check_id("x" * 4097)


def test_an_error_is_short_and_printable() -> None:
    for bad in ("x" * 100_000, "\x1b" + "x" * 100_000, "\ud800" * 1000):
        with pytest.raises(InvalidArgument) as raised:
            validate.check_name(bad)
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 600


@pytest.mark.parametrize("path", ["/a", "/a/b/", "//a", "/a/./b", "/..a", "/a..", "/ü/…", "/" + "x" * 4094])
def test_paths_that_are_taken(path: str) -> None:
    validate.check_path(path, "target_path")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/.",
        "/./",
        "a",
        "./a",
        "/a/..",
        "/../a",
        "/a/../b",
        "/a\0",
        "/a\x01",
        "/\ud800",
        "/" + "x" * 4095,
    ],
)
def test_paths_that_are_not(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^target_path "):
        validate.check_path(path, "target_path")


@pytest.mark.parametrize(
    ("required", "limit", "good"),
    [
        (0, 0, True), (1, 0, True), (5, 5, True), (0, 5, True), (MAX_BYTES, MAX_BYTES, True), (6, 5, False),
        (-1, 0, False), (0, -1, False), (MAX_BYTES + 1, 0, False), (0, MAX_BYTES + 1, False),
    ],
)  # fmt: skip
def test_capacity_ranges(required: int, limit: int, good: bool) -> None:
    capacity = CapacityRange(required=required, limit=limit)
    if good:
        validate.check_capacity_range(capacity)
        return
    with pytest.raises(InvalidArgument, match="capacity_range"):
        validate.check_capacity_range(capacity)


def test_the_default_is_made_where_nothing_is_asked_for() -> None:
    words = {"minimum": 1, "maximum": 100, "granularity": 8}
    assert validate.choose_size(CapacityRange(), default=40, **words) == 40
    assert validate.choose_size(CapacityRange(), default=41, **words) == 48
    assert validate.choose_size(CapacityRange(limit=30), default=40, **words) == 24
    assert validate.choose_size(CapacityRange(), default=1000, **words) == 96
    with pytest.raises(OutOfRange, match=r"1 to 100 bytes in steps of 8"):
        validate.choose_size(CapacityRange(limit=7), default=40, **words)


def check(kind: type[Volume], **words: object) -> None:
    capability = Capability(**words)  # type: ignore[arg-type]
    validate.check_capability(capability, kind, modes=ALL_MODES, fs_types=("ext4", "xfs"))


@pytest.mark.parametrize("mode", AccessMode)
@pytest.mark.parametrize("kind", [BlockVolume, FileVolume, ObjectVolume])
@pytest.mark.parametrize("access_type", AccessType)
def test_which_capability_a_kind_can_have(
    mode: AccessMode, kind: type[Volume], access_type: AccessType
) -> None:
    shared_writers = mode in (AccessMode.MULTI_NODE_SINGLE_WRITER, AccessMode.MULTI_NODE_MULTI_WRITER)
    block = access_type is AccessType.BLOCK
    if (kind is BlockVolume and not block and shared_writers) or (kind is not BlockVolume and block):
        with pytest.raises(UnsupportedVolume):
            check(kind, access_mode=mode, access_type=access_type)
    else:
        check(kind, access_mode=mode, access_type=access_type)


def test_an_access_mode_that_the_storage_has_not() -> None:
    modes = frozenset({AccessMode.SINGLE_NODE_WRITER})
    capability = Capability(access_mode=AccessMode.MULTI_NODE_READER_ONLY)
    with pytest.raises(UnsupportedVolume, match="possible are SINGLE_NODE_WRITER"):
        validate.check_capabilities((Capability(), capability), FileVolume, modes=modes, fs_types=())
    with pytest.raises(InvalidArgument, match="required"):
        validate.check_capabilities((), FileVolume, modes=modes, fs_types=())


def test_the_file_system_type_is_known() -> None:
    check(BlockVolume, fs_type="xfs")
    check(BlockVolume)
    check(FileVolume, fs_type="whatever the share has")
    with pytest.raises(InvalidArgument, match=r"'ntfs'.*ext4, xfs"):
        check(BlockVolume, fs_type="ntfs")


@pytest.mark.parametrize(
    "flag", ["", "password=hunter2\0", "password=hunter2" + "x" * 5000, "password=hunter2\x1b"]
)
def test_a_bad_mount_flag_is_refused_and_not_shown(flag: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check(FileVolume, mount_flags=("ro", flag))
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/fstype", "storage.kubernetes.io/csiProvisionerIdentity",
        "kubernetes.io/createdby", "app.kubernetes.io/name", "a.b.csi.storage.k8s.io/x",
    ],
)  # fmt: skip
def test_the_platforms_keys_are_taken_apart(key: str) -> None:
    assert validate.split_metadata({key: "v", "pool": "p"}) == ({"pool": "p"}, {key: "v"})


@pytest.mark.parametrize(
    "key", ["kubernetes.io", "xkubernetes.io/a", "pool/kubernetes.io/a", "csi.storage.k8s.io.evil/a", ""]
)
def test_other_keys_are_the_backends(key: str) -> None:
    assert validate.split_metadata({key: "v"}) == ({key: "v"}, {})


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=3)))
def test_no_key_is_lost(mapping: dict[str, str]) -> None:
    own, platform = validate.split_metadata(mapping)
    assert own | platform == mapping
    assert not own.keys() & platform.keys()


def test_a_hostile_key_costs_no_time() -> None:
    begin = time.monotonic()
    for key in ("a." * 50_000, "-" * 100_000, "kubernetes.io." * 10_000):
        validate.split_metadata({key: ""})
    assert time.monotonic() - begin < 20, "a pattern that goes back and forth would take minutes"


@pytest.mark.parametrize("flag", ["dev", "context", "context=secret", "RO", "noexec,dev", " ro"])
def test_a_mount_flag_that_is_not_allowed_is_refused_and_not_told(flag: str) -> None:
    def check(*flags: str, allowed: frozenset[str] | None) -> None:
        capability = Capability(mount_flags=flags)
        validate.check_capability(capability, FileVolume, modes=ALL_MODES, fs_types=(), mount_flags=allowed)

    check("ro", "noexec", allowed=frozenset({"ro", "noexec"}))
    check("uid=7", allowed=frozenset({"uid"}))
    check(flag, allowed=None)
    with pytest.raises(InvalidArgument, match="allowed are noexec, ro") as caught:
        check("ro", flag, allowed=frozenset({"ro", "noexec"}))
    assert "secret" not in str(caught.value)
