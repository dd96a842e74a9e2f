"""A CSI client: calls a driver on its socket as an orchestrator would. Used by `volkit call`, `volkit demo`
and tests.

```python
with Client("unix:///run/volkit/csi.sock") as driver:
    volume = driver.CreateVolume(csi_pb2.CreateVolumeRequest(name="pvc-1")).volume
```
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.descriptor import MethodDescriptor

from volkit_csi.endpoint import socket_path
from volkit_csi.lean import csi_pb2, grpc

# A driver that restarts is back within a second; gRPC would wait up to two minutes before it looks again.
_CHANNEL: Final = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500))

SERVICES: Final = ("Identity", "Controller", "Node")


def _methods() -> dict[str, MethodDescriptor]:
    services = csi_pb2.DESCRIPTOR.services_by_name
    return {method.name: method for name in SERVICES for method in services[name].methods}


METHODS: Final[Mapping[str, MethodDescriptor]] = _methods()
"""Every RPC of `SERVICES` by its name, which no two of them share."""


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


class CallError(Exception):
    """A call that was not answered with OK: `code` is the name of gRPC's status, `number` its value."""

    def __init__(self, method: str, code: str, number: int, message: str) -> None:
        super().__init__(f"{method}: {code}: {message}")
        self.method: str = method
        self.code: str = code
        self.number: int = number
        self.message: str = message


class Client:
    """A connection to the driver at `endpoint` (`unix:///path`, `unix:path` or a path); `timeout` seconds for
    each call.

    Every RPC is a method: it takes the request message and returns the response message. Raises CallError.
    """

    def __init__(self, endpoint: str, timeout: float = 60.0) -> None:
        self.path: str = socket_path(endpoint)
        self.timeout = timeout
        self._channel = grpc.insecure_channel(f"unix:{quote(self.path)}", options=_CHANNEL)
        self._calls: dict[str, Any] = {}

    def __getattr__(self, method: str) -> Any:
        if method not in METHODS:
            raise AttributeError(f"CSI has no RPC {method!r}")
        return lambda request=None, timeout=None: self.call(method, request, timeout)

    def call(self, method: str, request: Any = None, timeout: float | None = None) -> Any:
        """Call an RPC by its name; `request` may be left out where it would be empty. Raises CallError."""
        row = METHODS[method]
        if request is None:
            request = getattr(csi_pb2, row.input_type.name)()
        stub = self._calls.get(method)
        if stub is None:
            stub = self._calls[method] = self._channel.unary_unary(
                f"/{row.containing_service.full_name}/{method}",
                request_serializer=_encode,
                response_deserializer=getattr(csi_pb2, row.output_type.name).FromString,
            )
        try:
            return stub(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            raise CallError(method, code.name, code.value[0], error.details() or "no message") from None

    def wait(self, timeout: float = 10.0) -> None:
        """Return as soon as the driver says it is ready. Raises CallError where it has not within `timeout`
        seconds.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                answer = self.call("Probe", timeout=max(0.1, min(1.0, end - time.monotonic())))
                if not answer.HasField("ready") or answer.ready.value:
                    return
                error = CallError("Probe", "UNAVAILABLE", 14, "the driver says that it is not ready")
            except CallError as refused:
                error = refused
            if time.monotonic() >= end:
                raise error
            time.sleep(0.02)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
