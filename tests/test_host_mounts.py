"""volkit.host.mounts on real mounts, by the newest system calls and by those of old kernels."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit.errors import FailedPrecondition, InUse, InvalidArgument, NotFound, ResourceExhausted
from volkit.host import _mount_options, _mount_table, _syscalls, mounts
from volkit.host.mounts import Mount

root = pytest.mark.root


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own with private propagation; everything mounted in it goes with it."""
    place = tmp_path / "base"
    place.mkdir()
    mounts.mount("none", str(place), "tmpfs", ["mode=755"])
    mounts.set_propagation(str(place), "private")
    yield place
    mounts.unmount(str(place), lazy=True)


@pytest.fixture(params=["new", "old"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This kernel, and one without mount_setattr, move_mount, statmount and STATX_ATTR_MOUNT_ROOT."""
    if request.param == "old":
        monkeypatch.setattr(mounts, "has_mount_setattr", lambda: False)
        monkeypatch.setattr(mounts, "has_move_mount", lambda: False)
        monkeypatch.setattr(_mount_table, "has_statmount", lambda: False)
        real = _mount_table.status

        def status(path: str, mask: int = 0) -> _mount_table.PathStatus:
            return attrs.evolve(real(path, mask), mount_root=None)

        monkeypatch.setattr(_mount_table, "status", status)
        monkeypatch.setattr(mounts, "status", status)
    return str(request.param)


def directory(base: Path, name: str, *files: str) -> str:
    path = base / name
    path.mkdir()
    for file in files:
        (path / file).write_text("content")
    return str(path)


def file(base: Path, name: str) -> str:
    path = base / name
    path.touch()
    return str(path)


@contextmanager
def forked(path: str, *, seconds: float) -> Iterator[int]:
    """A child, by its pid, that was forked while this process had the file open, and ends after so many seconds."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        os._exit(0)
    os.close(descriptor)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def writable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        if error.errno == errno.EROFS:
            return False
        raise
    return True


def fuse(target: str) -> int:
    """A FUSE mount whose server never answers; closing the returned descriptor makes it a dead one."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mounts.mount("none", target, "fuse", [f"fd={device}", "rootmode=40000", "user_id=0", "group_id=0"])
    return device


def table_at(path: str) -> list[Mount]:
    """Witness: the lines of mountinfo for `path`, found without the code under test's shortcuts."""
    found = mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    return [mount for mount in found if mount.mount_point == path]


@root
class TestMount:
    def test_options_become_flags_and_data(self, base: Path, kernel: str) -> None:
        target = directory(base, "t")
        options = ["ro", "nosuid", "nodev", "noexec", "noatime", "size=1M", "nofail", "x-systemd.requires=a"]
        mounts.mount("volkit-test", target, "tmpfs", options)
        found = mounts.mount_at(target)
        assert found is not None
        assert found.options == ("ro", "nosuid", "nodev", "noexec", "noatime")
        assert {"ro", "size=1024k"} <= set(found.super_options)
        assert (found.source, found.fs_type, found.root, found.read_only) == (
            "volkit-test",
            "tmpfs",
            "/",
            True,
        )
        assert [found] == table_at(target)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["size=hunter2"], "'size'"),
            (["mode=755", "no_such_thing=hunter2"], "'no_such_thing'"),
            (["uid=0", "gid=1,hunter2"], "'gid'"),
        ],
    )
    def test_a_refused_option_is_named_without_its_value(
        self, base: Path, options: list[str], named: str
    ) -> None:
        with pytest.raises(InvalidArgument) as caught:
            mounts.mount("none", directory(base, "t"), "tmpfs", options)
        assert named in caught.value.message
        assert "hunter2" not in caught.value.message

    def test_credentials_in_the_source_are_not_shown(self, base: Path) -> None:
        with pytest.raises(FailedPrecondition) as caught:
            mounts.mount("https://user:hunter2@host/x", directory(base, "t"), "nosuchfs")
        assert "//***@host/x" in caught.value.message
        assert "module" in caught.value.message

    @pytest.mark.parametrize("option", ["bind", "remount", "rshared", "loop", "a\nb", "x" * 4096])
    def test_options_that_mean_something_else_are_refused(self, base: Path, option: str) -> None:
        target = directory(base, "t")
        with pytest.raises(InvalidArgument):
            mounts.mount("none", target, "tmpfs", [option])
        assert not table_at(target)

    def test_wrong_sources(self, base: Path) -> None:
        target = directory(base, "t")
        with pytest.raises(FailedPrecondition, match="not a block device"):
            mounts.mount(file(base, "image"), target, "ext4")
        with pytest.raises(NotFound):
            mounts.mount(str(base / "missing"), target, "ext4")

    def test_wrong_targets(self, base: Path) -> None:
        with pytest.raises(NotFound):
            mounts.mount("none", str(base / "missing"), "tmpfs")
        with pytest.raises(InvalidArgument, match="Not a directory"):
            mounts.mount("none", file(base, "f"), "tmpfs")
        with pytest.raises(InvalidArgument, match="NUL"):
            mounts.mount("none", str(base / "a\0b"), "tmpfs")

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_link_as_target_is_refused(self, base: Path, kernel: str, slash: str) -> None:
        elsewhere = directory(base, "elsewhere")
        link = str(base / "link")
        os.symlink(elsewhere, link)
        source = directory(base, "s")
        attempts: list[Callable[[], None]] = [
            lambda: mounts.mount("none", link + slash, "tmpfs"),
            lambda: mounts.bind(source, link + slash),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidArgument, match="symbolic link"):
                attempt()
        assert not table_at(elsewhere)

    def test_a_mount_helper_is_known(self) -> None:
        assert mounts.mount_program("no-such-type") is None
        assert mounts.mount_program("../bin/sh") is None


@root
class TestBind:
    def test_a_directory(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        mounts.bind(source, target)
        assert writable(f"{target}/f")
        assert mounts.same_mount(source, target)

    def test_a_file(self, base: Path, kernel: str) -> None:
        source, target = file(base, "s"), file(base, "t")
        mounts.bind(source, target, read_only=True)
        assert mounts.is_mount_point(target)
        assert not writable(target)
        assert writable(source)

    def test_a_device_node(self, base: Path, kernel: str) -> None:
        source, target = str(base / "device"), file(base, "t")
        os.mknod(source, stat.S_IFBLK | 0o600, os.makedev(7, 4242))
        link = str(base / "by-id")
        os.symlink(source, link)
        mounts.bind(link, target)
        assert os.stat(target).st_rdev == os.makedev(7, 4242)
        assert mounts.same_mount(source, target)
        assert mounts.same_mount(link, target)
        other = str(base / "other")
        os.mknod(other, stat.S_IFBLK | 0o600, os.makedev(7, 4243))
        assert not mounts.same_mount(other, target)
        assert mounts.unmount(target)
        assert os.stat(target).st_size == 0

    def test_from_a_descriptor(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        descriptor = os.open(source, os.O_PATH)
        os.rename(source, source + "-moved")
        directory(base, "s")  # what the path leads to now is not what was opened
        try:
            mounts.bind(descriptor, target, read_only=True)
        finally:
            os.close(descriptor)
        assert os.listdir(target) == ["f"]
        assert not writable(f"{target}/f")

    def test_options_are_added_to_those_of_the_source(self, base: Path, kernel: str) -> None:
        source = directory(base, "s")
        mounts.mount("none", source, "tmpfs", ["nodev", "noatime"])
        target = directory(base, "t")
        mounts.bind(source, target, read_only=True, options=["nosuid", "noexec"])
        found = mounts.mount_at(target)
        assert found is not None
        assert set(found.options) == {"ro", "nosuid", "nodev", "noexec", "noatime"}
        assert "rw" in found.super_options
        original = mounts.mount_at(source)
        assert original is not None
        assert not original.read_only

    def test_an_option_that_is_not_one_of_a_mount(self, base: Path) -> None:
        with pytest.raises(InvalidArgument) as caught:
            mounts.bind(directory(base, "s"), directory(base, "t"), options=["password=hunter2"])
        assert "'password'" in caught.value.message
        assert "hunter2" not in caught.value.message

    def test_wrong_pairs(self, base: Path, kernel: str) -> None:
        source = directory(base, "s")
        for other in (file(base, "f"), str(base / "missing")):
            with pytest.raises((InvalidArgument, NotFound)) as caught:
                mounts.bind(source, other)
            assert other in caught.value.message
        with pytest.raises(NotFound):
            mounts.bind(str(base / "missing"), source)
        assert not table_at(source)

    def test_the_mounts_below_the_source_stay_behind(self, base: Path, kernel: str) -> None:
        source = directory(base, "s")
        inner = directory(base / "s", "inner")
        mounts.mount("none", inner, "tmpfs")
        target = directory(base, "t")
        mounts.bind(source, target)
        assert not mounts.is_mount_point(f"{target}/inner")

    def test_read_only_before_it_has_a_place(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        real, seen = mounts._move_mount, []

        def move_mount(tree: int, *rest: object) -> int:
            seen.append(writable(f"/proc/self/fd/{tree}/f"))
            return real(tree, *rest)

        monkeypatch.setattr(mounts, "_move_mount", move_mount)
        mounts.bind(source, target, read_only=True)
        assert seen == [False]

    def test_never_writable_while_others_try(self, base: Path) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        attempt = (
            "import os, sys\n"
            "print('go', flush=True)\n"
            "while True:\n"
            "    try: os.open(sys.argv[1], os.O_WRONLY); print('written'); break\n"
            "    except FileNotFoundError: pass\n"
            "    except OSError as error: assert error.errno == 30, error\n"
        )
        writer = subprocess.Popen([sys.executable, "-c", attempt, f"{target}/f"], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"go\n"
            for _ in range(300):
                mounts.bind(source, target, read_only=True)
                mounts.unmount(target, lazy=True)
            assert writer.poll() is None
        finally:
            writer.kill()
            output, _ = writer.communicate()
        assert output == b""

    def test_a_bind_that_fails_half_way_is_undone(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mounts, "has_mount_setattr", lambda: False)
        real = mounts._mount

        def mount(source: bytes, place: bytes, kind: object, flags: int, data: object) -> int:
            if flags & _mount_options.MS_REMOUNT:
                return real(source, b"/proc/self/fd/999999", kind, flags, data)
            return real(source, place, kind, flags, data)

        monkeypatch.setattr(mounts, "_mount", mount)
        target = directory(base, "t")
        with pytest.raises(NotFound):
            mounts.bind(directory(base, "s"), target, read_only=True)
        assert not table_at(target)


@root
class TestRemount:
    def test_other_options_and_other_mounts_stay(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        mounts.bind(source, target, options=["nosuid", "nodev", "noatime"])
        mounts.remount(target, read_only=True)
        assert not writable(f"{target}/f")
        assert writable(f"{source}/f")
        mounts.remount(target, read_only=False)
        assert writable(f"{target}/f")
        found = mounts.mount_at(target)
        assert found is not None
        assert set(found.options) == {"rw", "nosuid", "nodev", "noatime"}

    def test_refused(self, base: Path, kernel: str) -> None:
        with pytest.raises(NotFound, match="nothing is mounted"):
            mounts.remount(directory(base, "plain"), read_only=True)
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs", ["ro"])
        with pytest.raises(FailedPrecondition, match="itself read-only"):
            mounts.remount(target, read_only=False)

    def test_in_use(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s", "f"), directory(base, "t")
        mounts.bind(source, target)
        with open(f"{target}/f", "w"), pytest.raises(InUse):
            mounts.remount(target, read_only=True)


@root
class TestMove:
    def test_with_what_is_below(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s"), directory(base, "t")
        mounts.mount("moved", source, "tmpfs")
        mounts.mount("none", directory(Path(source), "inner"), "tmpfs")
        mounts.move(source, target)
        found = mounts.mount_at(target)
        assert found is not None
        assert found.source == "moved"
        assert mounts.is_mount_point(f"{target}/inner")
        assert not mounts.is_mount_point(source)

    def test_refused(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s"), directory(base, "t")
        with pytest.raises(NotFound):
            mounts.move(source, target)
        mounts.mount("none", source, "tmpfs")
        mounts.set_propagation(str(base), "shared")
        with pytest.raises(FailedPrecondition, match="shared"):
            mounts.move(source, target)
        assert mounts.is_mount_point(source)


@root
class TestUnmount:
    def test_nothing_mounted_is_success(self, base: Path, kernel: str) -> None:
        assert not mounts.unmount(directory(base, "plain"))
        assert not mounts.unmount(str(base / "missing"))
        assert not mounts.unmount(file(base, "f"))
        assert not mounts.unmount(str(base / "f" / "below-a-file"))

    @pytest.mark.parametrize("lazy", [False, True])
    def test_the_whole_stack_goes(self, base: Path, kernel: str, lazy: bool) -> None:
        source, target = directory(base, "s"), directory(base, "t")
        for _ in range(40):
            mounts.bind(source, target)
        assert mounts.unmount(target, lazy=lazy)
        assert not table_at(target)
        assert not mounts.unmount(target, lazy=lazy)

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_link_is_not_followed(self, base: Path, kernel: str, slash: str) -> None:
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        link = str(base / "link")
        os.symlink(target, link)
        assert not mounts.unmount(link + slash)
        assert not mounts.is_mount_point(link + slash)
        assert mounts.is_mount_point(target + slash)

    def test_busy_names_the_process(self, base: Path) -> None:
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        with open(f"{target}/f", "w"), pytest.raises(InUse) as caught:
            mounts.unmount(target)
        assert target in caught.value.message
        assert f"pid {os.getpid()} (" in caught.value.message
        assert mounts.is_mount_point(target)
        assert mounts.unmount(target)

    def test_a_child_that_did_not_execute_yet_gets_a_moment(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has a copy of each descriptor that a thread of this process had open in the volume."""
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        with forked(f"{target}/f", seconds=0.3):
            assert mounts.unmount(target)
        mounts.mount("none", target, "tmpfs")
        monkeypatch.setattr(mounts, "_UNSEEN_SECONDS", 0.1)
        with forked(f"{target}/f", seconds=60) as pid, pytest.raises(InUse, match=rf"pid {pid} \("):
            mounts.unmount(target)
        assert mounts.unmount(target)

    def test_busy_names_the_mount_below(self, base: Path) -> None:
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        mounts.mount("none", directory(Path(target), "inner"), "tmpfs")
        with pytest.raises(InUse, match=f"{target}/inner"):
            mounts.unmount(target)

    def test_lazy_when_busy(self, base: Path) -> None:
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        with open(f"{target}/f", "w") as held:
            assert mounts.unmount(target, lazy=True)
            assert not table_at(target)
            held.write("still there")

    def test_success_is_not_believed_without_the_table(
        self, base: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = directory(base, "t")
        mounts.mount("none", target, "tmpfs")
        monkeypatch.setattr(mounts, "_unmount_top", lambda path, flags: errno.EINVAL)
        with pytest.raises(FailedPrecondition, match="is mounted"):
            mounts.unmount(target)

    def test_a_mount_that_comes_back_for_ever(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mounts, "_unmount_top", lambda path, flags: 0)
        monkeypatch.setattr(mounts, "_STACK_LIMIT", 5)
        with pytest.raises(FailedPrecondition, match="still mounted after 5"):
            mounts.unmount(directory(base, "t"))


@root
class TestDeadAndHungMounts:
    def test_a_dead_mount_is_seen_and_removed(self, base: Path, kernel: str) -> None:
        target = directory(base, "t")
        os.close(fuse(target))
        with pytest.raises(OSError, match="endpoint is not connected"):
            os.stat(target)
        assert mounts.is_mount_point(target)
        found = mounts.mount_at(target)
        assert found is not None
        assert found.fs_type == "fuse"
        assert not mounts.same_mount(str(base), target)
        assert not mounts.is_mount_point(f"{target}/below")
        assert mounts.mount_at(f"{target}/below") is None
        assert not mounts.unmount(f"{target}/below")
        assert mounts.unmount(target)
        assert not table_at(target)

    def test_stat_that_fails_is_answered_by_the_table(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def status(path: str, mask: int = 0) -> _mount_table.PathStatus:
            raise OSError(errno.ESTALE, "stale")

        target, plain = directory(base, "t"), directory(base, "plain")
        mounts.mount("none", target, "tmpfs")
        monkeypatch.setattr(_mount_table, "status", status)
        assert mounts.is_mount_point(target)
        assert [mounts.mount_at(target)] == table_at(target)
        assert not mounts.is_mount_point(plain)
        assert mounts.mount_at(plain) is None

    def test_a_hung_mount_is_not_asked(self, base: Path) -> None:
        target = directory(base, "t")
        device = fuse(target)  # nobody answers its first request: stat(2) would wait for ever
        answers: list[object] = []

        def ask() -> None:
            answers.append(mounts.is_mount_point(target))
            answers.append(mounts.mount_at(target) is not None)
            answers.append(mounts.unmount(target))

        thread = threading.Thread(target=ask, daemon=True)
        try:
            thread.start()
            thread.join(10)
            assert answers == [True, True, True]
        finally:
            os.close(device)


@root
class TestLookUp:
    def test_is_mount_point(self, base: Path, kernel: str) -> None:
        assert mounts.is_mount_point("/proc")
        assert mounts.is_mount_point("/")
        assert mounts.is_mount_point(str(base))
        assert not mounts.is_mount_point(directory(base, "plain"))
        assert not mounts.is_mount_point(str(base / "missing"))
        assert not mounts.is_mount_point(str(base / "missing" / "below"))
        assert not mounts.is_mount_point(file(base, "f") + "/below")
        with pytest.raises(InvalidArgument, match="NUL"):
            mounts.is_mount_point("/proc\0/x")
        with pytest.raises(InvalidArgument):
            mounts.is_mount_point(f"{base}/{'x' * 300}")

    def test_a_link_in_the_parents_is_followed(self, base: Path, kernel: str) -> None:
        mounts.mount("none", directory(base, "t"), "tmpfs")
        os.symlink(base, base / "link")
        assert mounts.is_mount_point(f"{base}/link/t")
        found = mounts.mount_at(f"{base}/link/t")
        assert found is not None
        assert found.mount_point == f"{base}/t"

    def test_the_top_of_a_stack(self, base: Path, kernel: str) -> None:
        target = directory(base, "t")
        for name in ("first", "second", "third"):
            mounts.mount(name, target, "tmpfs")
        found = mounts.mount_at(target)
        assert found is not None
        assert found.source == "third"
        assert [mount.source for mount in mounts.mounts(under=target)] == ["first", "second", "third"]

    def test_statmount_says_what_mountinfo_says(self, base: Path) -> None:
        lower, upper, work = (directory(base, name) for name in ("lo wer", "upper", "work"))
        merged = directory(base, "new\nline\\")
        layers = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
        mounts.mount("over lay", merged, "overlay", layers)
        kinds: tuple[Literal["shared", "slave", "unbindable"], ...] = ("shared", "slave", "unbindable")
        for kind in kinds:
            target = directory(base, kind)
            mounts.bind(lower, target, read_only=True, options=["nodiratime", "strictatime", "nosymfollow"])
            mounts.set_propagation(target, "shared")
            mounts.set_propagation(target, kind)
        checked = 0
        told = [(mount, mounts.mount_at(mount.mount_point)) for mount in mounts.mounts()]
        still = {mount.id: mount for mount in mounts.mounts()}  # others mount and remount meanwhile
        for mount, top in told:
            if top is not None and top.id == mount.id and still.get(mount.id) == mount:
                assert top == mount
                checked += 1
        assert checked > 5
        found = mounts.mount_at(merged)
        assert found is not None
        assert found.mount_point == merged
        assert f"lowerdir={lower}" in found.super_options

    def test_a_removed_root_is_marked(self, base: Path, kernel: str) -> None:
        source, target = directory(base, "s"), directory(base, "t")
        mounts.bind(source, target)
        os.rmdir(source)
        found = mounts.mount_at(target)
        assert found is not None
        assert (found.root, found.deleted) == ("/s", True)

    def test_by_device_and_place(self, base: Path) -> None:
        device = os.stat(base).st_dev
        here = mounts.mounts(device=(os.major(device), os.minor(device)))
        assert [mount.mount_point for mount in here] == [str(base)]
        target, similar = directory(base, "t"), directory(base, "t-and-more")
        mounts.bind(str(base), similar)
        mounts.mount("none", target, "tmpfs")
        mounts.mount("none", directory(Path(target), "inner"), "tmpfs")
        assert [mount.mount_point for mount in mounts.mounts(under=target)] == [target, f"{target}/inner"]
        everywhere = {mount.mount_point for mount in mounts.mounts(under="/")}
        assert {"/", "/proc", str(base), similar, target, f"{target}/inner"} <= everywhere
        both = mounts.mounts(under=str(base), device=(os.major(device), os.minor(device)))
        assert [mount.mount_point for mount in both] == [str(base), similar]

    def test_one_path_is_answered_without_the_table(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With 5,000 mounts present; that the table is not read is what keeps the cost flat."""
        source = directory(base, "s")
        for number in range(5000):
            mounts.bind(source, directory(base, f"m{number}"))

        def read_table() -> bytes:
            raise AssertionError("the whole mount table was read")

        with monkeypatch.context() as patch:
            patch.setattr(_mount_table, "_read_table", read_table)
            target = f"{base}/m2500"
            assert mounts.is_mount_point(target)
            found = mounts.mount_at(target)
            assert not mounts.is_mount_point(source)
            assert mounts.mount_at(source) is None
            assert mounts.unmount(target)
            mounts.bind(source, target, read_only=True)
        assert found is not None
        assert (found.mount_point, found.root) == (target, "/s")
        assert len(mounts.mounts(under=str(base))) == 5001

    def test_same_mount(self, base: Path, kernel: str) -> None:
        source, target, plain = directory(base, "s"), directory(base, "t"), directory(base, "plain")
        assert not mounts.same_mount(source, target)
        assert not mounts.same_mount(source, str(base / "missing"))
        assert not mounts.same_mount(plain, plain)
        with pytest.raises(NotFound):
            mounts.same_mount(str(base / "missing"), target)
        mounts.bind(source, target)
        assert mounts.same_mount(source, target)
        assert not mounts.same_mount(plain, target)

    @pytest.mark.parametrize(
        "fs_type",
        [
            pytest.param("ext4", marks=pytest.mark.needs("mkfs.ext4", "losetup")),
            pytest.param("btrfs", marks=pytest.mark.needs("mkfs.btrfs", "losetup")),
        ],
    )
    def test_mounted_from(self, base: Path, kernel: str, fs_type: str) -> None:
        image, target, plain = file(base, "image"), directory(base, "t"), directory(base, "plain")
        os.truncate(image, 128 << 20)
        subprocess.run([f"mkfs.{fs_type}", "-q", image], check=True)
        attach = ["losetup", "--find", "--show", image]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        try:
            assert not mounts.mounted_from(device, target)
            mounts.mount(device, target, fs_type)
            assert mounts.mounted_from(device, target)
            assert not mounts.mounted_from("/dev/null", target)
            assert not mounts.mounted_from(str(base / "missing"), target)
            assert not mounts.mounted_from(plain, str(base))
            other = str(base / "other")
            os.mknod(other, stat.S_IFBLK | 0o600, os.makedev(7, 4242))
            assert not mounts.mounted_from(other, target)
        finally:
            mounts.unmount(target)
            subprocess.run(["losetup", "--detach", device], check=True)

    @pytest.mark.parametrize("kind", ["private", "shared", "unbindable"])
    def test_propagation(
        self, base: Path, kernel: str, kind: Literal["private", "shared", "unbindable"]
    ) -> None:
        mounts.set_propagation(str(base), kind)
        found = mounts.mount_at(str(base))
        assert found is not None
        assert found.propagation == kind
        mounts.set_propagation(str(base), "private")


@root
def test_this_kernel_has_the_calls() -> None:
    """Where the tests run, "new" is new: the fallbacks are not what both parameters test."""
    assert mounts.has_mount_setattr()
    assert mounts.has_move_mount()


# --- the text of mountinfo ---------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
option_words = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0,"), min_size=1, max_size=12),
    min_size=1, max_size=4,
).map(tuple)  # fmt: skip
TAGS = {
    "private": "",
    "shared": "shared:7 ",
    "slave": "master:3 ",
    "shared,slave": "shared:9 master:2 propagate_from:1 ",
    "unbindable": "unbindable ",
}

some_mounts = st.builds(
    Mount,
    id=st.integers(1, 2**31),
    parent_id=st.integers(0, 2**31),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20)),
    root=paths,
    mount_point=paths,
    fs_type=st.sampled_from(["ext4", "fuse.sshfs", "tmpfs"]),
    source=st.one_of(names, paths, st.just("")),
    options=option_words,
    super_options=option_words,
    propagation=st.sampled_from(sorted(TAGS)),
    deleted=st.booleans(),
)


def written(mount: Mount) -> bytes:
    """A mount as the kernel writes it (proc(5))."""
    words = [b",".join(map(_mount_table.escape, options)) for options in (mount.options, mount.super_options)]
    return b"%d %d %d:%d %s%s %s %s %s- %s %s %s\n" % (
        mount.id, mount.parent_id, *mount.device,
        _mount_table.escape(mount.root), b"//deleted" if mount.deleted else b"",
        _mount_table.escape(mount.mount_point), words[0], TAGS[mount.propagation].encode(),
        mount.fs_type.encode(), _mount_table.escape(mount.source), words[1],
    )  # fmt: skip


class TestMountinfo:
    @given(st.lists(some_mounts, max_size=5))
    def test_round_trip(self, some: list[Mount]) -> None:
        assert mounts.parse_mountinfo(b"".join(map(written, some))) == some

    @given(st.lists(some_mounts, min_size=2, max_size=3), st.data())
    def test_cut_short(self, some: list[Mount], data: st.DataObject) -> None:
        text = b"".join(map(written, some))
        cut = text[: data.draw(st.integers(0, len(text) - 1))]
        assert mounts.parse_mountinfo(cut) == some[: cut.count(b"\n")]

    @given(st.binary(max_size=300))
    def test_anything_at_all(self, data: bytes) -> None:
        assert isinstance(mounts.parse_mountinfo(data), list)

    @given(paths)
    def test_escapes(self, path: str) -> None:
        escaped = _mount_table.escape(path)
        assert not set(escaped) & set(b" \t\n")
        assert _mount_table.unescape(escaped) == path

    def test_the_kernels_own_escapes(self) -> None:
        assert _mount_table.escape("/a b\tc\nd\\e") == rb"/a\040b\011c\012d\134e"
        line = (
            rb"36 35 98:0 /mnt\040a /x\134y rw,noatime master:1 - ext3 /dev/a\011b rw,errors=continue" + b"\n"
        )
        assert mounts.parse_mountinfo(line) == [
            Mount(
                id=36, parent_id=35, device=(98, 0), root="/mnt a", mount_point="/x\\y", fs_type="ext3",
                source="/dev/a\tb", options=("rw", "noatime"), super_options=("rw", "errors=continue"),
                propagation="slave",
            )
        ]  # fmt: skip

    def test_ten_thousand_lines(self) -> None:
        line = b"%d 27 0:%d / /m/%d rw,relatime shared:1 - tmpfs none rw,size=4k\n"
        found = mounts.parse_mountinfo(b"".join(line % (n, n, n) for n in range(10_000)))
        assert [mount.id for mount in found] == list(range(10_000))


class TestOptions:
    def test_the_last_word_wins(self) -> None:
        assert _mount_options.flags_and_data(["ro", "rw"]) == (0, "")
        assert _mount_options.flags_and_data(["noatime", "relatime"])[0] == _mount_options.MS_RELATIME
        assert _mount_options.attributes(["ro", "rw"]) == (0, 1)
        assert _mount_options.attributes(["noatime", "strictatime"]) == (0x20, 0x70)

    def test_bind_flags_keep_what_is_there(self) -> None:
        flags = _mount_options.bind_flags(["rw", "nosuid", "relatime", "idmapped", "ro"])
        wanted = _mount_options.MS_NOSUID | _mount_options.MS_RELATIME | _mount_options.MS_RDONLY
        assert flags == wanted


class TestRefusal:
    def test_classes_by_errno(self) -> None:
        full = _syscalls.refusal(OSError(errno.ENOSPC, ""), "cannot make x")
        assert isinstance(full, ResourceExhausted)
        assert full.message == "cannot make x: No space left on device (ENOSPC)"
        assert type(_syscalls.refusal(OSError(errno.EIO, ""), "x")).__name__ == "Unavailable"

    def test_check(self) -> None:
        assert _syscalls.check(3, "open") == 3
        _syscalls.libc.close(-1)
        with pytest.raises(OSError, match="close: Bad file descriptor") as caught:
            _syscalls.check(-1, "close", "/x")
        assert (caught.value.errno, caught.value.filename) == (errno.EBADF, "/x")


@root
def test_where_a_directory_is_bound(base: Path) -> None:
    source, other = directory(base, "source", "file"), directory(base, "source2")
    (base / "source" / "below").mkdir()
    targets = [directory(base, f"target {number}") for number in range(3)]
    assert mounts.bound_at(source) == []
    mounts.bind(source, targets[0])
    mounts.bind(f"{source}/below", targets[1])  # as kubelet does for a subPath
    mounts.bind(other, targets[2])
    (base / "link").symlink_to(source)
    for path in (source, f"{source}/", str(base / "link")):
        assert mounts.bound_at(path) == targets[:2]
    assert mounts.bound_at(f"{source}/below") == targets[1:2]
    assert mounts.bound_at(other) == targets[2:]
    mounts.bind(targets[0], targets[2])  # over the other one
    assert mounts.bound_at(source) == targets
    mounts.unmount(targets[0])
    assert mounts.bound_at(source) == targets[1:]


@root
def test_where_a_subvolume_is_bound(tmp_path: Path) -> None:
    from volkit.host import btrfs, loop

    image, point, target = tmp_path / "image", tmp_path / "point", directory(tmp_path, "target")
    image.touch()
    os.truncate(image, 128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    device = loop.attach(str(image), direct_io=False)
    point.mkdir()
    mounts.mount(device, str(point), "btrfs", [])
    try:
        for name in ("v1", "v2"):
            btrfs.create(f"{point}/{name}")
        mounts.bind(f"{point}/v1", target)
        assert mounts.bound_at(f"{point}/v1") == [target]
        assert mounts.bound_at(f"{point}/v2") == []
        assert mounts.bound_at(str(point)) == [target]
        mounts.unmount(target)
        assert mounts.bound_at(f"{point}/v1") == []
    finally:
        mounts.unmount(target, lazy=True)
        mounts.unmount(str(point))
        loop.detach(device)
