"""The threads that calls run on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from volkit_csi.pool import Pool


def settled(pool: Pool, waiting: int, running: int) -> bool:
    until = time.monotonic() + 60
    while (pool.waiting, pool.running) != (waiting, running) and time.monotonic() < until:
        time.sleep(0.005)
    return (pool.waiting, pool.running) == (waiting, running)


def test_results_and_exceptions_come_through_the_future() -> None:
    pool = Pool(2, "test")
    assert pool.submit(divmod, 7, 3).result(60) == (2, 1)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit, 3).result(60)
    assert pool.submit(divmod, 7, 2).result(60) == (3, 1), "a SystemExit ends no thread"
    pool.close()


def test_no_more_threads_than_needed_or_allowed() -> None:
    pool = Pool(3, "test")
    names = set()
    for _ in range(50):
        names.add(pool.submit(threading.get_ident).result(60))
        assert settled(pool, 0, 0)
    assert len(names) == 1
    gate = threading.Event()
    futures = [pool.submit(gate.wait, 60) for _ in range(10)]
    assert settled(pool, waiting=7, running=3)
    gate.set()
    assert all(future.result(60) for future in futures)
    assert pool.wait_idle(60)
    pool.close()


def test_every_job_of_many_submitters_runs_once() -> None:
    pool = Pool(4, "test", idle=0.001)  # threads come and go all the time
    done: list[int] = []

    def submit(start: int) -> None:
        for number in range(start, start + 200):
            pool.submit(done.append, number)
            if number % 20 == 0:
                time.sleep(0.003)

    submitters = [threading.Thread(target=submit, args=(start,)) for start in range(0, 1000, 200)]
    for each in submitters:
        each.start()
    for each in submitters:
        each.join()
    assert pool.wait_idle(60)
    assert sorted(done) == list(range(1000))
    pool.close()


def test_idle_threads_end() -> None:
    pool = Pool(4, "ends-when-idle", idle=0.05)
    gate = threading.Event()
    for _ in range(4):
        pool.submit(gate.wait, 60)
    gate.set()
    until = time.monotonic() + 60
    while (
        any(thread.name == "ends-when-idle" for thread in threading.enumerate()) and time.monotonic() < until
    ):
        time.sleep(0.02)
    assert not any(thread.name == "ends-when-idle" for thread in threading.enumerate())
    assert pool.submit(divmod, 7, 3).result(60) == (2, 1)
    pool.close()


def test_close_drops_what_waits_and_leaves_what_runs() -> None:
    pool = Pool(1, "test")
    gate = threading.Event()
    runs, waits = pool.submit(gate.wait, 60), pool.submit(gate.wait, 60)
    assert settled(pool, waiting=1, running=1)
    assert not pool.wait_idle(0.05)
    assert pool.close() == 1
    assert waits.cancelled()
    assert pool.submit(divmod, 7, 3).cancelled()
    gate.set()
    assert runs.result(60)
    assert settled(pool, 0, 0)


def test_a_hung_job_does_not_keep_the_process() -> None:
    script = """
import threading, time
from volkit_csi.pool import Pool
pool = Pool(2, "hangs")
pool.submit(time.sleep, 1000)
while not pool.running: time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
