"""volkit.host.paths: what a target may be, made and removed on a real file system."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit.errors import FailedPrecondition, InUse, InvalidArgument, NotFound, VolkitError
from volkit.host import mounts, paths

root = pytest.mark.root


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[str]:
    """A tmpfs, at a directory that holds a file of its own."""
    target = tmp_path / "mounted"
    target.mkdir()
    (target / "underneath").touch()
    mounts.mount("none", str(target), "tmpfs")
    yield str(target)
    mounts.unmount(str(target), lazy=True)


class TestCheckAbsolute:
    @pytest.mark.parametrize(
        ("path", "normal"),
        [
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("//a///./b/.", "/a/b"),
            ("/a b/…/c", "/a b/…/c"),
            ("/..a/b..", "/..a/b.."),
            ("/" + "x" * 255, "/" + "x" * 255),
        ],
    )
    def test_normal_form(self, path: str, normal: str) -> None:
        assert paths.check_absolute(path, "target_path") == normal

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("", "is empty"),
            ("a/b", "is relative"),
            ("./a", "is relative"),
            ("/", "is '/'"),
            ("//./", "is '/'"),
            ("/a/../b", "contains '..'"),
            ("/..", "contains '..'"),
            ("/a\0b", "control character"),
            ("/a\nb", "control character"),
            ("/a\x7f", "control character"),
            ("/a\x85", "control character"),
            ("/" + "x" * 256, "too long"),
            ("/" + "é" * 128, "too long"),
            ("/abc" * 1024, "too long"),
            ("/\ud800", "not valid Unicode"),
        ],
    )
    def test_refused(self, path: str, reason: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            paths.check_absolute(path, "target_path")
        assert caught.value.message.startswith("target_path ")
        assert reason in caught.value.message
        assert len(caught.value.message) < 400
        assert caught.value.message.isprintable()

    def test_the_longest(self) -> None:
        assert paths.check_absolute("/abc" * 1023, "f") == "/abc" * 1023

    @given(st.text(max_size=40))
    def test_what_passes_is_safe(self, text: str) -> None:
        try:
            found = paths.check_absolute("/" + text, "f")
        except InvalidArgument:
            return
        assert found == os.path.normpath(found)
        assert found != "/"
        assert "/../" not in found + "/"
        assert paths.check_absolute(found, "f") == found


class TestEnsureDirectory:
    def test_made_with_its_parents_and_once(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "b" / "c"
        assert paths.ensure_directory(str(target), 0o700)
        assert stat.S_IMODE(target.stat().st_mode) == 0o700
        assert not paths.ensure_directory(str(target))
        assert stat.S_IMODE(target.stat().st_mode) == 0o700

    def test_a_link_in_the_parents_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert paths.ensure_directory(str(tmp_path / "link" / "t"))
        assert (tmp_path / "real" / "t").is_dir()

    @pytest.mark.parametrize("destination", ["directory", "file", "missing"])
    def test_a_link_is_refused(self, tmp_path: Path, destination: str) -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "file").touch()
        (tmp_path / "t").symlink_to(destination)
        with pytest.raises(InvalidArgument, match="a symbolic link is there"):
            paths.ensure_directory(str(tmp_path / "t"))
        assert not (tmp_path / "missing").exists()

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_text("x")
        with pytest.raises(InvalidArgument, match="a file is there"):
            paths.ensure_directory(str(tmp_path / "t"))
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidArgument, match="a named pipe is there"):
            paths.ensure_directory(str(tmp_path / "pipe"))
        assert (tmp_path / "t").read_text() == "x"

    def test_impossible_parents(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        (tmp_path / "dangling").symlink_to("missing")
        for parent in ("f", "dangling"):
            with pytest.raises((InvalidArgument, NotFound)) as caught:
                paths.ensure_directory(str(tmp_path / parent / "t"))
            assert f"{parent}/t" in caught.value.message
        with pytest.raises(InvalidArgument, match="NUL"):
            paths.ensure_directory(f"{tmp_path}/a\0b")

    def test_empty_asked_for(self, tmp_path: Path) -> None:
        target = tmp_path / "t"
        assert paths.ensure_directory(str(target), empty=True)
        assert not paths.ensure_directory(str(target), empty=True)
        (target / "precious").touch()
        with pytest.raises(FailedPrecondition, match="'precious'"):
            paths.ensure_directory(str(target), empty=True)
        assert not paths.ensure_directory(str(target))
        assert (target / "precious").exists()

    @root
    def test_what_is_mounted_there_may_have_content(self, mounted: str) -> None:
        Path(mounted, "content").touch()
        assert not paths.ensure_directory(mounted, empty=True)

    @root
    def test_a_dead_mount_is_no_obstacle(self, tmp_path: Path) -> None:
        """The caller unmounts it next; it must get that far."""
        target = tmp_path / "t"
        target.mkdir()
        device = os.open("/dev/fuse", os.O_RDWR)
        options = [f"fd={device}", "rootmode=40000", "user_id=0", "group_id=0"]
        mounts.mount("none", str(target), "fuse", options)
        os.close(device)
        try:
            assert not paths.ensure_directory(str(target), empty=True)
            with pytest.raises(InUse):
                paths.remove_target(str(target))
        finally:
            mounts.unmount(str(target))
        assert paths.remove_target(str(target))


class TestEnsureFile:
    def test_made_with_its_parents_and_once(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "b"
        assert paths.ensure_file(str(target), 0o600)
        assert target.is_file()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert not paths.ensure_file(str(target))

    def test_other_things_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to("missing")
        for name, reason in (("directory", "a directory"), ("link", "a symbolic link")):
            with pytest.raises(InvalidArgument, match=f"{reason} is there"):
                paths.ensure_file(str(tmp_path / name))
        assert not (tmp_path / "missing").exists()

    def test_a_file_with_content_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_text("precious")
        with pytest.raises(FailedPrecondition, match="has content"):
            paths.ensure_file(str(tmp_path / "t"))
        assert (tmp_path / "t").read_text() == "precious"

    @root
    def test_a_device_bound_there_counts(self, tmp_path: Path) -> None:
        device, target = tmp_path / "device", tmp_path / "t"
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(7, 4242))
        assert paths.ensure_file(str(target))
        mounts.bind(str(device), str(target))
        try:
            assert not paths.ensure_file(str(target))
            with pytest.raises(InUse):
                paths.remove_target(str(target))
        finally:
            mounts.unmount(str(target))
        assert paths.remove_target(str(target))
        assert not target.exists()


class TestRemoveTarget:
    def test_missing_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        assert not paths.remove_target(str(tmp_path / "missing"))
        assert not paths.remove_target(str(tmp_path / "missing" / "below"))
        assert not paths.remove_target(str(tmp_path / "f" / "below"))

    def test_only_itself(self, tmp_path: Path) -> None:
        for make in (paths.ensure_directory, paths.ensure_file):
            target = tmp_path / "parent" / "t"
            make(str(target))
            assert paths.remove_target(str(target))
            assert not paths.remove_target(str(target))
            assert (tmp_path / "parent").is_dir()

    def test_content_stays(self, tmp_path: Path) -> None:
        target = tmp_path / "t"
        target.mkdir()
        (target / "precious").touch()
        with pytest.raises(FailedPrecondition, match="'precious'"):
            paths.remove_target(str(target))
        with pytest.raises(InvalidArgument, match="NUL"):
            paths.remove_target(f"{target}\0")
        file = tmp_path / "f"
        file.write_text("x")
        with pytest.raises(FailedPrecondition, match="1 bytes"):
            paths.remove_target(str(file))
        assert (target / "precious").exists()
        assert file.exists()

    def test_links_and_others_stay(self, tmp_path: Path) -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to("directory")
        os.mkfifo(tmp_path / "pipe")
        for name in ("link", "pipe"):
            with pytest.raises(InvalidArgument):
                paths.remove_target(str(tmp_path / name))
        assert sorted(os.listdir(tmp_path)) == ["directory", "link", "pipe"]

    @root
    def test_a_mount_point_stays(self, mounted: str) -> None:
        with pytest.raises(InUse, match="still mounted"):
            paths.remove_target(mounted)
        mounts.unmount(mounted)
        assert os.listdir(mounted) == ["underneath"]

    @root
    def test_a_mount_that_appears_meanwhile_is_safe(
        self, mounted: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paths, "is_mount_point", lambda path: False)
        with pytest.raises(InUse):
            paths.remove_target(mounted)
        assert mounts.is_mount_point(mounted)


def test_many_callers_at_once(tmp_path: Path) -> None:
    """Creation and removal of one target by eight threads: nothing but errors of volkit's."""
    target, unexpected = str(tmp_path / "parent" / "t"), []

    def work() -> None:
        for _ in range(100):
            try:
                paths.ensure_directory(target)
                paths.remove_target(target)
            except VolkitError:
                pass
            except BaseException as error:
                unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    paths.remove_target(target)
    assert os.listdir(tmp_path / "parent") == []
