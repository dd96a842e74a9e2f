"""The mount table: our parser against a plain one, on any text and on mounts that are really made, and against
statmount and listmount.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volkit.host import _mount_table, mounts
from volkit.host._syscalls import system_call
from volkit.host.mounts import Mount

ODD = " \t\n\\#\"'%,-:/\x80\xff\xc3\xbc\xe2\x80\xa8".encode("latin-1")
NAME = st.one_of(
    st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"\0", b"0")),
    st.lists(st.sampled_from(ODD + b"ax0123467"), min_size=1, max_size=12).map(bytes),
    st.sampled_from([b"\\040", b"a - b", b" - ", b"//deleted"]),
    st.sampled_from([ b"deleted", b"-", b"shared:1", b"\\", b"\n" * 9, b"x" * 255]),
).map(lambda raw: raw.replace(b"/", b"_"))  # fmt: skip


def plain_parser(data: bytes) -> Iterator[Mount]:
    """man 5 proc_pid_mountinfo, read letter by letter and without a thought for speed."""
    for line in data.split(b"\n")[:-1]:
        fields = [unescaped(field) for field in line.split(b" ")]
        if b"-" not in fields[6:]:
            continue
        dash = fields.index(b"-", 6)
        if len(fields) < dash + 4:
            continue
        tags = [field.split(b":")[0].decode() for field in fields[6:dash]]
        names = {"shared": "shared", "master": "slave", "unbindable": "unbindable"}
        root = fields[3]
        major, minor = fields[2].split(b":")
        yield Mount(
            id=int(fields[0]),
            parent_id=int(fields[1]),
            device=(int(major), int(minor)),
            root=os.fsdecode(root[: -len(b"//deleted")] if root.endswith(b"//deleted") else root),
            deleted=root.endswith(b"//deleted"),
            mount_point=os.fsdecode(fields[4]),
            options=tuple(map(os.fsdecode, fields[5].split(b","))),
            propagation=",".join(names[tag] for tag in names if tag in tags) or "private",
            fs_type=os.fsdecode(fields[dash + 1]),
            source=os.fsdecode(fields[dash + 2]),
            super_options=tuple(
                os.fsdecode(unescaped(word)) for word in line.split(b" ")[dash + 3].split(b",")
            ),
        )


def unescaped(field: bytes) -> bytes:
    found = bytearray()
    at = 0
    while at < len(field):
        digits = field[at + 1 : at + 4]
        if field[at : at + 1] == b"\\" and len(digits) == 3 and all(digit in b"01234567" for digit in digits):
            found.append(int(digits, 8) & 0xFF)
            at += 4
        else:
            found.append(field[at])
            at += 1
    return bytes(found)


def escaped(raw: bytes) -> bytes:
    """As the kernel's mangle_path writes it."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line as the kernel could write it."""
    root = b"/" + escaped(draw(NAME)) + draw(st.sampled_from([b"", b"", b"//deleted"]))
    tags = draw(
        st.lists(st.sampled_from([b"shared:7", b"master:3", b"propagate_from:2", b"unbindable", b"new:1"]))
    )
    words = [escaped(draw(NAME).replace(b",", b";")) for _ in range(draw(st.integers(0, 3)))]
    source = draw(st.sampled_from([b"", b"none", b"/dev/loop3", b"host:/x", escaped(draw(NAME))]))
    fields = [
        b"%d" % draw(st.integers(0, 2**31)),
        b"%d" % draw(st.integers(0, 2**31)),
        b"%d:%d" % (draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))),
        root,
        b"/mnt/" + escaped(draw(NAME)),
        b",".join(
            [b"rw", *draw(st.lists(st.sampled_from([b"nosuid", b"noatime", b"idmapped"]), max_size=2))]
        ),
        *tags,
        b"-",
        draw(st.sampled_from([b"tmpfs", b"fuse.sshfs", b"nfs4"])),
        source,
        b",".join([b"ro", *words]),
    ]
    return b" ".join(fields)


@given(st.lists(lines(), max_size=6), st.integers(0, 40))
def test_both_parsers_read_the_same(table: list[bytes], cut: int) -> None:
    data = b"".join(line + b"\n" for line in table)
    assert mounts.parse_mountinfo(data) == list(plain_parser(data))
    short = data[: len(data) - cut]  # read while it grew
    assert mounts.parse_mountinfo(short) == list(plain_parser(short))


@given(NAME, NAME)
def test_a_needle_is_what_the_kernel_writes(name: bytes, other: bytes) -> None:
    """What one path is looked for by is in its own line, and the path comes back out of it."""
    path = os.fsdecode(b"/" + name.replace(b"#", b"_"))
    assert _mount_table.escape(path) == escaped(os.fsencode(path))
    assert _mount_table.unescape(escaped(os.fsencode(path))) == path
    assert os.fsencode(_mount_table.unescape(escaped(other))) == other  # bytes that are no UTF-8 are kept


@given(st.binary(max_size=400), st.lists(lines(), max_size=2))
def test_noise_between_the_lines_hides_none_and_fails_nothing(noise: bytes, table: list[bytes]) -> None:
    data = noise.replace(b"\n", b" ") + b"\n" + b"".join(line + b"\n" for line in table)
    assert mounts.parse_mountinfo(data)[-len(table) :] == [
        one for line in table for one in plain_parser(line + b"\n")
    ]


def test_ten_thousand_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, and one among them: no line is looked at that cannot be it."""
    dice = random.Random(1)
    table = []
    for number in range(10_000):
        name = bytes(dice.choice(ODD.replace(b"/", b"") + b"abc") for _ in range(dice.randrange(1, 20)))
        line = b"%d 1 0:%d / /var/lib/kubelet/pods/%s/%d rw,nosuid shared:%d - tmpfs none rw,size=%dk"
        table.append(line % (number + 100, number % 700, escaped(name), number, number, number))
    data = b"".join(line + b"\n" for line in table)
    wanted = list(plain_parser(data))
    assert mounts.parse_mountinfo(data) == wanted
    parsed: list[bytes] = []
    real = _mount_table._parse

    def parse(line: bytes) -> Mount | None:
        parsed.append(line)
        return real(line)

    monkeypatch.setattr(_mount_table, "_read_table", lambda: data)
    monkeypatch.setattr(_mount_table, "_parse", parse)
    one = wanted[7_777]
    assert mounts.mounts(under=one.mount_point) == [one]
    assert len(parsed) <= 2
    assert mounts.mounts(device=(0, 5)) == [mount for mount in wanted if mount.device == (0, 5)]
    assert len(parsed) < 100


# -- this kernel ---------------------------------------------------------------------------------------------

_listmount = system_call(458, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


def listed() -> list[int]:
    """The unique ids of all mounts of this namespace (listmount(2), from its root)."""
    request = struct.pack("=IIQQ", 24, 0, 0xFFFFFFFFFFFFFFFF, 0)  # LSMT_ROOT, from the first
    ids = (ctypes.c_uint64 * 65536)()
    count = _listmount(request, ctypes.addressof(ids), len(ids), 0)
    assert count > 0
    return list(ids[:count])


@pytest.mark.root
@settings(max_examples=60)
@given(
    names=st.lists(NAME.filter(lambda raw: raw not in (b".", b"..")), min_size=1, max_size=4, unique=True),
    sources=st.lists(NAME, min_size=4, max_size=4),
    stacked=st.integers(1, 3),
    removed=st.booleans(),
    spread=st.sampled_from(["private", "shared", "slave", "unbindable"]),
)
def test_mounts_of_any_name_are_read_alike_by_all_ways(
    names: list[bytes], sources: list[bytes], stacked: int, removed: bool, spread: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Really made: of odd names and sources, one over another, bound from a directory that is removed since."""
    base = str(tmp_path_factory.getbasetemp() / "mountinfo")
    os.makedirs(base, exist_ok=True)
    mounts.mount("none", base, "tmpfs")
    try:
        mounts.set_propagation(base, "private")
        made: list[str] = []
        for name, source in zip(names, sources, strict=False):
            point = os.path.join(base, os.fsdecode(name))
            os.mkdir(point)
            for layer in range(stacked):
                mounts.mount(os.fsdecode(source) + str(layer), point, "tmpfs", ["size=64k"])
            mounts.set_propagation(point, spread)  # type: ignore[arg-type]
            made.append(point)
        origin, bound = f"{base}/origin of it", f"{base}/bound\there"
        os.mkdir(origin)
        os.mkdir(bound)
        mounts.bind(origin, bound, read_only=True)
        if removed:
            os.rmdir(origin)
        raw = Path("/proc/self/mountinfo").read_bytes()
        table = list(plain_parser(raw))
        assert mounts.parse_mountinfo(raw) == table
        for point, source in zip(made, sources, strict=False):
            here = [mount for mount in table if mount.mount_point == point]
            assert mounts.mounts(under=point) == here
            assert len(here) == stacked
            top = mounts.mount_at(point)
            assert top == _mount_table._find_in_table(point) == here[-1]
            assert top is not None
            assert top.source == os.fsdecode(source) + str(stacked - 1)
        top = mounts.mount_at(bound)
        assert top == _mount_table._find_in_table(bound)
        assert top is not None
        assert (top.root, top.deleted, top.read_only) == ("/origin of it", removed, True)
        if _mount_table.has_statmount():
            ours = {mount.id: mount for mount in table if mount.mount_point.startswith(base)}
            told = [mount for mount in map(_mount_table._describe, listed()) if mount is not None]
            assert {mount.id: mount for mount in told if mount.id in ours} == ours
    finally:
        mounts.unmount(base, lazy=True)


@pytest.mark.root
@pytest.mark.parametrize("source", ["none", "#", "a b#c"])
def test_an_odd_source_is_told_alike_by_both_ways(source: str, tmp_path: Path) -> None:
    mounts.mount(source, str(tmp_path), "tmpfs")
    try:
        found = mounts.mount_at(str(tmp_path))
        assert found is not None
        assert found == _mount_table._find_in_table(str(tmp_path))
        table = mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
        assert [mount.source for mount in table if mount.mount_point == str(tmp_path)] == [found.source]
    finally:
        mounts.unmount(str(tmp_path))
