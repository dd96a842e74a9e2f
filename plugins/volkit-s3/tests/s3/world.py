"""One node with a driver, as an orchestrator calls it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from volkit import AccessMode, Capability, CloneSource, CreateVolumeRequest, Engine, Secrets, Volume, requests
from volkit.host import fuse, mounts
from volkit.mending import Mending
from volkit_s3.backend import S3Backend
from volkit_s3.options import S3Settings

from .servers import wait_until


class World:
    """A state directory, and an engine on it."""

    def __init__(self, base: Path, settings: S3Settings, node_id: str = "n1") -> None:
        self.base, self.settings, self.node_id = base, settings, node_id
        base.mkdir(exist_ok=True)
        self.engine = self.process()

    def process(self) -> Engine:
        self.engine = Engine(S3Backend, self.settings, state_dir=self.base / "state", node_id=self.node_id)
        return self.engine

    def create(self, name: str, source: str = "", **parameters: str) -> Volume:
        request: CreateVolumeRequest[Any] = CreateVolumeRequest(
            name=name,
            parameters=parameters,
            capabilities=(Capability(),),
            source=CloneSource(source) if source else None,
        )
        made: Volume = self.engine.run("create_volume", request)
        return made

    def get(self, volume_id: str) -> Volume:
        found: requests.VolumeEntry = self.engine.run(
            "get_volume", requests.GetVolumeRequest(volume_id=volume_id)
        )
        return found.volume

    def delete(self, volume_id: str) -> None:
        self.engine.run("delete_volume", requests.DeleteVolumeRequest(volume_id=volume_id))

    def target(self, pod: str) -> Path:
        return self.base / "pods" / pod / "mount"

    def publish(
        self,
        volume_id: str,
        pod: str = "p1",
        *,
        readonly: bool = False,
        secrets: Mapping[str, str] | None = None,
        **capability: Any,
    ) -> Path:
        target = self.target(pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = requests.NodePublishRequest(
            volume_id=volume_id,
            target_path=str(target),
            capability=Capability(**{"access_mode": AccessMode.MULTI_NODE_MULTI_WRITER, **capability}),
            readonly=readonly,
            secrets=Secrets(secrets or {}),
        )
        self.engine.run("node_publish", request)
        return target

    def unpublish(self, volume_id: str, pod: str = "p1") -> None:
        path = str(self.target(pod))
        self.engine.run(
            "node_unpublish", requests.NodeUnpublishRequest(volume_id=volume_id, target_path=path)
        )

    def stats(self, volume_id: str, pod: str = "p1") -> requests.NodeStats:
        path = str(self.target(pod))
        found: requests.NodeStats = self.engine.run(
            "node_stats", requests.NodeStatsRequest(volume_id=volume_id, volume_path=path)
        )
        return found

    def mend(self) -> int:
        assert self.engine.node_state
        return Mending(self.engine.node_state).mend()

    def programs(self) -> list[Path]:
        """The directories of the programs that run."""
        below = Path(os.environ["VOLKIT_RUN_DIR"], "s3")
        return sorted(below.iterdir()) if below.exists() else []

    def kill_program(self) -> None:
        (directory,) = self.programs()
        os.kill(int((directory / "pid").read_text().split()[0]), signal.SIGKILL)
        wait_until(lambda: not fuse.is_running(str(directory)), "a killed program still runs")

    def assert_clean(self) -> None:
        assert self.programs() == []
        assert not mounts.mounts(under=str(self.base))
        assert not list((self.base / "state").glob("cache/*"))
        assert self.engine.node_journal.scan("target/") == []


def words_of(pid: int) -> bytes:
    """What everybody who may read this process's /proc sees of how it was started."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def outcome(error: pytest.ExceptionInfo[BaseException]) -> str:
    """Everything that an error shows, with those behind it."""
    import traceback

    return "".join(traceback.format_exception(error.value)) + repr(error.value.__context__)


def sha(path: Path) -> str:
    done = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]
