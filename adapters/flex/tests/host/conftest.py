"""Drivers that are really installed, below the test's directory; what they mount and attach goes when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit.host import loop, mounts
from volkit_flex.kubelet import Kubelet
from volkit_flex.main import run

PATIENCE = 90.0


def wait_until(what: str, done: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


class Host:
    """One node: a pool of the loop backend, a state directory, a directory of plugins, kubelet's root."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pool, self.state, self.plugins = home / "pool", home / "state", home / "exec"
        self.root = home / "kubelet"
        self.pool.mkdir()
        self.daemons: list[subprocess.Popen[bytes]] = []

    def flags(self, *more: str) -> list[str]:
        return ["--backend", "loop", "-o", f"pool={self.pool}", "--state-dir", str(self.state), *more]

    def install(self, *more: str, vendor: str = "acme", node: str = "node1") -> Kubelet:
        words = self.flags("--vendor", vendor, "--plugin-dir", str(self.plugins), "--node-id", node, *more)
        assert run(["install", *words]) == 0
        return Kubelet(self.plugins / f"{vendor}~loop" / "loop", root=self.root, node=node)

    def serve(self) -> subprocess.Popen[bytes]:
        """A daemon that answers."""
        with open(self.home / "serve.log", "ab") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "volkit_flex.main", "serve", *self.flags("--node-id", "node1")],
                stdout=log,
                stderr=log,
            )
        self.daemons.append(daemon)
        said = self.state / "flex.run/daemon"
        wait_until(
            "the daemon serves", lambda: said.exists() and said.read_text().startswith(f"{daemon.pid} ")
        )
        return daemon

    def stop(self, daemon: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        daemon.send_signal(number)
        daemon.wait(PATIENCE)
        self.daemons.remove(daemon)

    def images(self) -> list[Path]:
        return sorted(self.pool.glob("volumes/*/*.img"))

    def attached(self) -> list[str]:
        found = []
        for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # detached meanwhile
                if attribute.read_text().startswith(f"{self.pool}/"):
                    found.append(attribute.parts[3])
        return found

    def mounted(self) -> list[str]:
        return [one.mount_point for one in mounts.mounts(under=str(self.home))]

    def records(self) -> dict[str, Any]:
        """What the journal holds of volumes in use."""
        import volkit

        journal = volkit.open_journal(f"sqlite://{self.state}/journal.db")
        try:
            kinds = ("flex-", "stage/", "target/", "attach/")
            found = {one.key: one.value for one in journal.scan("") if one.key.startswith(kinds)}
            return {one: value for one, value in found.items() if not one.startswith("flex-made/")}
        finally:
            journal.close()

    def begin(self, path: str, record: dict[str, Any] | None = None) -> None:
        """As a call that unmounts `path`, or mounts there what `record` tells of, and is killed."""
        import volkit
        from volkit_flex.records import PATH, Records

        journal = volkit.open_journal(f"sqlite://{self.state}/journal.db")
        try:
            found = Records(journal)
            found.begin(path, record or found.get(PATH, path))
        finally:
            journal.close()

    def log(self) -> str:
        path = self.state / "flex.log"
        return path.read_text() if path.exists() else ""

    def assert_clean(self) -> None:
        """A device that somebody looks at (blkid, a doctor of another test) goes when he closes it: loop(4)."""
        assert self.mounted() == []
        wait_until("the devices are gone", lambda: not self.attached())
        assert self.records() == {}

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait(PATIENCE)
        for mount in reversed(mounts.mounts(under=str(self.home))):
            mounts.unmount(mount.mount_point)
        for name in self.attached():
            loop.detach(f"/dev/{name}")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    made = Host(tmp_path)
    yield made
    made.close()


def answer_of(output: bytes) -> dict[str, Any]:
    """One JSON object, on one line, and nothing else."""
    assert output.count(b"\n") == 1
    assert output.endswith(b"\n")
    found = json.loads(output)
    assert isinstance(found, dict)
    return found
