"""Journal and storage: volumes that are in one of them only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from volkit.doctor.finding import STORAGE_SECONDS, Finding, ask_storage
from volkit.engine import Engine
from volkit.errors import DeadlineExceeded, NotFound, VolkitError
from volkit.guard import call_backend
from volkit.interfaces import Lists
from volkit.journal import key
from volkit.journal.records import parts
from volkit.model import NO_SECRETS
from volkit.requests import GetVolumeRequest, ListRequest, Page

_PAGE = 1000


def examine_storage(engine: Engine) -> Iterator[Finding]:
    """What the backend does not have, or has and nobody recorded. One that does not answer is asked no more."""
    try:
        yield from _compare(engine)
    except DeadlineExceeded:
        what = f"the storage has not answered within {STORAGE_SECONDS:g} s: its volumes were not compared"
        yield Finding(sort="stuck", what=what, command="volkit doctor  # when the storage answers")


def _compare(engine: Engine) -> Iterator[Finding]:
    controller: Any = engine.controller
    listed = set(_listed(engine, controller)) if isinstance(controller, Lists) else set()
    # after the storage, so that what was made meanwhile is in the journal; what was removed meanwhile is looked at
    assert engine.provisioning is not None
    begun = {
        entry.value.get("id") or engine.provisioning.volumes.id_for(parts(entry.key)[1])
        for entry in engine.journal.scan(key("volume-name", ""))
    }
    recorded = {parts(entry.key)[1]: entry for entry in engine.journal.scan(key("volume", ""))}
    for volume_id, entry in recorded.items():
        if volume_id not in listed and entry.value.get("state") is None:
            yield from _missing(engine, volume_id)
    for volume_id in sorted(listed - recorded.keys() - begun):
        if _look(engine, volume_id) is None:
            yield Finding(
                sort="foreign",
                what=f"volume {volume_id} is in the storage and not in the journal",
                command=f"volkit call delete-volume --volume-id {volume_id}  # if nobody needs it",
            )


def _listed(engine: Engine, controller: Lists) -> Iterator[str]:
    request = ListRequest(limit=_PAGE)
    while True:
        work = functools.partial(call_backend, controller.list_volumes, request, Page)
        page: Page[Any] = ask_storage(engine, "list_volumes", "", work)
        yield from (volume.id for volume in page.entries)
        if not page.next_token:
            return
        request = ListRequest(limit=_PAGE, token=page.next_token)


def _look(engine: Engine, volume_id: str) -> VolkitError | None:
    """Why the storage does not show the volume; None where it does. Raises DeadlineExceeded."""
    controller: Any = engine.controller
    request = GetVolumeRequest(volume_id=volume_id)
    try:
        ask_storage(
            engine,
            "get_volume",
            volume_id,
            lambda: call_backend(controller.get_volume, request, object),
        )
    except DeadlineExceeded:
        raise
    except VolkitError as error:
        return error
    return None


def _missing(engine: Engine, volume_id: str) -> Iterator[Finding]:
    error = _look(engine, volume_id)
    now = engine.journal.get(key("volume", volume_id))
    if error is None or now is None or now.value.get("state") is not None:  # deleted meanwhile
        return
    if not isinstance(error, NotFound):
        what = f"volume {volume_id} cannot be looked at: {error.message}"
        yield Finding(sort="stuck", what=what, command="volkit doctor  # when the storage answers")
        return
    what = f"volume {volume_id} is in the journal and not in the storage"
    yield Finding(
        sort="stuck", what=what, command="volkit doctor --repair", repair=_forgetting(engine, volume_id)
    )


def _forgetting(engine: Engine, volume_id: str) -> Callable[[], str]:
    """Removing what is not there removes its records."""

    def repair() -> str:
        assert engine.provisioning is not None
        with engine.provisioning.volumes.lock_id(volume_id, 0.0):
            if isinstance(_look(engine, volume_id), NotFound):
                engine.provisioning.remove_volume(volume_id, NO_SECRETS)
                return "its records are removed"
        return "it was settled meanwhile"

    return repair
