"""A stand-in for kubelet and the controller manager: calls a driver as they do, and judges its answers as they do.

```python
kubelet = Kubelet(Path("…/exec/acme~loop/loop"), root=Path("/var/lib/kubelet"), node="node1")
pod = kubelet.start_pod("uid-1", "pv-1", {"volume": "v1", "size": "1Gi"})
kubelet.end_pod("uid-1", "pv-1")
```

After pkg/volume/flexvolume of Kubernetes 1.36: the driver is forked for each call, stdout and stderr are read as one,
the whole of it has to be one JSON object, its status and the exit code have to agree, and "Not supported" is
remembered. For tests of a driver; what kubelet does by itself where a driver does not is not tried.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from volkit.host import mounts


class DriverError(Exception):
    """What kubelet makes an event of. `answer` is the driver's, {} where it gave none that can be read."""

    def __init__(self, message: str, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.answer: dict[str, Any] = dict(answer or {})


class NotSupported(DriverError):
    """The driver does not do this, and is not asked again."""


@define
class Kubelet:
    """One node. `env` replaces the environment of the driver, which kubelet's own is otherwise."""

    driver: Path
    root: Path
    node: str = "node1"
    shell: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None
    unsupported: set[str] = field(factory=set)

    # -- one call, as driver-call.go

    def call(self, *words: str, timeout: float | None = None) -> dict[str, Any]:
        """The answer. Raises DriverError as kubelet's `Run` fails; NotSupported also without a call."""
        operation = words[0]
        if operation in self.unsupported:
            raise NotSupported(f"{operation} is not supported")
        code, output = self.run(*words, timeout=timeout)
        return self.judged(operation, code, output)

    def run(self, *words: str, timeout: float | None = None) -> tuple[int, bytes]:
        """Exit code and combined output. A timeout is SIGTERM, then SIGKILL ten seconds later."""
        process = subprocess.Popen(
            [*self.shell, self.driver, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                output, _ = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        return process.returncode, output

    def judged(self, operation: str, code: int, output: bytes) -> dict[str, Any]:
        """What kubelet makes of an answer."""
        try:
            answer = json.loads(output)
        except ValueError:
            raise DriverError(
                f"failed to unmarshal output for command: {operation}, output: {output!r}"
            ) from None
        if not isinstance(answer, dict):
            raise DriverError(f"{operation} answers with no object: {output!r}")
        status = answer.get("status")
        if status == "Not supported":
            self.unsupported.add(operation)
            raise NotSupported(f"{operation} is not supported by the driver", answer)
        if status != "Success":
            told = f"{operation} command failed, status: {status}, reason: {answer.get('message')}"
            raise DriverError(told, answer)
        if code:
            raise DriverError(f"driver bug: exit code {code} but no error in response", answer)
        return answer

    # -- what a pod makes them call

    @property
    def plugin(self) -> str:
        """The directory's name: `vendor~driver`."""
        return self.driver.parent.name

    def pod_path(self, uid: str, name: str) -> str:
        """Where a pod's volume is mounted."""
        return str(self.root / "pods" / uid / "volumes" / self.plugin / name)

    def device_path(self, name: str) -> str:
        """Where mountdevice mounts."""
        vendor, _, driver = self.plugin.partition("~")
        return str(self.root / "plugins/kubernetes.io/flexvolume" / vendor / driver / "mounts" / name)

    def options(
        self, name: str, own: Mapping[str, str], *, fs_type: str = "ext4", readonly: bool = False
    ) -> str:
        """The options as the controller manager sends them, in Go's order."""
        return self._json(self._base(name, own, fs_type, readonly))

    def pod_options(
        self,
        uid: str,
        name: str,
        own: Mapping[str, str],
        *,
        fs_type: str = "ext4",
        readonly: bool = False,
        secrets: Mapping[str, str] | None = None,
        fs_group: str = "",
        namespace: str = "default",
    ) -> str:
        """The options of a mount."""
        told = {
            "kubernetes.io/pod.name": f"pod-{uid}",
            "kubernetes.io/pod.namespace": namespace,
            "kubernetes.io/pod.uid": uid,
            "kubernetes.io/serviceAccount.name": "default",
        }
        if fs_group:
            told["kubernetes.io/mounterArgs.FsGroup"] = fs_group
        for key, value in (secrets or {}).items():
            told[f"kubernetes.io/secret/{key}"] = base64.b64encode(value.encode()).decode()
        return self._json({**told, **self._base(name, own, fs_type, readonly)})

    @staticmethod
    def _base(name: str, own: Mapping[str, str], fs_type: str, readonly: bool) -> dict[str, str]:
        kubernetes = {
            "kubernetes.io/fsType": fs_type,
            "kubernetes.io/pvOrVolumeName": name,
            "kubernetes.io/readwrite": "ro" if readonly else "rw",
        }
        return {**kubernetes, **own}  # a user's options win, as in NewOptionsForDriver

    @staticmethod
    def _json(options: Mapping[str, str]) -> str:
        return json.dumps(dict(sorted(options.items())), separators=(",", ":"), ensure_ascii=False)

    def start_pod(self, uid: str, name: str, own: Mapping[str, str], **more: Any) -> Path:
        """All calls that a pod's start makes; returns where the pod sees the volume."""
        attach = self.call("init")["capabilities"]["attach"]
        narrow = {key: value for key, value in more.items() if key in ("fs_type", "readonly")}
        options = self.options(name, own, **narrow)
        if attach:
            self._name(options)
            device = self.call("attach", options, self.node)["device"]
            device = self.call("waitforattach", device, options)["device"]
            self._mount("mountdevice", self.device_path(name), device, options)
        path = self.pod_path(uid, name)
        self._mount("mount", path, self.pod_options(uid, name, own, **more))
        return Path(path)

    def _mount(self, operation: str, path: str, *words: str) -> None:
        """Where nothing is mounted yet."""
        Path(path).mkdir(parents=True, exist_ok=True)
        if not mounts.is_mount_point(path):
            self.call(operation, path, *words)

    def _name(self, options: str) -> None:
        try:
            self.call("getvolumename", options)
        except NotSupported:
            return

    def end_pod(self, uid: str, name: str, *, last: bool = True) -> None:
        """All calls that a pod's end makes; `last` where no other pod of the node has the volume."""
        attach = self.call("init")["capabilities"]["attach"]
        path = Path(self.pod_path(uid, name))
        if path.exists():  # kubelet skips what is not there
            self.call("unmount", str(path))
            if path.exists():
                path.rmdir()
        if attach and last:
            device = Path(self.device_path(name))
            if mounts.is_mount_point(str(device)):  # nor for a device that is not mounted
                self.call("unmountdevice", str(device))
            if device.exists():
                device.rmdir()
            self.call("detach", name, self.node)
