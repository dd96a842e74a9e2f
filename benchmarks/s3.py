"""What a bucket's mount costs by volkit beside the bare program: until it is ready, memory, write and read.

    python benchmarks/s3.py [s3fs|rclone …]

On a Ceph gateway of its own, as the tests have it (its programs have to be installed), as root. Each figure is the
median of three rounds; both sides run the same program with the same arguments, so that they differ by volkit alone.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "plugins/volkit-s3/tests"))

from volkit import Capability, requests
from volkit.host import fuse, mounts
from volkit.objects import Program
from volkit_s3.node import S3PodNode

servers: Any = importlib.import_module("s3.servers")  # the tests' own
World: Any = importlib.import_module("s3.world").World
SIZE = 256 << 20
ROUNDS = 3


def measured(
    mount: Callable[[], Path], unmount: Callable[[], None], pid: Callable[[], int]
) -> dict[str, float]:
    """One round: milliseconds, MiB, MiB/s."""
    begun = time.monotonic()
    place = mount()
    ready = time.monotonic() - begun
    piece, pieces = os.urandom(1 << 20), SIZE >> 20
    begun = time.monotonic()
    with open(place / "big", "wb") as file:
        for _ in range(pieces):
            file.write(piece)
    written = time.monotonic() - begun
    begun = time.monotonic()
    with open(place / "big", "rb") as file:
        while file.read(1 << 20):
            pass
    read = time.monotonic() - begun
    status = Path(f"/proc/{pid()}/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    unmount()
    return {
        "ready ms": 1000 * ready,
        "RSS MiB": memory,
        "write MiB/s": 256 / written,
        "read MiB/s": 256 / read,
    }


def rounds(server: Any, home: Path, program: Program) -> dict[str, dict[str, float]]:
    settings = servers.settings_of(server, mounter=program)
    name = f"bench-{program.value}"
    servers.client(server.port).create_bucket(Bucket=name)
    world = World(home / program.value, settings)
    node, place, run = S3PodNode(settings, "n1"), home / f"bare-{program.value}", str(home / "bare-run" / "x")
    place.mkdir()
    request = requests.ConnectRequest(volume_id=name, node_id="n1", capability=Capability())
    connection = node.connect(request)

    def bare() -> Path:
        fuse.start(connection, str(place), directory=run, cache=str(home / "bare-cache"))
        return place

    def pid(directory: Path) -> int:
        return int((directory / "pid").read_text().split()[0])

    sides: dict[str, list[dict[str, float]]] = {"volkit": [], "bare": []}
    for _ in range(ROUNDS):
        sides["volkit"].append(
            measured(
                lambda: world.publish(name), lambda: world.unpublish(name), lambda: pid(world.programs()[0])
            )
        )
        stop = lambda: fuse.stop(str(place), directory=run, timeout=60)  # noqa: E731
        sides["bare"].append(measured(bare, stop, lambda: pid(Path(run))))
    world.engine.close()
    return {
        side: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for side, found in sides.items()
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
            server.close()


if __name__ == "__main__":
    main()
