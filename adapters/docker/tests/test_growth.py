"""What a call costs does not grow with the volumes that are there. Counted, and not timed: a slow machine
breaks a clock; benchmarks/docker.py has the times.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from volkit import Engine
from volkit.journal import Entry
from volkit.journal.memory import MemoryJournal
from volkit.testing.memory import ARRAYS, MemoryBackend, MemorySettings, memory_settings
from volkit_docker.service import Service

MANY = 1000


class Counted(MemoryJournal):
    """A journal that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def get(self, key: str) -> Entry | None:
        self.counts["get"] += 1
        return super().get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int = 0) -> list[Entry]:
        self.counts["scan"] += 1
        return super().scan(prefix, after=after, limit=limit)

    def write(self, *changes: Any, durable: bool = True) -> None:
        self.counts["write"] += 1
        super().write(*changes, durable=durable)


def cost(settings: MemorySettings, journal: Counted, state: Path) -> dict[str, dict[str, int]]:
    """Of a start and of each call: how often the journal and the storage are asked."""
    asked: Counter[str] = Counter()
    ARRAYS[settings.array].before = lambda method: asked.update([method])
    found: dict[str, dict[str, int]] = {}

    def take(what: str) -> None:
        found[what] = {**journal.counts, **asked}
        journal.counts.clear()
        asked.clear()

    journal.counts.clear()
    engine = Engine(
        MemoryBackend, settings, state_dir=state, journal=journal, node_journal=journal, node_id="n"
    )
    service = Service(engine, state / "mounts")
    service.activate({})
    service.capabilities({})
    service.uses.settle()
    take("start")
    for call, request in (
        (service.create, {"Name": "one", "Opts": {"size": "1Mi"}}),
        (service.get, {"Name": "one"}),
        (service.mount, {"Name": "one", "ID": "a"}),
        (service.path, {"Name": "one"}),
        (service.listing, {}),
        (service.unmount, {"Name": "one", "ID": "a"}),
        (service.remove, {"Name": "one"}),
    ):
        call(request)
        take(call.__name__)
    return found


@pytest.mark.root
def test_a_thousand_volumes_cost_what_ten_do(tmp_path: Path) -> None:
    settings, journal = memory_settings(root=tmp_path / "array"), Counted()
    engine = Engine(
        MemoryBackend,
        settings,
        state_dir=tmp_path / "made",
        journal=journal,
        node_journal=journal,
        node_id="n",
    )
    service = Service(engine, tmp_path / "made/mounts")
    few: dict[str, dict[str, int]] = {}
    for number in range(MANY):
        service.create({"Name": f"v{number}", "Opts": {"size": "1Mi"}})
        if number == 9:
            few = cost(settings, journal, tmp_path / "few")
    many = cost(settings, journal, tmp_path / "many")
    pages = MANY // 500 + 1  # a listing asks for pages of 500
    assert many["listing"].pop("list_volumes") == pages
    assert few["listing"].pop("list_volumes") == 1
    published = (many["listing"].pop("list_published", 0), few["listing"].pop("list_published", 0))
    assert published in ((0, 0), (pages, 1))
    assert many == few
    service.engine.close()
