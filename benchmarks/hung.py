"""What a volume whose storage hangs costs the others: Probe, and publish with unpublish of another volume.

Run as root: `python benchmarks/hung.py [rounds]`. Starts volkit-csi with the loop backend, measures, makes every call
of one volume hang inside the backend, keeps 64 callers calling it, and measures again. Milliseconds, p50 and p99.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from volkit_csi.client import CallError, Client
from volkit_csi.wire import csi_pb2 as pb

CALLERS = 64
HANGING = """
import os, time
from volkit_loop import controller
get = controller.LoopController.get_volume
def hanging(self, request):
    while request.volume_id and os.path.exists(os.path.join(os.environ["TMPDIR"], request.volume_id)):
        time.sleep(0.01)
    return get(self, request)
controller.LoopController.get_volume = hanging
from volkit_csi.main import main
raise SystemExit(main())
"""


def times(rounds: int, *actions: Callable[[], object]) -> list[list[float]]:
    """The sorted durations of each action in milliseconds, one round of all after the other."""
    found: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, durations in zip(actions, found, strict=True):
            begun = time.perf_counter()
            action()
            durations.append((time.perf_counter() - begun) * 1000)
    return [sorted(one) for one in found]


def shown(durations: list[float]) -> str:
    return f"{durations[len(durations) // 2]:.2f} / {durations[int(len(durations) * 0.99)]:.2f}"


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "pool").mkdir()
        options = [
            "--backend",
            "loop",
            "-o",
            f"pool={home}/pool",
            "--state-dir",
            f"{home}/state",
            "--node-id",
            "n1",
        ]
        command = [sys.executable, "-c", HANGING, *options, "--endpoint", f"unix://{home}/csi.sock"]
        environment = {**os.environ, "TMPDIR": directory}
        driver = subprocess.Popen([*command, "--grace", "0.1", "--log-level", "error"], env=environment)
        try:
            with Client(f"unix://{home}/csi.sock") as client:
                client.wait()
                measure(client, home, rounds)
        finally:
            for file in home.glob("v-*"):
                file.unlink()
            driver.terminate()
            driver.wait(30)


def measure(client: Client, home: Path, rounds: int) -> None:
    kind = pb.VolumeCapability(access_mode={"mode": "SINGLE_NODE_MULTI_WRITER"}, block={})
    sizes = {"required_bytes": 1 << 20}
    create = [
        pb.CreateVolumeRequest(name=name, volume_capabilities=[kind], capacity_range=sizes) for name in "ab"
    ]
    stuck, other = (client.call("CreateVolume", one).volume.volume_id for one in create)
    staging, target = str(home / "staging"), str(home / "target")
    words = {"volume_id": other, "staging_target_path": staging, "volume_capability": kind}
    client.call("NodeStageVolume", pb.NodeStageVolumeRequest(**words))
    publish = pb.NodePublishVolumeRequest(target_path=target, **words)
    unpublish = pb.NodeUnpublishVolumeRequest(volume_id=other, target_path=target)

    def use() -> None:
        client.call("NodePublishVolume", publish)
        client.call("NodeUnpublishVolume", unpublish)

    ends = threading.Event()

    def call_the_stuck_one() -> None:
        request = pb.ValidateVolumeCapabilitiesRequest(volume_id=stuck, volume_capabilities=[kind])
        while not ends.is_set():
            with suppress(CallError):
                client.call("ValidateVolumeCapabilities", request, timeout=5)

    before = times(rounds, lambda: client.call("Probe"), use)
    (home / stuck).touch()
    callers = [threading.Thread(target=call_the_stuck_one) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    time.sleep(3)
    during = times(rounds, lambda: client.call("Probe"), use)
    ends.set()
    (home / stuck).unlink()
    for caller in callers:
        caller.join()
    client.call(
        "NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=other, staging_target_path=staging)
    )
    print("| ms, p50 / p99 | before | one volume hangs, 64 callers call it |\n|---|---|---|")
    for name, one, two in zip(
        ("Probe", "NodePublish + NodeUnpublish of another"), before, during, strict=True
    ):
        print(f"| {name} | {shown(one)} | {shown(two)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
