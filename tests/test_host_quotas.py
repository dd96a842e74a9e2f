"""Sizes that a file system enforces, on real ones: btrfs by subvolume, ext4 and xfs by project where the kernel can."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volkit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from volkit.host import btrfs, loop, mounts, quotas

MIB = 1 << 20
SIZES = {"btrfs": 256, "xfs": 320, "ext4": 64}
FEATURES = {"ext4": ["-O", "quota,project", "-E", "quotatype=prjquota"]}

pytestmark = [pytest.mark.root]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes and mounts a file system of this type, with quotas where it can have them."""
    made: list[tuple[Path, str]] = []

    def make(fs_type: str) -> Path:
        image, point = tmp_path / f"{fs_type}.img", tmp_path / fs_type
        image.touch()
        os.truncate(image, SIZES[fs_type] * MIB)
        point.mkdir()
        subprocess.run(
            [f"mkfs.{fs_type}", "-q", *FEATURES.get(fs_type, []), image], check=True, capture_output=True
        )
        device = loop.attach(str(image), direct_io=False)
        made.append((point, device))
        mounts.mount(device, str(point), fs_type, [] if fs_type == "btrfs" else ["prjquota"])
        return point

    yield make
    for point, device in made:
        if mounts.is_mount_point(str(point)):
            mounts.unmount(str(point))
        loop.detach(device)


def write(path: Path, size: int) -> int:
    """0, or the number of the error; as a container does, without the capability that ext4's quotas yield to."""
    command = ["setpriv", "--bounding-set=-sys_resource", "dd", "if=/dev/urandom", f"of={path}", "bs=1M"]
    command += [f"count={size // MIB}", "conv=fsync"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode == 0:
        return 0
    return next(one for one in (errno.EDQUOT, errno.ENOSPC) if os.strerror(one) in done.stderr)


def sync(point: Path) -> None:
    """Commits it: qgroups are true then."""
    subprocess.run(["sync", "--file-system", point], check=True)


@pytest.fixture(params=["btrfs", "xfs", "ext4"])
def enforced(request: pytest.FixtureRequest, place: Callable[[str], Path]) -> tuple[quotas.Quota, Path]:
    try:
        point = place(request.param)
    except FailedPrecondition:
        pytest.skip("this kernel has no project quotas")
    quota = quotas.enable(str(point))
    if not quota.enforced:
        pytest.skip("this kernel has no project quotas")
    return quota, point


def test_a_size_is_kept_to_and_can_grow_in_use(enforced: tuple[quotas.Quota, Path]) -> None:
    quota, point = enforced
    directory = point / "v1"
    quota.make(str(directory), 8 * MIB)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert write(directory / "a", 6 * MIB) == 0
    assert write(directory / "b", 6 * MIB) in (errno.EDQUOT, errno.ENOSPC)
    (directory / "b").unlink()
    with (directory / "a").open("r+b") as held:
        quota.limit(str(directory), 24 * MIB)
        assert write(directory / "b", 6 * MIB) == 0
        held.write(b"still")
    sync(point)
    found = quota.usage(str(directory))
    assert found is not None
    assert found.total == 24 * MIB
    assert 12 * MIB <= found.used <= 13 * MIB
    assert 10 * MIB <= found.available <= 12 * MIB
    assert quota.claim(str(directory)) == found.total - found.used
    assert quota.trouble(str(directory)) == ""
    with pytest.raises(AlreadyExists):
        quota.make(str(directory), MIB)


def test_a_copy_is_limited_by_itself(enforced: tuple[quotas.Quota, Path]) -> None:
    quota, point = enforced
    quota.make(str(point / "v1"), 16 * MIB)
    (point / "v1" / "below").mkdir()
    assert write(point / "v1" / "below" / "a", 8 * MIB) == 0
    sync(point)
    quota.copy(str(point / "v1"), str(point / "v2"), 16 * MIB)
    quota.copy(str(point / "v1"), str(point / "snapshot"), 0)
    assert (point / "v2" / "below" / "a").read_bytes() == (point / "v1" / "below" / "a").read_bytes()
    assert write(point / "v2" / "below" / "b", 4 * MIB) == 0
    assert write(point / "v2" / "c", 8 * MIB) in (errno.EDQUOT, errno.ENOSPC)
    assert not (point / "v1" / "below" / "b").exists()
    assert write(point / "v1" / "c", 4 * MIB) == 0  # the copies took nothing of its own


def test_a_plain_directory_has_no_size(tmp_path: Path, place: Callable[[str], Path]) -> None:
    quota = quotas.NoQuota()
    assert not quota.enforced
    quota.make(str(tmp_path / "v1"), MIB)
    assert write(tmp_path / "v1" / "a", 2 * MIB) == 0
    found = quota.usage(str(tmp_path / "v1"))
    assert found is not None
    assert 2 * MIB <= found.used < 3 * MIB
    assert found.total >= found.used + found.available
    assert quota.claim(str(tmp_path / "v1")) == 0
    quota.copy(str(tmp_path / "v1"), str(tmp_path / "v2"), MIB)
    assert (tmp_path / "v2" / "a").stat().st_size == 2 * MIB
    with pytest.raises(FailedPrecondition):
        quota.limit(str(tmp_path / "v1"), MIB)
    with pytest.raises(AlreadyExists):
        quota.make(str(tmp_path / "v1"), MIB)


# -- btrfs


@pytest.fixture
def point(place: Callable[[str], Path]) -> Path:
    point = place("btrfs")
    quotas.enable(str(point))
    return point


def test_what_is_a_subvolume(point: Path, tmp_path: Path) -> None:
    assert btrfs.is_on(str(point))
    assert not btrfs.is_on(str(tmp_path))
    btrfs.create(f"{point}/v1")
    (point / "directory").mkdir()
    (point / "link").symlink_to("v1")
    assert btrfs.is_subvolume(f"{point}/v1")
    for other in ("directory", "link"):
        assert not btrfs.is_subvolume(f"{point}/{other}")
        with pytest.raises(InvalidArgument):
            btrfs.delete(f"{point}/{other}")
    with pytest.raises(AlreadyExists):
        btrfs.create(f"{point}/directory")
    with pytest.raises(NotFound):
        btrfs.delete(f"{point}/no")
    with pytest.raises(FailedPrecondition, match="not btrfs"):
        btrfs.create(f"{tmp_path}/v1")


def test_a_snapshot_is_of_one_moment_and_shares_its_blocks(point: Path) -> None:
    btrfs.create(f"{point}/v1")
    btrfs.limit(f"{point}/v1", 32 * MIB)
    assert write(point / "v1" / "a", 8 * MIB) == 0
    sync(point)
    before = btrfs.used(f"{point}/v1")
    assert before.exclusive == before.referenced >= 8 * MIB
    btrfs.snapshot(f"{point}/v1", f"{point}/s1")
    (point / "v1" / "a").write_bytes(b"changed")
    assert (point / "s1" / "a").stat().st_size == 8 * MIB
    assert btrfs.used(f"{point}/s1").limit == 32 * MIB
    btrfs.limit(f"{point}/s1", 0)
    assert btrfs.used(f"{point}/s1").limit == 0
    sync(point)
    now = btrfs.used(f"{point}/v1")
    assert now.exclusive == now.referenced < MIB
    assert btrfs.used(f"{point}/s1").exclusive >= 8 * MIB
    said = subprocess.run(
        ["btrfs", "qgroup", "show", "--raw", "-re", "-f", point / "v1"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for number in (now.referenced, now.exclusive, now.limit):  # seen by another eye
        assert str(number) in said


def test_what_users_made_inside_goes_too_and_is_told_of(point: Path) -> None:
    quota = quotas.BtrfsQuota()
    quota.make(f"{point}/v1", 8 * MIB)
    (point / "v1" / "deep" / "er").mkdir(parents=True)
    btrfs.create(f"{point}/v1/deep/er/inner")
    btrfs.create(f"{point}/v1/deep/er/inner/most")
    (point / "v1" / "deep" / "er" / "inner" / "most" / "file").touch()
    assert "made 1 subvolumes in it" in quota.trouble(f"{point}/v1")
    btrfs.delete(f"{point}/v1")
    listed = subprocess.run(
        ["btrfs", "subvolume", "list", point], capture_output=True, check=True, text=True
    ).stdout
    assert listed == ""


def test_quotas_that_somebody_disabled_are_told_of_and_enabled_anew(point: Path) -> None:
    quota = quotas.BtrfsQuota()
    quota.make(f"{point}/v1", 8 * MIB)
    subprocess.run(["btrfs", "quota", "disable", point], check=True, capture_output=True)
    assert btrfs.quota(str(point)) is None
    assert "disabled" in quota.trouble(f"{point}/v1")
    assert quota.claim(f"{point}/v1") == 0
    with pytest.raises(FailedPrecondition, match="enable quotas"):
        quota.usage(f"{point}/v1")
    assert quotas.enable(str(point)).enforced
    subprocess.run(["btrfs", "quota", "rescan", "-w", point], check=True, capture_output=True)
    assert "no limit any more" in quota.trouble(f"{point}/v1")
    quota.limit(f"{point}/v1", 8 * MIB)
    assert quota.trouble(f"{point}/v1") == ""
    assert write(point / "v1" / "a", 12 * MIB) == errno.EDQUOT


def test_a_full_file_system_lets_things_go(point: Path) -> None:
    for number in range(3):
        quotas.BtrfsQuota().make(f"{point}/v{number}", 512 * MIB)
    assert write(point / "v0" / "a", 512 * MIB) == errno.ENOSPC
    assert write(point / "v1" / "a", 4 * MIB) == errno.ENOSPC
    btrfs.delete(f"{point}/v0")
    for _ in range(600):  # the kernel's cleaner frees it, at the latest after 30 seconds
        subprocess.run(["btrfs", "filesystem", "sync", point], check=True)
        if write(point / "v1" / "a", 4 * MIB) == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the space of what was removed is never free")
