"""The driver as a process of its own, and what there is of it on the host: mounts, loop devices, files,
records.

What is looked at is looked at without volkit: /proc, /sys, the directory tree and the journal's SQLite file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from volkit_csi.client import CallError, Client

PROGRAM = Path(sys.executable).with_name("volkit-csi")
STOP_SECONDS = 90.0
START_SECONDS = 90.0  # a busy machine has been seen to take 40


class Driver:
    """`volkit-csi` with the loop backend, in a directory of its own: socket, log, and unless others are given pool and
    state.

    Its children are known by their TMPDIR, which the driver hands on: also those that outlive a kill.
    """

    def __init__(
        self,
        home: Path,
        *,
        pool: Path | None = None,
        state: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.pool = pool or home / "pool"
        self.state = state or home / "state"
        self.log = home / "log"
        self.endpoint = f"unix://{home}/csi.sock"
        self.arguments = list(arguments)
        self.environment = {**os.environ, "TMPDIR": str(home), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(self.endpoint)
        self.pool.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)

    def start(self, *, before: str = "") -> Driver:
        """Start it and wait until it is ready; `before` is Python that its process runs first."""
        options = [
            *("--backend", "loop", "-o", f"pool={self.pool}", "-o", "overcommit=100"),
            *("--state-dir", str(self.state), "--endpoint", self.endpoint, "--node-id", "n1"),
            *self.arguments,
        ]
        program = f"{before}\nfrom volkit_csi.main import main\nraise SystemExit(main())"
        command = [sys.executable, "-c", program] if before else [str(PROGRAM)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=self.environment,
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.wait(timeout=0.5)
            except CallError:
                may_yet = self.running() and time.monotonic() < end
                assert may_yet, f"it does not serve: {self._waits_for()}{self.text()[-2000:]}"
            else:
                return self

    def _waits_for(self) -> str:
        """What the kernel says that its threads wait for."""
        found = []
        for stack in Path(f"/proc/{self.process.pid if self.process else 0}/task").glob("*/stack"):
            with suppress(OSError):
                found.append(stack.read_text())
        return "\n".join(found)

    def running(self) -> bool:
        """Is the process there?"""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and nothing after it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait_dead(self, timeout: float = 90.0) -> int:
        """Wait until it has ended by itself; its exit status, negative for a signal."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> None:
        """SIGTERM; it must end well, by itself."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(STOP_SECONDS) == 0, self.text()[-2000:]

    def doctor(self, *words: str) -> list[dict[str, str]]:
        """What `volkit doctor` finds."""
        program = str(Path(sys.executable).with_name("volkit"))
        flags = ["--backend", "loop", "-o", f"pool={self.pool}", "-o", "overcommit=100"]
        flags += ["--state-dir", str(self.state), "--node-id", "n1", "--min-age", "0", "--json"]
        command = [program, "doctor", *flags, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        findings: list[dict[str, str]] = json.loads(done.stdout)
        assert done.returncode == any("repaired" not in one and one["sort"] != "advice" for one in findings)
        return findings

    def text(self) -> str:
        """What it has logged, over all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def records(self) -> dict[str, str]:
        """The journal's records by key, as JSON."""
        with closing(sqlite3.connect(f"file:{self.state}/journal.db?mode=ro", uri=True)) as journal:
            return dict(journal.execute("SELECT key, value FROM record"))

    def locked(self) -> bool:
        """Does anybody hold a lock of the state directory (man 2 fcntl, F_OFD_GETLK)?"""
        layout = "hhqqi4x"
        with (self.state / "locks").open("r+b") as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack(layout, answer)[0] != fcntl.F_UNLCK)

    def images(self) -> list[str]:
        """The files of the pool, without its ledger."""
        return sorted(
            str(path.relative_to(self.pool))
            for path in self.pool.rglob("*")
            if path.is_file() and path != self.pool / "ledger"
        )

    def left(self) -> list[str]:
        """All that is there of any volume or snapshot, one line each; empty when everything was undone."""
        return [
            *(f"mount {point}" for point in mounts(self.home)),
            *(f"loop device {device}" for device in loops(self.home) if not is_going(device)),
            *(f"file {name}" for name in self.images()),
            *(f"record {key}" for key in self.records()),
            *(["a lock"] if self.locked() else []),
        ]

    def end(self) -> None:
        """Kill it and everything it started, unmount and detach what is below its directory."""
        self.client.close()
        self.end_processes()
        sweep(self.home)

    def end_processes(self) -> None:
        """SIGKILL to it and to everything it started."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 60
        while orphans := list(self.children()):
            for pid in orphans:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"processes that do not end: {orphans}"
            time.sleep(0.02)

    def children(self) -> Iterator[int]:
        """The processes that have its TMPDIR."""
        mark = f"TMPDIR={self.home}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def mounts(below: Path) -> dict[str, str]:
    """Mount points below a directory, in the order of their mounting, with their root, type, source and options."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if point.startswith(f"{below}/"):
            found[point] = " ".join((fields[3], fields[5], *fields[fields.index("-") + 1 :]))
    return found


def loops(below: Path) -> dict[str, str]:
    """Loop devices of files below a directory, deleted ones too, with the file and whether they are read-only."""
    found = {}
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            backing = attribute.read_text(errors="surrogateescape").strip()
            if backing.startswith(f"{below}/"):
                found[f"/dev/{attribute.parts[3]}"] = (
                    f"{backing} {(attribute.parents[1] / 'ro').read_text().strip()}"
                )
    return found


def is_going(device: str) -> bool:
    """Is it detached, and somebody looks at it still (blkid, a doctor of another test)? It goes when he closes it."""
    try:
        return Path(f"/sys/block/{device[5:]}/loop/autoclear").read_text() == "1\n"
    except FileNotFoundError:
        return True


def tree(top: Path) -> dict[str, str]:
    """Everything below a directory, not below mounts: its mode, of a file size and time too, of a link its end."""
    found: dict[str, str] = {}
    here = top.stat().st_dev
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory, name)
            status = path.lstat()
            text = f"{status.st_mode:o}"
            if path.is_symlink():
                text += f" -> {os.readlink(path)}"
            elif path.is_file() and status.st_dev == here:
                text += f" {status.st_size} {status.st_mtime_ns}"
            found[str(path)] = text
        names[:] = [name for name in names if Path(directory, name).lstat().st_dev == here]
    return found


def sweep(home: Path) -> None:
    """Unmount and detach everything below a directory, innermost first."""
    for point in reversed(mounts(home)):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    deadline = time.monotonic() + 60
    while devices := loops(home):
        for device in devices:
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)
        if not loops(home):
            return
        assert time.monotonic() < deadline, f"loop devices that do not go: {devices}"
        time.sleep(0.05)
