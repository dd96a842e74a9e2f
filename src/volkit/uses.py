"""Who uses a volume on this node, where the orchestrator tells only that somebody begins and ends: Docker, Podman.

```python
uses = Uses(engine, Path("/var/lib/volkit/loop/mounts"))
path = uses.begin("pvc-1", "container-7", Call(deadline=…))   # the whole plan from CREATED to PUBLISHED
uses.end("pvc-1", "container-7", call)                        # and back, when nobody uses it any more
```

What is told is recorded, and not believed alone. A set of users is wrong where one user begins twice and ends once
(`docker cp` on a running container), a counter where one begins twice and ends never (a daemon that was killed, a call
that timed out). So a volume is taken down only where the record says that nobody is left *and* no other mount namespace
has it mounted; and it is taken down, whatever the record says, where nobody has had it for `GRACE_SECONDS` after the
last begin, which is how long a daemon may take to start a container; five are enough where all its users were
seen to have it meanwhile. Where nothing is mounted (a reboot, a begin that failed) nobody has it. Where one user begins
again and, by these rules, nobody has it, what was begun before is void. One that counts its containers by itself, and
begins once for all of them (Podman), has the volume until it ends.

    use/<volume id>     {"name", "path", "staging", "holders": {who: how often}, "since": on the clock of "boot",
                         "keepers": [who counts by itself]}
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from volkit import carrying
from volkit import requests as r
from volkit.claims import Claims
from volkit.creations import Creations
from volkit.digests import digest
from volkit.engine import Engine
from volkit.errors import Aborted, Ambiguous, InUse, VolkitError
from volkit.host import mounts, namespaces
from volkit.journal import Delete, Put, SharedJournal, key
from volkit.journal.records import parts
from volkit.model import AccessMode, Capability, Volume
from volkit.wanted import Asked

GRACE_SECONDS = 120.0
"""How long after a begin nobody may have the volume yet: Docker waits so long for its plugin."""

SEEN_SECONDS = 5.0
"""The same where all users have been seen with it since."""

WATCH_SECONDS = 30.0
STARTING_SECONDS = 2.0
"""Between two looks while a user is expected and not seen yet."""

_PREFERRED = (AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.SINGLE_NODE_WRITER)

_log = logging.getLogger("volkit.engine")


@frozen(kw_only=True)
class Use:
    """A volume in use, and by whom as far as is told."""

    volume_id: str
    name: str
    path: str
    holders: Mapping[str, int]
    since: float


class Uses:
    """The uses of one engine's volumes on this node, mounted below `root`."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine = engine
        self._root = root
        self.shared: bool = isinstance(engine.journal, SharedJournal)
        """Do volumes go from node to node (a journal that hosts share)?"""
        self._claims = Claims(engine, many=lambda: self._mode().multi_node)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self._boot = file.read().strip()
        self.creations: Creations = Creations(engine.journal)
        self._swept = not self.shared
        self._closing = threading.Event()
        self._watching: threading.Thread | None = None
        self._began = threading.Event()
        # by volume, the last begin after which all its users were seen to have it
        self._seen: dict[str, float] = {}
        self._said: dict[str, str] = {}  # why it stays mounted: once is enough

    # -- begin and end

    def begin(
        self, volume: Volume, name: str, who: str, asked: Asked, call: r.Call, *, keeps: bool = False
    ) -> str:
        """Have `volume` mounted, and `who` among its users; returns the path. To repeat it is safe.

        `keeps`: `who` counts its containers by itself and begins once for all, so that it has the volume until it ends,
        also while no container runs. Raises InUse where the volume is for one node and another one has it.
        """
        use_key = key("use", volume.id)
        with self._engine.locks.hold(use_key, wait=call.patience()):
            self._claims.take(volume.id, name)
            record = self._record(volume.id) or self._new(volume, name)
            mounted, staged = (mounts.is_mount_point(record[place]) for place in ("path", "staging"))
            holders = dict(record["holders"]) if mounted else {}
            keepers = {*(record.get("keepers", ()) if mounted else ()), *([who] if keeps else [])}
            if who in holders and not keepers and self._is_nobodys(volume.id, record):
                holders.clear()
            holders[who] = 1 if keeps else holders.get(who, 0) + 1
            began = {"since": _now(), "boot": self._boot, "keepers": sorted(keepers)}
            self._write(use_key, {**record, **began, "holders": holders}, durable=True)
            try:
                self._up(volume, record, asked, call)
            except VolkitError as error:
                # no end follows: leave nothing that was not there, and no claim
                if not (mounted or staged or isinstance(error, Ambiguous)):
                    self._quietly_down(volume.id, record)
                raise
            self._began.set()
            return str(record["path"])

    def end(self, volume_id: str, who: str, call: r.Call) -> None:
        """`who` ends one of its uses. The volume is taken down where nobody is left; later, where it is busy or its
        storage does not answer: nobody repeats this call. Of what is not known, nothing.
        """
        use_key = key("use", volume_id)
        with self._engine.locks.hold(use_key, wait=call.patience()):
            record = self._record(volume_id)
            if record is None:
                return
            left = record["holders"].get(who, 0) - 1
            holders = {**record["holders"], who: left}
            if left <= 0:
                del holders[who]
            keepers = [one for one in record.get("keepers", ()) if one in holders]
            self._write(use_key, {**record, "holders": holders, "keepers": keepers}, durable=False)
            if not holders and not self._held_for_long(volume_id, record):
                try:
                    self._down(volume_id, record, call)
                except VolkitError as error:
                    _log.warning("volume %r stays mounted for now: %s", record["name"], error.message)

    def _release(self, volume_id: str, call: r.Call) -> None:
        """Take the volume down if nobody really has it, whoever is recorded. Raises InUse."""
        record = self._record(volume_id)
        if record is None:
            return
        told = bool(record["holders"]) and mounts.is_mount_point(record["path"])
        starting = told and self._may_be_starting(volume_id, record)
        if starting or self._held_for_long(volume_id, record):
            who = ", ".join(sorted(record["holders"])) or "somebody who said to have ended"
            seen = ", ".join(namespaces.name_holders(record["path"], copies=_copies(record)))
            wait = f"; if it is gone, repeat this in {GRACE_SECONDS:.0f} s" if starting else ""
            raise InUse(f"volume {record['name']!r} is used by {who}{f', seen as {seen}' if seen else wait}")
        self._down(volume_id, record, call)

    @contextmanager
    def removing(self, name: str, volume_id: str, call: r.Call) -> Iterator[None]:
        """While a volume is removed: nobody has it, on this node or on another, and what its creator asked for is void
        at the end, also where this process dies meanwhile. Raises InUse.
        """
        with self._engine.locks.hold(key("use", volume_id), wait=call.patience()):
            self._release(volume_id, call)
            with self._claims.alone(volume_id, name), self.creations.removing(name, volume_id):
                yield

    def path(self, volume_id: str) -> str:
        """Where the volume is mounted, or ""."""
        use = self.of(volume_id)
        return use.path if use and mounts.is_mount_point(use.path) else ""

    def of(self, volume_id: str) -> Use | None:
        """The volume, if it is in use."""
        record = self._record(volume_id)
        return _use(volume_id, record) if record else None

    def holders(self, volume_id: str) -> dict[str, int]:
        """Who uses the volume, and how often, as far as is told; nobody where no part of it is mounted any more."""
        record = self._record(volume_id) or {}
        there = any(mounts.is_mount_point(record[place]) for place in ("path", "staging") if record)
        return dict(record["holders"]) if there else {}

    def uses(self) -> list[Use]:
        """Every volume that is in use, as recorded."""
        found = self._engine.node_journal.scan(key("use", ""))
        return [_use(parts(entry.key)[1], entry.value) for entry in found]

    # -- the truth

    def settle(self) -> int:
        """Take down what nobody has had since its grace ended, and forget what a reboot took; returns how many volumes
        were taken down. A volume that is being worked on is left alone.
        """
        found = self._engine.node_journal.scan(key("use", ""))
        elsewhere = namespaces.mounts_elsewhere() if found else {}
        free: list[Use] = []
        for entry in found:
            volume_id, record = parts(entry.key)[1], entry.value
            if held := _holders(record, elsewhere):
                if held >= len(record["holders"]):
                    self._seen[volume_id] = record["since"]
            elif not (_is_kept(record) or (record["holders"] and self._may_be_starting(volume_id, record))):
                free.append(_use(volume_id, record))
        return sum(map(self._settled, free))

    def watch(self) -> None:
        """`settle` at once and then now and again, in a thread of its own, until `close`."""

        def work() -> None:
            while not self._closing.is_set():
                self._began.clear()
                if self._quietly():
                    self._closing.wait(min(STARTING_SECONDS, WATCH_SECONDS))
                else:
                    self._began.wait(WATCH_SECONDS)

        self._watching = threading.Thread(target=work, name="volkit-uses", daemon=True)
        self._watching.start()

    def close(self) -> None:
        """Settle no more; what hangs is left behind."""
        self._closing.set()
        self._began.set()
        if self._watching is not None:
            self._watching.join(1.0)

    def _quietly(self) -> bool:
        """Settle; whether somebody is expected who is not seen yet."""
        try:
            if not self._swept:
                self._give_back_unused()
                self._swept = True
            self.settle()
            return any(map(self._is_unseen, self.uses()))
        except VolkitError as error:
            _log.warning("the uses of volumes cannot be settled: %s", error.message)
            return False

    def _settled(self, use: Use) -> bool:
        try:
            with self._engine.locks.hold(key("use", use.volume_id), wait=0):
                record = self._record(use.volume_id)
                if record is None or record["since"] != use.since or self._is_held(use.volume_id, record):
                    return False
                mounted = mounts.is_mount_point(record["path"])
                if record["holders"] and mounted and not namespaces.can_see_everybody():
                    return False
                self._down(use.volume_id, record, r.Call())
        except Aborted:
            return False
        except VolkitError as error:
            level = logging.WARNING if self._said.get(use.volume_id) != error.message else logging.DEBUG
            _log.log(level, "volume %r is used by nobody and stays mounted: %s", use.name, error.message)
            self._said[use.volume_id] = error.message
            return False
        self._said.pop(use.volume_id, None)
        _log.info("volume %r was used by nobody any more", use.name)
        return True

    def _may_be_starting(self, volume_id: str, record: Mapping[str, Any]) -> bool:
        """May a daemon still be starting what began last?"""
        if record.get("boot") != self._boot:
            return False
        seen = self._seen.get(volume_id) == record["since"]
        return _now() - float(record["since"]) < (min(SEEN_SECONDS, GRACE_SECONDS) if seen else GRACE_SECONDS)

    def _is_unseen(self, use: Use) -> bool:
        seen = self._seen.get(use.volume_id) == use.since
        return bool(use.holders) and not seen and 0 <= _now() - use.since < GRACE_SECONDS

    def _is_nobodys(self, volume_id: str, record: Mapping[str, Any]) -> bool:
        """Is it seen that nobody has it, and can nobody be starting?"""
        if self._may_be_starting(volume_id, record) or not namespaces.can_see_everybody():
            return False
        return not self._is_held(volume_id, record)

    def _held_for_long(self, volume_id: str, record: Mapping[str, Any]) -> bool:
        """Does anybody have it, also a moment later, when one that ends is gone?"""
        for pause in (0.05, 0.2, 0.5):
            if not self._is_held(volume_id, record):
                return False
            time.sleep(pause)
        return self._is_held(volume_id, record)

    def _is_held(self, volume_id: str, record: Mapping[str, Any]) -> bool:
        """Does anybody have it, for all that can be seen? Here too, where what serves it ends when it is taken down: of
        a stopped container Docker copies in its own mount namespace. A directory may be mounted by anybody.
        """
        state = self._engine.node_state
        known = [state.stage_record(volume_id) or {}, *state.targets(volume_id)] if state else []
        connections = [one.get("connection") or {} for one in known]
        own = any(one.get("kind") in ("block", "fuse") for one in connections)
        elsewhere = namespaces.mounts_elsewhere(threads=True, own=own)
        if _holders(record, elsewhere):
            return True
        devices = [one["device"] for one in connections if one.get("kind") == "block"]
        here = record.get("boot") == self._boot  # a device's number is another's after it
        return here and any(_is_mounted(device, elsewhere, record) for device in devices)

    # -- the way up and down

    def _give_back_unused(self) -> None:
        """What this node claims and does not use: it died between the two, or while it removed a volume."""
        for volume_id in self._claims.own():
            with suppress(Aborted), self._engine.locks.hold(key("use", volume_id), wait=0):
                # the record may be lost, and what it tells of be here
                here = any(map(mounts.is_mount_point, self._places(volume_id).values()))
                if self._record(volume_id) is None and not here:
                    self._claims.give_back(volume_id)

    def _mode(self) -> AccessMode:
        modes = self._engine.backend.limits.access_modes
        if (
            self.shared
            and AccessMode.MULTI_NODE_MULTI_WRITER in modes
            and self._engine.backend.volume.kind != "block"
        ):
            return AccessMode.MULTI_NODE_MULTI_WRITER
        return next((mode for mode in _PREFERRED if mode in modes), next(iter(modes)))

    def capability(self, asked: Asked) -> Capability:
        """What a volume is made and mounted with."""
        return Capability(access_mode=self._mode(), fs_type=asked.fs_type, mount_flags=asked.mount_flags)

    def _new(self, volume: Volume, name: str) -> dict[str, Any]:
        began = {"holders": {}, "since": _now(), "boot": self._boot}
        return {"name": name, **self._places(volume.id), **began}

    def _places(self, volume_id: str) -> dict[str, str]:
        short = digest(volume_id, 12).hex()
        return {"path": str(self._root / "volumes" / short), "staging": str(self._root / "staging" / short)}

    def _up(self, volume: Volume, record: Mapping[str, Any], asked: Asked, call: r.Call) -> None:
        carrying.up(
            self._engine,
            volume.id,
            target=record["path"],
            staging=record["staging"],
            capability=self.capability(asked),
            readonly=asked.readonly,
            volume_context=volume.context,
            call=call,
        )

    def _down(self, volume_id: str, record: Mapping[str, Any], call: r.Call) -> None:
        try:
            carrying.down(
                self._engine, volume_id, target=record["path"], staging=record["staging"], call=call
            )
        finally:
            with suppress(OSError):  # who starts too late gets an error, and no directory of this machine
                os.rmdir(record["path"])
        self._claims.give_back(volume_id)  # before the record goes: where the journal is away, both go later
        self._seen.pop(volume_id, None)
        self._engine.node_journal.write(Delete(key("use", volume_id)), durable=False)

    def _quietly_down(self, volume_id: str, record: Mapping[str, Any]) -> None:
        """After an error that is to be told instead of this one's; what stays is taken down later."""
        with suppress(VolkitError):
            self._down(volume_id, record, r.Call())

    def _record(self, volume_id: str) -> Mapping[str, Any] | None:
        entry = self._engine.node_journal.get(key("use", volume_id))
        return entry.value if entry else None

    def _write(self, use_key: str, record: Mapping[str, Any], *, durable: bool) -> None:
        self._engine.node_journal.write(Put(use_key, record), durable=durable)


def _use(volume_id: str, record: Mapping[str, Any]) -> Use:
    return Use(volume_id=volume_id, **{one: record[one] for one in ("name", "path", "holders", "since")})


def _holders(record: Mapping[str, Any], elsewhere: namespaces.Elsewhere) -> int:
    """How many mount namespaces really have it."""
    return namespaces.count_holders(record["path"], elsewhere, copies=_copies(record))


def _is_mounted(device: str, elsewhere: namespaces.Elsewhere, record: Mapping[str, Any]) -> bool:
    """Also where its mount here is gone, as that of a managed plugin that was disabled is."""
    try:
        number = os.stat(device).st_rdev
    except OSError:
        return False
    device_number = (os.major(number), os.minor(number))
    return namespaces.has_holders(device_number, elsewhere, copies=_copies(record))


def _copies(record: Mapping[str, Any]) -> list[str]:
    return ["/" + "/".join(record[one].split("/")[-2:]) for one in ("path", "staging")]


def _is_kept(record: Mapping[str, Any]) -> bool:
    return bool(record.get("keepers")) and mounts.is_mount_point(record["path"])


def _now() -> float:
    """Seconds since the machine was started: the time of day is set anew just when containers start."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
