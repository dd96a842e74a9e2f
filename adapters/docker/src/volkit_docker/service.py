"""The protocol: each call of Docker's and Podman's as a method that takes the request's object and gives the answer's.

https://docs.docker.com/engine/extend/plugins_volume/. What it leaves open, and engines do, is in docs/docker.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import volkit
from volkit import (
    Call,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    Engine,
    GetVolumeRequest,
    InvalidArgument,
    NotFound,
    Volume,
    format_size,
)
from volkit.host.mounts import is_mount_point
from volkit.uses import Uses
from volkit.wanted import read, refuse_unknown

LONG_SECONDS = 115.0
"""Create and Mount: Docker waits for two minutes."""

SHORT_SECONDS = 55.0
"""The others: Docker waits for one minute."""

LONGEST = 4096
"""Characters of a name or of a caller's id; what a volume's name may have is the engine's to say."""

Answer = dict[str, Any]


class Service:
    """One backend as a volume plugin. Volumes are mounted below `root`; thread-safe.

    A call waits `wait` seconds for another one of its volume, and at most as long as its caller waits: Docker takes an
    error for the truth.
    """

    def __init__(self, engine: Engine, root: Path, *, wait: float = LONG_SECONDS) -> None:
        self.engine = engine
        self._wait = wait
        self.uses: Uses = Uses(engine, root)
        self.calls: Mapping[str, Callable[[Mapping[str, Any]], Answer]] = {
            "/Plugin.Activate": self.activate,
            "/VolumeDriver.Capabilities": self.capabilities,
            "/VolumeDriver.Create": self.create,
            "/VolumeDriver.Remove": self.remove,
            "/VolumeDriver.Mount": self.mount,
            "/VolumeDriver.Unmount": self.unmount,
            "/VolumeDriver.Path": self.path,
            "/VolumeDriver.Get": self.get,
            "/VolumeDriver.List": self.listing,
        }

    def activate(self, request: Mapping[str, Any]) -> Answer:
        return {"Implements": ["VolumeDriver"]}

    def capabilities(self, request: Mapping[str, Any]) -> Answer:
        return {"Capabilities": {"Scope": "global" if self.uses.shared else "local"}}

    def create(self, request: Mapping[str, Any]) -> Answer:
        name = _text(request, "Name")
        wanted = read(_options(request), self.engine.backend)
        refuse_unknown(wanted.parameters, self.engine.backend)
        source = wanted.source
        call = self._call(LONG_SECONDS)
        if isinstance(source, volkit.CloneSource):
            found = self._find(source.volume_id, call)  # by name; what is not there, the engine refuses
            source = volkit.CloneSource(found.id) if found is not None else source
        create: CreateVolumeRequest[Any] = CreateVolumeRequest(
            name=name,
            parameters=wanted.parameters,
            capacity_range=wanted.capacity,
            capabilities=(self.uses.capability(wanted.asked),),
            source=source,
        )
        with self.uses.remembered(name, wanted.asked) as made:
            made(self.engine.run("create_volume", create, call).id)
        return {"Err": ""}

    def remove(self, request: Mapping[str, Any]) -> Answer:
        name = _text(request, "Name")
        call = self._call(SHORT_SECONDS)
        volume = self._find(name, call)
        if volume is not None:
            self.uses.release(volume.id, call)
            self.engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume.id), call)
        self.uses.forget(name, volume.id if volume is not None else "")
        return {"Err": ""}

    def mount(self, request: Mapping[str, Any]) -> Answer:
        name, who = _text(request, "Name"), _text(request, "ID")
        call = self._call(LONG_SECONDS)
        volume = self._known(name, call)
        asked = self.uses.asked(volume.id, name)
        return {"Mountpoint": self.uses.begin(volume, name, who, asked, call), "Err": ""}

    def unmount(self, request: Mapping[str, Any]) -> Answer:
        name, who = _text(request, "Name"), _text(request, "ID")
        call = self._call(SHORT_SECONDS)
        used = self.uses.uses()
        volume_id = next((use.volume_id for use in used if name in (use.name, use.volume_id)), "")
        if (
            not volume_id and used and (volume := self._find(name, call))
        ):  # it was mounted by its id, or by this name
            volume_id = volume.id
        self.uses.end(volume_id, who, call)
        return {"Err": ""}

    def path(self, request: Mapping[str, Any]) -> Answer:
        volume = self._known(_text(request, "Name"), self._call(SHORT_SECONDS))
        return {"Mountpoint": self.uses.path(volume.id), "Err": ""}

    def get(self, request: Mapping[str, Any]) -> Answer:
        name = _text(request, "Name")
        volume = self._known(name, self._call(SHORT_SECONDS))
        path, created = self.uses.path(volume.id), self.uses.created(volume.id)
        return {"Volume": {**_entry(name, path, created), "Status": self._status(volume, path)}, "Err": ""}

    def listing(self, request: Mapping[str, Any]) -> Answer:
        call = self._call(SHORT_SECONDS)
        names = dict(self.engine.provisioning.names()) if self.engine.provisioning else {}
        if "list_volumes" in self.engine.operations:
            named = {id_: name for name, id_ in names.items()}
            names = {named.get(id_, id_): id_ for id_ in self._listed(call)}
        mounted = {use.volume_id: use.path for use in self.uses.uses() if is_mount_point(use.path)}
        created = self.uses.all_created()
        found = [
            _entry(name, mounted.get(id_, ""), created.get(id_, "")) for name, id_ in sorted(names.items())
        ]
        return {"Volumes": found, "Err": ""}

    # -- looking

    def _call(self, seconds: float) -> Call:
        return Call(deadline=time.monotonic() + seconds, wait=min(self._wait, seconds))

    def _find(self, name: str, call: Call) -> Volume | None:
        """The volume of this name, or of this id, as an administrator's has; None where it is proven to be none. What
        is not known raises: Docker would make a local volume of the name.
        """
        found = self.engine.find(name, call)
        if found is not None:
            return found
        try:
            return self.engine.run("get_volume", GetVolumeRequest(volume_id=name), call).volume  # type: ignore[no-any-return]
        except NotFound:
            return None

    def _known(self, name: str, call: Call) -> Volume:
        volume = self._find(name, call)
        if volume is None:
            raise NotFound(f"no such volume: {name}")
        return volume

    def _listed(self, call: Call) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = self.engine.run("list_volumes", volkit.requests.ListRequest(limit=500, token=token), call)
            found += [entry.volume.id for entry in page.entries]
            token = page.next_token
            if not token:
                return found

    def _status(self, volume: Volume, path: str) -> Answer:
        """What `docker volume inspect` shows of it; `path` is where it is mounted, or ""."""
        use = self.uses.of(volume.id)
        holders = dict(use.holders) if use is not None and path else {}
        status: Answer = {
            "backend": self.engine.backend.name,
            "id": volume.id,
            "size": format_size(volume.capacity) if volume.capacity else "unbounded",
            "state": "published" if path else "created",
            "mounts": sum(holders.values()),
            "holders": holders,
        }
        if path:
            request = volkit.NodeStatsRequest(volume_id=volume.id, volume_path=path)
            try:
                usage = self.engine.run("node_stats", request, self._call(5.0)).usage
            except volkit.VolkitError as error:
                status["used"] = f"not known: {error.message}"
            else:
                status["used"] = format_size(usage.used) if usage.used else "0"
        return status


def _entry(name: str, mountpoint: str, created: str) -> Answer:
    return {"Name": name, "Mountpoint": mountpoint, **({"CreatedAt": created} if created else {})}


def _text(request: Mapping[str, Any], field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{field} is {type(value).__name__ if value else 'missing'}: give a text")
    if not _is_utf8(value) or len(value) > LONGEST:
        raise InvalidArgument(f"{field} is no text in UTF-8 of at most {LONGEST} characters")
    return value


def _is_utf8(text: str) -> bool:
    """JSON can write half of a pair of surrogates, which no storage can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _options(request: Mapping[str, Any]) -> dict[str, str]:
    given = request.get("Opts")
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(
        isinstance(one, str) and _is_utf8(one) and "\0" not in one for pair in given.items() for one in pair
    ):
        raise InvalidArgument("Opts is not an object of texts")
    return given
