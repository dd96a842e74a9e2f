"""The server on real sockets, called by a real client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from volkit import FailedPrecondition
from volkit_csi.endpoint import Endpoint
from volkit_csi.lean import csi_pb2, grpc
from volkit_csi.server import Handler, Options, Server, ServerContext
from volkit_csi.status import MAX_MESSAGE, Code, RpcError, header_text

PROBE = "/csi.v1.Identity/Probe"
STAGE = "/csi.v1.Node/NodeStageVolume"
Call = Callable[..., bytes]


def probe(data: bytes, context: ServerContext) -> bytes:
    csi_pb2.ProbeRequest.FromString(data)
    return csi_pb2.ProbeResponse(ready={"value": True}).SerializeToString()


def services(**node: Handler) -> dict[str, dict[str, Handler]]:
    return {"csi.v1.Identity": {"Probe": probe}, "csi.v1.Node": node}


@contextmanager
def serving(path: Path, options: Options | None = None, **node: Handler) -> Iterator[Server]:
    server = Server(services(**node), Endpoint(str(path)), options or Options(grace=2))
    server.start()
    try:
        yield server
    finally:
        server.abandon()


@contextmanager
def channel_to(path: Path) -> Iterator[Any]:
    """A client's channel; Any, since the stubs type raw bytes as Never."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield channel


@contextmanager
def caller(path: Path) -> Iterator[Call]:
    with channel_to(path) as channel:

        def call(method: str, data: bytes = b"", timeout: float | None = 60) -> bytes:
            reply: bytes = channel.unary_unary(method)(data, timeout=timeout)
            return reply

        yield call


def refused(
    call: Call, method: str, data: bytes = b"", timeout: float | None = 60
) -> tuple[grpc.StatusCode, str]:
    """The code and the message that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(method, data, timeout)
    error: Any = caught.value
    keys = {key for key, _ in error.trailing_metadata() or ()}
    assert "grpc-status-details-bin" not in keys, "status.details must be empty"
    return error.code(), error.details() or ""


def check(channel: Any, name: str = "") -> int:
    """The health of a service."""
    request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
    reply = channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=60)
    return health_pb2.HealthCheckResponse.FromString(reply).status


def watch(channel: Any, name: str = "") -> Any:
    """The stream of a service's health: an iterator that can be cancelled."""
    call = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=name), timeout=60)


def until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "csi.sock"


class Blocked:
    """A handler that blocks until it is released, and counts who is inside."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = 0
        self.began = 0
        self.lock = threading.Lock()

    def __call__(self, data: bytes, context: ServerContext) -> bytes:
        with self.lock:
            self.inside += 1
            self.began += 1
        self.gate.wait(60)
        with self.lock:
            self.inside -= 1
        return b"done"


def test_call_and_reply(path: Path) -> None:
    seen: list[ServerContext] = []

    def stage(data: bytes, context: ServerContext) -> bytes:
        seen.append(context)
        return data[::-1]

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        assert csi_pb2.ProbeResponse.FromString(call(PROBE)).ready.value
        assert call(STAGE, b"abc", timeout=60) == b"cba"
        assert call(STAGE, b"abc", timeout=None) == b"cba"
    assert seen[0].method == STAGE
    remaining = seen[0].time_remaining()
    assert remaining is not None
    assert 1 < remaining < 60.1  # gRPC rounds up
    assert seen[1].time_remaining() is None


def test_endpoint_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b%41ü?#" / "csi.sock"
    with serving(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert not path.exists()


def test_errors_keep_their_code_and_message(path: Path) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        raise RpcError(Code[data.decode()], f"it is {data.decode()}: ü")

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        for code in Code:
            if code is not Code.CANCELLED:
                assert refused(call, STAGE, code.name.encode()) == (
                    grpc.StatusCode[code.name],
                    f"it is {code.name}: ü",
                )


def test_no_code_is_final_by_accident() -> None:
    assert not {"OK", "UNKNOWN", "INTERNAL", "DATA_LOSS"} & {code.name for code in Code}
    assert all(grpc.StatusCode[code.name].value[0] == code for code in Code)


@pytest.mark.parametrize("message", ["x" * 10_000, "ü" * 10_000, "bad \udcff surrogate", "two\nlines\0"])
def test_any_message_arrives_as_the_same_code(path: Path, message: str) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        raise RpcError(Code.NOT_FOUND, message)

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        code, details = refused(call, STAGE)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details == header_text(message)
    assert len(details.encode()) <= MAX_MESSAGE
    assert details[:5] == message[:5].replace("\udcff", "?")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("hunter2"),
        SystemExit("hunter2"),
        KeyboardInterrupt(),
        MemoryError(),
        RecursionError("hunter2"),
    ],
)
def test_other_exceptions_are_unavailable_and_logged_without_their_text(
    path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        raise error

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        code, details = refused(call, STAGE, b"hunter2")
        call(PROBE)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "hunter2" not in details
    assert "hunter2" not in caplog.text
    assert type(error).__name__ in caplog.text
    assert f"test_server.py:{stage.__code__.co_firstlineno + 1} in stage" in caplog.text
    reference = details.split("reference ")[1].split()[0]
    assert reference in caplog.text


def test_a_ring_of_causes_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        error, other = ValueError(), LookupError()
        error.__cause__, other.__cause__ = other, error
        raise error

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        assert refused(call, STAGE)[0] is grpc.StatusCode.UNAVAILABLE
    assert caplog.text.count("which led to") == 1


def test_a_cause_is_logged_first(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        try:
            raise OSError("hunter2")
        except OSError as error:
            raise LookupError from error

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        refused(call, STAGE)
    assert caplog.text.index("OSError") < caplog.text.index("which led to") < caplog.text.index("LookupError")


def test_a_reply_that_is_not_bytes_is_unavailable(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stage(data: bytes, context: ServerContext) -> Any:
        return None

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        assert refused(call, STAGE)[0] is grpc.StatusCode.UNAVAILABLE
    assert "TypeError" in caplog.text


def test_garbage_reaches_the_handler_which_says_so(path: Path) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        try:
            csi_pb2.NodeStageVolumeRequest.FromString(data)
        except DecodeError:
            raise RpcError(Code.INVALID_ARGUMENT, "not a NodeStageVolumeRequest") from None
        return b""

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        assert refused(call, STAGE, b"\xff\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert call(STAGE, csi_pb2.NodeStageVolumeRequest(volume_id="v").SerializeToString()) == b""


def test_garbage_to_the_standard_services(path: Path) -> None:
    with serving(path), caller(path) as call, channel_to(path) as channel:
        assert refused(call, "/grpc.health.v1.Health/Check", b"\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
        for method in (
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ):
            stream = channel.stream_stream(method)(iter([b"\xff"]), timeout=60)
            with pytest.raises(grpc.RpcError):
                next(stream)
            assert stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        call(PROBE)


def test_what_is_not_served_is_unimplemented(path: Path) -> None:
    with serving(path), caller(path) as call:
        for method in ("/csi.v1.Node/NodeStageVolume", "/csi.v1.Controller/CreateVolume", "/nothing", "/a/b"):
            assert refused(call, method)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_too_large_a_request_is_refused(path: Path) -> None:
    options = Options(max_receive=1000)
    with serving(path, options, NodeStageVolume=lambda data, context: b""), caller(path) as call:
        assert call(STAGE, bytes(1000)) == b""
        assert refused(call, STAGE, bytes(1001))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_concurrent_calls(path: Path) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        time.sleep(0.002)
        return data

    with serving(path, NodeStageVolume=stage), caller(path) as call, ThreadPoolExecutor(32) as callers:
        requests = [str(number).encode() for number in range(500)]
        assert list(callers.map(lambda data: call(STAGE, data), requests)) == requests


def test_probe_and_health_never_wait_behind_a_full_pool(path: Path) -> None:
    blocked = Blocked()
    with (
        serving(path, Options(threads=4), NodeStageVolume=blocked),
        caller(path) as call,
        ThreadPoolExecutor(16) as callers,
    ):
        replies = [callers.submit(call, STAGE, b"", 60) for _ in range(16)]
        assert until(lambda: blocked.inside == 4)
        for _ in range(20):
            assert csi_pb2.ProbeResponse.FromString(call(PROBE)).ready.value
            assert call("/grpc.health.v1.Health/Check")
        assert blocked.inside == 4
        blocked.gate.set()
        assert {reply.result(60) for reply in replies} == {b"done"}


def test_a_full_backlog_turns_calls_away_but_not_probes(path: Path) -> None:
    blocked = Blocked()
    options = Options(threads=2, backlog=3)
    with (
        serving(path, options, NodeStageVolume=blocked) as server,
        caller(path) as call,
        ThreadPoolExecutor(5) as callers,
    ):
        replies = [callers.submit(call, STAGE, b"", 60) for _ in range(5)]
        assert until(lambda: server._calls.waiting == 3)
        code, details = refused(call, STAGE)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "3 calls wait already" in details
        call(PROBE)
        blocked.gate.set()
        assert [reply.result(60) for reply in replies] == [b"done"] * 5
        assert call(STAGE) == b"done"


def test_a_call_whose_caller_has_left_is_never_begun(path: Path) -> None:
    blocked = Blocked()
    with (
        serving(path, Options(threads=1), NodeStageVolume=blocked) as server,
        caller(path) as call,
        channel_to(path) as channel,
        ThreadPoolExecutor(1) as one,
    ):
        first = one.submit(call, STAGE, b"", 60)
        assert until(lambda: blocked.inside == 1)
        second = channel.unary_unary(STAGE).future(b"", timeout=60)
        assert until(lambda: server._calls.waiting == 1)
        second.cancel()
        call(PROBE)  # so that the server has heard of it
        assert server._calls.waiting == 1
        blocked.gate.set()
        assert first.result(60) == b"done"
        assert until(lambda: server._calls.waiting == 0 and server._calls.running == 0)
        assert blocked.began == 1


def test_handler_sees_that_nobody_waits_any_more(path: Path) -> None:
    seen: list[bool] = []
    left = threading.Event()

    def stage(data: bytes, context: ServerContext) -> bytes:
        seen.append(context.cancelled)
        until(lambda: context.cancelled)
        seen.append(context.cancelled)
        assert until(lambda: context.time_remaining() == 0)  # a moment later, perhaps
        left.set()
        return b""

    with serving(path, NodeStageVolume=stage), caller(path) as call:
        assert refused(call, STAGE, timeout=1.5)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert left.wait(60)
    assert seen == [False, True]


def test_health_of_all_and_of_each_service(path: Path) -> None:
    status = health_pb2.HealthCheckResponse
    with serving(path) as server, channel_to(path) as channel, caller(path) as call:
        for name in ("", "csi.v1.Identity", "csi.v1.Node"):
            assert check(channel, name) == status.SERVING
        request = health_pb2.HealthCheckRequest(service="csi.v1.Controller").SerializeToString()
        assert refused(call, "/grpc.health.v1.Health/Check", request)[0] is grpc.StatusCode.NOT_FOUND
        known, unknown = watch(channel, "csi.v1.Node"), watch(channel, "csi.v1.Controller")
        assert next(known).status == status.SERVING
        assert next(unknown).status == status.SERVICE_UNKNOWN
        assert server.drain() == 0
        assert [reply.status for reply in known] == [status.NOT_SERVING]


def test_health_is_not_serving_while_calls_drain(path: Path) -> None:
    blocked = Blocked()
    with (
        serving(path, Options(grace=10), NodeStageVolume=blocked) as server,
        channel_to(path) as channel,
        caller(path) as call,
        ThreadPoolExecutor(2) as threads,
    ):
        reply = threads.submit(call, STAGE, b"", 60)
        assert until(lambda: blocked.inside == 1)
        known = watch(channel)
        assert next(known).status == health_pb2.HealthCheckResponse.SERVING
        drained = threads.submit(server.drain)
        assert next(known).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert blocked.inside == 1
        blocked.gate.set()
        assert (reply.result(60), drained.result(60)) == (b"done", 0)


def test_many_watchers_hold_no_thread(path: Path) -> None:
    with serving(path), channel_to(path) as channel, caller(path) as call:
        watches = [watch(channel) for _ in range(20)]
        assert {next(each).status for each in watches} == {health_pb2.HealthCheckResponse.SERVING}
        call(PROBE)
        for each in watches:
            each.cancel()


def test_reflection_of_both_versions(path: Path) -> None:
    with serving(path), channel_to(path) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {"csi.v1.Identity", "csi.v1.Node", "grpc.health.v1.Health"}
        file = database.FindFileContainingSymbol("csi.v1.NodeStageVolumeRequest")
        assert file.package == "csi.v1"
        ask = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        info = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        (answer,) = info(iter([ask]), timeout=60)
        assert reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response.service


def test_endpoint_that_answers_is_refused_and_goes_on(path: Path) -> None:
    with serving(path), caller(path) as call:
        with pytest.raises(FailedPrecondition, match="a running process answers"):
            Server(services(), Endpoint(str(path))).start()
        call(PROBE)
    assert not path.exists()


def test_successor_takes_over_while_the_first_drains(path: Path) -> None:
    blocked = Blocked()
    with serving(path, Options(grace=10), NodeStageVolume=blocked) as first, caller(path) as call:
        with ThreadPoolExecutor(2) as threads:
            reply = threads.submit(call, STAGE, b"", 60)
            assert until(lambda: blocked.inside == 1)
            drained = threads.submit(first.drain)
            assert until(lambda: not answers(path)), "a draining server accepts nobody"
            with serving(path), caller(path) as call_second:
                blocked.gate.set()
                assert reply.result(60) == b"done"
                assert drained.result(60) == 0
                assert call_second(PROBE)
            assert not path.exists()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_programs_started_by_handlers_are_quiet_and_harmless(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(data: bytes, context: ServerContext) -> bytes:
        return subprocess.run(["cat"], input=data, stdout=subprocess.PIPE, check=True).stdout

    with serving(path, NodeStageVolume=stage), caller(path) as call, ThreadPoolExecutor(8) as callers:
        requests = [str(number).encode() for number in range(40)]
        assert list(callers.map(lambda data: call(STAGE, data, 20), requests)) == requests
    assert capfd.readouterr().err == ""


# A driver as a process of its own

CHILD = """
import logging, os, sys, time
logging.basicConfig(level="INFO", stream=sys.stderr)
from volkit_csi.endpoint import Endpoint
from volkit_csi.server import Options, Server
def probe(data, context):
    return b""
def stage(data, context):
    print("begun", flush=True)
    time.sleep(float(data))
    print("ended", flush=True)
    return b"done"
server = Server(
    {"csi.v1.Identity": {"Probe": probe}, "csi.v1.Node": {"NodeStageVolume": stage}},
    Endpoint(sys.argv[1]), Options(grace=float(sys.argv[2])),
)
left = server.run()
print("left", left, flush=True)
sys.exit(10 + left)
"""


@contextmanager
def child(path: Path, grace: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(path), str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert until(lambda: answers(path))
            yield process
        finally:
            process.kill()


def begun(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "begun\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_what_runs(path: Path, number: signal.Signals) -> None:
    with child(path, grace=60) as process, caller(path) as call, ThreadPoolExecutor(1) as one:
        reply = one.submit(call, STAGE, b"2", 60)
        assert begun(process)
        process.send_signal(number)
        assert until(lambda: not answers(path)), "still accepting while it drains"
        assert path.exists(), "the socket goes last"
        assert reply.result(60) == b"done"
        out, err = process.communicate(timeout=60)
    assert process.returncode == 10
    assert out == "ended\nleft 0\n"
    assert f"{number.name}: draining" in err
    assert "Traceback" not in err
    assert not path.exists()


def test_signal_without_calls_ends_at_once(path: Path) -> None:
    with child(path, grace=600) as process, caller(path) as call:
        assert call(PROBE) == b""
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 10
    assert not path.exists()


def test_a_hung_call_holds_the_stop_for_the_grace_only(path: Path) -> None:
    with child(path, grace=0.5) as process, caller(path) as call, ThreadPoolExecutor(1) as one:
        reply = one.submit(call, STAGE, b"1000", 60)
        assert begun(process)
        started = time.monotonic()
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - started > 0.5
        assert isinstance(reply.exception(60), grpc.RpcError)
    assert out == "left 1\n"
    assert "1 calls still ran after 0.5 s" in err
    assert process.returncode == 11
    assert not path.exists()


def test_second_signal_ends_at_once(path: Path) -> None:
    with child(path, grace=600) as process, caller(path) as call, ThreadPoolExecutor(1) as one:
        reply = one.submit(call, STAGE, b"1000", 60)
        assert begun(process)
        process.terminate()
        assert until(lambda: not answers(path))
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert isinstance(reply.exception(60), grpc.RpcError)
    assert out == "left 1\n"
    assert "second signal" in err
    assert not path.exists()


def test_killed_driver_leaves_a_socket_that_the_next_replaces(path: Path) -> None:
    with child(path, grace=1) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert path.is_socket()
    with child(path, grace=1) as process, caller(path) as call:
        assert call(PROBE) == b""
        process.terminate()
        process.communicate(timeout=60)
    assert not path.exists()


def test_idle_server_is_small(path: Path) -> None:
    with child(path, grace=1) as process, caller(path) as call:
        call(PROBE)
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        assert resident < 40 * 1024, f"{resident} KiB"
        process.terminate()
        process.communicate(timeout=60)


def test_umask_of_the_process_is_kept(path: Path) -> None:
    before = os.umask(0o027)
    try:
        with serving(path):
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
