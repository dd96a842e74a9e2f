"""System calls that may never return, done by a process that can be given up; on a real FUSE file system that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from volkit.errors import DeadlineExceeded, NotFound, Unavailable
from volkit.host import apart, filesystems, mounts, process
from volkit.model import BlockConnection, FileConnection

pytestmark = pytest.mark.root


def abort(target: str) -> None:
    """Wake up everybody who waits for the server (umount2(2), MNT_FORCE)."""
    subprocess.run(["umount", "-f", target], check=False, capture_output=True)


def test_it_does_what_it_is_asked(tmp_path: Path) -> None:
    assert (
        apart.call(filesystems.usage, str(tmp_path), timeout=30).total
        == filesystems.usage(str(tmp_path)).total
    )
    with pytest.raises(NotFound, match="missing"):
        apart.call(filesystems.usage, str(tmp_path / "missing"), timeout=30)


def test_it_is_another_process_and_kept() -> None:
    first = apart.call(os.getpid, timeout=30)
    assert first != os.getpid()
    assert apart.call(os.getpid, timeout=30) == first


def test_one_that_died_is_replaced() -> None:
    first = apart.call(os.getpid, timeout=30)
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:  # it may be taken for alive once more
        try:
            assert apart.call(os.getpid, timeout=30) != first
            return
        except Unavailable:
            assert time.monotonic() < deadline


def test_what_hangs_is_given_up(hung: str, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match="usage did not return within"):
        apart.call(filesystems.usage, hung, timeout=0.5)
    assert apart.call(filesystems.usage, str(tmp_path), timeout=30).total
    abort(hung)
    deadline = time.monotonic() + 60
    while process.abandoned():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_is_a_mount_point_is_answered_where_it_hangs(hung: str) -> None:
    assert mounts.is_mount_point(hung)
    here = mounts.mount_at(hung)
    assert here is not None
    assert here.fs_type == "fuse"


def test_where_a_call_goes() -> None:
    assert apart.reach(BlockConnection(device="/dev/loop7"), os.getpid) == os.getpid()
    assert apart.reach(FileConnection(directory="/srv"), os.getpid) == os.getpid()
    assert apart.reach(BlockConnection(device="/dev/sdb"), os.getpid) != os.getpid()
    assert apart.reach(FileConnection(source="server:/export", fs_type="nfs4"), os.getpid) != os.getpid()


def test_a_forked_child_has_its_own() -> None:
    first = apart.call(os.getpid, timeout=30)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(apart.call(os.getpid, timeout=30)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = int(pipe.read())
    os.waitpid(pid, 0)
    assert theirs not in (first, 0)
