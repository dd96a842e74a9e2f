"""The protocol: each call of Docker's and Podman's as a method that takes the request's object and gives the answer's.

https://docs.docker.com/engine/extend/plugins_volume/. What it leaves open, and engines do, is in docs/docker.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import volkit
from volkit import (
    Call,
    CloneSource,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    Engine,
    GetVolumeRequest,
    InvalidArgument,
    NotFound,
    Source,
    VolkitError,
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

RECORDED_SECONDS = 4.0
"""How long the storage is waited for where the journal knows the answer too; Podman waits for five."""

PODMAN = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"
"""The ID that Podman gives for all of its containers (libpod, `pseudoCtrID`): it counts them by itself, mounts for the
first and unmounts for the last."""

LONGEST = 4096
"""Characters of a name or of a caller's id; what a volume's name may have is the engine's to say."""

Answer = dict[str, Any]

_log = logging.getLogger("volkit.docker")


class Service:
    """One backend as a volume plugin. Volumes are mounted below `root`; thread-safe.

    A call waits `wait` seconds for another one of its volume, and at most as long as its caller waits: Docker takes an
    error for the truth.
    """

    def __init__(self, engine: Engine, root: Path, *, wait: float = LONG_SECONDS) -> None:
        self.engine = engine
        self._wait = wait
        self.uses: Uses = Uses(engine, root)
        # by name, as the journal told last: one that is shared may be away too
        self._ids: dict[str, str] = {}
        self._strangers: set[str] = set()  # ids of what an administrator has made
        if self.uses.shared:
            with suppress(VolkitError):
                self._all_recorded()
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
        call = self._call(LONG_SECONDS)
        found = self._find(name, call)  # one that is away is not made anew, empty
        source = self._source(wanted.source, found, call)
        create: CreateVolumeRequest[Any] = CreateVolumeRequest(
            name=name,
            parameters=wanted.parameters,
            capacity_range=wanted.capacity,
            capabilities=(self.uses.capability(wanted.asked),),
            source=source,
        )
        clone_of = wanted.source.volume_id if isinstance(wanted.source, CloneSource) else ""
        with self.uses.creations.remembered(name, wanted.asked, clone_of) as made:
            made(self.engine.run("create_volume", create, call).id)
        return {"Err": ""}

    def _source(self, wanted: Source | None, found: Volume | None, call: Call) -> Source | None:
        """What is cloned is known by its name; what is not there, the engine refuses. Of a clone that was made already
        it may be gone.
        """
        if not isinstance(wanted, CloneSource):
            return wanted
        if found is not None and self.uses.creations.cloned_from(found.id) == wanted.volume_id:
            return found.source
        source = self._find(wanted.volume_id, call)
        return CloneSource(source.id) if source is not None else wanted

    def remove(self, request: Mapping[str, Any]) -> Answer:
        name = _text(request, "Name")
        call = self._call(SHORT_SECONDS)
        volume_id = self._recorded(name)
        if not volume_id and (volume := self._find(name, call)) is not None:
            volume_id = volume.id
        if volume_id:
            with self.uses.removing(name, volume_id, call):
                self.engine.run("delete_volume", DeleteVolumeRequest(volume_id=volume_id), call)
        else:
            self.uses.creations.forget(name)
        return {"Err": ""}

    def mount(self, request: Mapping[str, Any]) -> Answer:
        name, who = _text(request, "Name"), _text(request, "ID")
        call = self._call(LONG_SECONDS)
        volume = self._known(name, call)
        asked = self.uses.creations.asked(volume.id, name)
        path = self.uses.begin(volume, name, who, asked, call, keeps=who == PODMAN)
        return {"Mountpoint": path, "Err": ""}

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
        name = _text(request, "Name")
        volume_id = self._recorded(name) or self._known(name, self._call(SHORT_SECONDS)).id
        return {"Mountpoint": self.uses.path(volume_id), "Err": ""}

    def get(self, request: Mapping[str, Any]) -> Answer:
        """Where the storage is away, what is recorded: after an error Docker makes a local volume of the name."""
        name = _text(request, "Name")
        volume_id = self._recorded(name)
        volume, away = None, ""
        try:
            volume = self._known(name, self._call(RECORDED_SECONDS if volume_id else SHORT_SECONDS))
            volume_id = volume.id
        except (NotFound, InvalidArgument):
            raise
        except VolkitError as error:
            if not volume_id:
                raise
            away = error.message
            _log.warning("volume %r is told of as it is recorded: %s", name, away)
        path, created = self.uses.path(volume_id), self.uses.creations.created(volume_id)
        status = self._status(volume_id, path, look=volume is not None)
        if volume is None:
            status["size"] = f"not known: {away}"
        else:
            status["size"] = format_size(volume.capacity) if volume.capacity else "unbounded"
        return {"Volume": {**_entry(name, path, created), "Status": status}, "Err": ""}

    def listing(self, request: Mapping[str, Any]) -> Answer:
        """Where the storage is away, what is recorded."""
        names, known = self._all_recorded()
        if "list_volumes" in self.engine.operations:
            try:
                listed = self._listed(self._call(RECORDED_SECONDS if names else SHORT_SECONDS))
            except VolkitError as error:
                if not names:
                    raise
                _log.warning("volumes are listed as they are recorded: %s", error.message)
            else:
                # also what came or went meanwhile has a name, and is none of an administrator's
                names, later = self._all_recorded()
                names |= {id_: id_ for id_ in listed if id_ not in known | later}
        mounted = {use.volume_id: use.path for use in self.uses.uses() if is_mount_point(use.path)}
        created = self.uses.creations.all_created()
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
        found = self.engine.find(name, call, keep=True)
        if found is not None:
            return found
        try:
            volume: Volume = self.engine.run("get_volume", GetVolumeRequest(volume_id=name), call).volume
        except NotFound:
            self._strangers.discard(name)
            return None
        self._strangers.add(name)
        return volume

    def _recorded(self, name: str) -> str:
        """The id of what was made under this name, or of what was found by this id; "" where nothing was. Raises what
        the journal raises, where it is away and has not told before.
        """
        if self.engine.provisioning is None:
            return ""
        try:
            found = self.engine.provisioning.id_of(name) or (name if name in self._strangers else "")
        except VolkitError:
            if name in self._ids:
                return self._ids[name]
            raise
        if found:
            self._ids[name] = found
        else:
            self._ids.pop(name, None)
        return found

    def _all_recorded(self) -> tuple[dict[str, str], set[str]]:
        """The same of all names; and every id that has one, or gets one when it is made."""
        ids, begun = self._ids, set[str]()
        if self.engine.provisioning is not None:
            try:
                ids, begun = self.engine.provisioning.named()
            except VolkitError:
                if not ids:
                    raise
            self._ids = ids
        return dict(ids), {*ids.values(), *begun}

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

    def _status(self, volume_id: str, path: str, *, look: bool) -> Answer:
        """What `docker volume inspect` shows of it; `path` is where it is mounted, or ""; `look` how full it is."""
        holders = self.uses.holders(volume_id)
        status: Answer = {
            "backend": self.engine.backend.name,
            "id": volume_id,
            "state": "published" if path else "created",
            "mounts": sum(holders.values()),
            "holders": holders,
        }
        if path and look:
            request = volkit.NodeStatsRequest(volume_id=volume_id, volume_path=path)
            try:
                usage = self.engine.run("node_stats", request, self._call(5.0)).usage
            except VolkitError as error:
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
