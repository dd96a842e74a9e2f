"""Flags, and TLS."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from volkit import Engine
from volkit.cli import main as volkit_command
from volkit.sockets import UnixSocket
from volkit.testing.memory import MemoryBackend, memory_settings
from volkit_docker import bundle
from volkit_docker.main import announce, make_parser, run
from volkit_docker.server import App, Server
from volkit_docker.service import Service

from .conftest import certificates

TLS = ("--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tcp", "0.0.0.0:9000"], "would give root to whoever reaches it"),
        (["--tcp", "nonsense"], "is not HOST:PORT"),
        (["--tcp", "localhost:99999"], "is not HOST:PORT"),
        (["--tcp", "10.0.0.1:9000", "--tls-cert", "c"], "go together"),
        (["--tls-cert", "c"], "is for --tcp"),
        (["--tcp", "[::]:9000"], "would give root to whoever reaches it"),
        (["--tcp", "[fd00::1]:9000", *TLS, "--spec-dir", "d"], "--tls-client-cert"),
        (["--socket", "/run/" + "x" * 110], "at most 107 bytes"),
        (["--socket-owner", ":no-such-group"], "there is no such group"),
    ],
)
def test_an_address_that_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backend", "loop", "-o", f"pool={tmp_path}", "--state-dir", str(tmp_path / "state")]
    assert run([*flags, *words], {}) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def answer(context: ssl.SSLContext, port: int, request: bytes) -> bytes:
    """What is answered, nothing where the connection is refused."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return b""


@pytest.mark.needs("openssl")
def test_tls_takes_only_clients_with_a_certificate(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    certificates(tmp_path)
    engine = Engine(MemoryBackend, memory_settings(), state_dir=tmp_path / "state", node_id="n1")
    files = (str(tmp_path / "server.pem"), str(tmp_path / "server.key"), str(tmp_path / "ca.pem"))
    (port,) = free_ports(1)
    server = Server(App(Service(engine, tmp_path / "mounts")), ("127.0.0.1", port), tls=files)
    server.start()
    server.serve_in_background()
    request = b"POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]  # they keep nobody waiting
    try:
        context = ssl.create_default_context(cafile=files[2])
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        assert b"VolumeDriver" in answer(context, port, request)
        stranger = ssl.create_default_context(cafile=files[2])
        assert answer(stranger, port, request) == b""
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(request)
            assert b"VolumeDriver" not in plain.recv(4096)
        assert b"VolumeDriver" in answer(context, port, request)
    finally:
        for one in silent:
            one.close()
        server.stop()
        engine.close()


ACTIVATED = """
import os, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[1])
made.listen()
os.dup2(made.detach(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "volkit_docker.main", *sys.argv[2:]])
"""


def test_a_socket_that_systemd_has_opened_is_served_and_left(tmp_path: Path) -> None:
    """As systemd.socket(5) hands it over; it stays for the next start."""
    path = str(tmp_path / "activated.sock")
    (tmp_path / "pool").mkdir()
    words = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", str(tmp_path / "state")]
    process = subprocess.Popen([sys.executable, "-c", ACTIVATED, path, *words])
    try:
        request = (
            b"POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        end = time.monotonic() + 60
        with socket.socket(socket.AF_UNIX) as caller:
            while caller.connect_ex(path):
                assert time.monotonic() < end
                time.sleep(0.01)
            caller.sendall(request)
            assert b"VolumeDriver" in b"".join(iter(lambda: caller.recv(4096), b""))
        assert not Path("/run/docker/plugins/volkit-loop.sock").exists()
        process.terminate()
        assert process.wait(90) == 0
        assert Path(path).exists()
        assert not (tmp_path / "state/sockets").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("made", "count", "said"),
    [
        (
            "made = socket.create_server(('0.0.0.0', 0))",
            "1",
            "for whoever reaches it: have it open a unix socket",
        ),
        ("made = open('/dev/null')", "1", "cannot listen on"),
        ("made = open('/dev/null')", "0", "--socket '/run/xx"),
    ],
)
def test_a_socket_that_is_none_to_serve_on_is_refused(
    tmp_path: Path, made: str, count: str, said: str
) -> None:
    """Without a socket that was passed, it listens where it is told."""
    (tmp_path / "pool").mkdir()
    head, _, rest = ACTIVATED.partition("made = ")
    start = f"{head}{made}\nos.dup2(made.fileno(), 3)\n{rest[rest.index('os.set_') :]}"
    words = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", str(tmp_path / "state")]
    words += ["--socket", "/run/" + "x" * 110] if count == "0" else []
    done = subprocess.run(
        [sys.executable, "-c", start.replace('LISTEN_FDS="1"', f'LISTEN_FDS="{count}"'), "-", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_what_cannot_be_announced_leaves_no_socket(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "file").touch()
    words = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", str(tmp_path / "state")]
    assert run([*words, "--socket", str(tmp_path / "s"), "--spec-dir", str(tmp_path / "file")], {}) == 1
    assert not (tmp_path / "s").exists()


def test_the_socket_belongs_to_whom_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    engine = Engine(MemoryBackend, memory_settings(), state_dir=tmp_path / "state", node_id="n1")
    server = Server(App(Service(engine, tmp_path / "mounts")), UnixSocket(str(path), 0o660, 0, 12345))
    server.start()
    server.serve_in_background()
    try:
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, 12345)
    finally:
        server.stop()
        engine.close()
    assert not path.exists()


def test_the_spec_is_what_docker_reads(tmp_path: Path) -> None:
    """With TLS it names Docker's own certificate as well: without one the plugin would refuse it."""
    parser = make_parser("volkit-docker")
    files = (
        "--tls-cert",
        "s",
        "--tls-key",
        "k",
        "--tls-ca",
        "/a",
        "--tls-client-cert",
        "/c",
        "--tls-client-key",
        "/d",
    )
    args = parser.parse([*files, "--spec-dir", str(tmp_path)], {})
    path = announce(args, "v", ("fd00::1", 9000))
    assert path == tmp_path / "v.json"
    assert path is not None
    tls = {"InsecureSkipVerify": False, "CAFile": "/a", "CertFile": "/c", "KeyFile": "/d"}
    assert json.loads(path.read_text()) == {"Name": "v", "Addr": "https://[fd00::1]:9000", "TLSConfig": tls}
    args = parser.parse(["--spec-dir", str(tmp_path)], {})
    path = announce(args, "v", UnixSocket("/run/v.sock"))
    assert path == tmp_path / "v.spec"
    assert path is not None
    assert path.read_text() == "unix:///run/v.sock\n"


def test_a_bundle_sees_what_settings_name() -> None:
    """Directories of volumes, and files, which it only reads; what is in the state directory it sees anyway."""
    options = ["pool=/srv/pool", "overcommit=@/etc/volkit/overcommit", "limit=3"]
    mounts = {one["source"]: one for one in bundle.config("loop", options)["mounts"]}
    assert mounts["/srv/pool"]["options"] == ["rbind"]
    assert mounts["/etc/volkit/overcommit"]["options"] == ["rbind", "ro"]
    assert len(mounts) == 4
    assert len(bundle.config("loop", ["pool=/var/lib/volkit/state/pool"])["mounts"]) == 2


def test_volkit_deploy_makes_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, Path, list[str]]] = []
    monkeypatch.setattr("volkit_docker.bundle.make", lambda *args: made.append(args))
    flags = ["deploy", "docker", "--backend", "loop", "-o", "pool=/var/lib/volkit/state/pool"]
    assert volkit_command([*flags, "--out", str(tmp_path / "plugin")]) == 0
    assert made == [("loop", tmp_path / "plugin", ["pool=/var/lib/volkit/state/pool"])]
    assert volkit_command(flags) == 2
    assert "give --out DIR" in capsys.readouterr().err
