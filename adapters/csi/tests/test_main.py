"""The console script: flags, environment and configuration file; what a vendor's own driver fixes; exit
codes.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import volkit
import volkit_csi
from volkit.testing.memory import MemoryBackend
from volkit_csi import main
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.lean import grpc

MEMORY = "volkit.testing.memory:MemoryBackend"


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A driver sets its process's logging up; here the process is that of all tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def parse(*argv: str, environ: dict[str, str] | None = None, **options: Any) -> Any:
    return main.make_parser("volkit-csi", **options).parse(argv, environ or {}, variables=main.VARIABLES)


# -- arguments -----------------------------------------------------------------------------------------------


def test_flags_environment_and_file_in_this_order(tmp_path: Path) -> None:
    config = tmp_path / "driver.toml"
    config.write_text('endpoint = "unix:///file.sock"\nsocket-mode = "0600"\nthreads = 8\n', encoding="utf-8")
    assert parse().endpoint == "unix:///run/volkit/csi.sock"
    assert parse("--config", str(config)).endpoint == "unix:///file.sock"
    assert parse("--config", str(config)).socket_mode == 0o600
    assert parse("--config", str(config)).threads == 8
    swarm = {"CSI_ENDPOINT": "/run/docker/plugins/x.sock", "VOLKIT_CONFIG": str(config)}
    assert parse(environ=swarm).endpoint == "/run/docker/plugins/x.sock"
    assert parse(environ={**swarm, "VOLKIT_ENDPOINT": "unix:///own.sock"}).endpoint == "unix:///own.sock"
    assert parse("--endpoint", "unix:///flag.sock", environ=swarm).endpoint == "unix:///flag.sock"
    assert parse(environ={"VOLKIT_SOCKET_MODE": "0666", "VOLKIT_GRACE": "1.5"}).socket_mode == 0o666


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--socket-mode", "888"), "octal permissions"),
        (("--socket-mode", "0"), "octal permissions"),
        (("--driver-name", "1csi.acme.com"), "a letter first and last"),
        (("--driver-name", "csi.acme.com."), "a letter first and last"),
        (("--driver-name", "a" * 64), "63 characters at most"),
        (("--driver-name", "csi_acme"), "is not a driver name"),
        (("--threads", "0"), "1 to 1024"),
        (("--threads", "²"), "1 to 1024"),
        (("--grace", "-1"), "0 to 3600"),
        (("--grace", "nan"), "0 to 3600"),
        (("--services", "controler"), "controller, node or"),
    ],
)
def test_bad_arguments_end_with_2_and_one_sentence(
    argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("name", ["a", "csi.acme.com", "Loop.CSI-volkit.io", "a" * 63])
def test_driver_names(name: str) -> None:
    assert parse("--driver-name", name).driver_name == name


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ((), 2, "no backend: give --backend"),
        (("--backend", "nosuch"), 2, "there is no backend 'nosuch'"),
        (("--backend", MEMORY, "-o", "arrray=x"), 2, "did you mean 'array'"),
        (("--backend", MEMORY, "--endpoint", "tcp://127.0.0.1:1"), 2, "unix:///run/volkit/csi.sock"),
        (("--backend", MEMORY, "--socket-owner", "nobody-here"), 2, "nobody-here"),
        (("--backend", MEMORY, "--headless"), 2, "--services node"),
    ],
)
def test_what_cannot_be_served(
    argv: tuple[str, ...], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = tmp_path / "csi.sock"
    common = ["--state-dir", str(tmp_path / "state"), "--node-id", "n1", "--endpoint", f"unix://{socket}"]
    assert main.run([*common, *argv], {}) == status
    text = capsys.readouterr().err
    assert message in text
    assert text.startswith("volkit-csi: ")
    assert text.count("\n") == 1
    assert not socket.exists()


# -- version ------------------------------------------------------------------------------------


def test_the_version_is_the_backends() -> None:
    assert main.backend_version(MemoryBackend) == volkit.__version__
    loop: Any = type("Loop", (MemoryBackend,), {"name": "loop"})
    from importlib.metadata import version

    assert main.backend_version(loop) == version("volkit-loop")


# -- the process ---------------------------------------------------------------------------------------------

VENDOR = f"""
import sys
import volkit_csi
main = volkit_csi.driver(backend={MEMORY!r}, name="csi.acme.com", version="1.2", prog="acme-csi")
sys.exit(main())
"""


@contextmanager
def process(*command: str, socket: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that is ready."""
    child = subprocess.Popen(command, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1800):
            if socket.exists() or child.poll() is not None:
                break
            time.sleep(0.05)
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()


def ask(channel: Any, request: Any) -> Any:
    name = request.DESCRIPTOR.name.removesuffix("Request")
    service = next(one for one in pb.DESCRIPTOR.services_by_name.values() if name in one.methods_by_name)
    call = channel.unary_unary(f"/{service.full_name}/{name}")
    return getattr(pb, f"{name}Response").FromString(call(request.SerializeToString(), timeout=60))


def test_a_vendors_driver_from_start_to_stop(tmp_path: Path) -> None:
    socket = tmp_path / "csi.sock"
    command = [sys.executable, "-c", VENDOR, "--state-dir", str(tmp_path / "state"), "--node-id", "n1"]
    with process(*command, socket=socket, CSI_ENDPOINT=str(socket)) as child:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            info = ask(channel, pb.GetPluginInfoRequest())
            assert (info.name, info.vendor_version) == ("csi.acme.com", "1.2")
            assert info.manifest["backend"] == "memory"
            assert ask(channel, pb.ProbeRequest()).ready.value
            volume = pb.CreateVolumeRequest(
                name="pvc", volume_capabilities=[{"mount": {}, "access_mode": {"mode": 1}}]
            )
            assert ask(channel, volume).volume.volume_id
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=60)
        assert child.returncode == 0
    assert "create_volume 'pvc'" in log
    assert "OK" in log
    assert not socket.exists()


def test_the_default_name_is_the_backends(tmp_path: Path) -> None:
    socket = tmp_path / "csi.sock"
    command = [sys.executable, "-m", "volkit_csi.main", "--backend", MEMORY, "--node-id", "n1"]
    options = {"VOLKIT_STATE_DIR": str(tmp_path / "state"), "VOLKIT_ENDPOINT": f"unix://{socket}"}
    with process(*command, socket=socket, **options, VOLKIT_SERVICES="node") as child:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            assert ask(channel, pb.GetPluginInfoRequest()).name == "memory.csi.volkit.io"
            assert ask(channel, pb.NodeGetInfoRequest()).node_id.startswith("n1")
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, pb.CreateVolumeRequest())
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 0


def test_a_vendors_driver_has_no_backend_flag() -> None:
    command = [sys.executable, "-c", VENDOR, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "acme-csi" in text
    assert "csi.acme.com" in text
    assert "--backend" not in text


def test_driver_is_the_packages_public_name() -> None:
    assert volkit_csi.driver is main.driver
    with pytest.raises(AttributeError, match="nothing"):
        volkit_csi.nothing  # noqa: B018
