"""Locks among threads and among processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from volkit.errors import Aborted, Unavailable
from volkit.locks import Locks

HOLDER = """
import sys, time
from pathlib import Path
from volkit.locks import Locks
with Locks(Path(sys.argv[1])).hold(*sys.argv[2:], wait=60):
    print("held", flush=True)
    sys.stdin.readline()
print("freed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/locks"


@pytest.fixture(params=["threads", "file"])
def locks(request: pytest.FixtureRequest, path: Path) -> Locks:
    return Locks(path if request.param == "file" else None)


@contextmanager
def holder(path: Path, *keys: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds `keys` until a line is written to it."""
    argv = [sys.executable, "-c", HOLDER, str(path), *keys]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_threads_never_hold_one_key(locks: Locks) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(20):
            with locks.hold("volume/v", wait=60):
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert (most, done) == (1, 160)
    assert not locks._turns


def test_different_keys_do_not_wait(locks: Locks) -> None:
    with locks.hold("volume/a", wait=0), locks.hold("volume/b", wait=0), locks.hold("volume/a/b", wait=0):
        assert len(locks._turns) == 3
    assert not locks._turns


def test_a_busy_key_is_aborted_and_names_the_volume(locks: Locks) -> None:
    with locks.hold("volume/pvc-1", wait=0):
        for wait in (0.0, -1.0, 0.1):  # it ends, though nobody lets go
            with (
                pytest.raises(Aborted, match=r"volume 'pvc-1'.*repeat"),
                locks.hold("volume/pvc-1", wait=wait),
            ):
                pass
    with locks.hold("volume/pvc-1", wait=0):  # who waited in vain left nothing behind
        pass
    assert not locks._turns


def test_a_waiting_thread_is_woken_and_does_not_poll(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def wait() -> None:
        with locks.hold("volume/v", wait=600):
            done.set()

    pauses = slept(monkeypatch)
    with locks.hold("volume/v", wait=0):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(60)
    thread.join(60)
    assert pauses == []


def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a lock makes from now on, which are made all the same."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr("volkit.locks.time", clock)
    return pauses


def test_what_was_held_is_let_go_on_an_error(locks: Locks) -> None:
    before = open_files()
    with pytest.raises(KeyError), locks.hold("name/n", "volume/v", wait=0):
        raise KeyError
    with locks.hold("volume/v", wait=0), pytest.raises(Aborted), locks.hold("name/n", "volume/v", wait=0):
        pass
    with locks.hold(
        "name/n", "volume/v", wait=0
    ):  # the first of two is let go where the second is not to be had
        pass
    assert not locks._turns
    assert open_files() == before


def test_a_key_named_twice_is_taken_once(locks: Locks) -> None:
    with locks.hold("volume/v", "volume/v", wait=0):
        pass


def test_to_hold_a_key_that_one_holds_oneself_ends(locks: Locks) -> None:
    """A mistake in the caller is an error after the wait, never a hang."""
    with locks.hold("volume/v", wait=0), pytest.raises(Aborted), locks.hold("volume/v", wait=0.05):
        pass


def test_the_time_to_wait_is_for_all_keys_together(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []
    take = Locks._take

    def taken(self: Locks, key: str, deadline: float) -> object:
        ends.append(deadline)
        return take(self, key, deadline)

    monkeypatch.setattr(Locks, "_take", taken)
    with locks.hold("c", wait=0):
        ends.clear()
        with pytest.raises(Aborted, match="c"), locks.hold("a", "b", "c", wait=0.2):
            pass
    assert len(ends) == 3
    assert len(set(ends)) == 1


def test_one_order_of_keys_never_stalls(locks: Locks) -> None:
    failed: list[BaseException] = []

    def work(*keys: str) -> None:
        try:
            for _ in range(30):
                with locks.hold(*keys, wait=60):
                    pass
        except Aborted as error:
            failed.append(error)

    names = [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"), ("c",), ("b",)]
    threads = [threading.Thread(target=work, args=keys) for keys in names]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert not failed


@pytest.mark.parametrize("wait", [float("inf"), 1e18])
def test_a_wait_without_end_is_possible(locks: Locks, wait: float) -> None:
    with locks.hold("volume/v", wait=wait):
        pass
    assert not locks._turns


def test_many_keys_leave_nothing_behind(locks: Locks) -> None:
    before = open_files()
    for number in range(500):
        with locks.hold(f"volume/{number}", wait=0):
            pass
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context(locks.hold(f"volume/{number}", wait=0))
        assert len(locks._turns) == 100
    assert not locks._turns
    assert open_files() == before


def test_the_file_stays_one_empty_file(path: Path) -> None:
    locks = Locks(path)
    for number in range(50):
        with locks.hold(f"volume/{number}", wait=0):
            pass
    assert os.listdir(path.parent) == ["locks"]
    assert path.stat().st_size == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_engines_of_one_process_exclude_each_other(path: Path) -> None:
    one, other = Locks(path), Locks(path)
    with one.hold("volume/v", wait=0):
        with pytest.raises(Aborted, match="'v'"), other.hold("volume/v", wait=0.05):
            pass
        with other.hold("volume/w", wait=0):
            pass
    with other.hold("volume/v", wait=0):
        pass


def test_another_process_is_waited_for(path: Path) -> None:
    locks = Locks(path)
    with holder(path, "volume/v") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with pytest.raises(Aborted, match="volume 'v'"), locks.hold("volume/v", wait=0.05):
            pass
        with locks.hold("volume/w", wait=0):
            pass
        process.stdin.write(b"\n")
        process.stdin.flush()
        with locks.hold("volume/v", wait=60):
            pass
        assert process.stdout.readline() == b"freed\n"
        assert not locks._turns


def test_another_process_is_let_in_soon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def wait() -> None:
        with Locks(path).hold("volume/v", wait=600):  # other open files: as another process
            done.set()

    pauses = slept(monkeypatch)
    with Locks(path).hold("volume/v", wait=0):
        thread = threading.Thread(target=wait)
        thread.start()
        while len(pauses) < 10:
            assert not done.wait(0.01)
    assert done.wait(60)
    thread.join(60)
    assert max(pauses) <= 0.05


def test_a_killed_holder_lets_go(path: Path) -> None:
    locks = Locks(path)
    with holder(path, "name/n", "volume/v") as process:
        with pytest.raises(Aborted), locks.hold("volume/v", wait=0):
            pass
        process.kill()
        with locks.hold("name/n", "volume/v", wait=60):
            pass


def test_a_program_that_was_started_does_not_keep_the_lock(path: Path) -> None:
    """mkfs may outlive a killed driver; the repeat of the call must not wait for its lock."""
    locks = Locks(path)
    with locks.hold("volume/v", wait=0):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with Locks(path).hold("volume/v", wait=0):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_lost_lock_file_is_unavailable(path: Path) -> None:
    locks = Locks(path)
    path.unlink()
    with pytest.raises(Unavailable, match="lock file"), locks.hold("volume/v", wait=0):
        pass
    assert not locks._turns


def test_a_place_where_no_lock_file_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    with pytest.raises(Unavailable, match=r"/locks cannot be opened \(Is a directory\)"):
        Locks(tmp_path / "locks")
