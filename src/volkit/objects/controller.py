"""Buckets and prefixes, made, found and deleted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote

import attrs

from volkit import requests
from volkit.credentials import AccessKey
from volkit.endpoints import Endpoints
from volkit.errors import (
    AlreadyExists,
    Ambiguous,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotFound,
    VolkitError,
    quoted,
)
from volkit.interfaces import Clones, Controller, FindsByName, Lists, Modifies
from volkit.model import CloneSource, ObjectVolume, Volume
from volkit.objects.bucket import Bucket
from volkit.objects.location import RESERVED, Location, name_of
from volkit.objects.options import Mode, ObjectParameters, ObjectSettings, OnDelete
from volkit.objects.volume import TAG, StoredVolume, tagged
from volkit.options import complete, declared
from volkit.requests import Page

S = TypeVar("S", bound=ObjectSettings)
P = TypeVar("P", bound=ObjectParameters)

_COMMON = frozenset(one.name for one in attrs.fields(ObjectParameters)) - {"tags"}
_MADE, _ADOPTED = "made", "adopted"

_log = logging.getLogger("volkit.objects")


class ObjectController(Controller[S, P], FindsByName, Lists, Clones, Modifies, abstract=True):
    """Needs no journal to know a volume: its mark is on the server, and its name follows from the volume's.

    A backend names its `bucket`.
    """

    bucket: ClassVar[type[Bucket[Any]]]

    def __init__(self, settings: S, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        self.allowed: Endpoints = settings.allowed()

    def create_volume(self, request: requests.CreateVolumeRequest[P]) -> Volume:
        asked = request.parameters
        self._refuse_settings_of_others(asked)
        volume = self._stored(self._location(request.name, asked), request.secrets)
        source = self._source(request, volume)
        adopted = asked.mode is Mode.BUCKET and bool(asked.bucket)
        on_delete = asked.on_delete or (OnDelete.KEEP if adopted else OnDelete.IF_EMPTY)
        mark = {
            "name": request.name,
            "onDelete": on_delete.value,
            "source": source.location.id if source else "",
        }
        found = volume.find()
        _refuse_another(volume, found, request.name, adopted)
        if found and found.get("state") and found.get("source", "") == mark["source"]:
            return _volume(volume.location, found)
        if not adopted:
            _begin(volume, found, mark)  # what is refused here is somebody else's, and stays
        try:
            if source:
                volume.write_mark(mark)  # so that it is known what was begun
                volume.copy_from(source)
            if not adopted and asked.mode is Mode.BUCKET:
                volume.bucket.configure(asked)
            state = _ADOPTED if adopted else _MADE
            volume.write_mark({**mark, "state": state}, dict(one.split("=", 1) for one in asked.tags))
        except VolkitError as error:
            if not adopted and not isinstance(error, Ambiguous):
                volume.remove()  # nothing half-made stays
            raise
        return _volume(volume.location, mark)

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        volume = self._known(request.volume_id, request.secrets)
        on_delete = OnDelete(volume.mark().get("onDelete", "keep"))
        if on_delete is OnDelete.KEEP:
            _log.info("volume %r is deleted, and what is there is kept", request.volume_id)
            volume.unmark()
            return
        if volume.holds_volumes():
            raise InUse(f"bucket {volume.location.bucket!r} holds other volumes: delete those first")
        if on_delete is OnDelete.IF_EMPTY and not volume.is_empty():
            raise FailedPrecondition(
                f"{volume.location.id} holds objects: remove them, or change its onDelete to purge or keep"
            )
        volume.remove()

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        if request.volume_id:
            volume = self._known(request.volume_id, request.secrets)
            return _volume(volume.location, volume.mark())
        name = name_of(request.name, self.settings.bucket_prefix)
        places = [(self.settings.bucket, name)] if self.settings.bucket else []
        for bucket, prefix in (*places, (name, "")):
            volume = self._stored(Location.checked(bucket, prefix, "", self.allowed), request.secrets)
            found = volume.find()
            if found and found.get("state") and tagged(found["name"]) == tagged(request.name):
                return _volume(volume.location, found)
        raise NotFound(f"there is no bucket and no prefix for volume {quoted(request.name)}")

    def list_volumes(self, request: requests.ListRequest) -> Page[Volume]:
        names = self.bucket.names(self.settings, self.allowed.own, self._key(request.secrets))
        locations = [Location(name) for name in names]
        if shared := self.settings.bucket:
            for page in self._stored(Location(shared), request.secrets).bucket.pages(RESERVED):
                locations += [Location(shared, unquote(one.key.removeprefix(RESERVED))) for one in page]
        by_id = {location.id: location for location in locations}

        def load(id_: str) -> Volume | None:
            found = self._stored(by_id[id_], request.secrets).find()
            return _volume(by_id[id_], found) if found and found.get("state") else None

        return Page.of(sorted(by_id), request, load)

    def modify_volume(self, request: requests.ModifyVolumeRequest) -> None:
        volume = self._known(request.volume_id, request.secrets)
        if not (mark := volume.mark()):
            raise FailedPrecondition(
                f"{volume.location.id} was not made or adopted by volkit: it is always kept"
            )
        own = {name: value for name, value in request.parameters.items() if name not in _COMMON}
        if own and mark.get("state") == _MADE and not volume.location.prefix:
            volume.bucket.modify(own)
        elif own:
            raise FailedPrecondition(
                f"{min(own)} is of a bucket that was made, and {volume.location.id} is none"
            )
        if on_delete := request.parameters.get("on_delete"):
            volume.write_mark({**mark, "onDelete": on_delete.value})

    # -- where a volume is

    def _location(self, name: str, asked: P) -> Location:
        """Where a volume of this name is made. Raises InvalidArgument, PermissionDenied."""
        new = name_of(name, self.settings.bucket_prefix)
        if asked.mode is Mode.BUCKET:
            return Location.checked(asked.bucket or new, "", asked.endpoint, self.allowed)
        if not (shared := asked.bucket or self.settings.bucket):
            raise InvalidArgument(
                "mode: prefix needs a bucket to share: the operator's setting bucket, or this one's"
            )
        return Location.checked(shared, new, asked.endpoint, self.allowed)

    def _refuse_settings_of_others(self, asked: P) -> None:
        """Raises InvalidArgument for what a bucket is given when it is made, where none is."""
        needed = {one.field: getattr(asked, one.field) for one in declared(type(asked)) if one.required}
        unasked = complete(type(asked), needed)
        differs = [
            one for one in attrs.fields_dict(type(asked)) if getattr(asked, one) != getattr(unasked, one)
        ]
        own = sorted(set(differs) - _COMMON)
        if own and (asked.bucket or asked.mode is Mode.PREFIX):
            raise InvalidArgument(
                f"parameter {own[0]!r} is for a bucket that is made: leave out bucket, and mode: prefix"
            )
        if bad := [one for one in asked.tags if "=" not in one or one.startswith(TAG)]:
            raise InvalidArgument(f"tag {quoted(bad[0])} is not KEY=VALUE with a key of your own")

    def _source(self, request: requests.CreateVolumeRequest[P], volume: StoredVolume) -> StoredVolume | None:
        if not isinstance(request.source, CloneSource):
            return None
        source = self._known(request.source.volume_id, request.secrets)
        source.mark()
        if source.bucket.endpoint != volume.bucket.endpoint:
            raise InvalidArgument(
                f"{source.location.id} is on another server, which does not copy it to here"
            )
        return source

    def _known(self, volume_id: str, secrets: Mapping[str, str]) -> StoredVolume:
        return self._stored(Location.read(volume_id, self.allowed), secrets)

    def _stored(self, location: Location, secrets: Mapping[str, str]) -> StoredVolume:
        endpoint = location.endpoint or self.allowed.own
        bucket = self.bucket(self.settings, location.bucket, endpoint, self._key(secrets))
        return StoredVolume(bucket, location)

    def _key(self, secrets: Mapping[str, str]) -> AccessKey | None:
        return AccessKey.read(secrets) or self.settings.key()


def _begin(volume: StoredVolume, found: Mapping[str, str] | None, mark: Mapping[str, str]) -> None:
    """The bucket or prefix, still without the mark that it is complete."""
    if found and found.get("source", "") != mark["source"]:
        volume.purge()  # an earlier attempt, of something else
    if volume.location.prefix or found is None:
        volume.make()


def _refuse_another(volume: StoredVolume, found: Mapping[str, str] | None, name: str, adopted: bool) -> None:
    """Raises NotFound, AlreadyExists where what is there is not this volume."""
    if found is None and adopted:
        raise NotFound(f"there is no bucket {volume.location.bucket!r} to be used as it is")
    if found and tagged(found.get("name", name)) != tagged(name):
        raise AlreadyExists(f"{volume.location.id} is volume {found['name'][:64]!r} already")
    if found == {} and not adopted and not volume.is_empty():
        raise AlreadyExists(f"{volume.location.id} exists, has objects, and no mark that volkit made it")


def _volume(location: Location, mark: Mapping[str, str]) -> Volume:
    source = CloneSource(mark["source"]) if mark.get("source") else None
    return ObjectVolume(id=location.id, source=source)
