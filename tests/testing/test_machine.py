"""Random sequences of calls find what is planted, and show it in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from volkit import requests as r
from volkit.model import Volume
from volkit.testing import BackendSuite, Fault, Kit, Storage
from volkit.testing.machine import random_sequences
from volkit.testing.memory import (
    ARRAYS,
    ArrayWitness,
    MemoryBackend,
    MemoryController,
    MemoryNode,
    memory_settings,
)


class KeepsDeleted(MemoryController):
    """Forgets to free what was expanded."""

    def delete_volume(self, request: r.DeleteVolumeRequest) -> None:
        stored = self.array.volumes.get(request.volume_id)
        if stored is not None and stored.volume.capacity > 1:
            self.array.volumes[f"{request.volume_id}-trash"] = stored
        super().delete_volume(request)


class ForgetsAnother(MemoryController):
    """A create takes the oldest volume away."""

    def create_volume(self, request: r.CreateVolumeRequest[Any]) -> Volume:
        if self.array.volumes:
            del self.array.volumes[min(self.array.volumes)]
        return super().create_volume(request)


class DetachesTooMuch(MemoryNode):
    """Takes the volume's directory away when a pod is done with it."""

    def disconnect(self, request: r.DisconnectRequest) -> None:
        assert self.settings.root
        for volume in ARRAYS[self.settings.array].volumes.values():
            volume.nodes.clear()
        ARRAYS[self.settings.array].volumes.pop(request.volume_id, None)


def kit_for(tmp_path: Path, cls: type[Any]) -> Kit:
    """A kit on the memory backend, with one of its classes replaced."""
    role = "node" if issubclass(cls, MemoryNode) else "controller"
    make: Any = type(MemoryBackend)
    broken = make(cls.__name__, (MemoryBackend,), {role: cls, "name": "broken", "__module__": __name__})

    class Suite(BackendSuite):
        __test__ = True
        backend = broken

        def storage(self, directory: Path) -> Storage:
            settings = memory_settings(root=directory)
            return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)

    return Kit(Suite(), tmp_path)


@pytest.mark.root
@pytest.mark.parametrize(
    ("cls", "said", "lines"),
    [
        (KeepsDeleted, "vol-00000001-trash", 3),
        (ForgetsAnother, "the witness sees 1 volumes, not 2", 5),
        (DetachesTooMuch, "the witness sees 0 volumes, not 1", 7),
    ],
)
def test_a_planted_fault_is_found_and_shown_shortly(
    tmp_path: Path, cls: type[Any], said: str, lines: int
) -> None:
    kit = kit_for(tmp_path, cls)
    with pytest.raises(Fault) as caught:
        random_sequences(kit, examples=80)
    shown = str(caught.value)
    assert said in shown
    assert "CreateVolume" in shown
    assert len(shown.splitlines()) <= lines + 1, shown
    kit.close(judge=False)
