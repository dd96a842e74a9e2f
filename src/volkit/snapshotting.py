"""The controller's side of the engine: every operation on snapshots, around the backend's own methods."""

from __future__ import annotations

import functools
from typing import Any

import attrs

from volkit import model, requests, validate
from volkit.errors import AlreadyExists, NotFound
from volkit.guard import call_backend
from volkit.interfaces import Controller
from volkit.journal import Journal
from volkit.locks import Locks
from volkit.making import Found, Making, gone
from volkit.model import Snapshot, Volume


class Snapshotting:
    """One method per operation of the table on snapshots, each `(request, call)`."""

    def __init__(
        self, controller: Controller[Any, Any], journal: Journal, locks: Locks, volumes: Making[Volume]
    ) -> None:
        self._controller: Any = controller  # Any: a capability's method is there when its operation is
        self._volumes = volumes
        self.snapshots: Making[Snapshot] = Making(
            "snapshot", controller, journal, locks, look=self._look, remove=self._remove
        )

    def create_snapshot(self, request: requests.CreateSnapshotRequest, call: requests.Call) -> Snapshot:
        validate.check_name(request.name)
        validate.check_id(request.source_volume_id, "source_volume_id")
        asked = {"source": request.source_volume_id, "parameters": dict(request.parameters)}
        with self.snapshots.lock_to_create(request.name, request.secrets, call.patience()):
            found = self.snapshots.find(request.name, request.secrets)
            if found is None:
                self._volumes.look(id=request.source_volume_id, secrets=request.secrets)
                cut = functools.partial(self._cut, request)
                snapshot = self.snapshots.create(request.name, request.secrets, asked, cut)
                found = Found(snapshot, asked)
            if found.thing.source_volume_id != request.source_volume_id:
                raise AlreadyExists(
                    f"snapshot {request.name!r} exists and is of volume {found.thing.source_volume_id!r}"
                )
            if found.asked and found.asked["parameters"] != asked["parameters"]:
                raise AlreadyExists(f"snapshot {request.name!r} exists with other parameters")
            return found.thing

    def _cut(self, request: requests.CreateSnapshotRequest, id_: str, token: str) -> Snapshot:
        wanted = attrs.evolve(request, snapshot_id=id_, token=token)
        snapshot: Snapshot = call_backend(self._controller.create_snapshot, wanted, Snapshot)
        return snapshot

    def delete_snapshot(self, request: requests.DeleteSnapshotRequest, call: requests.Call) -> None:
        validate.check_id(request.snapshot_id, "snapshot_id")
        with self.snapshots.lock_id(request.snapshot_id, call.patience()):
            self.snapshots.delete(request.snapshot_id, request.secrets)

    def _look(self, *, id: str = "", name: str = "", secrets: model.Secrets = model.NO_SECRETS) -> Snapshot:
        request = requests.GetSnapshotRequest(snapshot_id=id, name=name, secrets=secrets)
        snapshot: Snapshot = call_backend(self._controller.get_snapshot, request, Snapshot)
        return snapshot

    def _remove(self, id_: str, secrets: model.Secrets) -> None:
        request = requests.DeleteSnapshotRequest(snapshot_id=id_, secrets=secrets)
        gone(lambda: call_backend(self._controller.delete_snapshot, request, type(None)))

    def get_snapshot(self, request: requests.GetSnapshotRequest, call: requests.Call) -> Snapshot:
        validate.check_id(request.snapshot_id, "snapshot_id")
        return self._look(id=request.snapshot_id, secrets=request.secrets)

    def list_snapshots(
        self, request: requests.ListSnapshotsRequest, call: requests.Call
    ) -> requests.Page[Snapshot]:
        validate.check_limit(request.limit)
        if request.snapshot_id:
            try:
                snapshot = self._look(id=request.snapshot_id, secrets=request.secrets)
            except NotFound:
                return requests.Page(entries=())
            ours = not request.source_volume_id or snapshot.source_volume_id == request.source_volume_id
            return requests.Page(entries=(snapshot,) if ours else ())
        page: requests.Page[Snapshot] = call_backend(self._controller.list_snapshots, request, requests.Page)
        return page
