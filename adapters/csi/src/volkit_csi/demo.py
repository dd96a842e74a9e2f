"""`volkit demo`: one volume all the way, on real devices or directories, with a crash in the middle.

A `volkit-csi` of its own serves a backend on a pool in a temporary directory: loop, or local, which needs no root where
a process may have a user namespace of its own. At the end the host is looked at by other eyes than the driver's: no
mount, loop device, file or process may be left.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import volkit
from volkit.host import rootless
from volkit_csi.child import Driver, Failed, expect
from volkit_csi.client import CallError, Client
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.witness import (
    CAP_SYS_ADMIN,
    CAP_SYS_RESOURCE,
    has_capability,
    loop_devices,
    missing_for,
    mounts,
    processes,
    total,
)

SIZE: Final = 320 * 1024 * 1024  # mkfs.xfs refuses less than 300 MiB
GROWN: Final = 512 * 1024 * 1024
SMALL: Final = 64 * 1024 * 1024
FILE: Final = 4 * 1024 * 1024
NAMES: Final = ("demo", "demo-restored")


def main(
    backend: str = "loop", *, as_json: bool = False, keep: bool = False, parent: str | None = None
) -> int:
    """Run the demo in a new directory below `parent`, and print a line per step.

    Returns 0, or 1 where anything failed or was left behind.
    """
    fs_type = "" if backend == "local" else "ext4" if has_capability(CAP_SYS_RESOURCE) else "xfs"
    missing = missing_for(fs_type)
    if not missing and not has_capability(CAP_SYS_ADMIN):
        missing = become_root()
    if missing:
        print(f"volkit demo: {missing}", file=sys.stderr)
        return 1
    report = Report(as_json)
    work = Path(tempfile.mkdtemp(prefix="volkit-demo-", dir=parent)).resolve()
    demo = Demo(work, fs_type, report, backend)
    failure = attempt(demo)
    demo.driver.kill()
    left = demo.left()
    report.end(failure, left, demo.driver.log if failure else None)
    demo.clean_up()
    if keep:
        print(f"volkit demo: the driver's log and records are in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    return 1 if failure or left else 0


def become_root() -> str:
    """In a user namespace of this process's own; returns why that is not possible, or ""."""
    try:
        rootless.become_root()
    except volkit.VolkitError as error:
        return f"without root it needs a user namespace, and {error.message}"
    return ""


def attempt(demo: Demo) -> str:
    """Run the steps; returns why they ended before the last, "" where they did not."""
    try:
        demo.run()
    except (Failed, CallError, OSError, volkit.VolkitError) as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted"
    except Exception as error:  # what was made so far is taken away all the same
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


class Report:
    """A line per step as it ends, or all of it as JSON at the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.steps: list[dict[str, Any]] = []
        self.start: float = time.monotonic()

    @contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """Time what is inside; what is put into the list is shown behind the text."""
        notes: list[str] = []
        start = time.monotonic()
        yield notes
        seconds = time.monotonic() - start
        self.steps.append({"step": text, "seconds": round(seconds, 6), "notes": notes})
        if not self.as_json:
            print(f"{seconds * 1000:9.1f} ms  {text:<46}{'; '.join(notes)}".rstrip(), flush=True)

    def end(self, failure: str, left: list[str], log: Path | None) -> None:
        """The verdict."""
        seconds = time.monotonic() - self.start
        if self.as_json:
            import json

            verdict = {
                "steps": self.steps,
                "seconds": round(seconds, 6),
                "failure": failure or None,
                "left": left,
            }
            print(json.dumps(verdict, indent=2))
        elif not left and not failure:
            print(f"Nothing is left: no mount, no loop device, no file, no process. {seconds:.1f} s in all.")
        if failure:
            print(f"volkit demo: failed: {failure}", file=sys.stderr)
        for thing in left if not self.as_json else ():
            print(f"volkit demo: left behind: {thing}", file=sys.stderr)
        if log is not None and log.exists():
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            print("\n".join(["volkit demo: the end of the driver's log:", *tail]), file=sys.stderr)


class Demo:
    """The steps, on a working directory of their own."""

    def __init__(self, work: Path, fs_type: str, report: Report, backend: str = "loop") -> None:
        self.work: Path = work
        self.fs_type: str = fs_type
        self.step: Callable[[str], AbstractContextManager[list[str]]] = report.step
        self.driver: Driver = Driver(work, backend)
        self.size, self.grown = (SIZE, GROWN) if backend == "loop" else (SMALL, 2 * SMALL)
        self.parameters: dict[str, str] = {} if backend == "loop" else {"advisorySize": "true"}
        self.capability: pb.VolumeCapability = pb.VolumeCapability(
            mount=pb.VolumeCapability.MountVolume(fs_type=fs_type),
            access_mode=pb.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER"),
        )
        self.node_id: str = ""
        self.publishes: bool = False
        self.files_before: set[str] = set()

    def run(self) -> None:
        """All steps. Raises Failed or CallError at the first that goes wrong."""
        (self.work / "pool").mkdir()
        with self.step("start the driver"):
            client = self.driver.start()
        self._meet(client)
        self.files_before = self._files()  # the pool's own ledger
        volume = self._create(client, NAMES[0])
        self._make_available(client, volume, "volume")
        first = self._write("volume", "write a file")
        snapshot = self._snapshot(client, volume)
        second = self._write("volume", "write over the file")
        self._expand(client, volume)
        client, restored = self._restore_through_a_crash(client, snapshot)
        self._make_available(client, restored, "restored")
        self._read("volume", second, "read the volume's file")
        self._read("restored", first, "read the restored volume's file")
        self._stats(client, volume)
        for one, name in ((restored, "restored"), (volume, "volume")):
            self._take_away(client, one, name)
        self._delete(client, snapshot, (restored, volume))
        with self.step("stop the driver") as notes:
            code = self.driver.kill(signal.SIGTERM)
            expect(code == 0, f"the driver ended with {code}")
            notes.append("SIGTERM, exit code 0")

    # -- the controller's part -------------------------------------------------------------------------------

    def _meet(self, client: Client) -> None:
        with self.step("ask what it can do") as notes:
            info = client.GetPluginInfo()
            controller = client.ControllerGetCapabilities().capabilities
            names = {pb.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in controller}
            self.node_id = client.NodeGetInfo().node_id
            self.publishes = "PUBLISH_UNPUBLISH_VOLUME" in names
            free = volkit.format_size(client.GetCapacity().available_capacity >> 20 << 20)
            notes.append(
                f"{info.name} {info.vendor_version}, {len(names)} controller capabilities, {free} free"
            )

    def _request(self, name: str, snapshot_id: str = "") -> Any:
        request = pb.CreateVolumeRequest(
            name=name,
            capacity_range=pb.CapacityRange(required_bytes=self.size),
            volume_capabilities=[self.capability],
            parameters=self.parameters,
        )
        if snapshot_id:
            request.volume_content_source.snapshot.snapshot_id = snapshot_id
        return request

    def _create(self, client: Client, name: str) -> Any:
        with self.step("create a volume") as notes:
            volume = client.CreateVolume(self._request(name)).volume
            notes += [volume.volume_id, volkit.format_size(volume.capacity_bytes)]
            if self._advisory(volume):
                notes.append("a size that nothing enforces: the pool is not on btrfs")
        return volume

    def _snapshot(self, client: Client, volume: Any) -> Any:
        with self.step("snapshot it, mounted and in use") as notes:
            request = pb.CreateSnapshotRequest(source_volume_id=volume.volume_id, name=NAMES[0])
            snapshot = client.CreateSnapshot(request).snapshot
            expect(snapshot.ready_to_use, "the snapshot is not ready")
            notes.append(snapshot.snapshot_id)
        return snapshot

    def _expand(self, client: Client, volume: Any) -> None:
        path = self._target("volume")
        why = ", xfs since ext4 needs CAP_SYS_RESOURCE for it" if self.fs_type == "xfs" else ""
        with self.step("expand it online") as notes:
            before = self._total(client, volume)
            size = pb.CapacityRange(required_bytes=self.grown)
            answer = client.ControllerExpandVolume(
                pb.ControllerExpandVolumeRequest(
                    volume_id=volume.volume_id, capacity_range=size, volume_capability=self.capability
                )
            )
            if answer.node_expansion_required:
                client.NodeExpandVolume(
                    pb.NodeExpandVolumeRequest(
                        volume_id=volume.volume_id,
                        volume_path=str(path),
                        staging_target_path=str(self._staging("volume")),
                        capacity_range=size,
                        volume_capability=self.capability,
                    )
                )
            expect(answer.capacity_bytes >= self.grown, f"it was expanded to {answer.capacity_bytes} bytes")
            if self._advisory(volume):
                notes.append(f"{self.size >> 20} to {self.grown >> 20} MiB are said")
                return
            grown = self._total(client, volume)
            expect(grown > before, f"the volume has {grown} bytes, and had {before}")
            notes.append(f"{before >> 20} to {grown >> 20} MiB as its users see it{why}")

    def _advisory(self, volume: Any) -> bool:
        return bool(volume.volume_context.get("sizeEnforced") == "false")

    def _total(self, client: Client, volume: Any) -> int:
        """Bytes: of its file system as df sees it, of a directory as its quota has it."""
        return total(self._target("volume")) if self.fs_type else int(self._usage(client, volume).total)

    def _restore_through_a_crash(self, client: Client, snapshot: Any) -> tuple[Client, Any]:
        request = self._request(NAMES[1], snapshot.snapshot_id)
        outcome: list[str] = []

        def call() -> None:
            try:
                client.CreateVolume(request)
                outcome.append("it had answered just before")
            except CallError as error:
                outcome.append(f"the call got {error.code}")

        with self.step("restore the snapshot, and kill -9 the driver") as notes:
            caller = threading.Thread(target=call)
            caller.start()
            time.sleep(0.005)
            # the channel stays open: the caller shall see the connection break
            self.driver.client = None
            self.driver.kill(signal.SIGKILL)
            caller.join()
            client.close()
            notes += outcome
        self._read("volume", None, "read from the volume, without a driver")
        with self.step("start the driver again"):
            client = self.driver.start()
        with self.step("repeat the call") as notes:
            volume = client.CreateVolume(request).volume
            there = [entry.volume.volume_id for entry in client.ListVolumes().entries]
            expect(len(there) == len(NAMES), f"{len(there)} volumes where {len(NAMES)} are due: {there}")
            notes += [volume.volume_id, "not one too many"]
        return client, volume

    def _delete(self, client: Client, snapshot: Any, volumes: tuple[Any, ...]) -> None:
        with self.step("delete the snapshot"):
            client.DeleteSnapshot(pb.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id))
        with self.step("delete the volumes"):
            for volume in volumes:
                client.DeleteVolume(pb.DeleteVolumeRequest(volume_id=volume.volume_id))

    # -- the node's part -------------------------------------------------------------------------------------

    def _staging(self, name: str) -> Path:
        return self.work / f"{name}-staging"

    def _target(self, name: str) -> Path:
        return self.work / f"{name}-target"

    def _make_available(self, client: Client, volume: Any, name: str) -> None:
        context: dict[str, str] = {}
        if self.publishes:
            with self.step(f"attach the {name} to the node"):
                request = pb.ControllerPublishVolumeRequest(
                    volume_id=volume.volume_id,
                    node_id=self.node_id,
                    volume_capability=self.capability,
                    volume_context=volume.volume_context,
                )
                context = dict(client.ControllerPublishVolume(request).publish_context)
        common = {
            "volume_id": volume.volume_id,
            "publish_context": context,
            "staging_target_path": str(self._staging(name)),
            "volume_capability": self.capability,
            "volume_context": volume.volume_context,
        }
        self._staging(name).mkdir()
        text = "mkfs and mount" if volume.volume_context.get("firstFormat") else "mount, and no mkfs"
        text = f"{self.fs_type}: {text}" if self.fs_type else "a bind mount"
        with self.step(f"stage the {name}") as notes:
            client.NodeStageVolume(pb.NodeStageVolumeRequest(**common))
            notes.append(text)
        with self.step(f"publish the {name}"):
            client.NodePublishVolume(
                pb.NodePublishVolumeRequest(target_path=str(self._target(name)), **common)
            )
        expect(str(self._target(name)) in mounts(self.work), f"{self._target(name)} is no mount point")

    def _take_away(self, client: Client, volume: Any, name: str) -> None:
        volume_id = volume.volume_id
        with self.step(f"unpublish and unstage the {name}"):
            target, staging = str(self._target(name)), str(self._staging(name))
            client.NodeUnpublishVolume(pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target))
            client.NodeUnstageVolume(
                pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=staging)
            )
        if self.publishes:
            with self.step(f"detach the {name}"):
                request = pb.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=self.node_id)
                client.ControllerUnpublishVolume(request)
        self._staging(name).rmdir()

    def _write(self, name: str, text: str) -> str:
        with self.step(text) as notes:
            content = os.urandom(FILE)
            with (self._target(name) / "file").open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            digest = hashlib.sha256(content).hexdigest()
            notes.append(f"{FILE >> 20} MiB, sha256 {digest[:12]}")
        return digest

    def _read(self, name: str, digest: str | None, text: str) -> None:
        with self.step(text) as notes:
            found = hashlib.sha256((self._target(name) / "file").read_bytes()).hexdigest()
            expect(digest in (None, found), f"the file has sha256 {found}, and {digest} was written")
            notes.append(f"sha256 {found[:12]}" + (", as written" if digest else ""))

    def _stats(self, client: Client, volume: Any) -> None:
        with self.step("ask how full it is") as notes:
            usage = self._usage(client, volume)
            notes.append(f"{usage.used >> 20} of {usage.total >> 20} MiB used")

    def _usage(self, client: Client, volume: Any) -> Any:
        request = pb.NodeGetVolumeStatsRequest(
            volume_id=volume.volume_id, volume_path=str(self._target("volume"))
        )
        return next(
            one for one in client.NodeGetVolumeStats(request).usage if one.unit == pb.VolumeUsage.BYTES
        )

    # -- what is left ----------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """What the demo has put on this host and is still there, as the kernel tells it."""
        found = [f"mount {point}" for point in mounts(self.work)]
        found += [f"loop device {device} on {file}" for device, file in loop_devices(self.work).items()]
        found += [f"file {path}" for path in sorted(self._files() - self.files_before)]
        found += [f"path {path}" for path in sorted(self.work.glob("*-target"))]
        found += [f"process {process}" for process in processes(self.driver.sessions)]
        return found

    def clean_up(self) -> None:
        """Take away what a failed run has left, so that nothing of it is mounted when the directory is
        removed.
        """
        for point in reversed(mounts(self.work)):
            subprocess.run(["umount", point], check=False)
        for device in loop_devices(self.work):
            subprocess.run(["losetup", "--detach", device], check=False)
        if still := mounts(self.work):
            raise SystemExit(f"volkit demo: still mounted, so {self.work} is not removed: {', '.join(still)}")

    def _files(self) -> set[str]:
        return {
            str(path.relative_to(self.work)) for path in (self.work / "pool").rglob("*") if not path.is_dir()
        }
