"""A journal in etcd, for controllers of several hosts: Swarm, or replicas of a deployment.

```text
<prefix>/format         the version of what is below
<prefix>/record/<key>   a record, as JSON
<prefix>/lock/<key>     a lock: which of its holders it is; ends with the holder's lease
<prefix>/writer/<id>    the last transaction of a writer; ends with its lease
```

Every write is a transaction that a majority of the members has on disk when it returns, so all are durable.
Reads are linearizable. A record's revision is etcd's mod_revision: never the same again after a deletion.
"""

from __future__ import annotations

import base64
import contextvars
import json
import logging
import threading
import time
import uuid
from typing import Any

from volkit.errors import Aborted, FailedPrecondition, Unavailable
from volkit.journal.base import Conflict, Delete, Entry, Lease, Put, SharedJournal
from volkit.journal.etcd_client import Address, Client, LeaseGone
from volkit.journal.etcd_session import (
    Operation,
    Session,
    Sessions,
    decoded,
    delete,
    encoded,
    put,
    same_revision,
    same_value,
)
from volkit.journal.records import read

FORMAT = 1
"""The version of the keys and values. One version ahead is read and written too: it only adds."""

_PAGE = 500
_POLL_SECONDS = (0.02, 0.05, 0.1, 0.2)

_log = logging.getLogger("volkit.journal")

_held: contextvars.ContextVar[tuple[EtcdLease, ...]] = contextvars.ContextVar(
    "volkit-etcd-leases", default=()
)


class EtcdLease(Lease):
    """A lock's key, which exists as long as the lease is held and its session lives."""

    def __init__(self, journal: EtcdJournal, key: str, token: str, revision: int, session: Session) -> None:
        self.key = key
        self.revision = revision
        self.token = token
        self.journal = journal
        self._session = session

    @property
    def lost(self) -> bool:
        return self._session.over

    def release(self) -> None:
        _held.set(tuple(one for one in _held.get() if one is not self))
        self.journal.give_back(self)


class EtcdJournal(SharedJournal):
    """The records below the prefix of an `etcd://` URL (see `volkit.journal.etcd_client`).

    Raises InvalidArgument for the URL, FailedPrecondition where etcd3gw is missing or the records are of a newer
    format, Unauthenticated and PermissionDenied; never Unavailable: the cluster may come later.
    """

    def __init__(self, url: str) -> None:
        self.address: Address = Address.parse(url)
        self._prefix = self.address.prefix
        self._client = Client(self.address)
        self._sessions = Sessions(self._client, self._prefix)
        self._leases: set[EtcdLease] = set()
        self._guard = threading.Lock()
        self._checked = False
        self._closed = False
        try:
            self._check()
        except Unavailable as error:
            _log.warning("the journal is away at start: %s", error)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"EtcdJournal({self.address})"

    def _check(self) -> None:
        """Refuse a closed journal; before the first use, one of a newer format."""
        if self._closed:
            raise Unavailable(f"the journal in {self.address} is closed")
        if self._checked:
            return
        place = f"{self._prefix}/format"
        fresh = {
            "compare": [same_revision(place, 0)],
            "success": [put(place, str(FORMAT))],
            "failure": [{"request_range": {"key": encoded(place)}}],
        }
        answer = self._call("kv/txn", fresh)
        if not answer.get("succeeded", False):
            found = answer["responses"][0]["response_range"].get("kvs", [])
            version = decoded(found[0]["value"]) if found else str(FORMAT)
            if not version.isdigit() or int(version) > FORMAT + 1:
                raise FailedPrecondition(
                    f"{self.address} has records of format {version}, this version of volkit reads up to {FORMAT + 1}: "
                    "upgrade volkit"
                )
        self._checked = True

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        return self._client.call(path, body)[0]

    # -- reading

    def get(self, key: str) -> Entry | None:
        self._check()
        answer = self._call("kv/range", {"key": encoded(self._record(key))})
        found = answer.get("kvs", [])
        return self._entry(found[0]) if found else None

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        self._check()
        end = _after_prefix(self._record(prefix))
        start = max(self._record(prefix).encode(), self._record(after).encode() + b"\0" if after else b"")
        entries: list[Entry] = []
        at = "0"
        while start < end and (not limit or len(entries) < limit):
            page = min(_PAGE, limit - len(entries)) if limit else _PAGE
            body = {"key": _base64(start), "range_end": _base64(end), "limit": str(page), "revision": at}
            answer = self._call("kv/range", body)
            at = answer["header"]["revision"] if at == "0" else at  # all pages show one moment
            found = answer.get("kvs", [])
            entries += filter(None, map(self._entry, found))
            if not answer.get("more"):
                break
            start = base64.b64decode(found[-1]["key"]) + b"\0"
        return entries

    def _record(self, key: str) -> str:
        return f"{self._prefix}/record/{key}"

    def _entry(self, found: dict[str, Any]) -> Entry | None:
        text = base64.b64decode(found.get("value", ""))
        return read(self, self._name(found), text, int(found["mod_revision"]))

    def _name(self, found: dict[str, Any]) -> str:
        place = base64.b64decode(found["key"]).decode(errors="surrogateescape")
        return place.removeprefix(self._record(""))

    # -- writing

    def write(self, *changes: Put | Delete, durable: bool = True) -> None:
        texts = [json.dumps(change.value) if isinstance(change, Put) else "" for change in changes]
        self._check()
        last: dict[str, Operation] = {}  # a transaction may name a key once
        for change, text in zip(changes, texts, strict=True):
            place = self._record(change.key)
            last[change.key] = put(place, text) if isinstance(change, Put) else delete(place)
        compares = [
            same_revision(self._record(one.key), one.revision) for one in changes if one.revision is not None
        ]
        held = self._fenced()
        if not self._transact([*map(_is_held, held), *compares], list(last.values()), held):
            self.fence()
            named = sorted({one.key for one in changes if one.revision is not None})
            raise Conflict(
                f"a record of {', '.join(map(repr, named))} was changed by somebody else: repeat the call"
            )

    def _transact(
        self, compares: list[Operation], operations: list[Operation], held: tuple[EtcdLease, ...]
    ) -> bool:
        for _ in range(3):
            session = self._sessions.current()
            try:
                return self._sessions.transact(session, compares, operations)[0]
            except LeaseGone:  # nothing happened, and what was held with it is lost
                if held:
                    raise _lost(held[0]) from None
        raise Unavailable(
            f"{self.address}: its leases end at once; are the clocks or the cluster overloaded?"
        )

    # -- locks

    def lease(self, key: str, *, wait: float) -> Lease | None:
        self._check()
        deadline = time.monotonic() + wait
        for attempt in range(1 << 30):
            made = self._try_lease(key)
            if made is not None:
                with self._guard:
                    self._leases.add(made)
                _held.set((*_held.get(), made))
                return made
            pause = _POLL_SECONDS[min(attempt, len(_POLL_SECONDS) - 1)]
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
        return None

    def _try_lease(self, key: str) -> EtcdLease | None:
        place = f"{self._prefix}/lock/{key}"
        if self._call("kv/range", {"key": encoded(place), "keys_only": True}).get("kvs"):
            return None
        token = uuid.uuid4().hex
        for _ in range(3):
            session = self._sessions.current()
            try:
                taken, revision = self._sessions.transact(
                    session, [same_revision(place, 0)], [put(place, token, session.id)]
                )
            except LeaseGone:
                continue
            except Unavailable:
                self._sessions.release_later(place, token)
                raise
            return EtcdLease(self, key, token, revision, session) if taken else None
        raise Unavailable(
            f"{self.address}: its leases end at once; are the clocks or the cluster overloaded?"
        )

    def give_back(self, lease: EtcdLease) -> None:
        """Remove the lock of a lease that is not needed any more."""
        with self._guard:
            self._leases.discard(lease)
        if not lease.lost and not self._closed:
            self._sessions.release(f"{self._prefix}/lock/{lease.key}", lease.token, patience=1.0)

    def _fenced(self) -> tuple[EtcdLease, ...]:
        """The leases held here; raises Aborted where one is over by this process's own clock."""
        held = tuple(one for one in _held.get() if one.journal is self)
        for one in held:
            if one.lost:
                raise _lost(one)
        return held

    def fence(self) -> None:
        held = self._fenced()
        if not held:
            return
        self._check()
        answer = self._call("kv/txn", {"compare": list(map(_is_held, held)), "success": [], "failure": []})
        if not answer.get("succeeded", False):
            raise _lost(held[0])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # what still runs under a lease keeps it until it runs out: its writes are refused already
        self._sessions.close(revoke=not self._leases)
        self._client.close()


def _is_held(lease: EtcdLease) -> Operation:
    return same_value(f"{lease.journal._prefix}/lock/{lease.key}", lease.token)


def _lost(lease: Lease) -> Aborted:
    kind, _, name = lease.key.partition("/")
    return Aborted(
        f"the lock of {kind} {name!r} was lost, as this process was held up or cut off for too long; "
        "another controller may have it: repeat the call"
    )


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _after_prefix(prefix: str) -> bytes:
    """The first key after all that begin with `prefix`: UTF-8 has no ff."""
    return prefix.encode() + b"\xff"
