"""One storage, one driver at work on it, and the witness's account of what changed."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from volkit import requests as r
from volkit.backend import Backend
from volkit.errors import Ambiguous, InUse, VolkitError
from volkit.interfaces import Mixin, Node
from volkit.journal import Journal
from volkit.model import BlockVolume, Capability, CapacityRange, Secrets, Snapshot, Volume
from volkit.testing.faults import Spy, watched
from volkit.testing.journals import VolatileJournal, tear, watched_journal
from volkit.testing.witness import Storage, Witness, required_of

if TYPE_CHECKING:
    from volkit.testing.suite import BackendSuite

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
E = TypeVar("E", bound=BaseException)

SINGLE = Capability()


class Fault(AssertionError):
    """The backend breaks a promise; the text says which one, and what was seen."""


class Driver(Protocol):
    """What the suite talks to: an engine, or a wire with one behind it (which raises the same errors)."""

    def run(self, operation: str, request: Any) -> Any:
        """One operation of the table, as `Engine.run`."""

    def close(self) -> object:
        """As when the process ends."""


def check(fine: object, message: str) -> None:
    """Raise a Fault with this message unless `fine`."""
    if not fine:
        raise Fault(message)


def needs(
    *mixins: type[Any], a: tuple[type[Any], ...] = (), lacks: type[Any] | None = None
) -> Callable[[C], C]:
    """Marks a case for backends that have all of `mixins` (or `Node`), one of `a`, and not `lacks`."""

    def mark(case: C) -> C:
        case.needs = (mixins, a, lacks)  # type: ignore[attr-defined]
        return case

    return mark


def missing(case: Callable[..., Any], has: Callable[[type[Any]], bool]) -> str:
    """Why a backend cannot be asked this, or ""."""
    return lacking(getattr(case, "needs", ((), (), None)), has)


def lacking(needed: tuple[Any, ...], has: Callable[[type[Any]], bool]) -> str:
    """What of `needed`, as `needs` has it, a backend has not, or ""."""
    mixins, several, lacks = needed
    if Node in mixins and has(Node) and os.geteuid() != 0:
        return "to mount needs root"
    for mixin in mixins:
        if not has(mixin):
            return f"the backend has no {mixin.__name__}"
    if several and not any(map(has, several)):
        return f"the backend has none of {', '.join(one.__name__ for one in several)}"
    if lacks and has(lacks):
        return f"the backend has {lacks.__name__}"
    return ""


class Kit:
    """What a case gets. Everything it makes through `run` is removed by `close`, and has to be gone then."""

    def __init__(
        self, suite: BackendSuite, directory: Path, *, full: bool = False, sequences: int = 0
    ) -> None:
        self.suite = suite
        self.full: bool = full and not suite.sampled
        self.sequences = sequences
        """So many random sequences, other ones in each run; 0: always the same, as many as the suite says."""
        self.directory = directory
        (directory / "storage").mkdir()
        self.storage: Storage = suite.storage(directory / "storage")
        self.backend: type[Backend[Any, Any]] = suite.backend
        self.spy: Spy = Spy()
        self.journal: Journal = suite.journal()
        self.open_journal: Callable[[], Journal] = lambda: watched_journal(self.journal, self.spy)
        self.told: Mapping[str, str] = {}
        self._watched = watched(self.backend, self.spy)
        controller = self.backend.controller_class(self.storage.settings)
        self.controller_class = controller
        self.node_class: type[Node[Any]] | None = self.backend.node_class(self.storage.settings)
        self._classes = tuple(filter(None, (controller, self.node_class)))
        self._numbers = itertools.count(1)
        self._made: list[Callable[[], object]] = []
        self._driver: Driver | None = None
        self.tried = 0
        """How many faults were injected: what docs/reliability.md counts."""
        self._check_witness(controller)
        self.before: dict[str, Counter[Any]] = self.seen()

    def another(self) -> Kit:
        """A kit of the same suite, with a directory, and so as a rule a storage, of its own."""
        directory = self.directory / f"kit-{next(self._numbers)}"
        directory.mkdir()
        return Kit(self.suite, directory, full=self.full, sequences=self.sequences)

    def _check_witness(self, controller: type | None) -> None:
        kind = type(self.witness).__name__
        check(
            isinstance(self.witness, Witness),
            f"the storage's witness is a {kind}: give a volkit.testing.Witness",
        )
        for name in required_of(controller):
            own = getattr(type(self.witness), name)
            check(
                own is not getattr(Witness, name),
                f"{kind} has no {name}(): define it, since the backend has them",
            )

    # -- the driver

    @property
    def witness(self) -> Witness:
        return self.storage.witness

    def has(self, mixin: type[Mixin]) -> bool:
        """Does the backend have this capability?"""
        return any(issubclass(one, mixin) for one in self._classes)

    @property
    def has_node(self) -> bool:
        """Can volumes be mounted here?"""
        return self.node_class is not None and os.geteuid() == 0

    @property
    def driver(self) -> Driver:
        """The driver, started where it is not running."""
        if self._driver is None:
            self._driver = self.serve(self._watched)
        return self._driver

    def serve(self, backend: type[Backend[Any, Any]] | None = None) -> Driver:
        """A new process, so to speak, on the same storage, state directory and journal."""
        state = self.directory / "state"
        state.mkdir(exist_ok=True)
        return self.suite.serve(backend or self.backend, self.storage.settings, state, self.open_journal())

    def stop(self) -> None:
        """End the process that serves, so to speak."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def lose_journal(self) -> None:
        """As after the loss of a disk: a new, empty journal."""
        self.stop()
        self.journal.close()
        self.journal = self.suite.journal()

    def power_cut(self, lost: int | None) -> None:
        """As a power cut leaves this machine: nothing is mounted or attached, and of what the journal was not made
        to sync the last `lost` records are gone (None: all).
        """
        from volkit.host import mounts

        self.stop()
        if isinstance(self.journal, VolatileJournal):
            self.journal.power_cut(lost)
        for mount in reversed(mounts.mounts(under=str(self.directory))):
            mounts.unmount(mount.mount_point, lazy=True)
        self.storage.reboot()

    def tear_log(self, journal: Path, synced: int, seed: int) -> None:
        """As a power cut leaves the log of the SQLite journal at this path, of which so many bytes were synced."""
        tear(journal, synced, random.Random(seed))

    def run(self, operation: str, request: Any) -> Any:
        """One operation. Raises what the driver raises, and Fault where it does not answer, or where the
        backend was seen to do wrong.
        """
        self.spy.listen(f"the repr of a request of {operation}", repr(request))
        try:
            result = self.within(lambda: self.driver.run(operation, request), operation)
        except VolkitError as error:
            self.spy.listen(f"what {operation} answers", "".join(traceback.format_exception(error)))
            self._judge(error)
            raise
        self.spy.listen(f"what {operation} answers", repr(result))
        self._judge(None)
        return result

    def _judge(self, cause: Exception | None) -> None:
        if self.spy.wrong:
            raise Fault("; ".join(dict.fromkeys(self.spy.wrong))) from cause

    def within(self, work: Callable[[], T], what: str) -> T:
        """`work()`, which must end in the suite's `patience`."""
        results: list[T] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join(self.suite.patience)
        check(not thread.is_alive(), f"{what} hangs: no answer in {self.suite.patience:g} s")
        if errors:
            raise errors[0]
        return results[0]

    def until_done(self, call: Callable[[], T], times: int = 5) -> T:
        """As an orchestrator does: repeat what is ambiguous. A Fault where it stays so."""
        last: Ambiguous | None = None
        for _ in range(times):
            try:
                return call()
            except Ambiguous as error:
                last = error
        raise Fault(f"after a failure the same call fails {times} times more: {last and last.message}")

    # -- looking

    def seen(self) -> dict[str, Counter[Any]]:
        """What the witness sees."""
        return {
            "volumes": Counter(self.witness.volumes()),
            "snapshots": Counter(self.witness.snapshots()),
            "attachments": Counter(self.witness.attachments()),
        }

    def more(self) -> dict[str, int]:
        """How many of each sort the witness sees more than at the beginning."""
        return {sort: now.total() - self.before[sort].total() for sort, now in self.seen().items()}

    def recover(self) -> None:
        """What `volkit recover` does, and as soon as it may."""
        from volkit.recovery import recover
        from volkit.testing.suite import BackendSuite

        self.stop()
        backend, settings = self.backend, self.storage.settings
        # the engine itself, also where the suite has a wire before it
        engine: Any = BackendSuite.serve(
            self.suite, backend, settings, self.directory / "state", self.open_journal()
        )
        for _ in recover(engine, min_age=0):
            pass
        engine.close()

    def recorded(self) -> list[str]:
        """The keys of all that is in the journal."""
        journal = self.open_journal()
        try:
            return [entry.key for entry in journal.scan("")]
        finally:
            journal.close()

    def expect(self, when: str, **more: int) -> None:
        """The witness sees just so many volumes, snapshots, attachments more than at the beginning."""
        for sort, now in self.seen().items():
            new, lost = now - self.before[sort], self.before[sort] - now
            count, wanted = sum(new.values()), more.get(sort, 0)
            check(not lost, f"{when}: {sort} that were there before are gone: {sorted(map(str, lost))}")
            check(
                count == wanted,
                f"{when}: the witness sees {count} {sort}, not {wanted}: {sorted(map(str, new.elements()))}",
            )

    @contextmanager
    def refused(self, what: str, *errors: type[E]) -> Iterator[None]:
        """What is run in here must raise one of `errors`."""
        names = " or ".join(one.__name__ for one in errors)
        try:
            yield
        except errors:
            return
        except VolkitError as error:
            raise Fault(f"{what}: {type(error).__name__} ({error.message}) instead of {names}") from error
        raise Fault(f"{what}: succeeds instead of {names}")

    # -- making

    @property
    def secrets(self) -> Secrets:
        """What each call carries: the suite's secrets, and those that a case wants to hear of."""
        return Secrets({**self.suite.secrets, **self.told})

    def name(self) -> str:
        """A volume's name that was not used before."""
        return f"volkit-kit-{next(self._numbers)}"

    def request(self, name: str = "", **fields: Any) -> r.CreateVolumeRequest[Mapping[str, str]]:
        """A create that the backend can do."""
        given = {
            "parameters": dict(self.suite.parameters),
            "capabilities": (SINGLE,),
            "secrets": self.secrets,
            "capacity_range": CapacityRange(required=self.suite.size),
            **fields,
        }
        return r.CreateVolumeRequest(name=name or self.name(), **given)

    def create(self, name: str = "", **fields: Any) -> Volume:
        """Make a volume, to be removed at the end."""
        return self.create_as(self.request(name, **fields))

    def create_as(self, request: r.CreateVolumeRequest[Any]) -> Volume:
        """As `create`, with a request at hand."""
        volume: Volume = self.run("create_volume", request)
        self.later(lambda: self.delete(volume.id))
        return volume

    def delete(self, volume_id: str) -> None:
        self.run("delete_volume", r.DeleteVolumeRequest(volume_id=volume_id, secrets=self.secrets))

    def get(self, volume_id: str) -> Volume:
        """The volume as it is now. Raises NotFound."""
        request = r.GetVolumeRequest(volume_id=volume_id, secrets=self.secrets)
        entry: r.VolumeEntry = self.run("get_volume", request)
        return entry.volume

    def cut(self, volume_id: str, name: str = "") -> Snapshot:
        """Make a snapshot, to be removed at the end."""
        request = r.CreateSnapshotRequest(
            name=name or self.name(), source_volume_id=volume_id, secrets=self.secrets
        )
        snapshot: Snapshot = self.run("create_snapshot", request)
        self.later(lambda: self.uncut(snapshot.id))
        return snapshot

    def uncut(self, snapshot_id: str) -> None:
        self.run("delete_snapshot", r.DeleteSnapshotRequest(snapshot_id=snapshot_id, secrets=self.secrets))

    def larger(self, volume: Volume) -> int:
        """Bytes that the volume could be grown to."""
        return volume.capacity + self.backend.limits.granularity

    def later(self, undo: Callable[[], object]) -> None:
        """Have it done at the end, last first."""
        self._made.append(undo)

    def undo(self) -> None:
        """Do all of it now, and as an orchestrator does: again where something is in use. Raises what goes wrong."""
        until = time.monotonic() + min(5.0, self.suite.patience)
        while self._made:
            try:
                self._made[-1]()
            except InUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                self._made.pop()

    @property
    def block(self) -> bool:
        """Are the volumes block devices?"""
        return issubclass(self.backend.volume, BlockVolume)

    # -- the end

    def close(self, *, judge: bool = True) -> None:
        """Remove what was made. Raises a Fault where something stays, or the backend was seen to do wrong."""
        self.spy.begin()
        for undo in reversed(self._made):
            with suppress(VolkitError, Fault):
                undo()
        self.stop()
        self.journal.close()
        if judge:
            self._judge(None)
            self.expect("after everything made is removed")
