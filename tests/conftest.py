"""For several test modules: how long Hypothesis looks, a real etcd cluster of three members on this machine, and a FUSE
file system that hangs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On CI the same examples each time, so that a change fails for what it changed; elsewhere new ones. No example has a
# deadline: a slow machine breaks none. `pytest --hypothesis-profile=deep` looks twenty times as long.
settings.register_profile(
    "volkit",
    derandomize=os.environ.get("CI") == "true",
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("deep", settings.get_profile("volkit"), derandomize=False, max_examples=2000)
settings.load_profile("volkit")


class Cluster:
    """Three members on six `ports`, with data below `directory`; each can be killed, paused and started again."""

    def __init__(self, directory: Path, ports: list[int], *, tls: Path | None = None) -> None:
        self.directory = directory
        self.tls = tls
        self.clients, self.peers = ports[:3], ports[3:]
        self.members: list[subprocess.Popen[bytes] | None] = [None] * 3

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def endpoints(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.clients)

    def url(self, prefix: str = "", **options: str) -> str:
        """The URL of a journal of its own; `options` as in its query, `_` for `-`."""
        query = "&".join(f"{name.replace('_', '-')}={value}" for name, value in options.items())
        return f"etcd://{self.endpoints}/{prefix or uuid.uuid4().hex}" + (f"?{query}" if query else "")

    def start(self, *which: int) -> None:
        for number in which or range(3):
            if self.members[number] is None:
                self.members[number] = self._start(number)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        client, peer = self.clients[number], self.peers[number]
        everybody = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(self.peers))
        command = ["etcd", "--name", f"m{number}", "--data-dir", f"{self.directory}/data-{number}"]
        command += ["--listen-client-urls", f"{self.scheme}://127.0.0.1:{client}"]
        command += ["--advertise-client-urls", f"{self.scheme}://127.0.0.1:{client}"]
        command += ["--listen-peer-urls", f"http://127.0.0.1:{peer}"]
        command += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
        command += ["--initial-cluster", everybody, "--heartbeat-interval", "50", "--election-timeout", "500"]
        if self.tls:
            command += ["--cert-file", f"{self.tls}/server.pem", "--key-file", f"{self.tls}/server.key"]
            command += ["--client-cert-auth", "--trusted-ca-file", f"{self.tls}/ca.pem"]
        with open(self.directory / f"m{number}.log", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, number: int) -> None:
        """A power cut of one member, but for its disk."""
        member = self.members[number]
        assert member is not None
        member.kill()
        member.wait(60)
        self.members[number] = None

    def pause(self, *which: int) -> None:
        self._signal(which, signal.SIGSTOP)

    def resume(self, *which: int) -> None:
        self._signal(which, signal.SIGCONT)

    def _signal(self, which: tuple[int, ...], number: int) -> None:
        for one in which or range(3):
            member = self.members[one]
            if member is not None:
                member.send_signal(number)

    def heal(self) -> None:
        """All members run and agree."""
        self.resume()
        self.start()
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while any(self.etcdctl("endpoint", "health", endpoint=n).returncode for n in range(3)):
            assert time.monotonic() < deadline, "the cluster does not come up: see its logs"
            time.sleep(0.1)

    def etcdctl(self, *arguments: str, endpoint: int | None = None) -> subprocess.CompletedProcess[str]:
        ports = self.clients if endpoint is None else [self.clients[endpoint]]
        command = ["etcdctl", "--endpoints", ",".join(f"{self.scheme}://127.0.0.1:{port}" for port in ports)]
        if self.tls:
            command += ["--cacert", f"{self.tls}/ca.pem"]
            command += ["--cert", f"{self.tls}/client.pem", "--key", f"{self.tls}/client.key"]
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def leader(self) -> int:
        """The number of the member that leads; it may be about to change."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for number in range(3):
                said = self.etcdctl("endpoint", "status", "-w", "fields", endpoint=number).stdout
                fields = dict(line.split(" : ", 1) for line in said.splitlines() if " : " in line)
                if fields and fields['"MemberID"'] == fields['"Leader"']:
                    return number
        raise AssertionError("nobody leads")

    def close(self) -> None:
        for member in filter(None, self.members):
            with suppress(ProcessLookupError):
                member.send_signal(signal.SIGCONT)
                member.kill()
            member.wait(60)
        shutil.rmtree(self.directory, ignore_errors=True)


class Hung(str):
    """The path of a mount whose server says hello, has `taken` so many requests, and never answers."""

    taken = 0

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # another process does not know this class


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Hung]:
    """A FUSE mount that hangs (linux/fuse.h, 7.23)."""
    target = Hung(tmp_path / "hung")
    os.mkdir(target)
    from volkit.host import mounts

    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mounts.mount("none", target, "fuse", [f"fd={device}", "rootmode=40000", "user_id=0", "group_id=0"])
    hello = struct.pack("=IIIIHHIIHHI28x", 7, 23, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
    _, _, unique = struct.unpack_from("=IIQ", os.read(device, 1 << 16))
    os.write(device, struct.pack("=IiQ", 16 + len(hello), 0, unique) + hello)

    def take() -> None:
        while True:
            try:
                os.read(device, 1 << 16)
            except OSError:
                return
            target.taken += 1

    server = threading.Thread(target=take, daemon=True)
    server.start()
    try:
        yield target
    finally:
        subprocess.run(["umount", "-f", target], check=False, capture_output=True)  # wakes up who waits
        server.join(60)
        os.close(device)
        mounts.unmount(target, lazy=True)


@pytest.fixture
def unattached() -> Iterator[str]:
    """A loop device without a file that stays so: whoever attaches one is given the lowest that is free."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    number = next(
        one for one in count(3000 + os.getpid() % 1000) if not Path(f"/sys/block/loop{one}").exists()
    )
    try:
        fcntl.ioctl(control, 0x4C80, number)  # LOOP_CTL_ADD
        yield f"/dev/loop{number}"
    finally:
        with suppress(OSError):
            fcntl.ioctl(control, 0x4C81, number)  # LOOP_CTL_REMOVE
        os.close(control)


@pytest.fixture(autouse=True)
def _no_helper_process() -> Iterator[None]:
    """None of `volkit.host.apart` outlives its test: what counts its children finds its own."""
    yield
    if "volkit.host.apart" in sys.modules:
        sys.modules["volkit.host.apart"].close()


@pytest.fixture(scope="session")
def running_etcd(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("etcd"), free_ports(6))
    try:
        cluster.start()
        cluster.wait()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def etcd(running_etcd: Cluster) -> Iterator[Cluster]:
    """Three healthy members; what the test did to them is healed after it."""
    yield running_etcd
    running_etcd.heal()
