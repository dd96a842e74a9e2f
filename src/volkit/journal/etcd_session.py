"""What an etcd journal is to the cluster while it lives: one lease, kept alive by a thread, to which its locks
belong; and transactions that happen once although their answers get lost.

Each transaction compares and changes a key of its writer, its slot. Sent again after a lost answer, it finds
by the slot whether it has happened; a copy that a paused member sends on much later finds a changed slot, or
a lease that ended, and does nothing.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from volkit.errors import Unavailable, VolkitError
from volkit.journal.etcd_client import Client, LeaseGone

Operation = dict[str, Any]

_log = logging.getLogger("volkit.journal")


def encoded(text: str) -> str:
    """A key or a value as the gateway wants it: the base64 of its UTF-8, and of what is none (`surrogateescape`)."""
    return base64.b64encode(text.encode(errors="surrogateescape")).decode()


def decoded(text: str) -> str:
    """The opposite of `encoded`."""
    return base64.b64decode(text).decode()


def same_revision(key: str, revision: int) -> Operation:
    """Compare: the key was changed last at `revision`; 0: it is not there."""
    return {"key": encoded(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def same_value(key: str, value: str) -> Operation:
    """Compare: the key has this value."""
    return {"key": encoded(key), "target": "VALUE", "result": "EQUAL", "value": encoded(value)}


def put(key: str, value: str, lease: int = 0) -> Operation:
    """Operation: set the key; it ends with `lease`, if one is given."""
    return {"request_put": {"key": encoded(key), "value": encoded(value), "lease": str(lease)}}


def delete(key: str) -> Operation:
    """Operation: remove the key."""
    return {"request_delete_range": {"key": encoded(key)}}


def look(key: str) -> Operation:
    """Operation: the key's revision and value."""
    return {"request_range": {"key": encoded(key)}}


@define
class _Slot:
    key: str
    revision: int = 0


@define(eq=False)
class Session:
    """One lease of the cluster. It is over when the cluster says so, or when this process cannot know."""

    id: int
    ttl: float
    renewed: float  # time.monotonic() at which the last renewal that succeeded was sent
    ended: bool = False
    slots: list[_Slot] = field(factory=list, repr=False)

    @property
    def over(self) -> bool:
        """Past its end, as far as this process can tell; never later than the cluster thinks so."""
        return self.ended or time.monotonic() > self.renewed + self.ttl


class Sessions:
    """The present session of a journal, and a thread that keeps it alive."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._ttl = client.address.ttl
        self._guard = threading.Lock()
        self._session: Session | None = None
        self._late: list[Operation] = []  # transactions that clear up, for when the cluster is back
        self._closed = threading.Event()

    def current(self) -> Session:
        """A session that is not over; a new one where there is none. Raises Unavailable."""
        with self._guard:
            if self._session is None or self._session.over:
                sent = time.monotonic()
                answer, _ = self._client.call("lease/grant", {"TTL": str(self._ttl)})
                self._session = Session(int(answer["ID"]), self._ttl, sent)
                threading.Thread(
                    target=self._keep_alive, args=(self._session,), name="volkit-etcd-lease", daemon=True
                ).start()
            return self._session

    def _keep_alive(self, session: Session) -> None:
        while not self._closed.wait(self._ttl / 3) and not session.over:
            self._clear_up()
            sent = time.monotonic()
            try:
                answer, _ = self._client.call(
                    "lease/keepalive", {"ID": str(session.id)}, patience=self._ttl / 3
                )
                if int(answer["result"].get("TTL", 0)) > 0:
                    session.renewed = sent
                    continue
                session.ended = True
            except LeaseGone:
                session.ended = True
            except (VolkitError, KeyError, ValueError) as error:
                _log.warning("the locks in the journal could not be renewed (%s)", error)
        if not self._closed.is_set():
            _log.warning("the locks in the journal were lost: what was under way here is refused from now on")

    def transact(
        self, session: Session, compares: Sequence[Operation], operations: Sequence[Operation]
    ) -> tuple[bool, int]:
        """Do all of `operations`, where all of `compares` hold: once, or not at all. Whether they held, and the
        revision of the store with it.

        Raises LeaseGone where the session was over and nothing happened; Unavailable where it is not known
        whether it happened: whoever holds a lease for it is safe from its happening later, once the lease
        is given back.
        """
        with self._guard:
            slot = (
                session.slots.pop() if session.slots else _Slot(f"{self._prefix}/writer/{uuid.uuid4().hex}")
            )
        mark = uuid.uuid4().hex
        body = {
            "compare": [same_revision(slot.key, slot.revision), *compares],
            "success": [put(slot.key, mark, session.id), *operations],
            # whatever the answer, a late copy of this transaction finds another revision of the slot
            "failure": [look(slot.key), put(slot.key, "", session.id)],
        }
        try:
            answer, _ = self._client.call("kv/txn", body)
        except LeaseGone as error:
            session.ended = True
            if error.again:
                raise Unavailable("the lease in etcd ended during a write: repeat the call") from None
            raise
        except Unavailable:
            with self._guard:  # a copy that still is on its way must find a changed slot
                self._late.append({"success": [put(slot.key, "", session.id)]})
            raise
        revision = int(answer["header"]["revision"])
        happened = answer.get("succeeded", False)
        if not happened:
            found = answer["responses"][0]["response_range"].get("kvs", [])
            value = decoded(found[0].get("value", "")) if found else ""
            before = int(found[0]["mod_revision"]) if found else 0
            happened = value == mark
            if not happened and before != slot.revision:
                raise Unavailable("it is not known whether a write to etcd happened: repeat the call")
            revision = before if happened else revision
        slot.revision = int(answer["header"]["revision"])
        with self._guard:
            session.slots.append(slot)
        return happened, revision

    def release(self, key: str, token: str, *, patience: float) -> None:
        """Remove a lock, if it is still the one of `token`; later, where the cluster is away."""
        try:
            self._client.call("kv/txn", _release(key, token), patience=patience)
        except VolkitError:
            self.release_later(key, token)

    def release_later(self, key: str, token: str) -> None:
        """Have the thread remove a lock that may be there."""
        with self._guard:
            self._late.append(_release(key, token))

    def _clear_up(self) -> None:
        with self._guard:
            waiting, self._late = self._late, []
        for at, body in enumerate(waiting):
            try:
                self._client.call("kv/txn", body, patience=0)
            except LeaseGone:
                continue  # and the slot with it
            except VolkitError:
                with self._guard:
                    self._late[:0] = waiting[at:]
                return

    def close(self, *, revoke: bool) -> None:
        """End the thread; with `revoke` the session too, else it runs out."""
        self._closed.set()
        with self._guard:
            session = self._session
        if revoke and session is not None and not session.over:
            try:
                self._client.call("lease/revoke", {"ID": str(session.id)}, patience=0)
            except (VolkitError, LeaseGone):
                pass  # it runs out by itself


def _release(key: str, token: str) -> Operation:
    return {"compare": [same_value(key, token)], "success": [delete(key)]}
