"""A `volkit-csi` process of one's own, to drive, to kill and to start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Final

from volkit.sockets import answers
from volkit_csi.client import Client

START_SECONDS: Final = 15


class Failed(Exception):
    """A step did not do what it must; says what was seen."""


class Driver:
    """The `volkit-csi` process, started as often as it is killed. Each life is a session of its own."""

    def __init__(self, work: Path, backend: str = "loop") -> None:
        self.work = work
        self.backend = backend
        self.log: Path = work / "driver.log"
        self.sessions: list[int] = []
        self.client: Client | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Client:
        """Start it and wait until it is ready."""
        command = [
            os.path.join(sysconfig.get_path("scripts"), "volkit-csi"),
            *(
                "--backend",
                self.backend,
                "-o",
                f"pool={self.work / 'pool'}",
                "--state-dir",
                str(self.work / "state"),
            ),
            *("--endpoint", f"unix://{self.work}/csi.sock", "--node-id", "demo", "--log-level", "debug"),
        ]
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("VOLKIT_", "CSI_"))
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environ, start_new_session=True
            )
        self.sessions.append(self._process.pid)
        socket = f"{self.work}/csi.sock"
        end = time.monotonic() + START_SECONDS
        while not answers(socket):
            expect(self._process.poll() is None, f"the driver ended with {self._process.returncode}")
            expect(time.monotonic() < end, f"the driver does not answer after {START_SECONDS} s")
            time.sleep(0.005)
        self.client = Client(socket)
        self.client.wait(START_SECONDS)
        return self.client

    def kill(self, number: int = signal.SIGKILL) -> int | None:
        """Send a signal and wait for the end; the exit code, None where it does not run."""
        if self.client is not None:
            self.client.close()
        if self._process is None:
            return None
        self._process.send_signal(number)
        try:
            code = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)
