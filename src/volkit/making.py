"""Things made by name, never twice and never lost: volumes, and snapshots.

The name is recorded before the backend is asked (one durable write), the id after it (not durable: it can be
found again).

    volume-name/<name>  {"state": "creating", "request": …}  then  {"id": …}
    volume/<id>         {"name": …, "request": …}               and while it goes  {…, "state": "deleting"}

An intent also has "since": when it was recorded, in Unix seconds.

After a crash the repeat of a call finds the record of the first, looks at what really happened, and goes on
from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

from attrs import frozen

from volkit.digests import digest
from volkit.errors import Aborted, AlreadyExists, Ambiguous, NotFound, Unavailable, VolkitError
from volkit.interfaces import Controller, FindsByName, TakesIds, TakesTokens
from volkit.journal import Delete, Journal, Put, key
from volkit.journal.records import quarantined
from volkit.locks import Locks
from volkit.model import Secrets, Snapshot, Value, Volume

T = TypeVar("T", Volume, Snapshot)

_log = logging.getLogger("volkit.engine")

_GENERATIONS = 100
"""How often a name is made, deleted and made again, at most, while a storage remembers all of its tokens."""


TAKE_BACK_SECONDS = 2.0
"""How long is waited for the lock of what was made, or attached, after the lock was lost."""


class _Late(Aborted):
    """The lock of a create was lost before what it had made was recorded."""

    def __init__(self, message: str, id_: str) -> None:
        super().__init__(message)
        self.id = id_


@frozen(eq=False, repr=False)
class Found(Value, Generic[T]):
    """What a name stands for: the thing as its storage shows it, and what was asked for when it was made
    (None: not recorded).
    """

    thing: T
    asked: Mapping[str, Any] | None


class Making(Generic[T]):
    """Creates and deletes things of one sort through a controller. The caller holds `lock_name` or `lock_id`.

    `look` gets one by id or by name (keywords `id`, `name`, `secrets`) and raises NotFound; `remove(id,
    secrets)` deletes one; `refuse(id)` raises InUse where that must not be. `secrets` are those of the call that is
    served.
    """

    def __init__(
        self,
        sort: str,
        controller: Controller[Any, Any],
        journal: Journal,
        locks: Locks,
        *,
        look: Callable[..., T],
        remove: Callable[[str, Secrets], None],
        refuse: Callable[[str], None] = lambda id_: None,
    ) -> None:
        self._sort = sort
        self._journal = journal
        self._locks = locks
        self.look: Callable[..., T] = look
        self._remove = remove
        self._refuse = refuse
        self._takes_ids = isinstance(controller, TakesIds)
        self._finds_names = isinstance(controller, FindsByName)
        self._findable = self._takes_ids or self._finds_names
        self._takes_tokens = isinstance(controller, TakesTokens)
        self._repeatable = self._findable or self._takes_tokens

    def _name_key(self, name: str) -> str:
        return key(f"{self._sort}-name", name)

    def _id_key(self, id_: str) -> str:
        return key(self._sort, id_)

    def id_for(self, name: str) -> str:
        """The id that volkit chooses for a name: the same each time, so that a lost journal loses nothing; ""
        where the backend chooses.
        """
        if not self._takes_ids:
            return ""
        return f"{self._sort[0]}-{digest(name, 16).hex()}"

    def lock_name(self, name: str, wait: float) -> AbstractContextManager[None]:
        """Create's side of the lock domain: the name, and the id where it is known already."""
        id_ = self.id_for(name)
        return self._locks.hold(self._name_key(name), *([self._id_key(id_)] if id_ else []), wait=wait)

    @contextmanager
    def lock_to_create(self, name: str, secrets: Secrets, wait: float) -> Iterator[None]:
        """`lock_name`, for `create`. Where the lock was lost while the storage made something, which replicas may have
        deleted meanwhile, that is taken back.
        """
        try:
            with self.lock_name(name, wait):
                yield
        except _Late as late:
            try:
                self._take_back(name, late.id, secrets)
            except VolkitError as error:
                text = "%s %r may be in the storage and recorded nowhere (%s): see `volkit doctor`"
                _log.warning(text, self._sort, late.id, error.message)
            raise Aborted(late.message) from None

    def _take_back(self, name: str, id_: str, secrets: Secrets) -> None:
        """Remove what was made too late, unless somebody has taken it for his own since, or will by its name."""
        with self._locks.hold(self._name_key(name), self._id_key(id_), wait=TAKE_BACK_SECONDS):
            entry = self._journal.get(self._name_key(name))
            known = entry is not None and entry.value.get("id") in (None, id_)
            if known or self._journal.get(self._id_key(id_)) is not None:
                return
            self._journal.fence()
            self._remove(id_, secrets)

    def lock_id(self, id_: str, wait: float) -> AbstractContextManager[None]:
        """Delete's side: the recorded name of the id, if there is one, and the id."""
        entry = self._journal.get(self._id_key(id_))
        name = entry.value.get("name") if entry else None
        return self._locks.hold(*([self._name_key(name)] if name else []), self._id_key(id_), wait=wait)

    def find(self, name: str, secrets: Secrets, *, keep: bool = False) -> Found[T] | None:
        """What was made under `name`, by this or an earlier process, as it is now; None where there is
        nothing. `keep`: what was made and is not there any more raises Unavailable, instead of being forgotten.
        """
        entry = self._journal.get(self._name_key(name))
        record = entry.value if entry else {}
        id_ = record.get("id") or self.id_for(name)
        made = self._journal.get(self._id_key(id_)) if id_ else None
        if made and made.value.get("state") == "deleting":
            self._refuse(id_)
            self.delete(id_, secrets)
            return None
        thing = self._look_for(id_, name, secrets)
        if thing is not None:
            asked = record.get("request") or (made.value.get("request") if made else None)
            if "id" not in record:
                self._settle(name, thing, asked)
            return Found(thing, asked)
        if record.get("id"):
            if keep:
                raise Unavailable(
                    f"{self._sort} {name!r} was made as {id_!r}, and the storage does not have it: is all of it there? "
                    f"Where the {self._sort} is gone for good, remove it"
                )
            self._forget(name, id_)
        elif not self._repeatable and (aside := self._cut_short(name, record)):
            raise Unavailable(
                f"it is not known whether {self._sort} {name!r} was made when an earlier call was cut short, and this "
                "storage cannot be asked: look for it there, remove it or not, then run "
                f"`volkit journal --forget {aside}`"
            )
        return None

    def _cut_short(self, name: str, record: Mapping[str, Any]) -> str:
        """The key of a record of this name that does not tell how a create ended, or ""."""
        name_key = self._name_key(name)
        if record:
            return name_key
        return key("quarantine", name_key) if name_key in quarantined(self._journal, name_key) else ""

    def resolve(self, name: str, secrets: Secrets) -> str:
        """What became of an unfinished create, found out by looking, and recorded; the caller holds the name.

        "found", "absent", "done" (nothing was unfinished), or "unknown": this storage finds nothing by a name or
        by an id that volkit chose, so only a repeat of the call can tell.
        """
        entry = self._journal.get(self._name_key(name))
        if entry is None or "id" in entry.value:
            return "done"
        if not self._findable:
            return "unknown"
        if self.find(name, secrets) is not None:
            return "found"
        self._journal.write(Delete(self._name_key(name)), durable=False)
        return "absent"

    def create(
        self, name: str, secrets: Secrets, asked: Mapping[str, Any], make: Callable[[str, str], T]
    ) -> T:
        """Make it with `make(id, token)`, each "" where the controller takes none; `asked` is kept for comparing
        repeats. `find` has returned None before.

        Raises the backend's own final error where it is proven that nothing was made, an Ambiguous one where
        it may have been.
        """
        intent = {"state": "creating", "request": asked, "since": time.time()}
        self._journal.write(Put(self._name_key(name), intent), durable=True)
        try:
            thing = self._made(name, secrets, make)
        except VolkitError as error:
            thing = self._after_failure(name, secrets, error)
        try:
            self._settle(name, thing, asked)
        except Aborted as lost:
            raise _Late(lost.message, thing.id) from None
        return thing

    def _made(self, name: str, secrets: Secrets, make: Callable[[str, str], T]) -> T:
        """What `make` makes. The tokens of a name are the same each time, so that a lost journal doubles
        nothing; where the storage answers one with a thing that was deleted since, the next one is taken.
        """
        id_ = self.id_for(name)
        for generation in range(_GENERATIONS):
            token = digest(f"{self._sort}/{generation}/{name}", 16).hex() if self._takes_tokens else ""
            thing = make(id_, token)
            if not thing.id or (id_ and thing.id != id_):
                raise Unavailable(
                    f"the backend made {self._sort} {thing.id!r} instead of {id_ or 'one with an id'}: a fault of the "
                    "backend"
                )
            if self._findable or not self._repeatable or self._look_for(thing.id, name, secrets) is not None:
                return thing
        raise Unavailable(
            f"{self._sort} {name!r}: the storage answers {_GENERATIONS} tokens with what it has no more"
        )

    def _after_failure(self, name: str, secrets: Secrets, error: VolkitError) -> T:
        """Settle a failed create by looking: the thing where it is there after all, else the error that is
        true.
        """
        final = not isinstance(error, Ambiguous)
        if not self._findable:
            if final:
                self._journal.write(Delete(self._name_key(name)), durable=False)
            raise error
        try:
            thing = self._look_for(self.id_for(name), name, secrets)
            if thing is not None and final and not isinstance(error, AlreadyExists):
                self._journal.fence()  # what is there may be another replica's by now
                self._remove(thing.id, secrets)  # refused after it was begun: nothing half-made stays
                thing = self._look_for(self.id_for(name), name, secrets)
        except VolkitError as second:
            _log.warning(
                "after a failed create of %s %r: looking failed too (%s)", self._sort, name, second.message
            )
            raise (
                error
                if not final
                else Unavailable(f"{error.message}; whether something was made is not known yet")
            ) from second
        if thing is None:
            if final:
                self._journal.write(Delete(self._name_key(name)), durable=False)
            raise error
        if final and not isinstance(error, AlreadyExists):
            raise Unavailable(f"{error.message}; what was begun could not be removed yet") from error
        return thing

    def _look_for(self, id_: str, name: str, secrets: Secrets) -> T | None:
        try:
            if id_:
                return self.look(id=id_, secrets=secrets)
            return self.look(name=name, secrets=secrets) if self._finds_names else None
        except NotFound:
            return None

    def _settle(self, name: str, thing: T, asked: Mapping[str, Any] | None) -> None:
        self._journal.write(
            Put(self._name_key(name), {"id": thing.id}),
            Put(self._id_key(thing.id), {"name": name, "request": asked}),
            durable=not self._findable,
        )

    def delete(self, id_: str, secrets: Secrets) -> None:
        """Remove it, recorded or not; gone already is success, also where the backend fails over it instead of
        raising NotFound. The record goes last, so that a repeat finishes what was cut short.
        """
        id_key = self._id_key(id_)
        entry = self._journal.get(id_key)
        record = entry.value if entry else {}
        if record.get("state") != "deleting":
            intent = {**record, "state": "deleting", "since": time.time()}
            self._journal.write(Put(id_key, intent), durable=True)
        try:
            self._remove(id_, secrets)
        except VolkitError as error:
            if not isinstance(error, Ambiguous):
                left = {part: value for part, value in record.items() if part not in ("state", "since")}
                self._journal.write(Put(id_key, left) if left else Delete(id_key), durable=False)
                raise
            if not self._is_gone(id_, secrets):
                raise
        self._forget(record.get("name"), id_)

    def _is_gone(self, id_: str, secrets: Secrets) -> bool:
        """Whether the storage proves that it has nothing of this id; False where it cannot be asked."""
        try:
            return self._look_for(id_, "", secrets) is None
        except VolkitError:
            return False

    def _forget(self, name: str | None, id_: str) -> None:
        changes = [Delete(self._id_key(id_))]
        if name is not None:
            changes.append(Delete(self._name_key(name)))
        self._journal.write(*changes, durable=False)


def gone(remove: Callable[[], object]) -> None:
    """Run an operation whose NotFound is success."""
    try:
        remove()
    except NotFound:
        return
