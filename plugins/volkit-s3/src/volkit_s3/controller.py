"""Buckets and prefixes, made, found and deleted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from urllib.parse import unquote

from volkit import (
    AlreadyExists,
    Ambiguous,
    Clones,
    CloneSource,
    Controller,
    FailedPrecondition,
    FindsByName,
    InUse,
    InvalidArgument,
    Lists,
    Modifies,
    NotFound,
    ObjectVolume,
    Page,
    PermissionDenied,
    VolkitError,
    Volume,
    requests,
)
from volkit_s3.options import (
    RESERVED,
    Mode,
    OnDelete,
    Place,
    S3Parameters,
    S3Settings,
    endpoint_of,
    keys_of,
    name_of,
)
from volkit_s3.store import Store, bucket_names, tagged

_OF_BUCKETS = ("tags", "versioning", "encryption", "expire_days")
_MADE, _ADOPTED = "made", "adopted"

_log = logging.getLogger("volkit.s3")


class S3Controller(Controller[S3Settings, S3Parameters], FindsByName, Lists, Clones, Modifies):
    """Needs no journal to know a volume: its mark is on the server, and its name follows from the volume's."""

    def __init__(self, settings: S3Settings, node_id: str = "") -> None:
        super().__init__(settings, node_id)
        for endpoint in (settings.endpoint, *settings.endpoints):
            endpoint_of(endpoint, settings)

    def create_volume(self, request: requests.CreateVolumeRequest[S3Parameters]) -> Volume:
        asked = request.parameters
        store = self._store(self._place(request.name, asked), request.secrets)
        source = None
        if isinstance(request.source, CloneSource):
            source = self._known(request.source.volume_id, request.secrets)
            source.mark()
            if source.endpoint != store.endpoint:
                raise InvalidArgument(
                    f"{source.place.id} is on another server, which does not copy it to here"
                )
        adopted = asked.mode is Mode.BUCKET and bool(asked.bucket)
        on_delete = asked.on_delete or (OnDelete.KEEP if adopted else OnDelete.IF_EMPTY)
        mark = {
            "name": request.name,
            "onDelete": on_delete.value,
            "source": source.place.id if source else "",
        }
        found = self._found(store)
        self._refuse_another(store, found, request.name, adopted)
        if found and found.get("state") and found.get("source", "") == mark["source"]:
            return _volume(store.place, found)
        if not adopted:
            self._begin(store, found, mark)  # what is refused here is somebody else's, and stays
        try:
            if source:
                store.write_mark(mark)  # so that it is known what was begun
                store.copy_from(source)
            store.configure(
                versioning=asked.versioning, encryption=asked.encryption, expire_days=asked.expire_days
            )
            state = _ADOPTED if adopted else _MADE
            store.write_mark({**mark, "state": state}, dict(one.split("=", 1) for one in asked.tags))
        except VolkitError as error:
            if not adopted and not isinstance(error, Ambiguous):
                store.remove()  # nothing half-made stays
            raise
        return _volume(store.place, mark)

    @staticmethod
    def _begin(store: Store, found: Mapping[str, str] | None, mark: Mapping[str, str]) -> None:
        """The bucket or prefix, still without the mark that it is complete."""
        if found and found.get("source", "") != mark["source"]:
            store.purge()  # an earlier attempt, of something else
        if store.place.prefix:
            store.make_prefix()
        elif found is None:
            store.make_bucket()

    def _refuse_another(
        self, store: Store, found: Mapping[str, str] | None, name: str, adopted: bool
    ) -> None:
        """Raises NotFound, AlreadyExists where what is there is not this volume."""
        if found is None and adopted:
            raise NotFound(f"there is no bucket {store.place.bucket!r} to be used as it is")
        if found and tagged(found.get("name", name)) != tagged(name):
            raise AlreadyExists(f"{store.place.id} is volume {found['name'][:64]!r} already")
        if found == {} and not adopted and not store.is_empty():
            raise AlreadyExists(f"{store.place.id} exists, has objects, and no mark that volkit made it")

    def delete_volume(self, request: requests.DeleteVolumeRequest) -> None:
        store = self._known(request.volume_id, request.secrets)
        mark = store.mark()
        on_delete = OnDelete(mark.get("onDelete", "keep"))
        if on_delete is OnDelete.KEEP:
            _log.info("volume %r is deleted, and what is there is kept", request.volume_id)
            store.unmark()
            return
        if not store.place.prefix and store.has(RESERVED):
            raise InUse(f"bucket {store.place.bucket!r} holds other volumes: delete those first")
        if on_delete is OnDelete.IF_EMPTY and not store.is_empty():
            raise FailedPrecondition(
                f"{store.place.id} holds objects: remove them, or change its onDelete to purge or keep"
            )
        store.remove()

    def get_volume(self, request: requests.GetVolumeRequest) -> Volume:
        if request.volume_id:
            store = self._known(request.volume_id, request.secrets)
            return _volume(store.place, store.mark())
        for mode in (Mode.PREFIX, Mode.BUCKET):
            if mode is Mode.BUCKET or self.settings.bucket:
                store = self._store(self._place(request.name, S3Parameters(mode=mode)), request.secrets)
                found = self._found(store)
                if found and found.get("state") and tagged(found["name"]) == tagged(request.name):
                    return _volume(store.place, found)
        raise NotFound(f"there is no bucket and no prefix for volume {request.name!r}")

    def list_volumes(self, request: requests.ListRequest) -> Page[Volume]:
        keys = keys_of(request.secrets, self.settings)
        places = [Place(name) for name in bucket_names(self.settings, keys)]
        if self.settings.bucket:
            marks = Store(self.settings, Place(self.settings.bucket, RESERVED.rstrip("/")), keys)
            for page in marks.pages("list_objects_v2", "Contents"):
                prefixes = [unquote(one["Key"].removeprefix(RESERVED)) for one in page]
                places += [Place(self.settings.bucket, prefix) for prefix in prefixes]
        by_id = {place.id: place for place in places}

        def load(id_: str) -> Volume | None:
            found = self._found(Store(self.settings, by_id[id_], keys))
            return _volume(by_id[id_], found) if found and found.get("state") else None

        return Page.of(sorted(by_id), request, load)

    def modify_volume(self, request: requests.ModifyVolumeRequest) -> None:
        store = self._known(request.volume_id, request.secrets)
        if not (mark := store.mark()):
            raise FailedPrecondition(f"{store.place.id} was not made or adopted by volkit: it is always kept")
        if on_delete := request.parameters.get("on_delete"):
            store.write_mark({**mark, "onDelete": on_delete.value})

    # -- where a volume is

    def _place(self, name: str, asked: S3Parameters) -> Place:
        """Where a volume of this name is made. Raises InvalidArgument, PermissionDenied."""
        own = next((one for one in _OF_BUCKETS if getattr(asked, one)), "")
        if own and (asked.bucket or asked.mode is Mode.PREFIX):
            raise InvalidArgument(
                f"parameter {own!r} is for a bucket that is made: leave out bucket, and mode: prefix"
            )
        if bad := [one for one in asked.tags if "=" not in one or one.startswith("volkit.io/")]:
            raise InvalidArgument(f"tag {bad[0][:64]!r} is not KEY=VALUE with a key of your own")
        if asked.mode is Mode.BUCKET:
            return Place.checked(
                asked.bucket or name_of(name, self.settings), "", asked.endpoint, self.settings
            )
        if not (shared := asked.bucket or self.settings.bucket):
            raise InvalidArgument(
                "mode: prefix needs a bucket to share: the operator's setting bucket, or this one's"
            )
        return Place.checked(shared, name_of(name, self.settings), asked.endpoint, self.settings)

    def _store(self, place: Place, secrets: Mapping[str, str]) -> Store:
        return Store(self.settings, place, keys_of(secrets, self.settings))

    def _known(self, volume_id: str, secrets: Mapping[str, str]) -> Store:
        return self._store(Place.read(volume_id, self.settings), secrets)

    @staticmethod
    def _found(store: Store) -> dict[str, str] | None:
        """The mark of what is there; None where there is nothing, or something that is none of our business."""
        try:
            return store.mark()
        except (NotFound, PermissionDenied):
            return None


def _volume(place: Place, mark: Mapping[str, str]) -> Volume:
    source = CloneSource(mark["source"]) if mark.get("source") else None
    return ObjectVolume(id=place.id, source=source)
