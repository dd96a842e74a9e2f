"""What volumes were made with: kept where every node finds it, for a platform that tells it once, and not at each use
(Docker, Podman).

    asked/<volume id>   how it is to be mounted, its name, when it was made; asked-of/<name> until the id is known
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from attrs import asdict

from volkit.errors import AlreadyExists, Ambiguous, InvalidArgument, VolkitError
from volkit.journal import Conflict, Delete, Entry, Journal, Put, key
from volkit.journal.records import parts
from volkit.redaction import named_secrets
from volkit.wanted import Asked


class Creations:
    """What is kept in one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @contextmanager
    def remembered(self, name: str, asked: Asked, clone_of: str = "") -> Iterator[Callable[[str], None]]:
        """While a volume is made: keep what its creator asks for, where every node finds it, also where this process
        dies meanwhile. What it gives is to be called with the volume's id. Raises AlreadyExists where the volume was
        made with something else, InvalidArgument where a secret would have to be kept.
        """
        if secrets := named_secrets(asked.mount_flags):
            raise InvalidArgument(
                f"mount-options holds a secret, {secrets[0][:64]!r}, and would be stored: have it in a file of root's, "
                "and name that file, as credentials=/FILE does"
            )
        journal, draft = self._journal, key("asked-of", name)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {**asdict(asked), "mount_flags": list(asked.mount_flags), "name": name, "created": created}
        record |= {"clone_of": clone_of} if clone_of else {}
        journal.write(Put(draft, record), durable=True)

        def made(volume_id: str) -> None:
            kept, named = key("asked", volume_id), key("volume-name", name)
            while (entry := journal.get(kept)) is None or entry.value.get("removing"):
                there = journal.get(named)
                if there is None or there.value.get("id") != volume_id:
                    break  # somebody removed the volume since: nothing is kept for the next one of its id
                with suppress(Conflict):  # another call for this name came first: look what it kept
                    keep = Put(kept, record, revision=entry.revision if entry else 0)
                    still = Put(named, there.value, revision=there.revision)
                    journal.write(keep, still, Delete(draft), durable=True)
                    return
            else:
                if different := _different(_asked(entry), asked):
                    raise AlreadyExists(
                        f"volume {name!r} was made with another {different}: remove it, or choose another name"
                    )
            journal.write(Delete(draft), durable=False)

        try:
            yield made
        except VolkitError as error:
            if not isinstance(error, Ambiguous):
                journal.write(Delete(draft), durable=False)
            raise

    def cloned_from(self, volume_id: str) -> str:
        """The name of which it is a clone, as its creator wrote it, or ""."""
        entry = self._journal.get(key("asked", volume_id))
        return str(entry.value.get("clone_of", "")) if entry else ""

    @contextmanager
    def removing(self, name: str, volume_id: str) -> Iterator[None]:
        """While a volume is removed: what was asked for is void at the end, also where this process dies meanwhile, and
        the storage gives its id to another volume.
        """
        journal, asked_key = self._journal, key("asked", volume_id)
        entry = journal.get(asked_key)
        if entry is not None:
            journal.write(Put(asked_key, {**entry.value, "removing": True}), durable=True)
        marked = entry and journal.get(asked_key)
        try:
            yield
        except VolkitError as error:
            if entry and marked and marked.value.get("removing") and not isinstance(error, Ambiguous):
                with suppress(Conflict):
                    journal.write(Put(asked_key, entry.value, revision=marked.revision), durable=False)
            raise
        self._void(name, volume_id)

    def _void(self, name: str, volume_id: str) -> None:
        """After a removal, unless somebody made the volume anew meanwhile: what he asked for stays."""
        asked_key, volume_key = key("asked", volume_id), key("volume", volume_id)
        while True:
            entry = self._journal.get(asked_key)
            gone = [Delete(asked_key, revision=entry.revision)] if entry else []
            with suppress(Conflict):
                self._journal.write(
                    *gone, Delete(key("asked-of", name)), Delete(volume_key, revision=0), durable=False
                )
                return
            if self._journal.get(volume_key) is not None:
                return

    def asked(self, volume_id: str, name: str = "") -> Asked:
        """What was asked for; the defaults for a volume that nobody made here."""
        journal = self._journal
        return _asked(
            journal.get(key("asked", volume_id)) or (journal.get(key("asked-of", name)) if name else None)
        )

    def created(self, volume_id: str) -> str:
        """When it was made, in UTC as RFC 3339 has it; "" where that is not known."""
        with suppress(VolkitError):
            if entry := self._journal.get(key("asked", volume_id)):
                return str(entry.value.get("created", ""))
        return ""

    def all_created(self) -> dict[str, str]:
        """When each volume was made, by id, where that is known."""
        with suppress(VolkitError):
            found = self._journal.scan(key("asked", ""))
            return {parts(entry.key)[1]: str(entry.value.get("created", "")) for entry in found}
        return {}

    def forget(self, name: str) -> None:
        """The volume is removed, by somebody who did not come to the end of it."""
        journal = self._journal
        kept = [one.key for one in journal.scan(key("asked", "")) if one.value.get("name") == name]
        journal.write(*map(Delete, (key("asked-of", name), *kept)), durable=False)


def _asked(entry: Entry | None) -> Asked:
    record = entry.value if entry else {}
    return Asked(
        fs_type=record.get("fs_type", ""),
        mount_flags=tuple(record.get("mount_flags", ())),
        readonly=record.get("readonly", False),
    )


def _different(before: Asked, asked: Asked) -> str:
    """In which option they differ, or ""; what is in it may be secret."""
    shown = {"fs_type": "fs-type", "mount_flags": "mount-options", "readonly": "readonly"}
    return next((name for part, name in shown.items() if getattr(before, part) != getattr(asked, part)), "")
