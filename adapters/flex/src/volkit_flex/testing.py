"""The conformance suite through the wire: what the engine gives, a FlexVolume driver must give too.

```python
class TestAcmeOverFlex(FlexSuite):
    backend = Acme
    def storage(self, directory): ...
```

What FlexVolume has goes by its calls, as words and JSON: attach, detach, mountdevice, unmountdevice, mount, unmount,
expandvolume and expandfs, which grows both. What it has not (to make a volume by itself, snapshots, listings, raw block
devices, an access mode of the caller's choice) goes to the engine. An answer has no code, only a sentence: the error
behind it is looked up in this process, and the sentence has to be its own.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from volkit import Backend, Capability, Engine, Journal, Unsupported, VolkitError, requests
from volkit.testing import BackendSuite, Driver
from volkit_flex import token, wire
from volkit_flex.service import Service


class FlexSuite(BackendSuite):
    """The suite, with a FlexVolume driver between its cases and the engine."""

    _served_by: ClassVar[int] = os.getpid()

    def serve(
        self, backend: type[Backend[Any, Any]], settings: Any, state_dir: Path, journal: Journal
    ) -> Driver:
        engine = super().serve(backend, settings, state_dir, journal)
        assert isinstance(engine, Engine)
        return engine if os.getpid() != self._served_by else FlexDriver(engine)


class _Told(Service):
    """A service that keeps the error behind its last failure."""

    error: VolkitError | None = None

    def answered(self, call: wire.Callout) -> wire.Answer:
        self.error = None
        try:
            return super().answered(call)
        except VolkitError as error:
            self.error = error
            raise


class FlexDriver:
    """An engine behind a FlexVolume driver: takes and gives what the engine does, by way of the wire where it can."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._service = _Told(engine, attaches=True)
        self.calls: list[str] = []

    def run(self, operation: str, request: Any) -> Any:
        """One operation. Raises the error that the driver's answer tells of."""
        spoken = _WORDS.get(operation)
        words = spoken(self._engine, request) if spoken else None
        if words is None:
            return self._engine.run(operation, request)
        answer = self._call(*words)
        if operation == "controller_publish":
            attachment = token.decode(answer["device"])
            assert attachment is not None
            return requests.ControllerPublishResult(publish_context=attachment.publish_context)
        if operation == "expand_volume":
            return requests.ExpandVolumeResult(capacity=answer["volumeNewSize"])
        if operation == "node_expand":
            return requests.NodeExpandResult(capacity=answer["volumeNewSize"])
        return None

    def _call(self, *words: str) -> dict[str, Any]:
        self.calls.append(words[0])
        line = wire.encode(self._service.handle(list(words)))
        answer: dict[str, Any] = json.loads(line)
        self._service.heard(list(words), answer)
        if answer["status"] == wire.SUCCESS:
            return answer
        if answer["status"] == wire.NOT_SUPPORTED:
            raise Unsupported(answer["message"])
        error = self._service.error
        assert error is not None, f"{words[0]} answers {line!r} without an error behind it"
        assert answer["message"] == error.message
        raise error

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


# -- from the core's requests to words


def _options(request: Any, **more: str) -> str:
    """The options that make the driver ask the engine for this."""
    capability: Capability | None = getattr(request, "capability", None)
    options = {"volume": request.volume_id, wire.NAME: request.volume_id, **more}
    options.update(getattr(request, "volume_context", {}))
    if capability is not None:
        options["kubernetes.io/fsType"] = capability.fs_type
        if capability.mount_flags:
            options["mountOptions"] = ",".join(capability.mount_flags)
    options["kubernetes.io/readwrite"] = "ro" if getattr(request, "readonly", False) else "rw"
    for key, value in request.secrets.items():
        options[f"kubernetes.io/secret/{key}"] = base64.b64encode(value.encode()).decode()
    return json.dumps(options)


def _can_say(engine: Engine, request: Any) -> bool:
    """Can a FlexVolume call ask for this: a file system, with the access mode that the driver chooses?"""
    capability: Capability = request.capability
    service = Service(engine, attaches=True)
    chosen = service.volumes.capability(
        service.volumes.options(wire.read(["getvolumename", _options(request)])), request.volume_id
    )
    own = all("," not in flag and flag not in ("ro", "rw") for flag in capability.mount_flags)
    return own and chosen == capability


def _attach(engine: Engine, request: Any) -> list[str] | None:
    if not _has_text(request.volume_id, request.node_id) or not _can_say(engine, request):
        return None
    return ["attach", _options(request), request.node_id]


def _detach(engine: Engine, request: Any) -> list[str] | None:
    if not _has_text(request.volume_id, request.node_id) or request.secrets:  # it has none
        return None
    return ["detach", request.volume_id, request.node_id]


def _stage(engine: Engine, request: Any) -> list[str] | None:
    if not _has_place(request, request.staging_target_path) or not _can_say(engine, request):
        return None
    attachment = token.Attachment(
        request.volume_id, request.volume_id, request.publish_context, request.volume_context
    )
    return ["mountdevice", request.staging_target_path, token.encode(attachment), _options(request)]


def _unstage(engine: Engine, request: Any) -> list[str] | None:
    known = Service(engine, attaches=True).node_records.get("flex-path", request.staging_target_path)
    if not _has_place(request, request.staging_target_path) or known.get("volume") != request.volume_id:
        return None
    return ["unmountdevice", request.staging_target_path]


def _publish(engine: Engine, request: Any) -> list[str] | None:
    device = Service(engine, attaches=True).node_records.get("flex-device", request.volume_id)
    if (
        not _has_place(request, request.target_path)
        or device.get("path") != request.staging_target_path
        or not _can_say(engine, request)
    ):
        return None
    return ["mount", request.target_path, _options(request)]


def _unpublish(engine: Engine, request: Any) -> list[str] | None:
    known = Service(engine, attaches=True).node_records.get("flex-path", request.target_path)
    if not _has_place(request, request.target_path) or known.get("volume") != request.volume_id:
        return None
    return ["unmount", request.target_path]


def _expand(engine: Engine, request: Any) -> list[str] | None:
    size = request.capacity_range
    if not _has_text(request.volume_id) or size.limit or size.required <= 0 or request.capability is not None:
        return None
    return ["expandvolume", _options(request), "/not/known", str(size.required), "0"]


def _has_text(*texts: str) -> bool:
    return all(text and "\0" not in text for text in texts)


def _has_place(request: Any, path: str) -> bool:
    return (
        _has_text(request.volume_id)
        and path.startswith("/")
        and ".." not in path.split("/")
        and path.strip("/.") != ""
    )


_WORDS: Final[Mapping[str, Callable[[Engine, Any], list[str] | None]]] = {
    "controller_publish": _attach,
    "controller_unpublish": _detach,
    "node_stage": _stage,
    "node_unstage": _unstage,
    "node_publish": _publish,
    "node_unpublish": _unpublish,
    "expand_volume": _expand,
}
