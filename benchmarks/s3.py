"""What a bucket's mount costs by volkit beside the bare program: until it is ready, memory, write and read.

    python benchmarks/s3.py [s3fs|rclone …]

On a Ceph gateway of its own, as the tests have it (its programs have to be installed), as root. In each round one side
follows the other, and who begins alternates; a figure is the median of three rounds. Both sides run the same program
with the same arguments: `bare` starts it as a child and waits for its mount, with nothing of volkit in between, so that
they differ by volkit alone. `ready` is until the mount point is a mount that answers.
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

sys.path.insert(0, str(Path(__file__).parent.parent / "plugins/volkit-s3/tests"))

from volkit import Capability, FuseConnection, requests
from volkit.host import mounters, mounts
from volkit.objects import Program
from volkit_s3.node import S3PodNode

servers: Any = importlib.import_module("s3.servers")  # the tests' own
World: Any = importlib.import_module("s3.world").World
MIB = 1 << 20
SIZE = 256
ROUNDS = 3
Figures = dict[str, float]


class Bare:
    """The program as somebody would start it by hand."""

    def __init__(self, connection: FuseConnection, home: Path) -> None:
        home.mkdir()
        self.place = home / "mount"
        self.connection = attrs.evolve(connection, cache=str(home / "cache"), directory=str(home))
        for one in (self.place, home / "cache", home / "files"):
            one.mkdir()
        for name, content in connection.files.items():
            (home / "files" / name).write_text(content)
            (home / "files" / name).chmod(0o600)
        self.places = {"{target}": str(self.place), "{files}": f"{home}/files", "{cache}": f"{home}/cache"}

    def mount(self) -> Path:
        argv = [self._filled(word) for word in self.connection.argv]
        more = {name: self._filled(word) for name, word in self.connection.environment.items()}
        env = {"PATH": os.environ["PATH"], **more}
        # in a session of its own, as volkit's: Linux shares a busy processor out by session (sched_autogroup)
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
        while not os.path.ismount(self.place):
            assert self.process.poll() is None, "the program ended"
            time.sleep(0.002)
        os.statvfs(self.place)
        return self.place

    def pid(self) -> int:
        return self.process.pid

    def unmount(self) -> None:
        servers.wait_until(lambda: not mounters.pending(self.connection), "nothing is stored", seconds=120)
        mounts.unmount(str(self.place))
        self.process.wait(60)

    def _filled(self, word: str) -> str:
        for mark, place in self.places.items():
            word = word.replace(mark, place)
        return word


class ByVolkit:
    """A volume that is published and unpublished."""

    def __init__(self, world: Any, name: str) -> None:
        self.world, self.name = world, name

    def mount(self) -> Path:
        place: Path = self.world.publish(self.name)
        return place

    def pid(self) -> int:
        return int((self.world.programs()[0] / "pid").read_text().split()[0])

    def unmount(self) -> None:
        self.world.unpublish(self.name)


def measured(side: Bare | ByVolkit) -> Figures:
    """One round: milliseconds, MiB, MiB/s."""
    begun = time.monotonic()
    place = side.mount()
    ready = time.monotonic() - begun
    piece = os.urandom(MIB)

    def write() -> None:
        with open(place / "big", "wb") as file:
            for _ in range(SIZE):
                file.write(piece)

    def read() -> None:
        with open(place / "big", "rb") as file:
            while file.read(MIB):
                pass

    written, read_again = (SIZE / seconds(call) for call in (write, read))
    status = Path(f"/proc/{side.pid()}/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    side.unmount()
    return {
        "ready ms": 1000 * ready,
        "RSS MiB": memory,
        "write MiB/s": written,
        "read MiB/s": read_again,
    }


def seconds(call: Callable[[], None]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def rounds(server: Any, home: Path, program: Program) -> dict[str, Figures]:
    settings = servers.settings_of(server, mounter=program)
    name = f"bench-{program.value}"
    servers.client(server.port).create_bucket(Bucket=name)
    world = World(home / program.value, settings)
    request = requests.ConnectRequest(volume_id=name, node_id="n1", capability=Capability())
    bare = Bare(S3PodNode(settings, "n1").connect(request), home / f"bare-{program.value}")
    sides: dict[str, Bare | ByVolkit] = {"volkit": ByVolkit(world, name), "bare": bare}
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for number in range(ROUNDS + 1):
        for side in sorted(sides, reverse=bool(number % 2)):
            figures = measured(sides[side])
            if number:  # the first round warms up
                found[side].append(figures)
    world.engine.close()
    return {
        side: {key: statistics.median(one[key] for one in every) for key in every[0]}
        for side, every in found.items()
    }


def main() -> None:
    programs = [Program(one) for one in sys.argv[1:]] or [Program.S3FS, Program.RCLONE]
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        os.environ["VOLKIT_RUN_DIR"] = str(home / "run")
        (home / "rgw").mkdir()
        server = servers.Rgw(home / "rgw")
        try:
            for program in programs:
                for side, figures in rounds(server, home, program).items():
                    shown = "  ".join(f"{key} {value:.0f}" for key, value in figures.items())
                    print(f"{program.value:8} {side:8} {shown}", flush=True)
        finally:
            for one in reversed(mounts.mounts(under=directory)):
                mounts.unmount(one.mount_point, lazy=True)
            servers.stop_programs(home / "run")
            server.close()


if __name__ == "__main__":
    main()
