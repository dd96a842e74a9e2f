"""The engine: validate -> lock -> journal -> call -> settle. The only place with policy; adapters and
backends have none.

```python
engine = Engine(LoopBackend, settings, state_dir=Path("/var/lib/volkit/loop"), node_id="n1")
volume = engine.run("create_volume", CreateVolumeRequest(name="pvc-1", parameters={}, capabilities=(Capability(),)))
```
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volkit.backend import Backend, supported
from volkit.digests import digest
from volkit.errors import FailedPrecondition, InvalidArgument, Unsupported
from volkit.events import Listener, Tally, Telling, subject_of
from volkit.guard import hiding, secrets_of
from volkit.interfaces import Controller, FindsByName, Mixin, Node, TakesIds, TakesTokens
from volkit.journal import Journal, SharedJournal, open_journal
from volkit.lanes import Lanes
from volkit.locks import Locks
from volkit.model import NO_SECRETS, Secrets, Volume
from volkit.operations import OPERATIONS, Operation
from volkit.requests import Call

if TYPE_CHECKING:
    from volkit.status import Status

SERVICES = ("controller", "node")
_UNDOING = frozenset(one.undo for one in OPERATIONS.values() if one.undo)


class Engine:
    """One backend at work. `state_dir` holds the lock file and, unless a `journal` is given, the journal.

    Several engines, in one process or in many, may share a state directory. What a node knows of itself stays
    in the state directory also where the controller's `journal` is elsewhere, unless a `node_journal` is given.

    A default journal that is damaged is set aside where the backend's volumes can be found again. Raises
    FailedPrecondition where a journal in memory, or one shared by replicas, would make the backend double its
    volumes.
    """

    def __init__(
        self,
        backend: type[Backend[Any, Any]],
        settings: object,
        *,
        state_dir: Path,
        journal: Journal | None = None,
        node_journal: Journal | None = None,
        node_id: str = "",
        services: Collection[str] = SERVICES,
    ) -> None:
        from volkit.mending import Mending
        from volkit.node_state import NodeState
        from volkit.provisioning import Provisioning
        from volkit.publishing import Publishing
        from volkit.staging import Staging
        from volkit.upkeep import Upkeep

        self.backend = backend
        self.state_dir: Path = state_dir.absolute()
        self.node_id = node_id
        self.services: frozenset[str] = frozenset(services)
        if unknown := self.services - set(SERVICES):
            raise InvalidArgument(f"unknown service {min(unknown)!r}: give controller, node or both")
        if "node" in self.services and not node_id:
            raise InvalidArgument("a node service needs the node's id")
        self.settings = settings
        classes = (backend.controller_class(settings), backend.node_class(settings))
        self._classes = tuple(filter(None, classes))
        controller_class = classes[0] if "controller" in self.services else None
        node_class = classes[1] if "node" in self.services else None
        local = node_journal or journal
        if local is None or (node_class and node_journal is None):
            path = state_dir.absolute() / "journal.db"
            findable = journal is not None or can_find_again(controller_class)
            local = open_journal(f"sqlite://{path}", set_aside=findable)
        self.journal: Journal = local if journal is None else journal
        self.node_journal = local
        _refuse_doubling(backend, controller_class, self.journal)
        self.locks: Locks = Locks(state_dir / "locks")
        self.controller: Controller[Any, Any] | None = (
            controller_class(settings, node_id) if controller_class else None
        )
        self.node: Node[Any] | None = node_class(settings, node_id) if node_class else None
        self.operations: Mapping[str, Operation] = {
            one.name: one for one in supported(controller_class, node_class)
        }
        self.lanes: Lanes = Lanes(state_dir / "left-behind" / f"{os.getpid()}.json")
        self._telling = Telling(backend.name, node_id)
        caches = str(state_dir.absolute() / "cache")
        state = NodeState(self.node, backend, local, self.locks, node_id, caches) if self.node else None
        self.node_state = state
        self.staging: Staging | None = Staging(state) if state else None
        self.publishing: Publishing | None = Publishing(state) if state else None
        self._mending = None
        self._closing = threading.Event()
        self._status: Status | None = None
        if state:
            from volkit.host import apart

            apart.belong_to(str(self.state_dir))
        if state and state.programs:
            from volkit.host import fuse

            fuse.supervisor()  # refused now, and not when a pod waits for its files
            self._mending = Mending(state)
        self.provisioning: Provisioning | None = None
        if self.controller:
            # nodes lock for themselves: one volume is staged on several of them at once
            shared = self.journal if isinstance(self.journal, SharedJournal) else None
            locks = Locks(state_dir / "locks", shared) if shared else self.locks
            self.provisioning = Provisioning(self.controller, backend, self.journal, locks, state)
        made = self.provisioning
        side = (made, made.snapshotting, made.attaching) if made else ()
        upkeep = Upkeep(state) if state else None
        rooms = (*side, self.staging, self.publishing, upkeep)
        self._run = {
            name: next(getattr(room, name) for room in rooms if hasattr(room, name))
            for name in self.operations
        }

    def has(self, mixin: type[Mixin]) -> bool:
        """Does the backend have this capability, on the side that is served here or on the other?"""
        return any(issubclass(side, mixin) for side in self._classes)

    def run(self, operation: str, request: Any, call: Call = Call()) -> Any:
        """Do one operation of the table; `request` and what is returned are of the classes in its row.

        The work has a thread of its own. Where it has not ended by the call's deadline (`lanes.CALL_SECONDS`
        without one), the call ends with DeadlineExceeded, and the work goes on under its lock.

        Raises only errors of `volkit.errors`: Unsupported for a row that is not served here; for an exception
        of the backend that is none of these, what is found out by looking, else Unavailable.
        """
        subject = subject_of(request)
        work = functools.partial(self._dispatch, operation, subject, request, call)
        return self._told(operation, subject, request, work) if self._telling.listeners else work()

    def _dispatch(self, operation: str, subject: str, request: Any, call: Call) -> Any:
        run = self._run.get(operation)
        if run is None:
            row = OPERATIONS[operation]
            why = (
                f"{row.side} service is off"
                if row.side not in self.services
                else f"backend {self.backend.name!r} cannot do it"
            )
            raise Unsupported(f"{operation}: the {why}")
        return self.lanes.run(
            operation,
            subject,
            functools.partial(_hidden, run, request, call),
            until=call.deadline,
            patience=call.patience(),
            undoes=operation in _UNDOING,
        )

    def find(
        self, name: str, call: Call = Call(), secrets: Secrets = NO_SECRETS, *, keep: bool = False
    ) -> Volume | None:
        """The volume of this name, for a platform that knows volumes by name; None where it is proven that there is
        none. `keep`: one that was made here, was not removed and is not in the storage raises Unavailable, for a
        platform that would make another one. Raises Unsupported without a controller, and what a look at the storage
        raises.
        """
        if self.provisioning is None:
            raise Unsupported("to find a volume by its name takes the controller service")
        look = functools.partial(self.provisioning.find_volume, name, call, secrets, keep=keep)
        work = functools.partial(
            self.lanes.run, "find_volume", name, look, until=call.deadline, patience=call.patience()
        )
        return self._told("find_volume", name, None, work) if self._telling.listeners else work()

    def listen(self, listener: Listener) -> None:
        """Tell `listener` of every operation from now on."""
        self._telling.listen(listener)

    def _told(self, operation: str, subject: str, request: Any, work: Callable[[], Any]) -> Any:
        """`work()`, and the listeners are told when it begins and how it ends."""
        begun = self._telling.begin(operation, subject, request)
        try:
            result = work()
        except BaseException as error:
            self._telling.end(begun, request, error=error)
            raise
        self._telling.end(begun, request, result)
        return result

    @contextmanager
    def listening(self, socket: str) -> Iterator[None]:
        """For an adapter: note that a driver listens on this unix socket, until the block is left. Of one that was
        killed the note tells `volkit doctor` what it left there.
        """
        note = self.state_dir / "sockets" / digest(socket, 8).hex()
        with suppress(OSError):
            note.parent.mkdir(mode=0o700, exist_ok=True)
            note.write_text(socket)
        try:
            yield
        finally:
            with suppress(OSError):
                note.unlink(missing_ok=True)

    def watch(self) -> None:
        """For a daemon: start again from now on what dies of the programs that serve this node's volumes, and tell
        `volkit top` what runs.
        """
        from volkit.status import Status

        tally = Tally()
        self.listen(tally)
        facts = {"backend": self.backend.name, "node": self.node_id, "services": sorted(self.services)}
        self._status = Status(self.state_dir, self.lanes, tally, facts)
        self._status.serve()
        if self._mending is not None:
            watching = threading.Thread(
                target=self._mending.watch, args=(self._closing,), name="volkit-mending"
            )
            watching.daemon = True
            watching.start()

    @property
    def closing(self) -> bool:
        """Was it closed, or is it being closed?"""
        return self._closing.is_set()

    def needs_restart(self) -> str:
        """Why this process cannot go on and a new one could, in words; "" where that is not so. See `Journal`."""
        return self.journal.needs_restart() or self.node_journal.needs_restart()

    def close(self, grace: float = 0.0) -> int:
        """Wait at most `grace` seconds for calls that were left behind, and close the journal, also the one that was
        given. Returns how many calls still run: nothing stops them, and the journal stays open for them; end the
        process by `os._exit` then.
        """
        self._closing.set()
        if self._status is not None:
            self._status.close()
        if left := self.lanes.close(grace):
            return left
        self.node_journal.close()
        if self.journal is not self.node_journal:
            self.journal.close()
        return 0


def _hidden(run: Callable[[Any, Call], Any], request: Any, call: Call) -> Any:
    """`run`, with the secrets of the request hidden from whatever it calls and logs."""
    if secrets := secrets_of(request):
        with hiding(*secrets):
            return run(request, call)
    return run(request, call)


def can_find_again(controller: type | None) -> bool:
    """Can a lost journal do no harm: is a volume found by its name, or made under the same id or token again?"""
    return controller is None or issubclass(controller, FindsByName | TakesIds | TakesTokens)


def _refuse_doubling(backend: type[Backend[Any, Any]], controller: type | None, journal: Journal) -> None:
    """A backend whose creates cannot be found again is safe only as long as the journal is."""
    from volkit.journal.memory import MemoryJournal

    if can_find_again(controller):
        return
    if isinstance(journal, SharedJournal):
        raise FailedPrecondition(
            f"backend {backend.name!r} finds no volume by name, takes no ids, no tokens: no lock keeps two replicas "
            "from making a volume twice; run one controller with sqlite:///PATH on a volume that follows it"
        )
    if isinstance(journal, MemoryJournal):
        raise FailedPrecondition(
            f"backend {backend.name!r} finds no volume by name, takes no ids, no tokens: after a crash only a journal "
            "tells what was made; give one that follows the controller, such as sqlite:///PATH on a volume of its own"
        )
