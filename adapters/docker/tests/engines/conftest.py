"""A plugin as a process of its own, and a dockerd with its own sockets and directories; nothing of them is left."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit.host import loop, mounts

PATIENCE = 120.0
APPLETS = (
    "sh",
    "cat",
    "chmod",
    "chown",
    "dd",
    "echo",
    "grep",
    "ls",
    "mkdir",
    "mount",
    "rm",
    "sleep",
    "stat",
    "touch",
)


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str, timeout: float = PATIENCE) -> None:
        super().__init__("plugin", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def wait_until(what: str, done: Any, seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


class Plugin:
    """`volkit-docker` with the loop backend, on a socket where Docker looks for plugins."""

    def __init__(
        self,
        home: Path,
        name: str,
        *,
        grace: float = 120.0,
        seen: float = 5.0,
        settle: float = 30.0,
        overcommit: str = "1000",
        pool: Path | None = None,
        node: str = "n1",
        journal: str = "",
    ) -> None:
        self.home, self.name, self.overcommit, self.seen = home, name, overcommit, seen
        self.socket = f"/run/docker/plugins/{name}.sock"
        self.state = home / "state"
        self.log = home / "log"
        self.grace, self.settle = grace, settle
        self.process: subprocess.Popen[bytes] | None = None
        self.pool, self.node, self.journal = pool or home / "pool", node, journal
        home.mkdir(parents=True, exist_ok=True)
        self.pool.mkdir(exist_ok=True)

    def start(self) -> Plugin:
        before = f"import volkit.uses as u; u.GRACE_SECONDS = {self.grace}; u.WATCH_SECONDS = {self.settle}"
        before += f"; u.SEEN_SECONDS = {self.seen}"
        program = f"{before}; from volkit_docker.main import main; raise SystemExit(main())"
        words = [
            "--backend",
            "loop",
            "-o",
            f"pool={self.pool}",
            "-o",
            f"overcommit={self.overcommit}",
            "--node-id",
            self.node,
            *(["--journal", self.journal] if self.journal else []),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *words, "--state-dir", str(self.state), "--name", self.name],
                stdout=log,
                stderr=log,
            )
        wait_until("the plugin answers", self.answers)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.call("Plugin.Activate")[0] == 200
        except OSError:
            return False

    def call(
        self, method: str, request: Any = None, *, body: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One call; its status and its answer."""
        data = body if body is not None else b"" if request is None else json.dumps(request).encode()
        connection = Connection(self.socket)
        try:
            connection.request("POST", f"/{method}", body=data)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ok(self, method: str, request: Any = None) -> dict[str, Any]:
        status, answer = self.call(method, request)
        assert (status, answer.get("Err", "")) == (200, ""), answer
        return answer

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(90) == 0, self.log.read_text()

    def mounted(self) -> list[str]:
        return sorted(
            one.mount_point for one in mounts.mounts() if one.mount_point.startswith(f"{self.home}/")
        )

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        Path(self.socket).unlink(missing_ok=True)
        for point in reversed(self.mounted()):
            mounts.unmount(point, lazy=True)
        for device, backing in list(loop.attached()):
            if backing.startswith(f"{self.home}/"):
                with suppress(Exception):
                    loop.detach(device)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    made = Plugin(tmp_path / "plugin", f"vk{os.getpid()}")
    yield made.start()
    made.end()


class Docker:
    """A dockerd and a containerd of its own."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="vd-"))
        self.host = f"unix://{self.home}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.containerd: subprocess.Popen[bytes] | None = None

    def start_containerd(self) -> None:
        """Apart from dockerd, as systemd does, so that one lives when the other is killed."""
        config = self.home / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{self.home}/containerd"\nstate = "{self.home}/shims"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.home}/containerd.sock"\n'
        )
        with (self.home / "log").open("ab") as log:
            self.containerd = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
        wait_until("containerd listens", (self.home / "containerd.sock").exists)

    def start(self, *more: str) -> Docker:
        """With more flags, if given."""
        if self.containerd is None:
            self.start_containerd()
        flags = [
            f"--data-root={self.home}/data",
            f"--exec-root={self.home}/exec",
            f"--pidfile={self.home}/pid",
        ]
        flags += ["-H", self.host, "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        flags += [
            "--ip-masq=false",
            "--bridge=none",
            "--storage-driver=overlay2",
            "--shutdown-timeout=2",
            *more,
        ]
        flags += ["--containerd", f"{self.home}/containerd.sock"]
        (self.home / "pid").unlink(missing_ok=True)
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(["dockerd", *flags], stdout=log, stderr=log)
        try:
            wait_until("dockerd answers", lambda: self.run("version").returncode == 0, 200)
        except AssertionError:
            raise AssertionError((self.home / "log").read_text()[-4000:]) from None
        return self

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.home / "config")}
        return subprocess.run(
            ["docker", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            env=environment,
            **more,
        )

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def make_image(self) -> None:
        """One of busybox, from no registry."""
        busybox = shutil.which("busybox")
        assert busybox
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(busybox, "bin/busybox")
            for name in APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        image = self.home / "image.tar"
        image.write_bytes(data.getvalue())
        self.ok("import", str(image), "bb:1")

    def kill(self) -> None:
        """SIGKILL to dockerd alone; containerd and the containers go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As `systemctl stop docker`."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def end_containers(self) -> None:
        """SIGKILL to containerd, its shims and all that runs in containers, as a power cut does."""
        assert self.containerd is not None
        self.containerd.kill()
        self.containerd.wait()
        self.containerd = None
        (self.home / "containerd.sock").unlink()
        mark = str(self.home).encode()
        shims = [int(one.name) for one in Path("/proc").glob("[0-9]*") if mark in _command(one)]
        inside = [child for shim in shims for child in _children(shim)]
        for pid in (*shims, *inside):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until("they are gone", lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in inside))

    def api(self, path: str, request: Any = None, *, method: str = "POST") -> tuple[int, Any]:
        """A call of Docker's own HTTP API: faster than the client, and it takes any name."""
        connection = Connection(str(self.home / "docker.sock"))
        try:
            body = json.dumps(request) if request is not None else None
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.strip() else None
        finally:
            connection.close()

    def end(self) -> None:
        with suppress(Exception):
            self.run("rm", "-f", *self.run("ps", "-aq").stdout.split())
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()
        if self.containerd is not None:
            self.containerd.terminate()
            self.containerd.wait(60)
        mark = str(self.home).encode()
        for _ in range(100):
            left = [one for one in Path("/proc").glob("[0-9]*") if mark in _command(one)]
            if not left:
                break
            for one in left:
                with suppress(ProcessLookupError):
                    os.kill(int(one.name), signal.SIGKILL)
            time.sleep(0.05)
        for mount in reversed(mounts.mounts()):
            if mount.mount_point.startswith(f"{self.home}/"):
                mounts.unmount(mount.mount_point, lazy=True)
        shutil.rmtree(self.home, ignore_errors=True)


def certificates(home: Path) -> None:
    """An authority, a server's and a client's certificate."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True)

    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (home / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl(*sign, "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def running_docker() -> Iterator[Docker]:
    made = Docker()
    try:
        made.start().make_image()
        yield made
    finally:
        made.end()


@pytest.fixture
def docker(running_docker: Docker) -> Iterator[Docker]:
    """A dockerd that runs; the test's containers are removed after it."""
    yield running_docker
    if running_docker.process is None or running_docker.process.poll() is not None:
        running_docker.start()
    names = running_docker.run("ps", "-aq").stdout.split()
    if names:
        running_docker.run("rm", "-f", *names)
