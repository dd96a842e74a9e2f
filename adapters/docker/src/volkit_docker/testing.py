"""The conformance suite through the wire: what the engine gives, a Docker volume plugin must give too.

```python
class TestAcmeOverDocker(DockerSuite):
    backend = Acme
    def storage(self, directory): ...
```

What Docker has goes by its calls, over HTTP on a real socket: Create, Get, List, Remove, and Mount and Unmount, which
go the whole way up and down; the steps of it that a case takes one by one are then repeats. What Docker has not
(secrets, an upper limit of a size, snapshots, raw block devices, an access mode of the caller's choice, a second
target) goes to the engine. An answer has no code, only a sentence: the error behind it is looked up in this
process, and the sentence has to be its own. What Get and List tell has to be what the engine knows. A child process
that a case kills does without HTTP: what is killed is the same.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from volkit import (
    AccessMode,
    Backend,
    Capability,
    CloneSource,
    Engine,
    Journal,
    SnapshotSource,
    VolkitError,
    Volume,
    format_size,
    requests,
)
from volkit.journal import key
from volkit.sockets import UnixSocket
from volkit.testing import BackendSuite, Driver
from volkit.uses import Uses
from volkit.wanted import Asked
from volkit_docker.server import App, Refused, Server
from volkit_docker.service import Answer, Service


class DockerSuite(BackendSuite):
    """The suite, with a Docker volume plugin between its cases and the engine."""

    _served_by: ClassVar[int] = os.getpid()

    def serve(
        self, backend: type[Backend[Any, Any]], settings: Any, state_dir: Path, journal: Journal
    ) -> Driver:
        engine = super().serve(backend, settings, state_dir, journal)
        assert isinstance(engine, Engine)
        return DockerDriver(engine, listens=os.getpid() == self._served_by)


class _Uses(Uses):
    """Mounts where a case says, with the access mode that cases use."""

    def __init__(self, engine: Engine, root: Path) -> None:
        super().__init__(engine, root)
        self.places: dict[str, dict[str, str]] = {}

    def _new(self, volume: Volume, name: str) -> dict[str, Any]:
        return {**super()._new(volume, name), **self.places[volume.id]}

    def _mode(self) -> AccessMode:
        usual = Capability().access_mode
        return usual if usual in self._engine.backend.limits.access_modes else super()._mode()


_KNOWN: Final[dict[str, dict[str, str]]] = {}
"""What was made through the wire, by state directory and id: its user knows the name also when a plugin is dead."""


class _Kept:
    """An engine that keeps what it makes, by name: Create does not tell."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.made: dict[str, Volume] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, operation: str, request: Any, call: requests.Call) -> Any:
        result = self._engine.run(operation, request, call)
        if operation == "create_volume":
            self.made[request.name] = result
        return result


class _Told(App):
    """An application that keeps the error behind each failed answer, by the number that the caller gave."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.errors: dict[str, BaseException] = {}

    def _answer(self, path: str, environ: Mapping[str, Any]) -> Answer:
        try:
            return super()._answer(path, environ)
        except VolkitError as error:
            self.errors[environ["HTTP_X_NUMBER"]] = error
            raise
        except BaseException as error:  # a case has this process die here
            self.errors[environ["HTTP_X_NUMBER"]] = error
            raise Refused(500, "the process is dead") from None


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("plugin")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class DockerDriver:
    """An engine behind a Docker volume plugin: takes and gives what the engine does, by the wire where it can."""

    def __init__(self, engine: Engine, *, listens: bool = True) -> None:
        self._engine = engine
        self._directory = tempfile.mkdtemp(prefix="volkit-")  # a socket's path has at most 107 characters
        self._known = _KNOWN.setdefault(str(engine.state_dir), {})
        self._kept = _Kept(engine)
        service = Service(cast("Engine", self._kept), Path(self._directory, "mounts"), wait=2.0)
        service.uses = self._uses = _Uses(engine, Path(self._directory))
        self._service = service
        self._app = _Told(service)
        self._socket = f"{self._directory}/docker.sock"
        self._server: Server | None = None
        if listens:
            self._server = Server(self._app, UnixSocket(self._socket, 0o600), look_seconds=0.01)
            self._server.start()
            self._server.serve_in_background()
        self._numbers = itertools.count(1)
        self.calls: list[str] = []

    def run(self, operation: str, request: Any) -> Any:
        """One operation. Raises the error that the plugin's answer tells of."""
        by_wire = getattr(self, f"_{operation}", None)
        return by_wire(request) if by_wire else self._engine.run(operation, request)

    def close(self) -> None:
        """Stop the server, and close the engine."""
        if self._server is not None:
            self._server.stop()
        self._engine.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _call(self, method: str, **request: Any) -> Answer:
        self.calls.append(method)
        if self._server is None:
            return self._service.calls[f"/VolumeDriver.{method}"](request)
        number = str(next(self._numbers))
        connection = _Connection(self._socket)
        try:
            connection.request(
                "POST", f"/VolumeDriver.{method}", json.dumps(request), headers={"X-Number": number}
            )
            answer = connection.getresponse()
            told: Answer = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status == 200:
            assert told.get("Err", "") == ""
            return told
        error = self._app.errors.pop(number, None)
        assert error is not None, f"{method} answers {answer.status} {told} without an error behind it"
        if isinstance(error, VolkitError):
            assert told == {"Err": error.message}
        raise error

    # -- volumes

    def _create_volume(self, request: Any) -> Any:
        options = _options(request)
        if options is None:
            return self._engine.run("create_volume", request)
        self._call("Create", Name=request.name, Opts=options)
        volume = self._kept.made[request.name]
        self._known[volume.id] = request.name
        return volume

    def _get_volume(self, request: Any) -> Any:
        name = self._name(request.volume_id)
        if not name:
            return self._engine.run("get_volume", request)
        shown = self._call("Get", Name=name)["Volume"]
        entry = self._engine.run("get_volume", request)
        capacity = entry.volume.capacity
        assert shown["Status"]["id"] == entry.volume.id
        assert shown["Status"]["size"] == (format_size(capacity) if capacity else "unbounded")
        return entry

    def _list_volumes(self, request: Any) -> Any:
        page = self._engine.run("list_volumes", request)
        if not (request.limit or request.token):
            shown = self._call("List")["Volumes"]
            ids = [entry.volume.id for entry in page.entries]
            assert self._engine.provisioning is not None
            names = {self._engine.provisioning.name_of(one) or one for one in ids}
            assert {one["Name"] for one in shown} >= names
        return page

    def _delete_volume(self, request: Any) -> Any:
        name = self._name(request.volume_id)
        if not name or request.secrets:
            return self._engine.run("delete_volume", request)
        self._call("Remove", Name=name)
        return None

    def _name(self, volume_id: str) -> str:
        """What the volume was made as through the wire; "" where it was not."""
        return self._known.get(volume_id, "")

    # -- mounts

    def _node_publish(self, request: Any) -> Any:
        staging, target = request.staging_target_path, request.target_path
        name, use = self._name(request.volume_id), self._uses.of(request.volume_id)
        usual = self._uses.capability(Asked())
        plain = request.capability == usual and not request.readonly and not request.secrets
        free = use is None or use.path == target
        if not (name and plain and free and self._is_as_mount_leaves_it(request)):
            return self._engine.run("node_publish", request)
        if use is None:
            self._uses.places[request.volume_id] = {"path": target, "staging": staging}
        path = self._call("Mount", Name=name, ID=target)["Mountpoint"]
        assert path == target
        assert self._call("Path", Name=name)["Mountpoint"] == target
        return None

    def _node_unpublish(self, request: Any) -> Any:
        use = self._uses.of(request.volume_id)
        if use is None or use.path != request.target_path:
            return self._engine.run("node_unpublish", request)
        for _ in range(use.holders.get(use.path, 1)):  # as often as it was mounted
            self._call("Unmount", Name=use.name, ID=use.path)
        return None

    def _is_as_mount_leaves_it(self, request: Any) -> bool:
        """Staged as is asked, and attached nowhere else: Mount repeats these steps, and would be refused."""
        staged = self._engine.node_journal.get(key("stage", request.volume_id))
        if staged is None or staged.value.get("path") != request.staging_target_path:
            return False
        attached = {entry.key for entry in self._engine.journal.scan(key("attach", request.volume_id, ""))}
        elsewhere = attached - {key("attach", request.volume_id, self._engine.node_id)}
        return staged.value["capability"] == request.capability.record() and not elsewhere


def _options(request: Any) -> dict[str, str] | None:
    """What a user of Docker would write to have this volume; None where nothing can be written."""
    capabilities, size = request.capabilities, request.capacity_range
    texts = {**request.parameters, **request.mutable_parameters}
    if len(capabilities) != 1 or capabilities[0].block or size.limit or size.required < 0:
        return None
    if request.secrets or request.topology or not request.name or request.mutable_parameters:
        return None
    asked = {"fs-type": capabilities[0].fs_type, "mount-options": ",".join(capabilities[0].mount_flags)}
    source = request.source
    if isinstance(source, SnapshotSource):
        asked["from-snapshot"] = source.snapshot_id
    elif isinstance(source, CloneSource):
        asked["clone-of"] = source.volume_id
    if size.required:
        asked["size"] = str(size.required)
    return {**texts, **{name: value for name, value in asked.items() if value}}
