"""The conformance suite: a class of pytest cases for a backend, which `volkit check` runs too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from volkit.backend import Backend
from volkit.engine import Engine
from volkit.journal import Journal, SharedJournal
from volkit.testing.fault_cases import FaultCases
from volkit.testing.journals import VolatileJournal
from volkit.testing.kit import Driver
from volkit.testing.secret_cases import SecretCases
from volkit.testing.sharing_cases import AttachmentCases, NodeCases, SnapshotCases
from volkit.testing.volume_cases import VolumeCases
from volkit.testing.witness import Storage

if TYPE_CHECKING:
    import pytest


class BackendSuite(VolumeCases, SnapshotCases, AttachmentCases, NodeCases, FaultCases, SecretCases):
    """Everything that volkit promises of a backend, tried. Subclass it as `Test…`, set `backend`, define
    `storage`.

    A case is skipped only where the class lacks the capability. To leave one out, override it with a function
    that is marked `xfail` with a reason; otherwise the whole class fails.
    """

    backend: ClassVar[type[Backend[Any, Any]]]
    parameters: ClassVar[Mapping[str, str]] = {}
    """What the volumes are made with, as a StorageClass would give it."""
    mutable: ClassVar[Mapping[str, str]] = {}
    """Parameters to modify a volume with."""
    secrets: ClassVar[Mapping[str, str]] = {}
    size: ClassVar[int] = 0
    """Bytes of the volumes that are made; 0 leaves it to the backend."""
    node_id: ClassVar[str] = "volkit-kit"
    """What this machine is called."""
    nodes: ClassVar[tuple[str, str]] = ("node-a", "node-b")
    """Two nodes that the storage can attach to."""
    longest_name: ClassVar[int] = 255
    """Characters of the longest volume name that is tried."""
    sampled: ClassVar[bool] = False
    """A sample of the faults, also where all are asked for: for a suite that repeats another one's through a wire."""
    sequences: ClassVar[int] = 0
    """How many random sequences of calls are tried; 0 leaves it to the kit: 100 in memory, 10 on a real storage."""
    sample_faults: ClassVar[int | None] = None
    """How many faults in one operation are tried: None is all on a storage in memory and 24 on a real one, 0 is all."""
    sample_kills: ClassVar[int] = 8
    """How many processes are killed in one operation; 0 is one at each system call."""
    patience: ClassVar[float] = 30.0
    """Seconds after which a call is said to hang."""

    def storage(self, directory: Path) -> Storage:
        """A storage to work on, `directory` being an empty one that is removed after the case."""
        raise TypeError(f"{type(self).__name__} has no storage(): define it, and return a Storage")

    def journal(self) -> Journal:
        """The journal that the driver is given, empty: one in memory, of which a power cut takes what is not
        durable. Override it to test with another, such as one in etcd.
        """
        return VolatileJournal()

    def serve(
        self, backend: type[Backend[Any, Any]], settings: Any, state_dir: Path, journal: Journal
    ) -> Driver:
        """What is tested: an engine. Override it to put a wire before one; `backend` is this suite's, watched, and so
        is `journal`.
        """
        local = None if isinstance(journal, SharedJournal) else journal  # a node shares nothing
        return Engine(
            backend,
            settings,
            state_dir=state_dir,
            journal=journal,
            node_journal=local,
            node_id=self.node_id,
        )


CASES: dict[str, Callable[..., None]] = {
    name: case
    for name, case in inspect.getmembers(BackendSuite, inspect.isfunction)
    if name.startswith("test_")
}
"""Every case of the suite, by name."""


def _is_honest(mark: pytest.Mark) -> bool:
    """Does it say that a case fails, and why, and is it an error once it does not?"""
    sure = not mark.args and "condition" not in mark.kwargs
    return (
        mark.name == "xfail"
        and sure
        and mark.kwargs.get("strict") is True
        and bool(mark.kwargs.get("reason"))
    )


def broken_rules(cls: type[BackendSuite]) -> list[str]:
    """How a suite was made to test less than it says: a case that is gone, replaced or skipped."""
    faults = []
    for name, case in CASES.items():
        found = inspect.getattr_static(cls, name, None)
        marks = getattr(found, "pytestmark", ())
        if found is case and not marks:
            continue
        skipped = any(mark.name in ("skip", "skipif") for mark in marks)
        if not callable(found) or skipped or not any(map(_is_honest, marks)):
            faults.append(
                f"{cls.__name__}.{name} is a case of the suite: mark what replaces it xfail, with a reason and "
                "strict=True, so that it is known when it works"
            )
    faults += [
        f"{cls.__name__} is marked {mark.name} as a whole: mark single cases xfail, with a reason"
        for mark in getattr(cls, "pytestmark", ())
        if mark.name in ("skip", "skipif", "xfail")
    ]
    if getattr(cls, "__test__", True) is False:
        faults.append(f"{cls.__name__}.__test__ is False: remove it")
    return faults
