"""grpcio and protobuf without the halves that a blocking server never runs.

`import grpc` also imports its asyncio twin, and with it asyncio and ssl; protobuf's descriptor pool imports
the pure Python messages that its C implementation replaces. Together that is some 15 MiB of memory and 100 ms
of every driver's start. Both only bind those modules to a name at import and use them when they are called,
so the name gets a stand-in that loads the real module on the first use of an attribute: what is deferred
still works, and nobody else sees it.

Every module of volkit-csi takes `grpc`, `csi_pb2` and `health_pb2` from here.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Deferred(ModuleType):
    """Stands in for a module until one of its attributes is used."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and sys.modules.get(self.__name__) is self:
            raise AttributeError(
                name
            )  # the import system asks if this is a package: not while it is deferred
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Let the imports inside bind `names` to stand-ins; a module that is loaded already stays what it is."""
    stand_ins = {name: Deferred(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


# A driver starts programs (mkfs, mount) from threads while calls run. grpcio's fork handlers would stop all
# calls for that or print a warning; Python's subprocess needs neither, since nothing runs between its fork
# and exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

with deferred("asyncio", "grpc.aio", "google.protobuf.internal.python_message"):
    import grpc as grpc
    from grpc_health.v1 import health_pb2 as health_pb2

    from volkit_csi.wire import csi_pb2 as csi_pb2
