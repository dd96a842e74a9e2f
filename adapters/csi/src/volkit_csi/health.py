"""The standard health service: a status for each service and, under the empty name, for all.

grpcio-health-checking's own servicer answers on the threads that the calls share and imports grpcio's asyncio
half; its messages are used here, its servicer is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from volkit_csi.lean import grpc, health_pb2
from volkit_csi.pool import Pool

NAME = "grpc.health.v1.Health"
CHECK = f"/{NAME}/Check"
WATCH = f"/{NAME}/Watch"
SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
NOT_SERVING = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.NOT_SERVING
).SerializeToString()
UNKNOWN = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()

Send = Callable[[bytes | None], None]


class Health:
    """Says SERVING for `services` until `shut`, then NOT_SERVING; no other name is known. Runs on `pool`."""

    def __init__(self, services: Iterable[str], pool: Pool) -> None:
        self._services = frozenset(services) | {""}
        self._pool = pool
        self._lock = threading.Lock()
        self._serving = True
        self._watchers: set[Send] = set()

    def check(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        """`Check`: the status of one service; NOT_FOUND for one that is not served here."""
        name = service_of(data)
        if name is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest")
        if name not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {name!r} here")
        return SERVING if self._serving else NOT_SERVING

    def watch(self, data: bytes, context: grpc.ServicerContext, send: Send) -> None:
        """`Watch`: the status now and at each change. No thread waits meanwhile: any may call `send`."""
        name = service_of(data)
        if name is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest")
        if name not in self._services:
            send(UNKNOWN)  # the stream stays open: the service might be added, says the protocol
            return
        with self._lock:
            serving = self._serving
            if serving:
                self._watchers.add(send)
                context.add_callback(lambda: self._forget(send))
        send(SERVING if serving else NOT_SERVING)
        if not serving:
            send(None)

    def shut(self) -> None:
        """Say NOT_SERVING from now on, and tell the watchers so; their streams then end."""
        with self._lock:
            self._serving = False
            watchers, self._watchers = self._watchers, set()
        for send in watchers:
            self._pool.submit(farewell, send)  # sending waits for the client: not on this thread

    def _forget(self, send: Send) -> None:
        with self._lock:
            self._watchers.discard(send)


def farewell(send: Send) -> None:
    send(NOT_SERVING)
    send(None)


def service_of(data: bytes) -> str | None:
    """The service named in a HealthCheckRequest; None if it is not one."""
    from google.protobuf.message import DecodeError

    try:
        return health_pb2.HealthCheckRequest.FromString(data).service
    except DecodeError:
        return None
