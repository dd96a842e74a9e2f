"""The gRPC server of a driver: bytes in, bytes out, on one unix socket.

What it adds to grpcio: requests reach their handlers unparsed (grpcio answers an unreadable message with
INTERNAL, which an orchestrator takes as final), no call ends as UNKNOWN or INTERNAL, Probe and the other
calls that never block have threads of their own, a stop drains what runs, and what hangs keeps nobody from
stopping.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from attrs import field, frozen

from volkit import FailedPrecondition
from volkit.sockets import Listener
from volkit_csi import health, reflection
from volkit_csi.endpoint import Endpoint
from volkit_csi.lean import grpc
from volkit_csi.pool import Pool
from volkit_csi.status import Code, RpcError, header_text

log: logging.Logger = logging.getLogger(__name__)

FAST = frozenset(
    {
        "/csi.v1.Identity/GetPluginInfo",
        "/csi.v1.Identity/GetPluginCapabilities",
        "/csi.v1.Identity/Probe",
        "/csi.v1.Controller/ControllerGetCapabilities",
        "/csi.v1.GroupController/GroupControllerGetCapabilities",
        "/csi.v1.Node/NodeGetCapabilities",
    }
)
"""Methods that only say what the driver is. They must not block: they share the lane of the health checks."""

FAST_THREADS = 4
FOREVER = 10 * 365 * 86400.0  # a call without a deadline reports one some centuries away
STATUS = {status.value[0]: status for status in grpc.StatusCode}


@frozen
class ServerContext:
    """What a handler may know of its call besides the request."""

    method: str
    """Its full name, such as `/csi.v1.Node/NodePublishVolume`."""
    deadline: float | None = None
    """When the caller stops waiting, on the clock of `time.monotonic`; None: never."""
    _cancelled: Callable[[], bool] = field(default=lambda: False, alias="cancelled")
    headers: Callable[[], Mapping[str, str]] = field(default=dict)
    """Gives the call's metadata (gRPC's word for headers), the binary ones left out."""

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more: cancelled, past the deadline, disconnected, or the server stops."""
        return self._cancelled()


Handler = Callable[[bytes, ServerContext], bytes]
Services = Mapping[str, Mapping[str, Handler]]


@frozen
class Options:
    """How a server runs. Sizes are bytes, times seconds."""

    threads: int = 128
    """Calls that run at once, without the fast ones: more than a storage that hangs takes of them."""
    backlog: int = 256
    """Calls that may wait for a thread; one more is answered UNAVAILABLE at once."""
    grace: float = 30.0
    """How long a stop waits for the calls that run."""
    max_receive: int = 4 << 20
    """Largest request. 4 MiB is what every gRPC peer accepts by default, too."""
    max_send: int = 64 << 20
    """Largest reply; most clients accept 4 MiB."""


class Server:
    """Serves `services`, a mapping of full service names to their methods' handlers, on `endpoint`.

    A handler gets the request's bytes and a `ServerContext` and returns the reply's bytes, or raises
    `RpcError`. It runs on one of `options.threads` threads; those named in `fast` (full method names) on a
    few of their own. Whatever else a handler raises is logged without its text, which may hold a secret, and
    answered UNAVAILABLE.

    `grpc.health.v1.Health` and both versions of the reflection service are served, too.
    """

    def __init__(
        self,
        services: Services,
        endpoint: Endpoint,
        options: Options | None = None,
        *,
        fast: Collection[str] = FAST,
    ) -> None:
        self.endpoint = endpoint
        self.options: Options = options or Options()
        self._calls = Pool(self.options.threads, "call")
        self._fast = Pool(FAST_THREADS, "fast")
        self._curious = Pool(2, "reflection")
        self._health = health.Health(services, self._fast)
        self._routes = Routes(self._calls, self.options.backlog, self._fast)
        for service, methods in services.items():
            for name, handler in methods.items():
                method = f"/{service}/{name}"
                self._routes.add(Method(method, handler, self._fast if method in fast else self._calls))
        self._serve_standard_services(services)
        self._server = grpc.server(
            self._calls, handlers=[self._routes], options=channel_options(self.options)
        )
        self._listener: Listener | None = None

    @property
    def turned_away(self) -> int:
        """How many calls found the backlog full."""
        return self._routes.turned_away

    def start(self) -> None:
        """Listen. Raises FailedPrecondition or PermissionDenied when the endpoint cannot be had.

        When it returns, the socket is in its place and calls are answered.
        """
        listener = Listener(self.endpoint)
        with listener.private():
            try:
                # a URI: gRPC decodes percent signs in it
                self._server.add_insecure_port(f"unix:{quote(os.fsencode(listener.address))}")
            except RuntimeError as error:
                raise FailedPrecondition(f"cannot listen on {self.endpoint}: {error}") from error
        self._server.start()
        try:
            listener.publish()
        except BaseException:
            self.abandon()
            raise
        self._listener = listener
        give_back_memory()

    def drain(self, grace: float | None = None) -> int:
        """Accept no more calls, wait at most `grace` seconds (or the option) for those that run, and stop.

        Returns how many calls still run, which are left alone: 0 is a clean stop. To repeat it does nothing.
        """
        grace = self.options.grace if grace is None else grace
        self._health.shut()
        stopped = self._server.stop(grace + 1)
        if not self._calls.wait_idle(grace):
            log.warning("%d calls still ran after %g s and are left behind", self._calls.running, grace)
        elif self._fast.wait_idle(1):
            stopped.wait(2)  # the last replies are on their way, on a busy machine for a while
        return self.abandon()

    def abandon(self) -> int:
        """Stop now: cancel all calls, begin none that waits, remove the socket; return how many still run."""
        left = self._calls.close()
        self._server.stop(0).wait(2)
        self._fast.close()
        self._curious.close()
        if self._listener is not None:
            self._listener.remove()
        return left

    def run(self) -> int:
        """Start, serve until SIGTERM or SIGINT, drain; a second signal ends the draining at once.

        Returns how many calls were left behind. They may be stuck in the kernel: end the process by
        `os._exit` if any. For the main thread; the signals' former handlers are put back.
        """
        with signals(signal.SIGTERM, signal.SIGINT) as (wait, wake):
            self.start()
            log.info("serving on %s", self.endpoint)
            first = wait()
            log.info("%s: draining", first.name if first else "stop")
            left: list[int] = []

            def drain() -> None:
                try:
                    left.append(self.drain())
                finally:
                    wake()

            drains = threading.Thread(target=drain, name="drain", daemon=True)
            drains.start()
            if wait() is not None:
                log.warning("second signal: stopping at once")
                left.append(self.abandon())
            drains.join(5)
            return left[0] if left else self.abandon()

    def _serve_standard_services(self, services: Services) -> None:
        check = Lane(self._health.check, self._fast)
        self._routes.serve(health.CHECK, grpc.unary_unary_rpc_method_handler(check))
        watch = Lane(self._health.watch, self._fast)
        watch.experimental_non_blocking = True
        self._routes.serve(health.WATCH, grpc.unary_stream_rpc_method_handler(watch))
        reflects = reflection.Reflection([*services, health.NAME, *reflection.NAMES])
        for method in reflection.METHODS:
            info = Lane(reflects.info, self._curious)
            self._routes.serve(method, grpc.stream_stream_rpc_method_handler(info))


class Lane:
    """A behaviour that grpcio runs on `pool` and not on the server's own (its `experimental_thread_pool`)."""

    experimental_non_blocking = False

    def __init__(self, behaviour: Callable[..., Any], pool: Pool) -> None:
        self.behaviour = behaviour
        self.experimental_thread_pool = pool

    def __call__(self, *arguments: Any) -> Any:
        return self.behaviour(*arguments)


class Method:
    """One method of a service, as grpcio calls it."""

    def __init__(self, name: str, handler: Handler, pool: Pool) -> None:
        self.name = name
        self.handler = handler
        self.experimental_thread_pool = pool

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        remaining: float | None = context.time_remaining()
        if remaining == 0 or not context.is_active():
            # It waited for a thread longer than its caller waits for it.
            context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the call could begin"
            )
        deadline = None if remaining is None or remaining > FOREVER else time.monotonic() + remaining
        call = ServerContext(
            self.name, deadline, cancelled=lambda: not context.is_active(), headers=lambda: _headers(context)
        )
        outcome = self._outcome(request, call)
        if not isinstance(outcome, bytes):
            code, message = outcome
            context.abort(STATUS[code], header_text(message))
        return outcome

    def _outcome(self, request: bytes, call: ServerContext) -> bytes | tuple[Code, str]:
        """The reply, or the status that the call ends with."""
        try:
            reply = self.handler(request, call)
            if isinstance(reply, bytes):
                return reply
            raise TypeError(f"the handler returned {type(reply).__name__}, not bytes")
        except RpcError as error:
            return error.code, error.message
        except BaseException as error:
            return Code.UNAVAILABLE, failure(self.name, error)


def _headers(context: grpc.ServicerContext) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}


class Routes(grpc.GenericRpcHandler):
    """Finds a method's behaviour; None is UNIMPLEMENTED. While the backlog is full, calls are turned away."""

    def __init__(self, calls: Pool, backlog: int, fast: Pool) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._bounded: set[str] = set()
        self._calls = calls
        self._backlog = backlog
        self.turned_away: int = 0
        self._turned_away: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            Lane(self._turn_away, fast)
        )

    def add(self, method: Method) -> None:
        self.serve(method.name, grpc.unary_unary_rpc_method_handler(method))
        if method.experimental_thread_pool is self._calls:
            self._bounded.add(method.name)

    def serve(self, name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._handlers[name] = handler

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        name = handler_call_details.method
        if self._calls.waiting >= self._backlog and name in self._bounded:
            return self._turned_away
        return self._handlers.get(name)

    def _turn_away(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.turned_away += 1
        busy = f"the driver is busy: {self._calls.waiting} calls wait already; repeat it later"
        context.abort(grpc.StatusCode.UNAVAILABLE, busy)


def failure(method: str, error: BaseException) -> str:
    """Log an exception that is no RpcError, without its text, and return what the caller is told."""
    reference = os.urandom(4).hex()
    log.error("%s failed (reference %s)\n%s", method, reference, "\n".join(anatomy(error)))
    return f"{method} failed inside the driver; reference {reference} in its log says where"


def anatomy(error: BaseException) -> list[str]:
    """The classes and code lines of an exception and its causes, first cause first; no values, no texts."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:  # a chain can be a ring
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    lines = []
    for each in reversed(chain):
        frames = traceback.extract_tb(each.__traceback__)
        lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        lines.append(f"{type(each).__module__}.{type(each).__qualname__}")
        if each is not error:
            lines.append("which led to")
    return lines


def give_back_memory() -> None:
    """Hand back what start-up freed: 4 to 5 MiB of an idle driver (man 3 malloc_trim; glibc only)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def channel_options(options: Options) -> list[tuple[str, Any]]:
    """grpcio's options for a server on a unix socket with long-lived clients."""
    return [
        ("grpc.max_receive_message_length", options.max_receive),
        ("grpc.max_send_message_length", options.max_send),
        ("grpc.so_reuseport", 0),
        # A socket's peer cannot vanish silently: we send no pings, and take a sidecar's, however many.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


Wait = Callable[[], signal.Signals | None]
Wake = Callable[[], None]


@contextmanager
def signals(*wanted: signal.Signals) -> Iterator[tuple[Wait, Wake]]:
    """Catch signals; yields a function that waits for the next one, and one that makes it return None.

    A pipe carries them (`signal.set_wakeup_fd`): a handler that sets an event could meet the event's own
    lock, and signals blocked for `sigwait` stay blocked in every program that the driver starts.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    former = {number: signal.signal(number, lambda *_: None) for number in wanted}
    former_fd = signal.set_wakeup_fd(writer)

    def wait() -> signal.Signals | None:
        while True:
            number = os.read(reader, 1)[0]
            if number == 0:
                return None
            if number in wanted:
                return signal.Signals(number)

    def wake() -> None:
        os.write(writer, b"\0")

    try:
        yield wait, wake
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
