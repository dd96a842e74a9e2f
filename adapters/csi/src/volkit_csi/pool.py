"""The threads that calls run on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Job = tuple["Future[Any]", Callable[[], Any]]
Inbox = SimpleQueue["Job | None"]


class Pool(ThreadPoolExecutor):
    """At most `size` threads, made when a job finds none idle, ended after `idle` seconds without one.

    In contrast to the base class (which grpcio demands) the threads are daemons that nobody joins: a call
    that hangs in the kernel must not keep the process from ending. A job goes to the thread that became idle
    last, whose memory is warm, so the others can end. And the pool can be closed, or waited for, while jobs
    run.
    """

    def __init__(self, size: int, name: str, *, idle: float = 60.0) -> None:
        super().__init__(max_workers=size, thread_name_prefix=name)
        self.size = size
        self.name = name
        self._patience = idle
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)  # at rest, or closed
        self._jobs: deque[Job] = deque()
        self._idle: list[Inbox] = []
        self._count = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has begun."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Jobs that have begun and not ended."""
        return self._count - len(self._idle)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` as soon as a thread is free.

        After `close` the job is cancelled, not refused: an exception would end grpcio's serving thread.
        """
        future: Future[T] = Future()
        job: Job = (future, partial(fn, *args, **kwargs))
        with self._lock:
            if self._closed:
                future.cancel()
            elif self._idle:
                self._idle.pop().put(job)
            elif self._count < self.size:
                self._count += 1
                inbox: Inbox = SimpleQueue()
                inbox.put(job)  # never through the thread's arguments, which it keeps
                threading.Thread(target=self._work, args=(inbox,), name=self.name, daemon=True).start()
            else:
                self._jobs.append(job)
        return future

    def wait_idle(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until no job waits or runs, or the pool is closed: is it?"""
        with self._lock:
            self._change.wait_for(lambda: self._closed or self._at_rest(), timeout)
            return self._at_rest()

    def close(self) -> int:
        """Drop the jobs that wait, begin no more, let idle threads end; return how many jobs still run."""
        with self._lock:
            self._closed = True
            dropped, self._jobs = self._jobs, deque()
            running = self.running
            for inbox in self._idle:
                inbox.put(None)
            self._change.notify_all()
        for future, _ in dropped:
            future.cancel()
        return running

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the pool. Nothing is ever waited for: see `wait_idle`."""
        self.close()

    def _at_rest(self) -> bool:
        return not self._jobs and self.running == 0

    def _work(self, inbox: Inbox) -> None:
        job = inbox.get()
        while job is not None:
            run(job)
            job = None  # a request may be large or secret: hold nothing of it while waiting for the next
            job = self._next(inbox)

    def _next(self, inbox: Inbox) -> Job | None:
        """The next job for the thread that owns `inbox`; None when it is to end."""
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            if self._closed:
                self._leave()
                return None
            self._idle.append(inbox)
            if len(self._idle) == self._count:
                self._change.notify_all()
        try:
            job = inbox.get(timeout=self._patience)
        except Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    self._leave()
                    return None
            job = inbox.get()  # handed over just now
        if job is None:
            with self._lock:
                self._idle.remove(inbox)
                self._leave()
        return job

    def _leave(self) -> None:
        self._count -= 1
        self._change.notify_all()


def run(job: Job) -> None:
    """Run the job and keep its result or its exception in its future."""
    future, work = job
    if future.set_running_or_notify_cancel():
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
