"""The standard reflection service, by which grpcurl learns the wire; loaded when somebody first asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from volkit_csi.lean import grpc

if TYPE_CHECKING:
    from grpc_reflection.v1alpha.reflection import ReflectionServicer

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Both versions have the same messages under another package's name, so on the wire they are one."""

METHODS = tuple(f"/{name}/ServerReflectionInfo" for name in NAMES)


class Reflection:
    """Describes `services`, whose descriptors are those of the modules that are loaded."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = tuple(sorted(services))

    def info(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """`ServerReflectionInfo`: an answer to each request of the stream."""
        from google.protobuf.message import DecodeError
        from grpc_reflection.v1alpha import reflection_pb2

        def parsed() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            for data in requests:
                try:
                    yield reflection_pb2.ServerReflectionRequest.FromString(data)
                except DecodeError:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ServerReflectionRequest")

        for answer in servicer(self._services).ServerReflectionInfo(parsed(), context):
            yield answer.SerializeToString()


@cache
def servicer(services: tuple[str, ...]) -> ReflectionServicer:
    """grpcio-reflection's servicer; to import it costs more than to start a driver."""
    from google.protobuf import descriptor_pb2 as descriptor_pb2
    from grpc_health.v1 import health_pb2 as health_pb2
    from grpc_reflection.v1alpha.reflection import ReflectionServicer

    return ReflectionServicer(services)
