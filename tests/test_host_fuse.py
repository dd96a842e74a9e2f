"""FUSE programs, with a real one (bindfs, which serves a directory): they outlive who starts them, and are mended."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import DeadlineExceeded, FailedPrecondition, InUse, NotFound, Unavailable
from volkit.host import fuse, mounts, rebind
from volkit.model import FuseConnection

pytestmark = [pytest.mark.root, pytest.mark.needs("bindfs")]
PATIENCE = 60.0


class Served:
    """A directory that a program serves at another place."""

    def __init__(self, base: Path) -> None:
        self.data = base / "data"
        self.target = str(base / "target")
        self.directory = str(base / "run" / "x")
        self.cache = str(base / "cache")
        self.data.mkdir()
        os.mkdir(self.target)
        (self.data / "file").write_text("content")

    def connection(self, *argv: str, **words: Any) -> FuseConnection:
        program = argv or ("bindfs", "-f", str(self.data), "{target}")
        return FuseConnection(argv=program, source="bindfs", ready=60, **words)

    def start(self, connection: FuseConnection | None = None, *, read_only: bool = False) -> None:
        connection = connection or self.connection()
        places = {"directory": self.directory, "cache": self.cache}
        fuse.start(connection, self.target, read_only=read_only, **places)

    def stop(self) -> None:
        fuse.stop(self.target, directory=self.directory, timeout=PATIENCE)

    @property
    def pid(self) -> int:
        return int(Path(self.directory, "pid").read_text().split()[0])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while fuse.is_running(self.directory):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    if Path(made.directory, "pid").exists():
        subprocess.run(["pkill", "-9", "-f", made.target], check=False)
    for one in reversed(mounts.mounts(under=str(tmp_path))):
        mounts.unmount(one.mount_point, lazy=True)


def content(path: str) -> str:
    return Path(path, "file").read_text()


def test_from_start_to_stop(served: Served) -> None:
    served.start()
    assert fuse.is_running(served.directory)
    assert not fuse.is_dead(served.target)
    assert content(served.target) == "content"
    served.stop()
    assert not mounts.is_mount_point(served.target)
    assert not os.path.exists(served.directory)
    assert not fuse.is_running(served.directory)
    served.stop()  # as often as one likes


def test_its_files_are_private_and_gone_after_it(served: Served) -> None:
    argv = (
        "sh",
        "-c",
        f'mkdir "$2/x"; exec bindfs -f {served.data} "$1"',
        "sh",
        "{target}",
        "{cache}",
        "{files}/key",
    )
    served.start(served.connection(*argv, files={"key": "hunter2"}))
    key = Path(served.directory, "files", "key")
    assert key.read_text() == "hunter2"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(served.directory).stat().st_mode) == 0o700
    assert Path(served.cache, "x").is_dir()
    words = (
        Path(f"/proc/{served.pid}/cmdline").read_bytes() + Path(f"/proc/{served.pid}/environ").read_bytes()
    )
    assert b"hunter2" not in words
    served.stop()
    assert not key.exists()
    assert not os.path.exists(served.cache)


def test_read_only(served: Served) -> None:
    served.start(read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        Path(served.target, "new").touch()
    served.kill()
    fuse.restart(served.directory)
    with pytest.raises(OSError, match="Read-only"):
        Path(served.target, "new").touch()
    served.stop()


def test_one_that_ends_at_once_is_quoted_without_its_secrets(served: Served) -> None:
    argv = ("sh", "-c", 'echo "cannot log in with $(cat "$1"), no bucket"; exit 3', "sh", "{files}/key")
    with pytest.raises(Unavailable, match=r"ended before it served .*: cannot log in with \*\*\*, no bucket"):
        served.start(served.connection(*argv, files={"key": "id:hunter2"}))
    assert not mounts.is_mount_point(served.target)
    served.start()  # what was left of it is out of the way
    served.stop()


def test_one_that_never_serves_is_ended(served: Served) -> None:
    connection = FuseConnection(argv=("sleep", "1000"), ready=0.2)
    with pytest.raises(DeadlineExceeded, match="did not serve"):
        served.start(connection)
    assert not fuse.is_running(served.directory)


def test_a_program_that_is_not_there(served: Served) -> None:
    with pytest.raises(FailedPrecondition, match="no-such-program is not there"):
        served.start(served.connection("no-such-program", "{target}"))


def test_it_outlives_its_driver_and_is_found_again(served: Served) -> None:
    script = f"""
import os, signal
from volkit.host import fuse
from volkit.model import FuseConnection
connection = FuseConnection(argv=("bindfs", "-f", {str(served.data)!r}, "{{target}}"))
fuse.start(connection, {served.target!r}, directory={served.directory!r}, cache="")
os.killpg(0, signal.SIGKILL)
"""
    driver = subprocess.run([sys.executable, "-c", script], check=False, start_new_session=True, timeout=60)
    assert driver.returncode == -signal.SIGKILL
    assert content(served.target) == "content"
    assert fuse.is_running(served.directory)
    served.stop()
    assert not mounts.is_mount_point(served.target)


def test_one_that_died_is_noticed_and_restarted_with_its_binds(served: Served, tmp_path: Path) -> None:
    (served.data / "sub").mkdir()
    (served.data / "sub" / "file").write_text("below")
    served.start()
    pod, sub = str(tmp_path / "pod"), str(tmp_path / "sub")
    os.mkdir(pod)
    os.mkdir(sub)
    mounts.bind(served.target, pod, read_only=True)
    mounts.bind(f"{served.target}/sub", sub)
    served.kill()
    assert fuse.is_dead(served.target)
    assert fuse.is_dead(pod)
    assert fuse.restart(served.directory) == 2
    assert content(served.target) == content(pod) == "content"
    assert content(sub) == "below"
    here = mounts.mount_at(pod)
    assert here is not None
    assert here.read_only
    assert sorted(one.mount_point for one in mounts.mounts(under=str(tmp_path))) == sorted(
        [served.target, pod, sub]
    )
    mounts.unmount(pod)
    mounts.unmount(sub)
    served.stop()


@pytest.mark.copies_mounts
def test_the_bind_of_another_mount_namespace_is_replaced(served: Served, tmp_path: Path) -> None:
    """As a container has it: a private namespace in which nothing of the host's appears."""
    served.start()
    pod = tmp_path / "pod"
    pod.mkdir()
    commands = f"mount --bind {served.target} {pod} && echo ready && cat && cat {pod}/file"
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", commands],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert container.stdin
    assert container.stdout
    try:
        assert container.stdout.readline() == "ready\n"
        served.kill()
        assert fuse.restart(served.directory) >= 1
        out, _ = container.communicate(timeout=PATIENCE)
        assert out == "content"
    finally:
        container.kill()
        container.wait()
    served.stop()


def test_a_restart_that_fails_is_repeated_and_loses_no_bind(served: Served, tmp_path: Path) -> None:
    served.start()
    pod = str(tmp_path / "pod")
    os.mkdir(pod)
    mounts.bind(served.target, pod)
    served.kill()
    served.data.rename(tmp_path / "away")  # the program refuses to start
    for _ in range(2):
        with pytest.raises(Unavailable):
            fuse.restart(served.directory)
    (tmp_path / "away").rename(served.data)
    assert fuse.restart(served.directory) == 1
    assert content(pod) == "content"
    mounts.unmount(pod)
    served.stop()


def test_other_mounts_stay(served: Served, tmp_path: Path) -> None:
    served.start()
    pod = str(tmp_path / "pod")
    os.mkdir(pod)
    mounts.bind(served.target, pod)
    here = mounts.mount_at(pod)
    assert here is not None
    assert rebind.replace_dead(served.target, [here.device]) == 0  # it is not dead
    mounts.unmount(pod)
    served.stop()


def test_in_use_is_not_stopped(served: Served) -> None:
    served.start()
    with open(f"{served.target}/file"), pytest.raises(InUse):
        served.stop()
    assert content(served.target) == "content"
    served.stop()


def test_what_is_not_known_cannot_be_restarted(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        fuse.restart(str(tmp_path / "nothing"))
    assert not fuse.is_running(str(tmp_path / "nothing"))
    assert not fuse.has_died(str(tmp_path / "nothing"))


# -- who runs it -------------------------------------------------------------------------------------------------------


def test_a_mounter_of_its_own(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "mounter.sock")
    command = [str(Path(sys.executable).with_name("volkit")), "mounter", "--socket", path]
    mounter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert mounter.stdout
        assert mounter.stdout.readline() == f"serving on {path}\n"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        monkeypatch.setenv(fuse.MOUNTER_VARIABLE, path)
        served.start()
        assert content(served.target) == "content"
        served.kill()
        fuse.restart(served.directory)
        assert content(served.target) == "content"
        mounter.kill()
        mounter.wait()
        assert content(served.target) == "content"
        with pytest.raises(Unavailable, match="does not answer"):
            fuse.is_running(served.directory)
        mounter.stdout.close()
        mounter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert mounter.stdout
        mounter.stdout.readline()
        assert fuse.is_running(served.directory)
        served.stop()
        assert not mounts.is_mount_point(served.target)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b'{"method": "__init__"}\n')
            assert b"there is no method" in connection.recv(1000)
        mounter.terminate()
        assert mounter.wait(PATIENCE) == 0
        assert not os.path.exists(path)
    finally:
        mounter.kill()
        mounter.communicate()


def test_a_container_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuse, "MOUNTER_SOCKET", str(tmp_path / "no"))
    monkeypatch.setattr(fuse, "_INITIAL_PID_NAMESPACE", "pid:[1]")
    monkeypatch.setattr(fuse.os.path, "isdir", lambda path: False)  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match="would die with this container"):
        fuse.supervisor()


def test_systemd_is_asked_where_it_is(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd cannot run here: a stand-in of systemd-run and systemctl with the same flags."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls = tmp_path / "calls"
    (programs / "systemd-run").write_text(
        f'#!/bin/sh\necho "systemd-run $*" >>{calls}\nwhile [ "$1" != -- ]; do shift; done; shift\n'
        f'"$@" </dev/null >/dev/null 2>&1 &\necho $! >{tmp_path}/unit\n'
    )
    (programs / "systemctl").write_text(
        f'#!/bin/sh\necho "systemctl $*" >>{calls}\ncase $1 in\n'
        f"is-active) kill -0 $(cat {tmp_path}/unit) 2>/dev/null ;;\nstop) kill $(cat {tmp_path}/unit) ;;\nesac\n"
    )
    for one in programs.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(fuse, "supervisor", fuse.Systemd)
    served.start()
    assert content(served.target) == "content"
    assert fuse.is_running(served.directory)
    served.stop()
    said = calls.read_text()
    assert (
        "systemd-run --quiet --collect --unit=volkit-run-x.service "
        f"--property=StandardOutput=append:{served.directory}/log" in said
    )
    assert "systemctl is-active --quiet volkit-run-x.service" in said


def test_many_at_once(tmp_path: Path) -> None:
    places = []
    for number in range(8):
        base = tmp_path / str(number)
        base.mkdir()
        places.append(Served(base))
    failed: list[BaseException] = []

    def work(one: Served) -> None:
        try:
            one.start()
            assert content(one.target) == "content"
            one.stop()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in places]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not failed
    assert not mounts.mounts(under=str(tmp_path))
