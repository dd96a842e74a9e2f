"""Nobody tells a secret: neither the backend nor volkit, whatever fails meanwhile."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volkit import options
from volkit import requests as r
from volkit.errors import Unavailable, VolkitError
from volkit.guard import declared_secrets
from volkit.model import Capability, CapacityRange, CloneSource, SnapshotSource
from volkit.testing.faults import METHODS, Point, Spy
from volkit.testing.kit import Kit, check
from volkit.testing.scenarios import SCENARIOS
from volkit.testing.sharing_cases import Used

SECRET = "volkit-kit-Zq7/x+9"
"""What every call carries among its secrets, and in its mount flags."""

_BLIND = frozenset({"get_capacity", "list_published", "list_volumes", "volume_health", "disconnect"})
"""Methods that are called without the secrets of a request, so that nobody knows what to hide but the settings'."""


def _long_enough(secrets: Iterable[str]) -> tuple[str, ...]:
    """Those that are not a part of any text by chance."""
    return tuple(one for one in secrets if len(one) >= 8)


class SecretCases:
    """Requests, parameters and settings with secrets that can be recognised."""

    def test_no_secret_is_told(self, volkit_kit: Kit) -> None:
        """Not by an answer, an error, a log record, a record of the journal, a program's arguments or a repr."""
        kit = volkit_kit
        kit.told = {"volkitKit": SECRET}
        parameters: Any = options.read(kit.backend.parameters, kit.suite.parameters)
        own = _long_enough(declared_secrets(kit.storage.settings))
        given = _long_enough((*kit.suite.secrets.values(), *declared_secrets(parameters)))
        kit.spy.secrets = (SECRET, *given, *own)
        with _logs_heard(kit.spy), _programs_heard(kit.spy):
            _everything(kit)
            for method in _methods(kit):
                for fail in _failures(own if method in _BLIND else kit.spy.secrets):
                    kit.spy.begin(Point(method, 1, "after"), fail)
                    _everything(kit)
        kit.stop()
        for file in filter(Path.is_file, (kit.directory / "state").rglob("*")):
            kit.spy.listen(
                f"the file {file.name} of the state directory", file.read_bytes().decode("latin-1")
            )
        check(not kit.spy.wrong, "; ".join(dict.fromkeys(kit.spy.wrong)))


def _methods(kit: Kit) -> list[str]:
    classes = (kit.controller_class, kit.node_class)
    return [name for name in METHODS if any(hasattr(one, name) for one in classes)]


def _failures(secrets: tuple[str, ...]) -> tuple[Callable[[], None], ...]:
    """What a vendor's library may say, by accident and on purpose."""
    said = " ".join(secrets)

    def by_accident() -> None:
        raise RuntimeError(f"cannot log in with {said}")

    def on_purpose() -> None:
        try:
            by_accident()
        except RuntimeError as cause:
            cause.add_note(f"tried {said}")
            raise Unavailable("the storage is away") from cause

    return by_accident, on_purpose


def _everything(kit: Kit) -> None:
    """Every operation that the backend has, well and badly; what fails is no matter here."""
    capability = Capability(mount_flags=(f"password={SECRET}",))
    request = kit.request(capabilities=(capability,))
    made: list[Any] = []
    nothing = "no-such-volume"

    def create(**fields: Any) -> Callable[[], object]:
        return lambda: made.append(kit.create_as(kit.request(capabilities=(capability,), **fields)))

    _each(lambda: made.append(kit.create_as(request)), lambda: made.append(kit.create_as(request)))
    if not made:
        return
    volume = made[0]
    larger = CapacityRange(required=kit.larger(volume))
    _each(
        lambda: kit.run("create_volume", kit.request(request.name, capacity_range=larger)),
        lambda: kit.get(volume.id),
        lambda: kit.get(nothing),
        lambda: kit.delete(nothing),
        lambda: kit.run("list_volumes", r.ListRequest()),
        lambda: kit.run("list_snapshots", r.ListSnapshotsRequest(secrets=kit.secrets)),
        lambda: kit.run("get_capacity", r.CapacityRequest(parameters=dict(kit.suite.parameters))),
        lambda: kit.run(
            "modify_volume",
            r.ModifyVolumeRequest(volume_id=volume.id, parameters=kit.suite.mutable, secrets=kit.secrets),
        ),
        lambda: kit.run(
            "expand_volume",
            r.ExpandVolumeRequest(volume_id=volume.id, capacity_range=larger, secrets=kit.secrets),
        ),
        lambda: made.append(kit.cut(volume.id)),
        lambda: kit.uncut("no-such-snapshot"),
        create(source=CloneSource(volume.id)),
    )
    for snapshot in [one for one in made if hasattr(one, "source_volume_id")]:
        _each(create(source=SnapshotSource(snapshot.id)), lambda id_=snapshot.id: kit.uncut(id_))  # type: ignore[misc]
    if not SCENARIOS["publish"].lacking(kit):
        used = Used(kit, volume, capability)
        _each(used.attach, used.stage, used.publish, used.grow)
        used.capability = Capability()  # a file system that does not know such a flag was not mounted
        _each(used.stage, used.publish, used.grow, used.unpublish, used.unstage, used.detach)
    with suppress(VolkitError):
        kit.undo()
    kit.spy.begin()
    kit.undo()


def _each(*calls: Callable[[], object]) -> None:
    for call in calls:
        with suppress(VolkitError):
            call()


@contextmanager
def _logs_heard(spy: Spy) -> Iterator[None]:
    """Every log record in here is listened to, at every level, with its exception."""

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            spy.listen(f"the log {record.name!r}", self.format(record))

    handler, root = Heard(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def _programs_heard(spy: Spy) -> Iterator[None]:
    """The arguments of every program that this process starts in here are listened to."""
    begin = subprocess.Popen.__init__

    def heard(self: Any, args: Any, *more: Any, **named: Any) -> None:
        spy.listen("the command line of a program", repr(args))
        begin(self, args, *more, **named)

    subprocess.Popen.__init__ = heard  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = begin  # type: ignore[method-assign]
