"""Which gRPC server should a CSI driver in Python run on? Measures the choices that volkit-csi was made from.

    python benchmarks/csi_server.py [--client PATH] [--duration SECONDS] [VARIANT ...]

Every variant serves the same three methods: `NodeGetCapabilities`, whose handler only parses and replies;
`GetPluginInfo`, whose handler blocks for 5 ms, as one does that waits for a mount or a sync; and `Probe`, in
a lane of its own where the variant has one. The client is benchmarks/load (Go, another process, one
connection), which is built when no `--client` is given. Printed per variant: milliseconds from process start
to the first answered Probe (median of 5), MiB resident when idle, one caller's p50 and p99 in microseconds
and RPC/s at 32 callers for the plain method, RPC/s at 32 callers for the blocking one, and MiB resident after
all that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VARIANTS = (
    "volkit-8",
    "volkit-16",
    "volkit-32",
    "volkit-64",
    "grpcio-32",
    "aio-inline",
    "aio-32",
    "grpclib-32",
)
BLOCKS = 0.005
CALLERS = 32


# The servers


def answers(blocks: Callable[[], None]) -> dict[str, dict[str, Callable[[bytes], bytes]]]:
    """The handlers of every variant, by service and method."""
    from volkit_csi.lean import csi_pb2 as csi

    kind = csi.NodeServiceCapability.RPC.STAGE_UNSTAGE_VOLUME
    capability = csi.NodeServiceCapability(rpc=csi.NodeServiceCapability.RPC(type=kind))

    def probe(data: bytes) -> bytes:
        csi.ProbeRequest.FromString(data)
        return b""

    def node_capabilities(data: bytes) -> bytes:
        csi.NodeGetCapabilitiesRequest.FromString(data)
        return csi.NodeGetCapabilitiesResponse(capabilities=[capability]).SerializeToString()

    def plugin_info(data: bytes) -> bytes:
        csi.GetPluginInfoRequest.FromString(data)
        blocks()
        return csi.GetPluginInfoResponse(name="bench.volkit.dev", vendor_version="1").SerializeToString()

    def nothing(data: bytes) -> bytes:
        return b""

    return {
        "csi.v1.Identity": {"Probe": probe, "GetPluginInfo": plugin_info, "GetPluginCapabilities": nothing},
        "csi.v1.Node": {"NodeGetCapabilities": node_capabilities, "NodeGetInfo": nothing},
    }


def wait_and_block() -> None:
    time.sleep(BLOCKS)


def serve_volkit(path: str, threads: int) -> None:
    from volkit_csi.endpoint import Endpoint
    from volkit_csi.server import Options, Server

    services = {
        service: {name: lambda data, _context, call=call: call(data) for name, call in methods.items()}
        for service, methods in answers(wait_and_block).items()
    }
    Server(services, Endpoint(path), Options(threads=threads), fast={"/csi.v1.Identity/Probe"}).run()


def serve_grpcio(path: str, threads: int) -> None:
    """grpcio as its documentation has it, the same raw handlers on its own thread pool."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(threads))
    for service, methods in answers(wait_and_block).items():
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(lambda data, _context, call=call: call(data))
            for name, call in methods.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    signal.sigwait([signal.SIGTERM])
    server.stop(0)


def serve_aio(path: str, threads: int) -> None:
    """grpc.aio: with no threads only the blocking handler leaves the event loop, else all but Probe do."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    import grpc.aio

    executor = ThreadPoolExecutor(threads or CALLERS)

    def behaviour(name: str, call: Callable[[bytes], bytes]) -> Any:
        async def inline(data: bytes, _context: Any) -> bytes:
            return call(data)

        async def elsewhere(data: bytes, _context: Any) -> bytes:
            return await asyncio.get_running_loop().run_in_executor(executor, call, data)

        stays = name == "Probe" or (not threads and name != "GetPluginInfo")
        return grpc.unary_unary_rpc_method_handler(inline if stays else elsewhere)

    async def main() -> None:
        server = grpc.aio.server()
        for service, methods in answers(wait_and_block).items():
            handlers = {name: behaviour(name, call) for name, call in methods.items()}
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.stop(0)

    asyncio.run(main())


def serve_grpclib(path: str, threads: int) -> None:
    """grpclib (pure Python HTTP/2), the handlers on an executor but Probe."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from grpclib.const import Cardinality, Handler  # type: ignore[import-not-found]
    from grpclib.encoding.base import CodecBase  # type: ignore[import-not-found]
    from grpclib.server import Server  # type: ignore[import-not-found]

    executor = ThreadPoolExecutor(threads)

    class Raw(CodecBase):  # type: ignore[misc]
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: object) -> bytes:
            return message

        def decode(self, data: bytes, message_type: object) -> bytes:
            return data

    class Service:
        def __mapping__(self) -> dict[str, Any]:
            return {
                f"/{service}/{name}": Handler(handler(name, call), Cardinality.UNARY_UNARY, None, None)
                for service, methods in answers(wait_and_block).items()
                for name, call in methods.items()
            }

    def handler(name: str, call: Callable[[bytes], bytes]) -> Any:
        async def handle(stream: Any) -> None:
            data = await stream.recv_message()
            loop = asyncio.get_running_loop()
            reply = call(data) if name == "Probe" else await loop.run_in_executor(executor, call, data)
            await stream.send_message(reply)

        return handle

    async def main() -> None:
        server = Server([Service()], codec=Raw())
        await server.start(path=path)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        server.close()

    asyncio.run(main())


def serve(variant: str, path: str) -> None:
    kind, _, threads = variant.partition("-")
    servers = {"volkit": serve_volkit, "grpcio": serve_grpcio, "aio": serve_aio, "grpclib": serve_grpclib}
    servers[kind](path, int(threads) if threads.isdigit() else 0)


# The measurement: its imports stay out of the servers' memory


def measure(variant: str, client: str, duration: float) -> dict[str, float]:
    """The figures of one variant by column; raises CalledProcessError when its server or the client fails."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/csi.sock"
        command = [sys.executable, __file__, "--serve", variant, path]

        def load(mode: str, *arguments: str) -> Any:
            run = [client, mode, "--endpoint", f"unix://{path}", *arguments]
            return json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout)

        start = load("start", "--count", "5", "--", *command)
        with running(command, path) as pid:
            time.sleep(1)
            idle = resident(pid)
            storm = ("--callers", str(CALLERS), "--duration", f"{duration}s", "--rpc")
            plain = load("probe", *storm, "node-capabilities")
            blocking = load("probe", *storm, "plugin-info")
            return {
                "start ms": start["first_probe"]["p50_us"] / 1000,
                "idle MiB": idle,
                "p50 us": plain["one_caller"]["p50_us"],
                "p99 us": plain["one_caller"]["p99_us"],
                "RPC/s": plain["rpcs_per_s"],
                "p99 us @32": plain["many_callers"]["p99_us"],
                "blocking RPC/s": blocking["rpcs_per_s"],
                "after MiB": resident(pid),
            }


@contextmanager
def running(command: list[str], path: str) -> Iterator[int]:
    """Run a server until the block ends; yields its pid once its socket is there."""
    import subprocess

    server = subprocess.Popen(command)
    try:
        until = time.monotonic() + 20
        while not os.path.exists(path):
            if server.poll() is not None or time.monotonic() > until:
                raise subprocess.CalledProcessError(server.returncode or -1, command)
            time.sleep(0.01)
        yield server.pid
    finally:
        server.terminate()
        server.wait(20)


def resident(pid: int) -> float:
    """MiB resident of a process (man 5 proc, VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def built_client(directory: str) -> str:
    import subprocess

    path = f"{directory}/csiload"
    subprocess.run(["go", "build", "-o", path, "."], cwd=HERE / "load", check=True)
    return path


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return 0
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description="Measure gRPC servers for a CSI driver.")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", default=VARIANTS, help=", ".join(VARIANTS))
    parser.add_argument("--client", help="a built benchmarks/load")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        client = options.client or built_client(directory)
        heading = True
        for variant in options.variants:
            figures = measure(variant, client, options.duration)
            if heading:
                print(f"{'':12}", *(f"{name:>15}" for name in figures))
                heading = False
            print(f"{variant:12}", *(f"{value:15.1f}" for value in figures.values()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
