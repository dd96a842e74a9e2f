"""Run the drivers that are installed in a virtual environment as their users do: `run_installed.py ENV csi flex …`

Each serves the loop backend and takes a volume all the way: created, mounted, written to, unmounted, deleted, and
nothing left. With `--newer ENV2` the drivers of the first environment are replaced by those of the second while volumes
are mounted, and these again by the first: an upgrade and a rollback. As root, with loop devices; nothing of volkit is
imported here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = "16Mi"
START_SECONDS = 60.0
AGAIN_SECONDS = 30.0


class Failed(Exception):
    """What did not happen, for people."""


class Driver(ABC):
    """One adapter's driver below `home`, started from the environment that `env` names."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = Path()
        self.process: subprocess.Popen[bytes] | None = None
        (home / "pool").mkdir(parents=True)

    def flags(self) -> list[str]:
        where = ["-o", f"pool={self.home}/pool", "--state-dir", f"{self.home}/state"]
        return ["--backend", "loop", *where, "--node-id", "n1"]

    def run(self, program: str | Path, *words: str) -> str:
        """What a program of the environment, or at a path, prints; it has to succeed."""
        path = self.env / "bin" / program
        ended = subprocess.run([path, *words], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise Failed(
                f"{program} {' '.join(words)}: {ended.returncode}\n{ended.stdout}{ended.stderr}{self.log()}"
            )
        return ended.stdout

    def log(self) -> str:
        return "".join(
            path.read_text() for path in (self.home / "log", self.home / "state/flex.log") if path.exists()
        )

    def serve(self, program: str, *words: str) -> None:
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.env / "bin" / program, *self.flags(), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{program} does not serve:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            if self.process.wait(30):
                raise Failed(f"ended with {self.process.returncode}:\n{self.log()}")
            self.process = None

    def ready(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"{self.home}/sock")
        except OSError:
            return False
        return True

    @abstractmethod
    def start(self, env: Path) -> None: ...

    @abstractmethod
    def create(self, name: str) -> None: ...

    @abstractmethod
    def mount(self, name: str, user: str) -> Path:
        """Where the volume is, for this user of it."""

    @abstractmethod
    def unmount(self, name: str, user: str) -> None: ...

    @abstractmethod
    def delete(self, name: str) -> None: ...


class Csi(Driver):
    """As kubelet and the sidecars call it, by `volkit call`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.volumes: dict[str, dict[str, Any]] = {}
        self.users: dict[str, set[str]] = {}

    def start(self, env: Path) -> None:
        self.env = env
        self.serve("volkit-csi", "--endpoint", f"unix://{self.home}/sock")

    def call(self, rpc: str, *words: str) -> dict[str, Any]:
        said = self.run("volkit", "call", rpc, *words, "--endpoint", f"unix://{self.home}/sock", "--json")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def create(self, name: str) -> None:
        self.volumes[name] = self.call("create-volume", "--name", name, "--size", SIZE, "--fs-type", "ext4")[
            "volume"
        ]

    def _of(self, name: str) -> list[str]:
        context = self.volumes[name].get("volume_context", {})
        pairs = [word for key, value in context.items() for word in ("--volume-context", f"{key}={value}")]
        shared = ["--access-mode", "single-node-multi-writer", "--fs-type", "ext4"]
        return [*self._id(name), "--staging-target-path", str(self._staging(name)), *shared, *pairs]

    def _id(self, name: str) -> list[str]:
        return ["--volume-id", self.volumes[name]["volume_id"]]

    def _staging(self, name: str) -> Path:
        return self.home / "kubelet/staging" / name

    def _target(self, name: str, user: str) -> Path:
        return self.home / "kubelet/pods" / user / name

    def mount(self, name: str, user: str) -> Path:
        staging, target = self._staging(name), self._target(name, user)
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.call("node-stage-volume", *self._of(name))
        self.call("node-publish-volume", *self._of(name), "--target-path", str(target))
        self.users.setdefault(name, set()).add(user)
        return target

    def unmount(self, name: str, user: str) -> None:
        self.call("node-unpublish-volume", *self._id(name), "--target-path", str(self._target(name, user)))
        self.users[name].discard(user)
        if not self.users[name]:
            self.call(
                "node-unstage-volume", *self._id(name), "--staging-target-path", str(self._staging(name))
            )

    def delete(self, name: str) -> None:
        self.call("delete-volume", *self._id(name))


class Docker(Driver):
    """As dockerd calls a volume plugin."""

    def start(self, env: Path) -> None:
        self.env = env
        self.serve("volkit-docker", "--socket", f"{self.home}/sock")

    def post(self, method: str, **body: object) -> dict[str, Any]:
        connection = http.client.HTTPConnection("docker", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(f"{self.home}/sock")
            connection.request("POST", f"/VolumeDriver.{method}", json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer.get("Err"):
            raise Failed(f"{method} {body}: {answer['Err']}\n{self.log()}")
        return answer

    def create(self, name: str) -> None:
        self.post("Create", Name=name, Opts={"size": SIZE})

    def mount(self, name: str, user: str) -> Path:
        return Path(self.post("Mount", Name=name, ID=user)["Mountpoint"])

    def unmount(self, name: str, user: str) -> None:
        self.post("Unmount", Name=name, ID=user)

    def delete(self, name: str) -> None:
        self.post("Remove", Name=name)


class Flex(Driver):
    """As kubelet calls the launcher; a volume is made when it is first mounted, and is not deleted by FlexVolume."""

    launcher: Path

    def start(self, env: Path) -> None:
        self.env = env
        said = self.run(
            "volkit-flex", "install", *self.flags(), "--vendor", "acme", "--plugin-dir", f"{self.home}/exec"
        )
        self.launcher = Path(said.split()[1])

    def call(self, *words: str) -> None:
        answer = json.loads(self.run(self.launcher, *words))
        if answer["status"] != "Success":
            raise Failed(f"{words}: {answer}\n{self.log()}")

    def create(self, name: str) -> None:
        """`mount` does."""

    def _target(self, name: str, user: str) -> Path:
        return self.home / "kubelet/pods" / user / "volumes/acme~loop" / name

    def mount(self, name: str, user: str) -> Path:
        target = self._target(name, user)
        target.mkdir(parents=True)
        self.call(
            "mount", str(target), json.dumps({"volume": name, "size": SIZE, "kubernetes.io/readwrite": "rw"})
        )
        return target

    def unmount(self, name: str, user: str) -> None:
        self.call("unmount", str(self._target(name, user)))

    def delete(self, name: str) -> None:
        for image in (self.home / "pool/volumes").rglob("*.img"):
            image.unlink()


DRIVERS: dict[str, type[Driver]] = {"csi": Csi, "docker": Docker, "flex": Flex}


def again(call: Callable[[str, str], None], name: str, user: str) -> None:
    """An unmount, as orchestrators make it: once more where a device is still busy, since a container that
    starts elsewhere on this host has a copy of all mounts for a moment.
    """
    end = time.monotonic() + AGAIN_SECONDS
    while True:
        try:
            return call(name, user)
        except Failed as error:
            if "in use" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.5)


def whole_way(driver: Driver, env: Path) -> None:
    """One volume, from nothing to nothing."""
    driver.start(env)
    driver.create("one")
    write(driver.mount("one", "a"), "written")
    again(driver.unmount, "one", "a")
    expect(driver.mount("one", "b"), "written")
    again(driver.unmount, "one", "b")
    driver.delete("one")
    driver.stop()


def there_and_back(driver: Driver, old: Path, new: Path) -> None:
    """What is made and mounted by each version is used, unmounted and deleted by the other."""
    driver.start(old)
    driver.create("early")
    early = driver.mount("early", "a")
    write(early, "by the old one")
    driver.create("unused")
    with (early / "open").open("a") as held:  # a pod's file, open all the while
        driver.stop()
        driver.start(new)
        held.write("before")
        held.flush()
        expect(early, "by the old one")
        expect(driver.mount("early", "b"), "by the old one")  # the same volume for a second user
        driver.create("late")
        late = driver.mount("late", "a")
        write(late, "by the new one")
        again(driver.unmount, "early", "b")
        driver.create("early")  # a repeat: the volume that is there
        driver.stop()
        driver.start(old)
        held.write(" and after")
    expect(late, "by the new one")
    if (early / "open").read_text() != "before and after":
        raise Failed(f"what was written to {early}/open is not there")
    driver.create("late")
    for name in ("early", "late"):
        again(driver.unmount, name, "a")
    for name in ("early", "late", "unused"):
        driver.delete(name)
    driver.stop()


def write(directory: Path, text: str) -> None:
    with (directory / "file").open("w") as file:
        file.write(text)
        os.fsync(file.fileno())


def expect(directory: Path, text: str) -> None:
    found = (directory / "file").read_text()
    if found != text:
        raise Failed(f"{directory}/file has {found!r}, not {text!r}")


def left(home: Path) -> list[str]:
    """Mounts, loop devices and volumes below `home`."""
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    devices = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(f"{home}/"):
                devices.append(f"/dev/{backing.parts[3]}")
        except OSError:  # detached meanwhile
            continue
    images = [str(path) for path in (home / "pool").rglob("*.img")]
    return [*(one for one in mounts if one.startswith(f"{home}/")), *devices, *images]


@contextmanager
def one(name: str) -> Iterator[Driver]:
    """A driver in a directory of its own, of which nothing is left also when it fails."""
    home = Path(tempfile.mkdtemp(prefix="volkit-"))
    driver = DRIVERS[name](home)
    try:
        yield driver
        if there := left(home):
            raise Failed(f"left behind by {name}: {', '.join(there)}")
    finally:
        if driver.process is not None:
            driver.process.kill()
            driver.process.wait()
        for thing in reversed(left(home)):
            if thing.startswith("/dev/"):
                subprocess.run(["losetup", "-d", thing], check=False)
            elif os.path.ismount(thing):
                subprocess.run(["umount", thing], check=False)
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", type=Path)
    parser.add_argument("drivers", nargs="+", choices=DRIVERS)
    parser.add_argument("--newer", type=Path)
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("needs root, for mounts and loop devices")
    for name in args.drivers:
        begun = time.monotonic()
        try:
            with one(name) as driver:
                if args.newer:
                    there_and_back(driver, args.env.absolute(), args.newer.absolute())
                else:
                    whole_way(driver, args.env.absolute())
        except Failed as error:
            sys.exit(f"volkit-{name}: {error}")
        what = "upgraded and rolled back" if args.newer else "ran a volume all the way"
        print(f"volkit-{name} {what} in {time.monotonic() - begun:.1f} s")


main()
