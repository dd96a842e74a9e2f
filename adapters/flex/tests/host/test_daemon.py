"""The daemon and its launcher: dash and busybox, a daemon that is away or dies, callers that die."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import stat
import subprocess

import pytest

from volkit import Engine
from volkit_flex.daemon import Daemon, started
from volkit_flex.kubelet import DriverError, Kubelet
from volkit_flex.main import run
from volkit_loop.backend import LoopBackend
from volkit_loop.options import LoopSettings

from .conftest import Host, answer_of, wait_until

pytestmark = pytest.mark.root
VOLUME = json.dumps({"volume": "v1", "size": "32Mi"})


def fifos(host: Host) -> list[str]:
    return [one.name for one in (host.state / "flex.run").iterdir() if one.name[0].isdigit()]


@pytest.mark.needs("dash", "busybox")
@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=["dash", "busybox"])
def test_a_pod_by_each_shell(host: Host, shell: tuple[str, ...]) -> None:
    host.serve()
    kubelet = host.install("--mode", "daemon")
    kubelet.shell = shell
    pod = kubelet.start_pod("u1", "pv-1", json.loads(VOLUME), secrets={"password": "hunter2"}, fs_group="12")
    (pod / "data").write_text("kept")
    kubelet.end_pod("u1", "pv-1")
    with pytest.raises(DriverError, match="takes 2 arguments"):
        kubelet.call("mount", "/x")
    wait_until("the FIFOs are gone", lambda: not fifos(host))
    host.assert_clean()
    assert "hunter2" not in (host.home / "serve.log").read_text()


def test_only_mkfifo_is_needed_of_the_host(host: Host) -> None:
    """The launcher's only program, in a PATH of its own; kubelet's environment may be empty."""
    host.serve()
    kubelet = host.install("--mode", "daemon")
    programs = host.home / "bin"
    programs.mkdir()
    found = shutil.which("mkfifo")
    assert found
    (programs / "mkfifo").symlink_to(found)
    kubelet.env = {"PATH": str(programs)}
    kubelet.call("mount", str(host.home / "m"), VOLUME)
    kubelet.call("unmount", str(host.home / "m"))
    host.assert_clean()


def test_a_daemon_that_is_away_is_said_at_once(host: Host) -> None:
    kubelet = host.install("--mode", "daemon")
    assert kubelet.call("init")["capabilities"]["attach"] is False
    daemon = host.serve()
    host.stop(daemon)
    for _ in range(2):
        with pytest.raises(DriverError, match="daemon is not running"):
            kubelet.call("mount", str(host.home / "m"), VOLUME)
        daemon = host.serve()
        kubelet.call("mount", str(host.home / "m"), VOLUME)
        kubelet.call("unmount", str(host.home / "m"))
        host.stop(daemon, signal.SIGKILL)  # leaves its files, and another process may get its id
    (host.state / "flex.run/daemon").write_text(f"{os.getpid()} 1\n")
    with pytest.raises(DriverError, match="daemon is not running"):
        kubelet.call("unmount", str(host.home / "m"))


def stopped_caller(host: Host, kubelet: Kubelet) -> subprocess.Popen[bytes]:
    """A caller whose daemon is stopped (SIGSTOP), so that it waits."""
    caller = subprocess.Popen(
        [kubelet.driver, "mount", str(host.home / "m"), VOLUME],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until("the caller waits", lambda: any(name.startswith(f"{caller.pid}.") for name in fifos(host)))
    return caller


def test_a_caller_is_answered_when_its_daemon_dies_and_another_starts(host: Host) -> None:
    kubelet = host.install("--mode", "daemon")
    daemon = host.serve()
    daemon.send_signal(signal.SIGSTOP)
    caller = stopped_caller(host, kubelet)
    host.stop(daemon, signal.SIGKILL)
    host.serve()
    output, _ = caller.communicate(timeout=120)
    assert "repeat the call" in answer_of(output)["message"]
    wait_until("its FIFO is gone", lambda: not fifos(host))
    kubelet.call("mount", str(host.home / "m"), VOLUME)
    kubelet.call("unmount", str(host.home / "m"))


def test_a_caller_that_comes_as_its_daemon_goes_is_answered(host: Host) -> None:
    """It has found a daemon that was there; what it says to it is heard, though nobody else is let in any more."""
    kubelet = host.install("--mode", "daemon")
    daemon = host.serve()
    daemon.send_signal(signal.SIGSTOP)
    caller = stopped_caller(host, kubelet)
    daemon.terminate()
    daemon.send_signal(signal.SIGCONT)
    output, _ = caller.communicate(timeout=120)
    assert answer_of(output)["status"] == "Success"
    host.stop(daemon)
    assert fifos(host) == []
    host.serve()
    kubelet.call("unmount", str(host.home / "m"))
    host.assert_clean()


def test_killed_callers_leave_nothing(host: Host) -> None:
    kubelet = host.install("--mode", "daemon")
    daemon = host.serve()
    daemon.send_signal(signal.SIGSTOP)
    for _ in range(5):
        caller = stopped_caller(host, kubelet)
        caller.kill()
        caller.communicate()
    daemon.send_signal(signal.SIGCONT)
    wait_until("the FIFOs are gone", lambda: not fifos(host))
    kubelet.call("mount", str(host.home / "m"), VOLUME)
    kubelet.call("unmount", str(host.home / "m"))
    assert len(host.images()) == 1
    host.assert_clean()


def test_what_a_caller_left_that_was_never_heard_of_goes(host: Host) -> None:
    engine = Engine(LoopBackend, LoopSettings(pool=host.pool), state_dir=host.state, node_id="node1")
    daemon = Daemon(engine, host.home / "run")
    daemon.start()
    lives, died = f"{os.getpid()}.{started(os.getpid())}", "4194305.1"  # above what a process id can be
    for name in (lives, died):
        os.mkfifo(host.home / "run" / name)
    daemon.tidy()
    left = {one.name for one in (host.home / "run").iterdir()}
    assert lives in left
    assert died not in left
    (host.home / "run" / lives).unlink()
    daemon.close()
    engine.close()


@pytest.mark.needs("dash", "busybox")
@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=["dash", "busybox"])
def test_a_caller_that_is_told_to_stop_answers(host: Host, shell: tuple[str, ...]) -> None:
    kubelet = host.install("--mode", "daemon")
    daemon = host.serve()
    daemon.send_signal(signal.SIGSTOP)
    caller = subprocess.Popen(
        [*shell, kubelet.driver, "mount", str(host.home / "m"), VOLUME],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until("the caller waits", lambda: fifos(host))
    caller.terminate()
    output, _ = caller.communicate(timeout=120)
    assert caller.returncode == 1
    assert answer_of(output)["status"] == "Failure"
    daemon.send_signal(signal.SIGCONT)


def test_many_callers_at_once(host: Host) -> None:
    host.serve()
    kubelet = host.install("--mode", "daemon")
    kubelet.call("mount", str(host.home / "m"), VOLUME)
    options = json.dumps({"volume": "v1", "note": "x" * 60_000})
    callers = [
        subprocess.Popen([kubelet.driver, "mount", f"{host.home}/m{number}", options], stdout=subprocess.PIPE)
        for number in range(40)
    ]
    for one in callers:
        answer_of(one.communicate(timeout=100)[0])
    for number in range(40):
        unmount = functools.partial(kubelet.run, "unmount", f"{host.home}/m{number}")
        for _ in range(20):
            if unmount()[0] == 0:
                break
    kubelet.call("unmount", str(host.home / "m"))
    host.assert_clean()
    wait_until("the FIFOs are gone", lambda: not fifos(host))


def test_the_directory_is_for_one_daemon_and_one_user(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    host.serve()
    place = host.state / "flex.run"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in place.iterdir() if one.is_fifo())
    assert run(["serve", *host.flags()]) == 1
    assert "another daemon serves" in capfd.readouterr().err
    host.stop(host.daemons[0])
    place.chmod(0o755)
    assert run(["serve", *host.flags()]) == 1
    assert "open to others" in capfd.readouterr().err
