"""One engine as a FlexVolume driver: from a command line to its answer."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import volkit
from volkit import Call, Engine, Expands, VolkitError, events
from volkit.guard import hiding
from volkit.redaction import redact
from volkit_flex import records, wire
from volkit_flex.controller_calls import ControllerCalls
from volkit_flex.node_calls import NodeCalls
from volkit_flex.options import secret_values
from volkit_flex.volumes import Volumes
from volkit_flex.wire import Callout

if TYPE_CHECKING:
    from volkit_flex.wire import Answer

CALL_SECONDS: Final = 110.0
"""After which a call is answered, whatever hangs: kubelet itself waits for ever."""

WAIT_SECONDS: Final = 5.0
"""How long another operation on the volume is waited for; kubelet repeats what fails."""

_log = logging.getLogger("volkit.flex")


def capabilities(
    backend: type[volkit.Backend[Any, Any]], *, attaches: bool, expands: bool, per_pod: bool
) -> dict[str, bool]:
    """What `init` answers, every key of Kubernetes' DriverCapabilities written out; `per_pod`: its node connects
    anew for each pod.
    """
    objects = backend.volume.kind == "object"
    return {
        "attach": attaches,
        "selinuxRelabel": not objects,
        "supportsMetrics": not objects,  # kubelet asks statfs, which means nothing there
        "fsGroup": not (objects or per_pod),  # kubelet's recursive chown; else the backend is told the group
        "requiresFSResize": expands,  # expandfs is the only call of which a volume can grow
    }


def attaches_by_itself(backend: type[volkit.Backend[Any, Any]], settings: Any) -> bool:
    """Does the storage attach volumes to nodes, so that the controller manager has to call?"""
    controller = backend.controller_class(settings)
    return controller is not None and issubclass(controller, volkit.Publishes)


class Service:
    """One engine as a FlexVolume driver; `attaches` is what its `init` said. Thread-safe."""

    def __init__(self, engine: Engine, *, attaches: bool) -> None:
        self.engine = engine
        self.attaches = attaches
        self.volumes: Volumes = Volumes(engine, attaches=attaches)
        self.controller: ControllerCalls = ControllerCalls(self.volumes)
        self.node: NodeCalls = NodeCalls(self.volumes)
        self.node_records: records.Records = self.volumes.node_records
        self.controller_records: records.Records = self.volumes.controller_records

    def handle(self, words: list[str]) -> Answer:
        """The answer to a command line. Never raises, and never tells a secret."""
        with events.request():
            return self._handle(words)

    def _handle(self, words: list[str]) -> Answer:
        secrets: tuple[str, ...] = ()
        try:
            call = wire.read(words)
            secrets = secret_values(call.options, self.engine.backend)
            with hiding(*secrets):
                answer = self.answered(call)
        except VolkitError as error:
            answer = wire.failure(error)
        except Exception as error:
            with hiding(*secrets):
                _log.exception("%s failed unexpectedly", words[0] if words else "a call")
            answer = wire.failure(error)
        if "message" in answer:
            answer["message"] = redact(answer["message"], *secrets)
        return answer

    def answered(self, call: Callout) -> Answer:
        """The answer to a call. Raises what is wrong with it, and what the engine raises."""
        if not self.does(call.operation):
            return wire.unsupported(call.operation)
        begun = time.monotonic()
        rooms = (self, self.controller, self.node)
        method = next(getattr(room, call.operation) for room in rooms if hasattr(room, call.operation))
        try:
            answer: Answer = {"status": wire.SUCCESS, **method(call, self.limits())}
        except VolkitError as error:
            _log.warning("%s failed after %.3f s: %s", _named(call), time.monotonic() - begun, error.message)
            raise
        finally:
            self.finish_left()
        _log.info("%s: done in %.3f s", _named(call), time.monotonic() - begun)
        return answer

    def heard(self, words: list[str], answer: Answer) -> None:
        """The caller of a command line has its answer: what is mounted is known to be."""
        if answer["status"] != wire.SUCCESS or words[0] not in ("mount", "mountdevice"):
            return
        try:
            self.node.heard(words[1])
        except Exception as error:  # it is answered, and that it was is for the next call to know
            _log.warning("%s of %s was answered, and is not recorded so: %s", words[0], words[1], error)

    def finish_left(self) -> None:
        """See `NodeCalls.finish_left`: for no call to fail of."""
        if self.engine.node is None:
            return
        try:
            self.node.finish_left()
        except Exception:
            _log.exception("what other calls left cannot be looked after")

    def does(self, operation: str) -> bool:
        """Does this driver ever do that? Kubelet remembers a no, so no single failure may say it."""
        if operation in wire.ATTACHING:
            return self.attaches
        return operation not in wire.GROWING or self.engine.has(Expands)

    @staticmethod
    def limits() -> Call:
        """What a call may take."""
        return Call(deadline=time.monotonic() + CALL_SECONDS, wait=WAIT_SECONDS)

    def init(self, call: Callout, limits: Call) -> Answer:
        can = capabilities(
            self.engine.backend,
            attaches=self.attaches,
            expands=self.engine.has(Expands),
            per_pod=self.engine.has(volkit.ConnectsPerPod),
        )
        return {"capabilities": can}

    def getvolumename(self, call: Callout, limits: Call) -> Answer:
        return {"volumeName": wire.identity(call.options)}

    def detach(self, call: Callout, limits: Call) -> Answer:
        if call.node == self.engine.node_id and self.engine.node is not None:
            self.node.release(call.name, limits)
        return self.controller.detach(call, limits)


def _named(call: Callout) -> str:
    """A call for the log: what it is about, and no option."""
    about = call.path or call.name or call.options.get(wire.NAME, "")
    return f"{call.operation} {about}" + (f" on {call.node}" if call.node else "")
